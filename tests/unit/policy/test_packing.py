"""Micro-batches: a partition of the rows under the budget."""

from dataclasses import replace

import pytest
import torch

from grpo.config import Packing
from grpo.policy.packing import collate, micro_batch_rows
from grpo.types import TrainBatch
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


@pytest.mark.parametrize("packing", list(Packing))
def test_no_part_is_much_fuller_than_the_others(packing):
    """40 sequences of 20 tokens, without shared prompts, into parts of 600: two of about 400, and not 600 and 200."""
    batch = TrainBatch(
        token_ids=tuple(torch.full((20,), row) for row in range(40)),
        prompt_lengths=(5,) * 40,
        sampler_log_probs=(torch.zeros(15),) * 40,
        advantages=torch.ones(40),
    )
    sizes = [len(part) for part in micro_batch_rows(batch, range(40), max_tokens=600, packing=packing)]
    assert len(sizes) == 2
    assert max(sizes) <= 23


def batch_of_groups(prompts):
    """A row for each: ten tokens of its prompt and ten of its own."""
    return TrainBatch(
        token_ids=tuple(torch.tensor([prompt] * 10 + [7] * 10) for prompt in prompts),
        prompt_lengths=(10,) * len(prompts),
        sampler_log_probs=(torch.zeros(10),) * len(prompts),
        advantages=torch.ones(len(prompts)),
    )


def test_parts_are_not_made_even_by_cutting_a_group():
    """Groups of 8, 8 and 4 rows, of which two fit a part: 16 and 4 rows, for 10 and 10 would cut the second."""
    prompts = [0] * 8 + [1] * 8 + [2] * 4
    parts = micro_batch_rows(batch_of_groups(prompts), range(20), max_tokens=185, packing=Packing.shared_prompts)
    assert [sorted({prompts[row] for row in part}) for part in parts] in ([[0, 1], [2]], [[0], [1, 2]])


def test_a_large_group_is_not_cut_to_make_a_small_part_fuller():
    """A group that takes most of the budget and one that does not fit beside it."""
    prompts = [0] * 8 + [1] * 2
    parts = micro_batch_rows(batch_of_groups(prompts), range(10), max_tokens=100, packing=Packing.shared_prompts)
    assert parts == [list(range(8)), [8, 9]]


def test_every_piece_of_a_group_that_is_cut_has_the_prompt_once():
    """20 tokens of the first row and 10 of each other: five rows to a part of 60."""
    parts = micro_batch_rows(batch_of_groups([0] * 20), range(20), max_tokens=60, packing=Packing.shared_prompts)
    assert [len(part) for part in parts] == [5, 5, 5, 5]


@pytest.mark.parametrize("packing", list(Packing))
def test_a_row_is_looked_at_a_few_times_however_many_there_are(packing):
    looked_at = 0

    class Counted(tuple):
        def __getitem__(self, place):
            nonlocal looked_at
            looked_at += 1
            return super().__getitem__(place)

    batch = batch_of_groups([place // 8 for place in range(400)])
    counted = TrainBatch(Counted(batch.token_ids), batch.prompt_lengths, batch.sampler_log_probs, batch.advantages)
    looked_at = 0
    parts = micro_batch_rows(counted, range(400), max_tokens=3000, packing=packing)
    assert len(parts) > 1
    assert 400 <= looked_at <= 5 * 400


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
