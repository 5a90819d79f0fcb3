"""Log-probs and entropy of the distribution that is sampled from.

The trainer and the torch engine's own operations call `sampled_logits`. The engine's compiled code
(`grpo/rollout/kernel.c`) and vLLM apply temperature, top-k, top-p and min-tokens themselves: the contract suite of the
engines, and the canary of a run, hold them to the same. N tokens, H hidden size, V vocabulary; log-probs and entropies
are nats, float32.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class TokenDistribution:
    """How logits become the distribution that tokens are drawn from.

    Attributes:
        temperature: divides the logits; above 0.
        top_k: only the k largest logits stay; 0 keeps all.
        top_p: only the fewest largest probabilities that sum to at least this stay; 1 keeps all.
        banned_ids: tokens of probability 0 wherever the `banned` argument is True: ends of sequence before
            min_tokens.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    banned_ids: tuple[int, ...] = ()

    @property
    def filters(self) -> bool:
        """Whether top-k or top-p removes anything."""
        return self.top_k > 0 or self.top_p < 1


def sampled_log_probs(
    logits: Tensor, distribution: TokenDistribution, *, banned: Tensor | None = None, keep: Tensor | None = None
) -> Tensor:
    """Log-probs of every token under the distribution that is sampled from: [N, V] float32, see `sampled_logits`.

    log π(v) = log softmax(z / temperature)(v), over the tokens that min-tokens, top-k and top-p leave.
    """
    return torch.log_softmax(sampled_logits(logits, distribution, banned=banned, keep=keep), dim=-1)


def sampled_logits(
    logits: Tensor, distribution: TokenDistribution, *, banned: Tensor | None = None, keep: Tensor | None = None
) -> Tensor:
    """Logits whose softmax is the distribution that is sampled from.

    Args:
        logits: [N, V], any float dtype; the arithmetic is float32.
        distribution: what is done to them.
        banned: [N] bool; where True, `banned_ids` have probability 0. None bans nothing.
        keep: [N] token ids that stay whatever top-k and top-p say, so that the ratio of a token that was sampled
            earlier stays finite. None keeps none.

    Returns:
        [N, V] float32, -inf where a token was removed.
    """
    scaled = logits.float()
    if distribution.temperature != 1:
        scaled = scaled / distribution.temperature
    if banned is not None and distribution.banned_ids:
        scaled = scaled.clone() if scaled is logits else scaled
        for token_id in distribution.banned_ids:  # an index would make a GPU's host wait
            scaled[:, token_id].masked_fill_(banned, float("-inf"))
    if distribution.filters:
        scaled = scaled.masked_fill(_removed(scaled, distribution, keep), float("-inf"))
    return scaled


def _removed(scaled: Tensor, distribution: TokenDistribution, keep: Tensor | None) -> Tensor:
    """[N, V] bool: what top-k, and then top-p on the rest, remove."""
    values, order = scaled.sort(dim=-1, descending=True, stable=True)
    removed = torch.zeros_like(values, dtype=torch.bool)
    if distribution.top_k > 0:
        removed[:, distribution.top_k :] = True
    if distribution.top_p < 1:
        probs = values.masked_fill(removed, float("-inf")).softmax(dim=-1)
        removed |= probs.cumsum(dim=-1) - probs >= distribution.top_p
    result = torch.empty_like(removed).scatter_(1, order, removed)
    if keep is not None:
        result.scatter_(1, keep.unsqueeze(1), False)
    return result


def entropy(log_probs: Tensor, probs: Tensor | None = None) -> Tensor:
    """H = -Σ_v π(v) log π(v), with 0 log 0 = 0.

    Args:
        log_probs: [N, V] nats.
        probs: [N, V], their exponentials where the caller has them already.

    Returns:
        [N] nats.
    """
    probs = log_probs.exp() if probs is None else probs
    return log_probs.clamp_min(torch.finfo(log_probs.dtype).min).mul_(probs).sum(dim=-1).neg_()
