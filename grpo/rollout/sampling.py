"""Drawing tokens: one uniform number per token, a pure function of (seed, step, problem, sample, position)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from grpo.rl.log_probs import TokenDistribution, sampled_log_probs
from grpo.types import SampleKey


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

    A GPU adds in parallel, so that float32 sums over 150k tokens would waver by more than an unlikely token's
    probability, and tokens of probability 0 could be drawn; hence float64 there. A CPU adds in order.

    Args:
        logits: [R, V]. A row that holds nan or inf gives any token, and nan as its log-prob: the update then skips the
            step for its loss is not finite, and the canary stops the run.
        uniform: [R] in [0, 1), or None for the most likely token.
        distribution: what to sample from.
        banned: [R] bool, see `sampled_log_probs`.

    Returns:
        [R] token ids and [R] their log-probs, nats float32.
    """
    log_probs = sampled_log_probs(logits, distribution, banned=banned)
    if uniform is None:
        tokens = log_probs.argmax(dim=-1)
    else:
        dtype = torch.float64 if logits.device.type == "cuda" else torch.float32
        cumulative = log_probs.exp().cumsum(dim=-1, dtype=dtype)
        threshold = uniform.unsqueeze(1) * cumulative[:, -1:]
        tokens = torch.searchsorted(cumulative, threshold, right=True).squeeze(1)
        tokens = tokens.clamp_max(logits.shape[-1] - 1)
    return tokens, log_probs.gather(1, tokens.unsqueeze(1)).squeeze(1)
