"""Micro-batches: a partition of the rows under the budget."""

import pytest
import torch

from grpo.policy.packing import collate, micro_batch_rows
from tests.unit.policy.batches import ragged_batch


@pytest.mark.parametrize("budget", [1, 17, 40, 100, 10_000])
def test_every_row_is_in_exactly_one_micro_batch(budget):
    batch = ragged_batch(num=30)
    parts = micro_batch_rows(batch, range(30), max_tokens=budget)
    assert sorted(row for part in parts for row in part) == list(range(30))


@pytest.mark.parametrize("budget", [25, 40, 100])
def test_padded_tokens_stay_within_the_budget(budget):
    batch = ragged_batch(num=30)
    for part in micro_batch_rows(batch, range(30), max_tokens=budget):
        size = collate(batch, part, torch.device("cpu")).input_ids.numel()
        assert size <= budget or len(part) == 1


def test_a_larger_budget_gives_fewer_micro_batches():
    batch = ragged_batch(num=30)
    numbers = [len(micro_batch_rows(batch, range(30), max_tokens=budget)) for budget in (1, 50, 200, 10_000)]
    assert numbers[0] == 30
    assert numbers == sorted(numbers, reverse=True)
    assert numbers[-1] == 1


def test_a_number_of_parts_gives_that_many_of_equal_size():
    parts = micro_batch_rows(ragged_batch(num=30), range(30), max_tokens=1, num_parts=5)
    assert [len(part) for part in parts] == [6] * 5


def test_no_sequence_is_truncated():
    batch = ragged_batch(num=30)
    for part in micro_batch_rows(batch, range(30), max_tokens=1):
        ids = collate(batch, part, torch.device("cpu")).input_ids[0]
        assert ids.tolist() == batch.token_ids[part[0]].tolist()


def test_scatter_and_pad_put_each_value_at_its_token():
    batch = ragged_batch(num=5)
    micro_batch = collate(batch, [3, 1], torch.device("cpu"))
    padded = micro_batch.pad(batch.sampler_log_probs)
    for place, row in enumerate([3, 1]):
        length = batch.response_length(row)
        assert padded[place, :length].tolist() == batch.sampler_log_probs[row].tolist()
        assert not padded[place, length:].any()
