"""What an update says about itself. Sums are kept on the device; one transfer at the end of the step."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from grpo.policy.objective import TokenLogProbs

_SUMS = ("tokens", "entropy", "ratio", "clipped", "kl", "mismatch", "loss")
_MAXIMA = ("ratio_max", "mismatch_max")


@dataclass
class UpdateStatistics:
    """Sums and maxima over the response tokens of all optimiser steps of one update."""

    sums: dict[str, Tensor] = field(default_factory=dict)
    grad_norms: list[float] = field(default_factory=list)
    num_skipped: int = 0

    def add(self, log_probs: TokenLogProbs, entropies: Tensor, clipped: Tensor, loss: Tensor, mask: Tensor) -> None:
        """Counts one micro-batch in."""
        policy = log_probs.policy.detach()
        ratio = torch.where(mask, (policy - log_probs.old).exp(), 0.0)
        mismatch = torch.where(mask, (log_probs.old - log_probs.sampler).abs(), 0.0)
        kl = torch.zeros_like(ratio)
        if log_probs.ref is not None:
            delta = log_probs.ref - policy
            kl = torch.where(mask, delta.exp() - delta - 1, 0.0)
        values = (mask, entropies, ratio, clipped, kl, mismatch)
        for name, value in zip(_SUMS, values, strict=False):
            self._accumulate(name, value.sum(dtype=torch.float64 if value.device.type != "mps" else torch.float32))
        self._accumulate("loss", loss.detach())
        for name, value in zip(_MAXIMA, (ratio, mismatch), strict=True):
            self.sums[name] = torch.maximum(self.sums.get(name, value.max()), value.max())

    def _accumulate(self, name: str, value: Tensor) -> None:
        self.sums[name] = self.sums[name] + value if name in self.sums else value

    def metrics(self, num_updates: int) -> dict[str, float]:
        """The update's part of a step's line: means over tokens, the loss per optimiser step."""
        sums = {name: float(value) for name, value in self.sums.items()}
        tokens = max(1.0, sums["tokens"])
        return {
            "policy/loss": sums["loss"] / num_updates,
            "policy/entropy": sums["entropy"] / tokens,
            "policy/ratio_mean": sums["ratio"] / tokens,
            "policy/ratio_max": sums["ratio_max"],
            "policy/clip_fraction": sums["clipped"] / tokens,
            "policy/kl": sums["kl"] / tokens,
            "policy/grad_norm": sum(self.grad_norms) / len(self.grad_norms),
            "policy/skipped_updates": self.num_skipped,
            "mismatch/mean": sums["mismatch"] / tokens,
            "mismatch/max": sums["mismatch_max"],
        }
