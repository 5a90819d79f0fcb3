"""Log-probs and entropy of the distribution that is sampled from, without a whole batch's logits.

Engine and trainer both call `sampled_log_probs`, so that temperature, top-k, top-p and min-tokens cannot be applied in
one and forgotten in the other. N tokens, H hidden size, V vocabulary; log-probs and entropies are nats, float32.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

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
    """Log-probs of every token under the distribution that is sampled from.

    log π(v) = log softmax(z / temperature)(v), over the tokens that min-tokens, top-k and top-p leave.

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
        ids = torch.tensor(distribution.banned_ids, device=logits.device)
        scaled = scaled.index_put((banned.nonzero(), ids.unsqueeze(0)), scaled.new_tensor(float("-inf")))
    if distribution.filters:
        scaled = scaled.masked_fill(_removed(scaled, distribution, keep), float("-inf"))
    return torch.log_softmax(scaled, dim=-1)


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


def entropy(log_probs: Tensor) -> Tensor:
    """H = -Σ_v π(v) log π(v), with 0 log 0 = 0.

    Args:
        log_probs: [N, V] nats.

    Returns:
        [N] nats.
    """
    return -(log_probs.exp() * log_probs.masked_fill(log_probs.isneginf(), 0.0)).sum(dim=-1)


class _ChunkedLogProbs(torch.autograd.Function):
    """Logits exist for one chunk of tokens at a time, in the forward pass and again in the backward pass.

    With y the target, p = softmax and g the incoming gradient: d log p_y / d z = (1[y] - p) / temperature.
    """

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        targets: Tensor,
        banned: Tensor | None,
        distribution: TokenDistribution,
        chunk_tokens: int,
    ) -> tuple[Tensor, Tensor]:
        log_probs = hidden.new_empty(len(targets), dtype=torch.float32)
        entropies = torch.empty_like(log_probs)
        head = weight.to(hidden.dtype)
        for rows in _chunks(len(targets), chunk_tokens):
            chunk = _chunk_log_probs(hidden[rows], head, targets[rows], banned, rows, distribution)
            log_probs[rows] = chunk.gather(1, targets[rows].unsqueeze(1)).squeeze(1)
            entropies[rows] = entropy(chunk)
        ctx.save_for_backward(hidden, weight, targets, banned)
        ctx.distribution, ctx.chunk_tokens = distribution, chunk_tokens
        ctx.mark_non_differentiable(entropies)
        return log_probs, entropies

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        hidden, weight, targets, banned = ctx.saved_tensors
        needs_hidden, needs_weight = ctx.needs_input_grad[:2]
        head = weight.to(hidden.dtype)
        grad_hidden = torch.zeros_like(hidden) if needs_hidden else None
        grad_weight = torch.zeros_like(weight, dtype=torch.float32) if needs_weight else None
        for rows in _chunks(len(targets), ctx.chunk_tokens):
            log_probs = _chunk_log_probs(hidden[rows], head, targets[rows], banned, rows, ctx.distribution)
            grad = grad_outputs[0][rows].unsqueeze(1) / ctx.distribution.temperature
            grad_logits = log_probs.exp_().mul_(-grad)
            grad_logits.scatter_add_(1, targets[rows].unsqueeze(1), grad)
            grad_logits = grad_logits.to(hidden.dtype)
            if grad_hidden is not None:
                grad_hidden[rows] = grad_logits @ head
            if grad_weight is not None:
                grad_weight += grad_logits.T @ hidden[rows]
        grad_weight = None if grad_weight is None else grad_weight.to(weight.dtype)
        return grad_hidden, grad_weight, None, None, None, None


def _chunks(length: int, size: int) -> list[slice]:
    return [slice(start, min(start + size, length)) for start in range(0, length, size)]


def _chunk_log_probs(
    hidden: Tensor,
    head: Tensor,
    targets: Tensor,
    banned: Tensor | None,
    rows: slice,
    distribution: TokenDistribution,
) -> Tensor:
    return sampled_log_probs(
        hidden @ head.T, distribution, banned=None if banned is None else banned[rows], keep=targets
    )


def chunked_log_probs(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    distribution: TokenDistribution,
    *,
    banned: Tensor | None = None,
    chunk_tokens: int = 1024,
) -> tuple[Tensor, Tensor]:
    """Log-probs of the target tokens and the entropy at their positions, from hidden states.

    Memory: chunk_tokens * V floats, whatever N is; the chunk's logits are computed again in the backward pass.

    Args:
        hidden: [N, H], at the positions that predict the targets; carries the gradient.
        weight: [V, H] of the output head; carries the gradient.
        targets: [N] token ids.
        distribution: what was sampled from.
        banned: see `sampled_log_probs`.
        chunk_tokens: how many tokens' logits exist at once.

    Returns:
        [N] log-probs of the targets, with gradient, and [N] entropies, without.

    Raises:
        ValueError: shapes differ; names both.
    """
    if len(hidden) != len(targets) or hidden.shape[1] != weight.shape[1]:
        raise ValueError(
            f"hidden {tuple(hidden.shape)}, weight {tuple(weight.shape)} and targets {tuple(targets.shape)} "
            "do not fit as [N, H], [V, H] and [N]"
        )
    apply = cast("Callable[..., tuple[Tensor, Tensor]]", cast(Any, _ChunkedLogProbs).apply)
    return apply(hidden, weight, targets, banned, distribution, chunk_tokens)
