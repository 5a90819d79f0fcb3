"""Cutting a batch into micro-batches, and padding one of them.

Rows are padded on the right: with causal attention no real token can see the padding, so no attention mask is needed.
Axes: b sequences in a micro-batch, S padded tokens, T padded response tokens, N response tokens of all b together.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from grpo.types import TrainBatch


@dataclass(frozen=True, slots=True)
class MicroBatch:
    """Some rows of a batch on the policy's device.

    Attributes:
        rows: [b] their numbers in the batch.
        input_ids: [b, S] int64, zeros after each row's end.
        response_mask: [b, T] True on response tokens.
        row_index, position_index: [N], where the hidden state that predicts each response token stands.
        targets: [N] the response tokens, row by row.
    """

    rows: tuple[int, ...]
    input_ids: Tensor
    response_mask: Tensor
    row_index: Tensor
    position_index: Tensor
    targets: Tensor

    def scatter(self, values: Tensor) -> Tensor:
        """[N] values of response tokens as [b, T], zeros elsewhere; gradients pass."""
        return values.new_zeros(self.response_mask.shape).masked_scatter(self.response_mask, values)

    def pad(self, values: Sequence[Tensor]) -> Tensor:
        """Per-token values of every row of the batch, [T_i] each, as this micro-batch's [b, T]."""
        rows = [values[row].to(self.input_ids.device, torch.float32) for row in self.rows]
        return self.scatter(torch.cat(rows))


def micro_batch_rows(
    batch: TrainBatch, rows: Sequence[int], *, max_tokens: int, num_parts: int | None = None
) -> list[list[int]]:
    """Splits rows, longest first, so that little is padded.

    Args:
        batch: the sequences.
        rows: which of them.
        max_tokens: of a micro-batch, padding included; a longer sequence gets one of its own.
        num_parts: so many micro-batches of equal numbers of rows instead, or None.

    Returns:
        Row numbers per micro-batch; together exactly `rows`.
    """
    ordered = sorted(rows, key=lambda row: (-len(batch.token_ids[row]), row))
    if num_parts is not None:
        size = -(-len(ordered) // num_parts)
        return [ordered[start : start + size] for start in range(0, len(ordered), size)]
    parts: list[list[int]] = []
    for row in ordered:
        longest = len(batch.token_ids[parts[-1][0]]) if parts else 0
        if parts and (len(parts[-1]) + 1) * longest <= max_tokens:
            parts[-1].append(row)
        else:
            parts.append([row])
    return parts


def collate(batch: TrainBatch, rows: Sequence[int], device: torch.device) -> MicroBatch:
    """Pads these rows of the batch and notes where their response tokens are."""
    sequences = [batch.token_ids[row] for row in rows]
    input_ids = torch.nn.utils.rnn.pad_sequence(sequences, batch_first=True, padding_value=0)
    prompts = torch.tensor([batch.prompt_lengths[row] for row in rows])
    lengths = torch.tensor([batch.response_length(row) for row in rows])
    response_mask = torch.arange(int(lengths.max())) < lengths.unsqueeze(1)
    row_index, response_index = response_mask.nonzero(as_tuple=True)
    position_index = prompts[row_index] + response_index - 1
    return MicroBatch(
        rows=tuple(rows),
        input_ids=input_ids.to(device),
        response_mask=response_mask.to(device),
        row_index=row_index.to(device),
        position_index=position_index.to(device),
        targets=input_ids[row_index, position_index + 1].to(device),
    )
