"""Passes of a batch through the model: which micro-batches there are, and who takes which."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from grpo.config import HardwareConfig, Packing, TrainConfig
from grpo.policy.forward import ForwardSettings
from grpo.policy.packing import MicroBatch, collate, micro_batch_rows, prompt_units
from grpo.policy.replicas import Replicas, deal
from grpo.policy.sharding import ShardedModel, model_log_probs
from grpo.types import TrainBatch

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_FAIR = 1.05  # the most work of a replica or rank, over the mean

Part = Sequence[int] | None  # rows of a micro-batch; None is an idle pass, see `sharding`


@dataclass(frozen=True, slots=True)
class Passes:
    """How batches are cut; `train` and `hardware` are those of the run config."""

    train: TrainConfig
    hardware: HardwareConfig
    device: torch.device

    def collate(self, batch: TrainBatch, rows: Sequence[int]) -> MicroBatch:
        """These rows on the device."""
        return collate(batch, rows, self.device, self.hardware.packing)

    def cut(self, batch: TrainBatch, rows: Sequence[int], max_tokens: int | None = None) -> list[list[int]]:
        """Micro-batches of these rows, of `max_tokens` instead of the config's if given."""
        parts = self.train.gradient_accumulation_steps
        if parts is not None:
            parts = max(1, -(-parts * len(rows) // self.train.train_batch_size))
        most = self.hardware.micro_batch_tokens if max_tokens is None else max_tokens
        return micro_batch_rows(batch, rows, max_tokens=most, num_parts=parts, packing=self.hardware.packing)

    def deal(
        self, batch: TrainBatch, rows: Sequence[int], workers: Replicas | ShardedModel
    ) -> Sequence[Sequence[Sequence[int]]]:
        """Micro-batches of these rows for every replica or rank, such that nobody has to wait long for another."""
        if isinstance(workers, ShardedModel):
            return [self.cut(batch, share) for share in self.fair_shares(batch, rows, len(workers))]
        if len(workers) == 1:
            return [self.cut(batch, rows)]
        return self._deal_to_replicas(batch, rows, len(workers))

    def _deal_to_replicas(self, batch: TrainBatch, rows: Sequence[int], num: int) -> list[list[Sequence[int]]]:
        """Micro-batches as large as one model's, or a fair share if that is less, or smaller ones if that is fairer."""
        longest, shares = math.inf, []
        num_tokens = sum(len(batch.token_ids[row]) for row in rows)
        most = min(self.hardware.micro_batch_tokens, int(_FAIR * num_tokens) // num)
        for eighths in (8, 7, 6, 5, 4):
            parts = self.cut(batch, rows, most * eighths // 8)
            loads = [sum(len(batch.token_ids[row]) for row in part) for part in parts]
            dealt, load = deal(parts, loads, num)
            if load < longest:
                longest, shares = load, dealt
            if num * longest <= _FAIR * num_tokens or self.train.gradient_accumulation_steps is not None:
                break  # fair, or a number of parts that no budget changes
        return shares

    def fair_shares(self, batch: TrainBatch, rows: Sequence[int], num: int) -> list[list[int]]:
        """Rows for at most so many ranks: few micro-batches for each, for all ranks wait for one another at every one.

        Rows that share a prompt stay together, or in larger parts, as long as that is fair.
        """
        units = prompt_units(batch, rows, self.hardware.packing)
        longest, shares = math.inf, []
        for num_pieces in (1, 2, num):
            pieces = [unit[first::num_pieces] for unit in units for first in range(min(num_pieces, len(unit)))]
            loads = [self._num_tokens(batch, piece) for piece in pieces]
            dealt, load = deal(pieces, loads, num)
            if load < longest:
                longest, shares = load, [[row for piece in share for row in piece] for share in dealt]
            if num * longest <= _FAIR * sum(loads):
                break
        return shares

    def _num_tokens(self, batch: TrainBatch, unit: Sequence[int]) -> int:
        """Of rows that share a prompt, if they do."""
        shared = batch.prompt_lengths[unit[0]] if self.hardware.packing is Packing.shared_prompts else 0
        return sum(len(batch.token_ids[row]) for row in unit) - (len(unit) - 1) * shared

    def frozen_log_probs(
        self, model: PreTrainedModel | ShardedModel, batch: TrainBatch, rows: Sequence[int], settings: ForwardSettings
    ) -> list[Tensor]:
        """[T_i] log-probs for each of these rows, [0] for the others; every rank computes its share of them."""
        results: list[Tensor] = [torch.empty(0)] * len(batch)
        if isinstance(model, ShardedModel):
            shares = self.deal(batch, rows, model)
            found = model.run(lambda own, parts: self.log_probs_of(own, batch, parts, settings), shares)
        else:
            found = [self.log_probs_of(model, batch, self.cut(batch, rows), settings)]
        for row, values in (item for part in found for item in part.items()):
            results[row] = values
        return results

    @torch.no_grad()
    def log_probs_of(
        self, model: PreTrainedModel | ShardedModel, batch: TrainBatch, parts: Sequence[Part], settings: ForwardSettings
    ) -> dict[int, Tensor]:
        """[T_i] log-probs by row, of the rows in these micro-batches, without gradient, on the CPU."""
        found: dict[int, Tensor] = {}
        for part in parts:
            if part is None:
                self.idle_loss(model, settings)
                continue
            log_probs, _ = model_log_probs(model, self.collate(batch, part), settings)
            for row, values in zip(part, log_probs.cpu(), strict=True):
                found[row] = values[: batch.response_length(row)].clone()
        if isinstance(model, ShardedModel):
            model.drop_gathered()
        return found

    def idle_loss(self, model: Any, settings: ForwardSettings) -> Tensor:
        """A loss of 0 from an idle pass."""
        return model.idle_loss(self.collate(idle_batch(), [0]), settings)


def idle_batch() -> TrainBatch:
    """A token that follows a token: the smallest batch there is."""
    return TrainBatch((torch.zeros(2, dtype=torch.int64),), (1,), (torch.zeros(1),), torch.zeros(1))
