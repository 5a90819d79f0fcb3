"""Drawing tokens: one uniform number per token, a pure function of (seed, step, problem, sample, position)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from grpo.rl.log_probs import TokenDistribution, sampled_logits
from grpo.types import SampleKey

_BLOCK = 256  # tokens of the vocabulary that are summed at once
_JUST_BELOW_ONE = 1 - 2**-23


def uniforms(keys: Sequence[SampleKey], length: int) -> Tensor:
    """Uniform numbers for every position of every completion.

    Philox is counter-based (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011): the key names the
    completion, the counter is the position, so a completion's numbers do not depend on its batch.

    Args:
        keys: R completions; every part below 2**32.
        length: positions.

    Returns:
        [R, length] float32 in [0, 1), multiples of 2**-24. Made of Philox's raw words, which numpy promises for all
        versions.
    """
    rows = np.empty((len(keys), length), dtype=np.uint64)
    for row, key in zip(rows, keys, strict=True):
        row[:] = np.random.Philox(key=[key.seed << 32 | key.step, key.problem << 32 | key.sample]).random_raw(length)
    return torch.from_numpy((rows >> np.uint64(40)).astype(np.float32) * np.float32(2**-24))


def sample_tokens(
    logits: Tensor, uniform: Tensor | None, distribution: TokenDistribution, banned: Tensor | None
) -> tuple[Tensor, Tensor]:
    """One token a row by inversion of the cumulative distribution, or the most likely one.

    token = min { v : Σ_{u <= v} π(u) > uniform · Σ_u π(u) }

    Args:
        logits: [R, V]. A row that holds nan or inf gives any token, and nan as its log-prob: the update then skips the
            step for its loss is not finite, and the canary stops the run.
        uniform: [R] in [0, 1), or None for the most likely token.
        distribution: what to sample from.
        banned: [R] bool, see `grpo.rl.log_probs.sampled_logits`.

    Returns:
        [R] token ids and [R] their log-probs, nats float32.
    """
    logits = sampled_logits(logits, distribution, banned=banned)
    probs = torch.softmax(logits, dim=-1)
    tokens = logits.argmax(dim=-1) if uniform is None else _invert(probs, uniform)
    return tokens, probs.gather(1, tokens.unsqueeze(1)).squeeze(1).log_()


def _invert(probs: Tensor, uniform: Tensor) -> Tensor:
    """[R] tokens whose share of the cumulative distribution holds the number.

    First the block of the vocabulary, then the token in it, so that the vocabulary is read once and nothing of its size
    is written. Float32 sums over 150k tokens would waver by more than an unlikely token's probability, and tokens of
    probability 0 could be drawn; hence float64, which MPS lacks.
    """
    dtype = torch.float32 if probs.device.type == "mps" else torch.float64
    num_tokens = probs.shape[1]
    num_blocks = num_tokens // _BLOCK
    whole, rest = probs[:, : num_blocks * _BLOCK], probs[:, num_blocks * _BLOCK :]
    sums = torch.cat((whole.view(len(probs), num_blocks, _BLOCK).sum(dim=2), rest.sum(dim=1, keepdim=True)), dim=1)
    cumulative = sums.cumsum(dim=1, dtype=dtype)
    total = cumulative[:, -1:]
    threshold = torch.minimum(uniform.unsqueeze(1) * total, total * _JUST_BELOW_ONE)
    block = torch.searchsorted(cumulative, threshold, right=True).clamp_max_(num_blocks)
    before = cumulative.gather(1, block) - sums.gather(1, block)
    columns = block * _BLOCK + torch.arange(_BLOCK, device=probs.device)
    shares = probs.gather(1, columns.clamp_max(num_tokens - 1)).masked_fill_(columns >= num_tokens, 0.0)
    cumulative = shares.cumsum(dim=1, dtype=dtype)
    last = cumulative[:, -1:] * _JUST_BELOW_ONE  # the two sums over a block may differ in their last digits
    place = torch.searchsorted(cumulative, torch.minimum(threshold - before, last), right=True)
    return (block * _BLOCK + place).squeeze(1).clamp_max_(num_tokens - 1)
