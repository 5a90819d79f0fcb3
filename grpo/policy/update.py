"""The update: a batch of graded completions becomes optimiser steps.

The gradient of an optimiser step does not depend on how its sequences are cut into micro-batches: one denominator is
computed over all of them before the first backward pass, and every micro-batch adds its part of one sum. Sequences
whose part is exactly 0 count in the denominator and do not go through the model.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from grpo.config import HardwareConfig, LossConfig, ObjectiveName, Packing, TrainConfig
from grpo.distributed import ONE_RANK, Ranks
from grpo.native import KernelUnavailable
from grpo.policy.attention import use_packed_attention
from grpo.policy.compiled_layer import fits, use_compiled_layers
from grpo.policy.forward import ForwardSettings
from grpo.policy.objective import TokenLogProbs, clipped_tokens, token_losses, token_weights
from grpo.policy.optimizer import build_optimizer, learning_rate, move_state
from grpo.policy.packing import MicroBatch
from grpo.policy.passes import Part, Passes
from grpo.policy.replicas import Replicas, num_replicas
from grpo.policy.sharding import GatheredModel, ShardedModel, model_log_probs, whole_tensor
from grpo.policy.statistics import UpdateStatistics
from grpo.products import fast_products
from grpo.rl.aggregation import weighted_sum
from grpo.types import TrainBatch

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True, slots=True)
class _TokenTargets:
    """What the update compares with: [T_i] nats per sequence that is trained on, nothing for the others.

    Attributes:
        old: log-probs before the update; None where the policy still is the one that sampled.
        ref: log-probs under the reference model; None without a KL penalty.
    """

    old: list[Tensor] | None
    ref: list[Tensor] | None


def _expected_grad(cfg: LossConfig, advantages: Tensor, weights: Tensor, mask: Tensor) -> Tensor:
    """[b, T] gradient of the loss with respect to log-probs that still are those that were sampled.

    At a ratio of 1 the gradient of every objective is the same at all log-probs, so it is known before they are.
    """
    zeros = torch.zeros(mask.shape, device=mask.device)
    policy = zeros.clone().requires_grad_()
    with torch.enable_grad():
        losses = token_losses(cfg, TokenLogProbs(policy=policy, old=zeros, sampler=zeros, ref=None), advantages, mask)
        return torch.autograd.grad(weighted_sum(losses, weights, mask), policy)[0]


def _checkpoint_activations(model: Any) -> None:
    """Layers keep their inputs only and compute the rest again in the backward pass."""
    arguments = {"use_reentrant": False, "preserve_rng_state": False}  # nothing in a layer is random
    if hasattr(model, "activation_checkpointing_enable"):
        model.activation_checkpointing_enable(arguments)
    else:  # the name before transformers 5.2x
        model.gradient_checkpointing_enable(arguments)
    model.train()  # layers do it in training mode only; dropout is 0


class Policy:
    """The model being trained, with its optimiser."""

    def __init__(
        self,
        model: PreTrainedModel,
        *,
        train: TrainConfig,
        loss: LossConfig,
        hardware: HardwareConfig,
        forward: ForwardSettings,
        max_tokens: int,
        seed: int,
        reference: PreTrainedModel | None = None,
        ranks: Ranks = ONE_RANK,
        warn: Callable[[str], None] = lambda _: None,
    ):
        """Puts an optimiser on the model.

        Args:
            model: on the policy's device, its weights the masters. With several ranks on any device: it is sharded over
                them here, and the weights are rank 0's.
            train: of the run config.
            loss: of the run config.
            hardware: of the run config.
            forward: how log-probs are computed.
            max_tokens: the longest response, the constant of `constant_length`.
            seed: of the order of sequences where a step has several optimiser steps, and of random rounding.
            reference: frozen; needed where the loss has a KL penalty. With several ranks as `model`.
            ranks: who trains together; all of them call `update` and `log_probs` at the same time. One alone shards its
                model too where `hardware.sharded` asks for it and a process group of torch.distributed is there.
            warn: told what a user should know of the policy while the run goes on.

        Raises:
            ValueError: `hardware.packing` asks for what the model's attention cannot do.
        """
        self.model, self._ranks = model, ranks
        self._train, self._loss, self._hardware, self._forward = train, loss, hardware, forward
        self._max_tokens, self._seed = max_tokens, seed
        self._seen: dict[int, Tensor] = {}  # log-probs by row
        is_sharded = ranks.size > 1 or (hardware.sharded and torch.distributed.is_initialized())
        self._device = torch.device(hardware.policy_device) if is_sharded else next(model.parameters()).device
        self._passes = Passes(train, hardware, self._device)
        for each in (model, reference):
            if each is not None and hardware.packing is not Packing.padded:
                use_packed_attention(each)
        if hardware.activation_checkpointing:
            _checkpoint_activations(model)
        if is_sharded:
            self._workers = ShardedModel(model, ranks, self._device)
            self._reference = None if reference is None else ShardedModel(reference, ranks, self._device)
        else:
            self._workers = Replicas(model, num_replicas(model))
            self._reference = reference
            if hardware.compiled_kernels and hardware.packing is not Packing.padded and fits(model):
                try:
                    for replica in self._workers.models:
                        use_compiled_layers(replica)
                except KernelUnavailable as problem:
                    warn(f"updates without compiled code take 1.3 times as long: {problem}")
        self.optimizer = build_optimizer(model, train, seed=seed, rank=ranks.rank)

    @property
    def whole_model(self) -> Any:
        """The model with whole parameters, as engines read it; where it is sharded, all ranks must read it together."""
        return GatheredModel(self.model) if isinstance(self._workers, ShardedModel) else self.model

    @property
    def _forward_model(self) -> PreTrainedModel | ShardedModel:
        """What a forward pass goes through."""
        return self._workers if isinstance(self._workers, ShardedModel) else self.model

    def log_probs(self, batch: TrainBatch) -> list[Tensor]:
        """[T_i] log-probs of every response under the current weights, without gradient, on the CPU.

        Every rank may have a batch of its own.
        """
        parts: Sequence[Part] = self._passes.cut(batch, range(len(batch)))
        if isinstance(self._workers, ShardedModel):
            parts = self._workers.filled_up(parts)
        found = self._passes.log_probs_of(self._forward_model, batch, parts, self._forward)
        return [found[row] for row in range(len(batch))]

    def _trained(self, batch: TrainBatch, rows: Sequence[int]) -> list[int]:
        """Those of the rows that can have a gradient.

        Every objective, times its importance weight, is a multiple of the advantage: at 0 its loss and gradient are
        exactly 0, unless a log-prob is not finite. A KL penalty is not, and then all rows are trained on.
        """
        if self._reference is not None:
            return list(rows)
        return [row for row in rows if float(batch.advantages[row]) != 0]

    def update(self, batch: TrainBatch, step: int) -> dict[str, float]:
        """Trains on a batch: `epochs_per_rollout_batch` times over it, `train_batch_size` sequences at a time.

        Args:
            batch: completions of the current weights, or stale ones, see `TrainBatch.staleness`.
            step: the GRPO step, from 1.

        Returns:
            The update's metrics. `policy/skipped_updates` counts optimiser steps that were left out because their
            loss or gradient was not finite; the weights are then as before.
        """
        rate = learning_rate(self._train, step)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        trained = self._trained(batch, range(len(batch)))
        targets = _TokenTargets(
            old=self._old_log_probs(batch, trained),
            ref=None if self._reference is None else self._frozen_log_probs(self._reference, batch, trained),
        )
        self._seen.clear()
        statistics = UpdateStatistics()
        parts = self._optimizer_batches(len(batch), step)
        for rows in parts:
            self._optimizer_step(batch, rows, targets, statistics)
        metrics = {**statistics.metrics(len(parts)), "policy/learning_rate": rate}
        if batch.staleness > 0:  # a ratio then holds an update and a mismatch together
            metrics = {name: value for name, value in metrics.items() if not name.startswith("mismatch/")}
        return metrics

    def seen_log_probs(self, batch: TrainBatch) -> dict[int, Tensor]:
        """[T_i] nats by row, as the last update last saw them, on the CPU: the rows that this process trained on."""
        return {row: values[: batch.response_length(row)].cpu() for row, values in self._seen.items()}

    def _frozen_log_probs(
        self, model: PreTrainedModel | ShardedModel, batch: TrainBatch, rows: Sequence[int]
    ) -> list[Tensor]:
        return self._passes.frozen_log_probs(model, batch=batch, rows=rows, settings=self._forward)

    def _old_log_probs(self, batch: TrainBatch, rows: Sequence[int]) -> list[Tensor] | None:
        """What the ratio is taken to: the policy before the update, or, of stale completions, who sampled them.

        REINFORCE has no ratio; its weights, `loss.importance_cap`, compare the policy with the sampler themselves.
        """
        if batch.staleness > 0 and self._loss.objective is not ObjectiveName.reinforce:
            return list(batch.sampler_log_probs)
        return None if self._train.updates_per_step == 1 else self._frozen_log_probs(self._forward_model, batch, rows)

    def _optimizer_batches(self, num_sequences: int, step: int) -> list[list[int]]:
        """Sequences of every optimiser step; shuffled, by (seed, step), where there are several."""
        size = self._train.train_batch_size
        if self._train.updates_per_step == 1:
            return [list(range(num_sequences))]
        generator = torch.Generator().manual_seed(self._seed * 1_000_003 + step)
        orders = [
            torch.randperm(num_sequences, generator=generator).tolist()
            for _ in range(self._train.epochs_per_rollout_batch)
        ]
        return [order[start : start + size] for order in orders for start in range(0, num_sequences, size)]

    def _optimizer_step(
        self, batch: TrainBatch, rows: Sequence[int], targets: _TokenTargets, statistics: UpdateStatistics
    ) -> None:
        lengths = torch.tensor([batch.response_length(row) for row in rows])
        weights = torch.zeros(len(batch))
        weights[list(rows)] = token_weights(self._loss, lengths, max_tokens=self._max_tokens)
        statistics.num_response_tokens += int(lengths.sum())
        trained = self._trained(batch, rows)
        if not trained:  # the optimiser passes over what has no gradient, but its moments and decay go on at gradient 0
            for parameter in self.model.parameters():
                parameter.grad = torch.zeros_like(parameter)

        def backward(model: Any, parts: Sequence[Part]) -> UpdateStatistics:
            seen = UpdateStatistics()
            for part in parts:
                if part is None:
                    loss = self._passes.idle_loss(model, self._forward)
                else:
                    micro_batch = self._passes.collate(batch, part)
                    loss = self._micro_batch_loss(model, batch, micro_batch, weights, targets, seen)
                with fast_products(self._device, self._forward.compute_dtype, compiled=self._forward.compiled):
                    loss.backward()
            return seen if self._ranks.size == 1 else seen.on_cpu()

        results = self._workers.run(backward, self._passes.deal(batch, trained, self._workers))
        for seen in results:
            statistics.merge(seen)
        total = sum(float(seen.sums.get("loss", 0.0)) for seen in results)
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), self._train.max_grad_norm)
        grad_norm = float(whole_tensor(norm))
        if math.isfinite(grad_norm) and math.isfinite(total):
            self._move_weights()
        else:
            statistics.num_skipped += 1
        statistics.grad_norms.append(grad_norm)
        self.optimizer.zero_grad(set_to_none=True)

    def _move_weights(self) -> None:
        """The optimiser's own step; with `hardware.optimizer_offload` its state is on the device for that long only."""
        offloads = self._hardware.optimizer_offload
        if offloads:
            move_state(self.optimizer, self._device)
        self.optimizer.step()
        if offloads:
            move_state(self.optimizer, torch.device("cpu"))

    def _micro_batch_loss(
        self,
        model: PreTrainedModel | ShardedModel,
        batch: TrainBatch,
        micro_batch: MicroBatch,
        weights: Tensor,
        targets: _TokenTargets,
        statistics: UpdateStatistics,
    ) -> Tensor:
        """This micro-batch's part of the optimiser step's loss, a scalar."""
        rows, mask = list(micro_batch.rows), micro_batch.response_mask
        advantages = batch.advantages[rows].to(self._device).unsqueeze(1)
        row_weights = weights[rows].to(self._device)
        on_policy = targets.old is None and targets.ref is None and self._loss.importance_cap is None
        policy, entropies = model_log_probs(
            model,
            micro_batch,
            self._forward,
            expected_grad=_expected_grad(self._loss, advantages, row_weights, mask) if on_policy else None,
        )
        log_probs = TokenLogProbs(
            policy=policy,
            old=policy.detach() if targets.old is None else micro_batch.pad(targets.old),
            sampler=micro_batch.pad(batch.sampler_log_probs),
            ref=None if targets.ref is None else micro_batch.pad(targets.ref),
        )
        self._seen.update(zip(rows, policy.detach(), strict=True))
        losses = token_losses(self._loss, log_probs, advantages, mask)
        loss = weighted_sum(losses, row_weights, mask)
        statistics.add(log_probs, entropies, clipped_tokens(self._loss, log_probs, advantages, mask), loss, mask)
        return loss
