"""Rewards [P, G] to advantages [P, G]: what each completion is worth compared with the rest of its group.

Axes: P problems in a batch, G completions per problem. r_i is a reward of one group, μ the mean of that group.
A group whose rewards are all equal has no signal, and its advantages are exactly 0 under every scheme but `raw`.
"""

from __future__ import annotations

import torch
from torch import Tensor


def raw(rewards: Tensor) -> Tensor:
    """The rewards themselves: no baseline.

    A_i = r_i

    Source: REINFORCE, Williams 1992 (Machine Learning 8, section 4) with a baseline of 0.

    Args:
        rewards: [P, G] float32.

    Returns:
        [P, G] advantages, a tensor of their own.

    Raises:
        ValueError: rewards are not [P, G].
    """
    _require_groups(rewards, min_size=1)
    return rewards.clone()


def group_mean(rewards: Tensor) -> Tensor:
    """Rewards less the mean of their group.

    A_i = r_i - μ

    Source: Dr. GRPO, arXiv 2503.20783, section 3.2.

    Args:
        rewards: [P, G] float32, G at least 2.

    Returns:
        [P, G] advantages; each group sums to 0.

    Raises:
        ValueError: rewards are not [P, G] with G at least 2.
    """
    _require_groups(rewards, min_size=2)
    return _zero_without_signal(rewards - rewards.mean(dim=1, keepdim=True), rewards)


def group_mean_std(rewards: Tensor, *, eps: float) -> Tensor:
    """Rewards less the mean of their group, in units of its standard deviation.

    A_i = (r_i - μ) / (σ + eps),   σ² = Σ_j (r_j - μ)² / (G - 1)

    Source: GRPO, arXiv 2402.03300, section 4.1.2; the paper leaves the divisor of σ² open, this one is unbiased.

    Args:
        rewards: [P, G] float32, G at least 2.
        eps: added to σ; what a group of nearly equal rewards is divided by.

    Returns:
        [P, G] advantages; each group sums to 0.

    Raises:
        ValueError: rewards are not [P, G] with G at least 2.
    """
    _require_groups(rewards, min_size=2)
    centred = rewards - rewards.mean(dim=1, keepdim=True)
    return _zero_without_signal(centred / (rewards.std(dim=1, keepdim=True, correction=1) + eps), rewards)


def leave_one_out(rewards: Tensor) -> Tensor:
    """Rewards less the mean of the others in their group.

    A_i = r_i - Σ_{j≠i} r_j / (G - 1) = G / (G - 1) · (r_i - μ)

    Source: RLOO, arXiv 2402.14740, the estimator that follows eq. 8 (Kool et al. 2019).

    Args:
        rewards: [P, G] float32, G at least 2.

    Returns:
        [P, G] advantages; each group sums to 0.

    Raises:
        ValueError: rewards are not [P, G] with G at least 2.
    """
    group_size = rewards.shape[-1]
    return group_mean(rewards) * (group_size / (group_size - 1))


def has_signal(rewards: Tensor) -> Tensor:
    """Which groups can teach anything: those whose rewards are not all equal.

    Source: the condition of dynamic sampling, DAPO, arXiv 2503.14476, eq. 11, for rewards of any kind.

    Args:
        rewards: [P, G] float32.

    Returns:
        [P] bool.

    Raises:
        ValueError: rewards are not [P, G].
    """
    _require_groups(rewards, min_size=1)
    return (rewards != rewards[:, :1]).any(dim=1)


def soft_overlong_penalty(lengths: Tensor, *, max_tokens: int, buffer_tokens: int) -> Tensor:
    """What is added to the reward of a completion that comes close to the length limit, or was cut there.

    0 for T ≤ max - buffer, then (max - buffer - T) / buffer, -1 from T = max on

    Source: DAPO, arXiv 2503.14476, eq. 13.

    Args:
        lengths: [..] int, response tokens T.
        max_tokens: where a completion is cut, in tokens.
        buffer_tokens: over how many tokens before that the penalty falls from 0 to -1.

    Returns:
        [..] float32 penalties, in [-1, 0].

    Raises:
        ValueError: the buffer is empty or larger than the limit.
    """
    if not 0 < buffer_tokens <= max_tokens:
        raise ValueError(
            f"buffer_tokens={buffer_tokens} is not in 1..max_tokens={max_tokens}; use {max(1, max_tokens // 5)}, say"
        )
    over = lengths - (max_tokens - buffer_tokens)
    return -(over.to(torch.float32) / buffer_tokens).clamp(0.0, 1.0)


def _zero_without_signal(advantages: Tensor, rewards: Tensor) -> Tensor:
    # The mean of equal floats need not equal them: 0.1 three times leaves 7e-9, which a division by eps would raise.
    return torch.where(has_signal(rewards).unsqueeze(1), advantages, 0.0)


def _require_groups(rewards: Tensor, *, min_size: int) -> None:
    if rewards.ndim != 2 or rewards.shape[1] < min_size:
        raise ValueError(f"rewards have shape {list(rewards.shape)} but must be [P, G] with G of {min_size} or more")
