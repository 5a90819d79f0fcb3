"""Cutting a batch into micro-batches, and laying one of them out.

Packed, a micro-batch is one row of its distinct tokens, prompts that sequences share among them once; `attention` keeps
the sequences apart. Padded, its rows are filled up on the right, where causal attention sees nothing of it.
Axes: b sequences in a micro-batch, S positions of the longest, T padded response tokens, N response tokens of all b
together, M packed tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import NamedTuple

import torch
from torch import Tensor

from grpo.config import Packing
from grpo.policy.attention import PackedLayout, SharedPrompt
from grpo.types import TrainBatch

# For the backward pass a layer keeps 20 to 40 times the hidden size of every packed token, and attention 2 to 3 times
# of every position (query, key, value, output): four positions to a token are still the smaller part of the memory.
_POSITIONS_PER_TOKEN = 4


@dataclass(frozen=True, slots=True)
class MicroBatch:
    """Some rows of a batch on the policy's device.

    Attributes:
        rows: [b] their numbers in the batch.
        input_ids: [1, M] int64; padded [b, S], zeros after each row's end.
        layout: how the M tokens make b sequences; None if padded.
        response_mask: [b, T] True on response tokens.
        source: [N] where the token that predicts each response token stands in the flattened `input_ids`.
        targets: [N] the response tokens, row by row.
    """

    rows: tuple[int, ...]
    input_ids: Tensor
    layout: PackedLayout | None
    response_mask: Tensor
    source: Tensor
    targets: Tensor

    def scatter(self, values: Tensor) -> Tensor:
        """[N] values of response tokens as [b, T], zeros elsewhere; gradients pass."""
        return values.new_zeros(self.response_mask.shape).masked_scatter(self.response_mask, values)

    def pad(self, values: Sequence[Tensor]) -> Tensor:
        """Per-token values of every row of the batch, [T_i] each, as this micro-batch's [b, T]."""
        rows = [values[row].to(self.input_ids.device, torch.float32) for row in self.rows]
        return self.scatter(torch.cat(rows))


