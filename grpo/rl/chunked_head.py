"""Log-probs of chosen tokens from hidden states, without a whole batch's logits.

N tokens, C tokens of a chunk, R tokens of a block, H hidden size, V vocabulary; log-probs are nats, float32.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from grpo.rl.log_probs import TokenDistribution, entropy, sampled_log_probs


@dataclass(frozen=True, slots=True)
class _Tokens:
    """N tokens and the head, cut into chunks that share the memory of their logits, and those into blocks.

    The products want many rows at once and the float32 arithmetic on their results only few: so logits exist for a
    chunk of tokens, in the dtype of the products, and everything made of them for a block. [C, V] is of a chunk, [R, V]
    of a block; `head` is the weight [V, H] in the dtype of the hidden states, the rest as in `chunked_log_probs`.
    """

    hidden: Tensor
    head: Tensor
    targets: Tensor
    banned: Tensor | None
    distribution: TokenDistribution
    chunk_tokens: int

    def chunks(self) -> list[slice]:
        return _slices(0, len(self.targets), self.chunk_tokens)

    def blocks(self, rows: slice) -> list[slice]:
        return _slices(rows.start, rows.stop, max(1, _block_elements(self.head.device) // len(self.head)))

    def buffer(self) -> Tensor:
        """[C, V] for the logits of one chunk after another."""
        return self.head.new_empty(min(self.chunk_tokens, len(self.targets)), len(self.head))

    def logits(self, rows: slice, buffer: Tensor) -> Tensor:
        """[C, V] of a chunk."""
        return torch.mm(self.hidden[rows], self.head.T, out=buffer[: rows.stop - rows.start])

    def log_probs(self, block: slice, logits: Tensor) -> Tensor:
        """[R, V] of a block."""
        banned = None if self.banned is None else self.banned[block]
        return sampled_log_probs(logits, self.distribution, banned=banned, keep=self.targets[block])

    def write_grad_logits(self, block: slice, probs: Tensor, grad: Tensor, out: Tensor) -> None:
        """[R, V] (1[y] - p) g / temperature, with y the target, p the probabilities and g the incoming gradient [N]."""
        scaled = grad[block].unsqueeze(1) / self.distribution.temperature
        targets = self.targets[block].unsqueeze(1)
        of_targets = scaled - probs.gather(1, targets) * scaled
        torch.mul(probs, -scaled, out=out)
        out.scatter_(1, targets, of_targets.to(out.dtype))


class _Gradients:
    """Gradients of the hidden states and of the head, chunk by chunk; None where none is needed."""

    def __init__(self, tokens: _Tokens, needs: tuple[bool, bool]) -> None:
        self._tokens = tokens
        self.hidden = torch.zeros_like(tokens.hidden) if needs[0] else None
        self.weight = torch.zeros_like(tokens.head, dtype=torch.float32) if needs[1] else None

    def add(self, rows: slice, grad_logits: Tensor) -> None:
        """Adds a chunk's part, of its [C, V] gradients of logits."""
        hidden, head = self._tokens.hidden[rows], self._tokens.head
        if self.hidden is not None:
            torch.mm(grad_logits, head, out=self.hidden[rows])
        if self.weight is None:
            return
        if grad_logits.dtype == self.weight.dtype:
            self.weight.addmm_(grad_logits.T, hidden)
            return
        for part in _slices(0, len(head), max(1, _block_elements(head.device) // head.shape[1])):
            self.weight[part] += grad_logits[:, part].T @ hidden


class _ChunkedLogProbs(torch.autograd.Function):
    """Logits exist for one chunk of tokens at a time: in the forward pass, and where it could not use them again."""

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        targets: Tensor,
        banned: Tensor | None,
        expected_grad: Tensor | None,
        distribution: TokenDistribution,
        chunk_tokens: int,
    ) -> tuple[Tensor, Tensor]:
        tokens = _Tokens(hidden, weight.to(hidden.dtype), targets, banned, distribution, chunk_tokens)
        log_probs = hidden.new_empty(len(targets), dtype=torch.float32)
        entropies = torch.empty_like(log_probs)
        gradients = None if expected_grad is None else _Gradients(tokens, ctx.needs_input_grad[:2])
        buffer = tokens.buffer()
        for rows in tokens.chunks():
            logits = tokens.logits(rows, buffer)
            guess = None if expected_grad is None or not expected_grad[rows].any() else expected_grad
            for block in tokens.blocks(rows):
                own_logits = logits[block.start - rows.start : block.stop - rows.start]
                block_log_probs = tokens.log_probs(block, own_logits)
                probs = block_log_probs.exp()
                log_probs[block] = block_log_probs.gather(1, targets[block].unsqueeze(1)).squeeze(1)
                entropies[block] = entropy(block_log_probs, probs)
                if guess is not None:
                    tokens.write_grad_logits(block, probs, guess, own_logits)
            if gradients is not None and guess is not None:
                gradients.add(rows, logits)
        ctx.save_for_backward(hidden, weight, targets, banned, expected_grad)
        # No saved tensors, so that nothing else holds them once they are handed out and autograd need not copy.
        ctx.expected = None if gradients is None else (gradients.hidden, gradients.weight)
        ctx.distribution, ctx.chunk_tokens = distribution, chunk_tokens
        ctx.mark_non_differentiable(entropies)
        return log_probs, entropies

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        hidden, weight, targets, banned, expected_grad = ctx.saved_tensors
        grad, expected, ctx.expected = grad_outputs[0], ctx.expected, None
        if expected is None or not torch.equal(grad, expected_grad):
            del expected
            tokens = _Tokens(hidden, weight.to(hidden.dtype), targets, banned, ctx.distribution, ctx.chunk_tokens)
            expected = _recompute(tokens, grad, ctx.needs_input_grad[:2])
        grad_hidden, grad_weight = expected
        grad_weight = None if grad_weight is None else grad_weight.to(weight.dtype)
        return grad_hidden, grad_weight, None, None, None, None, None


def _recompute(tokens: _Tokens, grad: Tensor, needs: tuple[bool, bool]) -> tuple[Tensor | None, Tensor | None]:
    """Gradients of hidden states and head, from logits that are computed again."""
    gradients = _Gradients(tokens, needs)
    buffer = tokens.buffer()
    for rows in tokens.chunks():
        if not grad[rows].any():
            continue
        logits = tokens.logits(rows, buffer)
        for block in tokens.blocks(rows):
            own_logits = logits[block.start - rows.start : block.stop - rows.start]
            tokens.write_grad_logits(block, tokens.log_probs(block, own_logits).exp_(), grad, own_logits)
        gradients.add(rows, logits)
    return gradients.hidden, gradients.weight


def _block_elements(device: torch.device) -> int:
    # On a CPU 16 MiB stay in the cache, and the allocator hands them out again instead of asking the system for fresh
    # pages; elsewhere a kernel must be worth its launch.
    return 2**22 if device.type == "cpu" else 2**24


def _slices(start: int, stop: int, size: int) -> list[slice]:
    return [slice(place, min(place + size, stop)) for place in range(start, stop, size)]


def chunked_log_probs(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    distribution: TokenDistribution,
    *,
    banned: Tensor | None = None,
    chunk_tokens: int = 1024,
    expected_grad: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Log-probs of the target tokens and the entropy at their positions, from hidden states.

    Memory: chunk_tokens * V numbers of the hidden states' dtype, whatever N is. The backward pass computes the logits
    again, which makes four products of tokens and head instead of the three that keeping them takes; with a right
    `expected_grad` there are three, all in the forward pass. A wrong one costs time but never changes a gradient.

    Args:
        hidden: [N, H], at the positions that predict the targets; carries the gradient.
        weight: [V, H] of the output head; carries the gradient.
        targets: [N] token ids.
        distribution: what was sampled from.
        banned: see `sampled_log_probs`.
        chunk_tokens: how many tokens' logits exist at once.
        expected_grad: [N] float32, the gradient of the loss with respect to the log-probs where the caller knows it
            beforehand, or None. It is compared bit by bit with the one that comes.

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
    if expected_grad is not None and expected_grad.shape != targets.shape:
        raise ValueError(
            f"expected_grad {tuple(expected_grad.shape)} and targets {tuple(targets.shape)} do not fit as [N] and [N]"
        )
    if not (torch.is_grad_enabled() and (hidden.requires_grad or weight.requires_grad)):
        expected_grad = None
    apply = cast("Callable[..., tuple[Tensor, Tensor]]", cast(Any, _ChunkedLogProbs).apply)
    return apply(hidden, weight, targets, banned, expected_grad, distribution, chunk_tokens)
