"""Goldens and properties of `grpo.rl.advantages`."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from grpo.rl import advantages

Scheme = Callable[[Tensor], Tensor]


def group_mean_std(rewards: Tensor) -> Tensor:
    return advantages.group_mean_std(rewards, eps=1e-6)


centred = pytest.mark.parametrize("scheme", [advantages.group_mean, group_mean_std, advantages.leave_one_out])

reward_groups = st.integers(2, 8).flatmap(
    lambda group_size: st.lists(
        st.lists(st.integers(-4, 4).map(lambda quarters: quarters / 4), min_size=group_size, max_size=group_size),
        min_size=1,
        max_size=4,
    )
)


def assert_golden(actual: Tensor, expected: list[list[float]]) -> None:
    torch.testing.assert_close(actual, torch.tensor(expected), rtol=0, atol=1e-5)


def test_raw_is_the_reward() -> None:
    rewards = torch.tensor([[1.0, 0.0, 0.25], [0.5, 0.5, 0.5]])
    result = advantages.raw(rewards)
    assert_golden(result, [[1.0, 0.0, 0.25], [0.5, 0.5, 0.5]])
    result.zero_()
    assert rewards[0, 0] == 1.0, "advantages must not share memory with the rewards"


def test_group_mean_golden() -> None:
    # Group 1: mean 1/4. Group 2: mean (2 + 0 + 1 + 1) / 4 = 1.
    rewards = torch.tensor([[1.0, 0.0, 0.0, 0.0], [2.0, 0.0, 1.0, 1.0]])
    assert_golden(advantages.group_mean(rewards), [[0.75, -0.25, -0.25, -0.25], [1.0, -1.0, 0.0, 0.0]])


def test_group_mean_std_golden() -> None:
    # Mean 1/4; variance (0.75² + 3 · 0.25²) / 3 = (0.5625 + 0.1875) / 3 = 0.25, std 0.5 (biased: 0.4330).
    # 0.75 / 0.5 = 1.5, -0.25 / 0.5 = -0.5. With eps 0.5 added to the std: half of that.
    rewards = torch.tensor([[1.0, 0.0, 0.0, 0.0]])
    assert_golden(advantages.group_mean_std(rewards, eps=0.0), [[1.5, -0.5, -0.5, -0.5]])
    assert_golden(advantages.group_mean_std(rewards, eps=0.5), [[0.75, -0.25, -0.25, -0.25]])


def test_leave_one_out_golden() -> None:
    # 1 - (0 + 0.5 + 0) / 3 = 5/6;  0 - (1 + 0.5 + 0) / 3 = -1/2;  0.5 - (1 + 0 + 0) / 3 = 1/6;  -1/2.
    rewards = torch.tensor([[1.0, 0.0, 0.5, 0.0]])
    assert_golden(advantages.leave_one_out(rewards), [[5 / 6, -1 / 2, 1 / 6, -1 / 2]])


@centred
def test_groups_do_not_see_each_other(scheme: Scheme) -> None:
    rewards = torch.tensor([[1.0, 0.0, 0.5], [3.0, 0.0, 0.0]])
    torch.testing.assert_close(scheme(rewards), torch.cat([scheme(rewards[:1]), scheme(rewards[1:])]))


@centred
@given(groups=reward_groups)
@settings(deadline=None, max_examples=50)
def test_advantages_of_a_group_sum_to_zero(scheme: Scheme, groups: list[list[float]]) -> None:
    sums = scheme(torch.tensor(groups)).sum(dim=1)
    torch.testing.assert_close(sums, torch.zeros_like(sums), rtol=0, atol=1e-5)


@centred
@given(groups=reward_groups, shift=st.floats(-8, 8, width=32))
@settings(deadline=None, max_examples=50)
def test_advantages_ignore_a_shift(scheme: Scheme, groups: list[list[float]], shift: float) -> None:
    # Shifted by whole eighths, so that float32 holds the sum exactly and no group gains or loses its signal.
    rewards = torch.tensor(groups)
    torch.testing.assert_close(scheme(rewards + round(shift * 8) / 8), scheme(rewards), rtol=1e-4, atol=1e-5)


@centred
@given(groups=reward_groups)
@settings(deadline=None, max_examples=50)
def test_advantages_keep_the_order_of_the_rewards(scheme: Scheme, groups: list[list[float]]) -> None:
    rewards = torch.tensor(groups)
    better = rewards.unsqueeze(1) > rewards.unsqueeze(2)
    result = scheme(rewards)
    assert (result.unsqueeze(1) > result.unsqueeze(2))[better].all()


@centred
@pytest.mark.parametrize("reward", [0.1, 1 / 3, 0.0, 1.0, -0.7, 1e6])
@pytest.mark.parametrize("group_size", [2, 3, 7])
def test_a_constant_group_has_advantages_of_exactly_zero(scheme: Scheme, reward: float, group_size: int) -> None:
    rewards = torch.tensor([[reward] * group_size, [0.0] * (group_size - 1) + [1.0]])
    result = scheme(rewards)
    assert result[0].tolist() == [0.0] * group_size
    assert result[1].abs().min() > 0.1, "the other group keeps its own"


def test_a_constant_group_is_zero_without_eps() -> None:
    assert advantages.group_mean_std(torch.full((1, 3), 0.1), eps=0.0).tolist() == [[0.0, 0.0, 0.0]]


def test_has_signal() -> None:
    rewards = torch.tensor([[0.1, 0.1, 0.1], [0.0, 0.0, 1.0], [1.0, 1.0, 1.0], [1.0, 0.0, 0.0]])
    assert advantages.has_signal(rewards).tolist() == [False, True, False, True]
    assert advantages.has_signal(torch.tensor([[0.5]])).tolist() == [False]


def test_a_reward_that_is_nan_is_not_hidden() -> None:
    assert advantages.group_mean_std(torch.tensor([[float("nan"), 1.0]]), eps=1e-6).isnan().all()


def test_soft_overlong_penalty_golden() -> None:
    # max 100, buffer 20: 0 up to 80, then (80 - T) / 20: 81 -> -0.05, 90 -> -0.5, 99 -> -0.95, 100 -> -1.
    lengths = torch.tensor([[0, 80, 81, 90], [99, 100, 101, 1000]])
    result = advantages.soft_overlong_penalty(lengths, max_tokens=100, buffer_tokens=20)
    assert result.dtype == torch.float32
    assert_golden(result, [[0.0, 0.0, -0.05, -0.5], [-0.95, -1.0, -1.0, -1.0]])


@pytest.mark.parametrize("buffer_tokens", [0, -1, 101])
def test_soft_overlong_penalty_refuses_a_buffer_outside_the_limit(buffer_tokens: int) -> None:
    with pytest.raises(ValueError, match=rf"buffer_tokens={buffer_tokens} .*max_tokens=100"):
        advantages.soft_overlong_penalty(torch.tensor([1]), max_tokens=100, buffer_tokens=buffer_tokens)


@centred
def test_a_group_of_one_has_nothing_to_compare_with(scheme: Scheme) -> None:
    with pytest.raises(ValueError, match=r"\[4, 1\]"):
        scheme(torch.ones(4, 1))


@pytest.mark.parametrize(
    "function",
    [advantages.raw, advantages.group_mean, group_mean_std, advantages.leave_one_out, advantages.has_signal],
)
def test_rewards_without_groups_are_refused(function: Scheme) -> None:
    with pytest.raises(ValueError, match=r"\[8\] .*\[P, G\]"):
        function(torch.ones(8))