def micro_batch_rows(
    batch: TrainBatch,
    rows: Sequence[int],
    *,
    max_tokens: int,
    num_parts: int | None = None,
    packing: Packing = Packing.padded,
) -> list[list[int]]:
    """Splits rows, longest first, so that little is padded; rows that share a prompt stay together where they fit.

    There are as few parts as that gives, and these are about equally full.

    Args:
        batch: the sequences.
        rows: which of them.
        max_tokens: of a micro-batch: its packed tokens and a quarter of its b * S positions, or all of its positions
            if it is padded. A longer sequence gets one of its own.
        num_parts: so many micro-batches of equal numbers of rows instead, or None.
        packing: how they will be laid out.

    Returns:
        Row numbers per micro-batch; together exactly `rows`.
    """
    units = prompt_units(batch, rows, packing)
    if num_parts is not None:
        ordered = [row for unit in units for row in unit]
        size = -(-len(ordered) // num_parts)
        return [ordered[start : start + size] for start in range(0, len(ordered), max(1, size))]
    wholes = [_Size.of(batch, unit) for unit in units]

    def fill(budget: int) -> list[list[int]]:
        parts: list[list[int]] = []
        size = _Size()
        for unit, whole in zip(units, wholes, strict=True):
            if not parts or size.plus(whole).taken(packing) > budget:
                parts.append([])
                size = _Size()
            if size.plus(whole).taken(packing) <= budget:
                parts[-1] += unit
                size = size.plus(whole)
                continue
            for place, row in enumerate(unit):
                length = len(batch.token_ids[row])
                grown = size.plus(_Size(1, length, length - (batch.prompt_lengths[row] if place else 0)))
                if parts[-1] and grown.taken(packing) > budget:
                    parts.append([])
                    grown = _Size(1, length, length)
                parts[-1].append(row)
                size = grown
        return parts

    parts = fill(max_tokens)
    # The memory is that of the largest: no fuller than as many of them need to be, unless that would cut a group.
    least = max((taken for whole in wholes if (taken := whole.taken(packing)) <= max_tokens), default=0)
    for sixteenths in range(16 * (len(parts) - 1) // max(1, len(parts)), 16):
        budget = max_tokens * sixteenths // 16
        if budget >= least:
            even = fill(budget)
            if len(even) == len(parts):
                return even
    return parts


def prompt_units(batch: TrainBatch, rows: Sequence[int], packing: Packing) -> list[list[int]]:
    """Rows that should stay together, longest first, ordered by the longest of each."""
    ordered = sorted(rows, key=lambda row: (-len(batch.token_ids[row]), row))
    if packing is not Packing.shared_prompts:
        return [[row] for row in ordered]
    units: dict[tuple[int, ...], list[int]] = {}
    for row in ordered:
        units.setdefault(_prompt(batch, row), []).append(row)
    return list(units.values())


def _prompt(batch: TrainBatch, row: int) -> tuple[int, ...]:
    return tuple(batch.token_ids[row][: batch.prompt_lengths[row]].tolist())


class _Size(NamedTuple):
    """Of some sequences: how many there are, their longest, and their tokens, those of shared prompts once."""

    num: int = 0
    longest: int = 0
    packed: int = 0

    @classmethod
    def of(cls, batch: TrainBatch, unit: Sequence[int]) -> _Size:
        """Of a unit, whose rows share a prompt if there are several."""
        lengths = [len(batch.token_ids[row]) for row in unit]
        return cls(len(unit), max(lengths), sum(lengths) - (len(unit) - 1) * batch.prompt_lengths[unit[0]])

    def plus(self, other: _Size) -> _Size:
        return _Size(self.num + other.num, max(self.longest, other.longest), self.packed + other.packed)

    def taken(self, packing: Packing) -> int:
        """What they take of the budget."""
        positions = self.num * self.longest
        return positions if packing is Packing.padded else max(self.packed, -(-positions // _POSITIONS_PER_TOKEN))


def collate(
    batch: TrainBatch, rows: Sequence[int], device: torch.device, packing: Packing = Packing.padded
) -> MicroBatch:
    """Lays these rows of the batch out and notes where their response tokens are.

    Rows that follow one another and have the same prompt share it, if `packing` says so.
    """
    sequences = [batch.token_ids[row] for row in rows]
    prompts = [batch.prompt_lengths[row] for row in rows]
    if packing is Packing.padded:
        input_ids = torch.nn.utils.rnn.pad_sequence(sequences, batch_first=True, padding_value=0)
        places = torch.arange(input_ids.numel()).view_as(input_ids)
        layout = None
    else:
        keys = [_prompt(batch, row) for row in rows] if packing is Packing.shared_prompts else rows
        runs = [list(run) for _, run in groupby(range(len(rows)), key=keys.__getitem__)]
        input_ids, layout = _pack(sequences, prompts, runs)
        places = layout.places
    lengths = torch.tensor([batch.response_length(row) for row in rows])
    response_mask = torch.arange(int(lengths.max())) < lengths.unsqueeze(1)
    row_index, response_index = response_mask.nonzero(as_tuple=True)
    position_index = torch.tensor(prompts)[row_index] + response_index
    return MicroBatch(
        rows=tuple(rows),
        input_ids=input_ids.to(device),
        layout=None if layout is None else layout.to(device),
        response_mask=response_mask.to(device),
        source=places[row_index, position_index - 1].to(device),
        targets=input_ids.flatten()[places[row_index, position_index]].to(device),
    )


def _pack(
    sequences: Sequence[Tensor], prompts: Sequence[int], runs: Sequence[Sequence[int]]
) -> tuple[Tensor, PackedLayout]:
    """[1, M] tokens and their layout; the sequences of a run share their prompt, which stands before the first."""
    longest, num_packed = max(map(len, sequences)), 0
    tokens: list[Tensor] = []
    positions: list[Tensor] = []
    places: list[Tensor] = []
    readers: list[Tensor] = []
    segments: list[tuple[int, int, int, int]] = []
    shared: list[SharedPrompt] = []
    for run in runs:
        start, length = num_packed, prompts[run[0]]
        if len(run) > 1:
            shared.append(SharedPrompt(start, length, run[0], run[-1] + 1))
            segments.append((start, length, start, 0))
        for index in run:
            known = 0 if index == run[0] else length
            own = torch.arange(known, len(sequences[index]))
            tokens.append(sequences[index][known:])
            positions.append(own)
            places.append(torch.cat([torch.arange(start, start + known), own - known + num_packed]))
            readers.append(own + index * longest)
            num_packed += len(own)
            after = length if len(run) > 1 else 0
            num_after = len(sequences[index]) - after
            segments.append((num_packed - num_after, num_after, start, after))
    layout = PackedLayout(
        positions=torch.cat(positions).unsqueeze(0),
        places=torch.nn.utils.rnn.pad_sequence(places, batch_first=True, padding_value=0),
        readers=torch.cat(readers),
        segments=torch.tensor(segments),
        shared=tuple(shared),
    )
    return torch.cat(tokens).unsqueeze(0), layout
