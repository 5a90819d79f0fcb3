"""What an update says about itself. Sums are kept on the device; one transfer at the end of the step."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from grpo.policy.objective import TokenLogProbs

_SUMS = ("tokens", "entropy", "ratio", "clipped", "kl", "mismatch", "loss")
_MAXIMA = ("ratio_max", "mismatch_max")


@dataclass
class UpdateStatistics:
    """Sums and maxima over the tokens that all optimiser steps of one update trained on.

    Sequences that cannot have a gradient do not go through the model; nothing is known of their tokens but the number.

    Attributes:
        sums: by name, over trained tokens.
        num_response_tokens: of all sequences, trained on or not.
        grad_norms: of every optimiser step, before clipping.
        num_skipped: optimiser steps that were left out.
    """

    sums: dict[str, Tensor] = field(default_factory=dict)
    num_response_tokens: int = 0
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

    def merge(self, other: UpdateStatistics) -> None:
        """Counts in what another has seen of the same optimiser steps."""
        for name in _SUMS:
            if name in other.sums:
                self._accumulate(name, other.sums[name])
        for name in _MAXIMA:
            if name in other.sums:
                self.sums[name] = torch.maximum(self.sums.get(name, other.sums[name]), other.sums[name])

    def on_cpu(self) -> UpdateStatistics:
        """The same, as it can go to another process."""
        return replace(self, sums={name: value.cpu() for name, value in self.sums.items()})

    def _accumulate(self, name: str, value: Tensor) -> None:
        self.sums[name] = self.sums[name] + value if name in self.sums else value

    def metrics(self, num_updates: int) -> dict[str, float]:
        """The update's part of a step's line: means over trained tokens, the loss per optimiser step.

        Where no token was trained on there are no means, rather than means of 0.
        """
        sums = {name: float(value) for name, value in self.sums.items()}
        tokens = sums.get("tokens", 0.0)
        return {
            "policy/loss": sums.get("loss", 0.0) / num_updates,
            "policy/trained_tokens_share": tokens / max(1, self.num_response_tokens),
            "policy/grad_norm": sum(self.grad_norms) / len(self.grad_norms),
            "policy/skipped_updates": self.num_skipped,
            **(_token_metrics(sums) if tokens else {}),
        }


def _token_metrics(sums: Mapping[str, float]) -> dict[str, float]:
    tokens = sums["tokens"]
    return {
        "policy/entropy": sums["entropy"] / tokens,
        "policy/ratio_mean": sums["ratio"] / tokens,
        "policy/ratio_max": sums["ratio_max"],
        "policy/clip_fraction": sums["clipped"] / tokens,
        "policy/kl": sums["kl"] / tokens,
        "mismatch/mean": sums["mismatch"] / tokens,
        "mismatch/max": sums["mismatch_max"],
    }
