"""Micro-batches: a partition of the rows under the budget."""

from dataclasses import replace

import pytest
import torch

from grpo.config import Packing
from grpo.policy.packing import collate, micro_batch_rows
from tests.unit.policy.batches import grouped_batch, ragged_batch

CPU = torch.device("cpu")
PACKED = [Packing.packed, Packing.shared_prompts]


@pytest.mark.parametrize("packing", Packing)
@pytest.mark.parametrize("budget", [1, 17, 40, 100, 10_000])
def test_every_row_is_in_exactly_one_micro_batch(budget, packing):
    batch = grouped_batch(num_groups=6, group_size=5)
    parts = micro_batch_rows(batch, range(30), max_tokens=budget, packing=packing)
    assert sorted(row for part in parts for row in part) == list(range(30))


@pytest.mark.parametrize("budget", [25, 40, 100])
def test_padded_tokens_stay_within_the_budget(budget):
    batch = ragged_batch(num=30)
    for part in micro_batch_rows(batch, range(30), max_tokens=budget):
        size = collate(batch, part, CPU).input_ids.numel()
        assert size <= budget or len(part) == 1


@pytest.mark.parametrize("packing", PACKED)
@pytest.mark.parametrize("budget", [25, 40, 100])
def test_packed_tokens_and_a_quarter_of_the_positions_stay_within_the_budget(budget, packing):
    batch = grouped_batch(num_groups=6, group_size=5)
    for part in micro_batch_rows(batch, range(30), max_tokens=budget, packing=packing):
        micro_batch = collate(batch, part, CPU, packing)
        assert max(micro_batch.input_ids.numel(), micro_batch.layout.places.numel() / 4) <= budget or len(part) == 1


def test_one_long_sequence_does_not_drag_many_short_ones_into_a_wide_micro_batch():
    """100 positions each for 17 rows are 1,700, a quarter of them 425: the short ones go elsewhere."""
    batch = ragged_batch(num=40)
    long = torch.ones(100, dtype=torch.long)
    batch = replace(
        batch,
        token_ids=(long, *batch.token_ids[1:]),
        sampler_log_probs=(torch.zeros(100 - batch.prompt_lengths[0]), *batch.sampler_log_probs[1:]),
    )
    parts = micro_batch_rows(batch, range(40), max_tokens=400, packing=Packing.packed)
    assert len(parts[0]) <= 16
    assert len(parts) == 2


def test_a_group_is_cut_only_if_it_does_not_fit_a_micro_batch_alone():
    batch = grouped_batch(num_groups=6, group_size=5)
    whole = micro_batch_rows(batch, range(30), max_tokens=90, packing=Packing.shared_prompts)
    assert len(whole) > 2
    assert all(len({row % 6 for row in part}) * 5 == len(part) for part in whole)
    cut = micro_batch_rows(batch, range(30), max_tokens=20, packing=Packing.shared_prompts)
    assert len(cut) > 6


def test_groups_come_by_their_longest_sequence_and_so_do_rows():
    batch = grouped_batch(num_groups=6, group_size=5)
    (part,) = micro_batch_rows(batch, range(30), max_tokens=10_000, packing=Packing.shared_prompts)
    groups = [part[start : start + 5] for start in range(0, 30, 5)]
    lengths = [[len(batch.token_ids[row]) for row in group] for group in groups]
    assert all(sorted(group, reverse=True) == group for group in lengths)
    assert [group[0] for group in lengths] == sorted((group[0] for group in lengths), reverse=True)


@pytest.mark.parametrize("packing", PACKED)
def test_the_layout_leads_every_position_to_its_token(packing):
    batch = grouped_batch()
    rows = [0, 3, 6, 1, 4, 2, 11]  # the first two prompts are of equal length, but not equal
    micro_batch = collate(batch, rows, CPU, packing)
    tokens, layout = micro_batch.input_ids[0], micro_batch.layout
    for places, row in zip(layout.places, rows, strict=True):
        length = len(batch.token_ids[row])
        assert tokens[places[:length]].tolist() == batch.token_ids[row].tolist()
        assert layout.positions[0, places[:length]].tolist() == list(range(length))
    read = layout.places.flatten()[layout.readers]
    assert read.tolist() == list(range(len(tokens)))
    repeated = 2 * 7 + 7 + batch.prompt_lengths[2]  # three rows of the first prompt, two of the others
    assert len(tokens) == sum(len(batch.token_ids[row]) for row in rows) - (
        repeated if packing is Packing.shared_prompts else 0
    )
    assert [tuple(prompt) for prompt in layout.shared][:1] == (
        [(0, 7, 0, 3)] if packing is Packing.shared_prompts else []
    )


def test_a_larger_budget_gives_fewer_micro_batches():
    batch = ragged_batch(num=30)
    numbers = [len(micro_batch_rows(batch, range(30), max_tokens=budget)) for budget in (1, 50, 200, 10_000)]
    assert numbers[0] == 30
    assert numbers == sorted(numbers, reverse=True)
    assert numbers[-1] == 1


def test_a_number_of_parts_gives_that_many_of_equal_size():
    for packing in Packing:
        parts = micro_batch_rows(ragged_batch(num=30), range(30), max_tokens=1, num_parts=5, packing=packing)
        assert [len(part) for part in parts] == [6] * 5


def test_no_rows_make_no_micro_batch():
    for num_parts in (None, 3):
        assert micro_batch_rows(ragged_batch(), [], max_tokens=100, num_parts=num_parts) == []


def test_no_sequence_is_truncated():
    batch = ragged_batch(num=30)
    for part in micro_batch_rows(batch, range(30), max_tokens=1):
        ids = collate(batch, part, CPU).input_ids[0]
        assert ids.tolist() == batch.token_ids[part[0]].tolist()


def test_scatter_and_pad_put_each_value_at_its_token():
    batch = ragged_batch(num=5)
    micro_batch = collate(batch, [3, 1], CPU)
    padded = micro_batch.pad(batch.sampler_log_probs)
    for place, row in enumerate([3, 1]):
        length = batch.response_length(row)
        assert padded[place, :length].tolist() == batch.sampler_log_probs[row].tolist()
        assert not padded[place, length:].any()
