"""Goldens for values and gradients of `grpo.rl.objectives`, and what the objectives must have in common."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from grpo.rl import aggregation, objectives

NAN, INF = float("nan"), float("inf")
LOW, HIGH = 0.2, 0.3  # different, so that exchanging them shows

seeds = pytest.mark.parametrize("seed", range(5))


def clipped_token(policy: Tensor, old: Tensor, advantages: Tensor, mask: Tensor) -> Tensor:
    return objectives.clipped_token(policy, old, advantages, clip_low=LOW, clip_high=HIGH)


def clipped_sequence(policy: Tensor, old: Tensor, advantages: Tensor, mask: Tensor) -> Tensor:
    return objectives.clipped_sequence(policy, old, advantages, mask, clip_low=LOW, clip_high=HIGH)


def cispo(policy: Tensor, old: Tensor, advantages: Tensor, mask: Tensor) -> Tensor:
    return objectives.cispo(policy, old, advantages, clip_low=LOW, clip_high=HIGH)


def reinforce(policy: Tensor, old: Tensor, advantages: Tensor, mask: Tensor) -> Tensor:
    return objectives.reinforce(policy, advantages)


def kl(estimator: Callable[[Tensor, Tensor], Tensor]) -> Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]:
    return lambda policy, old, advantages, mask: estimator(policy, old)


def importance_weighted(policy: Tensor, old: Tensor, advantages: Tensor, mask: Tensor) -> Tensor:
    weights = objectives.truncated_importance_weights(old, policy, cap=2.0)
    return weights * objectives.reinforce(policy, advantages)


WITH_RATIO = {"clipped_token": clipped_token, "clipped_sequence": clipped_sequence, "cispo": cispo}
EVERY = WITH_RATIO | {
    "reinforce": reinforce,
    "kl_k1": kl(objectives.kl_k1),
    "kl_k2": kl(objectives.kl_k2),
    "kl_k3": kl(objectives.kl_k3),
    "truncated_importance_weights": importance_weighted,
}


def log_ratios(*ratios: float) -> Tensor:
    """[1, T] policy log-probs of these ratios against old log-probs of 0."""
    return torch.tensor([ratios]).log().requires_grad_()


def gradient(loss: Tensor, policy: Tensor) -> Tensor:
    return torch.autograd.grad(loss.sum(), policy)[0]


def assert_golden(actual: Tensor, expected: list[float]) -> None:
    torch.testing.assert_close(actual.detach().flatten(), torch.tensor(expected), rtol=0, atol=1e-5)


def random_batch(seed: int, *, drift: float = 0.3) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Policy and old log-probs [4, 6], advantages [4, 1], mask with lengths 6, 3, 1 and 0."""
    generator = torch.Generator().manual_seed(seed)
    old = -torch.rand(4, 6, generator=generator) * 3 - 0.1
    policy = old + drift * torch.randn(4, 6, generator=generator)
    advantages = torch.randn(4, 1, generator=generator)
    mask = torch.arange(6) < torch.tensor([[6], [3], [1], [0]])
    return policy.requires_grad_(), old, advantages, mask


def batch_loss(losses: Tensor, mask: Tensor) -> Tensor:
    return aggregation.weighted_sum(losses, aggregation.sequence_mean(mask.sum(dim=1)), mask)


def test_reinforce_golden() -> None:
    # L = -A log π: -2 · -0.5 = 1, -2 · -3 = 6; 0.5 · -1 = -0.5, 0.5 · 0 = 0. dL/dlog π = -A.
    policy = torch.tensor([[-0.5, -3.0], [-1.0, 0.0]], requires_grad=True)
    loss = objectives.reinforce(policy, torch.tensor([[2.0], [-0.5]]))
    assert_golden(loss, [1.0, 6.0, -0.5, 0.0])
    assert_golden(gradient(loss, policy), [-2.0, -2.0, 0.5, 0.5])


def test_clipped_token_golden_for_a_positive_advantage() -> None:
    # A = 2, range [0.8, 1.3]. r = 0.5: min(1, 1.6) = 1. r = 1: 2. r = 1.25: 2.5. r = 2: min(4, 2.6) = 2.6, clipped.
    # dL/dlog π = -r A where the ratio is not clipped, 0 where it is.
    policy = log_ratios(0.5, 1.0, 1.25, 2.0)
    loss = clipped_token(policy, torch.zeros(1, 4), torch.tensor([[2.0]]), torch.ones(1, 4, dtype=torch.bool))
    assert_golden(loss, [-1.0, -2.0, -2.5, -2.6])
    assert_golden(gradient(loss, policy), [-1.0, -2.0, -2.5, 0.0])


def test_clipped_token_golden_for_a_negative_advantage() -> None:
    # A = -2, range [0.8, 1.3]. r = 0.5: min(-1, -1.6) = -1.6, clipped. r = 0.75: min(-1.5, -1.6) = -1.6, clipped.
    # r = 1.25: -2.5. r = 2: min(-4, -2.6) = -4: the bound is a pessimistic one, nothing is clipped here.
    policy = log_ratios(0.5, 0.75, 1.25, 2.0)
    loss = clipped_token(policy, torch.zeros(1, 4), torch.tensor([[-2.0]]), torch.ones(1, 4, dtype=torch.bool))
    assert_golden(loss, [1.6, 1.6, 2.5, 4.0])
    assert_golden(gradient(loss, policy), [0.0, 0.0, 2.5, 4.0])


def test_clipped_sequence_golden() -> None:
    # Row 1: ratios 2 and 0.5, s = sqrt(1) = 1, A = 2: L = -2. Row 2: ratios 4 and 1, s = 2, A = 2: min(4, 2.6) = 2.6.
    # Row 3: ratios 4 and 1, s = 2, A = -2: min(-4, -2.6) = -4. Row 4: one token, r = 1.2, A = 1; padding ignored.
    # Row 5: ratios 0.5 and 0.5, s = 0.5, A = -1: min(-0.5, -0.8) = -0.8.
    policy = torch.tensor([[2.0, 0.5], [4.0, 1.0], [4.0, 1.0], [1.2, 9.0], [0.5, 0.5]]).log().requires_grad_()
    advantages = torch.tensor([[2.0], [2.0], [-2.0], [1.0], [-1.0]])
    mask = torch.tensor([[True, True], [True, True], [True, True], [True, False], [True, True]])
    loss = clipped_sequence(policy, torch.zeros(5, 2), advantages, mask)
    assert_golden(loss, [-2.0, -2.0, -2.6, -2.6, 4.0, 4.0, -1.2, -1.2, 0.8, 0.8])
    # The loss of the batch is the mean of the sequences' losses: (-2 - 2.6 + 4 - 1.2 + 0.8) / 5 = -0.2.
    total = batch_loss(loss, mask)
    assert_golden(total, [-0.2])
    # Each token: -s A / (B T_i): -2 / 10, clipped 0, 4 / 10, -1.2 / 5 and nothing for padding, clipped 0.
    assert_golden(gradient(total, policy), [-0.2, -0.2, 0.0, 0.0, 0.4, 0.4, -0.24, 0.0, 0.0, 0.0])


def test_cispo_golden() -> None:
    # log π_old = 0, so log π = log r. Weights 0.8 (clipped from 0.5), 1, 1.25, 1.3 (clipped from 2), A = 2.
    # L = -w A log r; dL/dlog π = -w A: the clipped tokens keep their gradient, and the weight has none of its own.
    policy = log_ratios(0.5, 1.0, 1.25, 2.0)
    loss = cispo(policy, torch.zeros(1, 4), torch.tensor([[2.0]]), torch.ones(1, 4, dtype=torch.bool))
    assert_golden(loss, [1.6 * math.log(2), 0.0, -2.5 * math.log(1.25), -2.6 * math.log(2)])
    assert_golden(gradient(loss, policy), [-1.6, -2.0, -2.5, -2.6])
    # With A = -1 the same weights apply: unlike the surrogate's, this clip has no good side.
    loss = cispo(policy, torch.zeros(1, 4), torch.tensor([[-1.0]]), torch.ones(1, 4, dtype=torch.bool))
    assert_golden(gradient(loss, policy), [0.8, 1.0, 1.25, 1.3])


def test_clipped_mask_golden() -> None:
    # Range [0.8, 1.3]. A > 0 is clipped above 1.3 only, A < 0 below 0.8 only, A = 0 never.
    ratios = torch.tensor([[0.5, 0.75, 1.0, 1.25, 1.35, NAN]] * 3).log()
    advantages = torch.tensor([[1.0], [-1.0], [0.0]])
    result = objectives.clipped_mask(ratios, torch.zeros(3, 6), advantages, clip_low=LOW, clip_high=HIGH)
    assert result.tolist() == [
        [False, False, False, False, True, False],
        [True, True, False, False, False, False],
        [False] * 6,
    ]


def test_clipped_sequence_mask_golden() -> None:
    # s of the rows: 2, 2, sqrt(4 · 0.25) = 1, 0.5, 0.5, and 2 with padding.
    policy = torch.tensor([[4.0, 1.0], [4.0, 1.0], [4.0, 0.25], [0.5, 0.5], [0.5, 0.5], [2.0, NAN]]).log()
    advantages = torch.tensor([[1.0], [-1.0], [1.0], [1.0], [-1.0], [1.0]])
    mask = torch.tensor([[True, True]] * 5 + [[True, False]])
    result = objectives.clipped_sequence_mask(policy, torch.zeros(6, 2), advantages, mask, clip_low=LOW, clip_high=HIGH)
    assert result.tolist() == [[True, True], [False] * 2, [False] * 2, [False] * 2, [True, True], [True, False]]


@seeds
def test_the_clipped_masks_are_where_the_gradient_is_zero(seed: int) -> None:
    policy, old, advantages, _ = random_batch(seed, drift=0.6)
    mask = torch.ones_like(old, dtype=torch.bool)
    clipped = objectives.clipped_mask(policy, old, advantages, clip_low=LOW, clip_high=HIGH)
    assert torch.equal(gradient(clipped_token(policy, old, advantages, mask), policy) == 0, clipped)
    assert clipped.any()
    clipped = objectives.clipped_sequence_mask(policy, old, advantages, mask, clip_low=LOW, clip_high=HIGH)
    assert torch.equal(gradient(clipped_sequence(policy, old, advantages, mask), policy) == 0, clipped)


def test_kl_goldens() -> None:
    # π_ref / π = 1/2, 1, 2, so log π - log π_ref = ln 2, 0, -ln 2.
    # k1 = ln 2, 0, -ln 2; gradient 1. k2 = ln²2 / 2; gradient ln 2, 0, -ln 2.
    # k3 = ratio - 1 - ln ratio = -1/2 + ln 2, 0, 1 - ln 2; gradient 1 - ratio = 1/2, 0, -1.
    ln2 = math.log(2)
    policy = torch.tensor([[-1.0, -1.0, -1.0]], requires_grad=True)
    ref = policy.detach() + torch.tensor([[-ln2, 0.0, ln2]])
    assert_golden(objectives.kl_k1(policy, ref), [ln2, 0.0, -ln2])
    assert_golden(gradient(objectives.kl_k1(policy, ref), policy), [1.0, 1.0, 1.0])
    assert_golden(objectives.kl_k2(policy, ref), [ln2**2 / 2, 0.0, ln2**2 / 2])
    assert_golden(gradient(objectives.kl_k2(policy, ref), policy), [ln2, 0.0, -ln2])
    assert_golden(objectives.kl_k3(policy, ref), [-0.5 + ln2, 0.0, 1 - ln2])
    assert_golden(gradient(objectives.kl_k3(policy, ref), policy), [0.5, 0.0, -1.0])


@seeds
def test_kl_expectations(seed: int) -> None:
    # One token over 5 words: the expectation over samples of π is a sum that can be written out.
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(5, generator=generator, dtype=torch.float64, requires_grad=True)
    ref = torch.randn(5, generator=generator, dtype=torch.float64).log_softmax(0)
    policy = logits.log_softmax(0)
    probs = policy.exp().detach()
    reverse = torch.sum(policy.exp() * (policy - ref))
    forward = torch.sum(ref.exp() * (ref - policy))

    def expected(estimator: Callable[[Tensor, Tensor], Tensor]) -> tuple[Tensor, Tensor]:
        mean = (probs * estimator(policy.unsqueeze(0), ref.unsqueeze(0))[0]).sum()
        return mean.detach(), torch.autograd.grad(mean, logits, retain_graph=True)[0]

    k1, k1_grad = expected(objectives.kl_k1)
    _, k2_grad = expected(objectives.kl_k2)
    k3, k3_grad = expected(objectives.kl_k3)
    torch.testing.assert_close(k1, reverse.detach())
    torch.testing.assert_close(k3, reverse.detach())
    torch.testing.assert_close(k1_grad, torch.zeros_like(k1_grad))
    torch.testing.assert_close(k2_grad, torch.autograd.grad(reverse, logits, retain_graph=True)[0])
    torch.testing.assert_close(k3_grad, torch.autograd.grad(forward, logits)[0])


def test_truncated_importance_weights_golden() -> None:
    # exp(old - sampler): exp(0) = 1, exp(ln 1.5) = 1.5, exp(ln 3) = 3 capped at 2, exp(-ln 4) = 0.25 not raised.
    old = torch.tensor([[1.0, 1.5, 3.0, 0.25, 1.0]]).log().requires_grad_()
    sampler = torch.zeros(1, 5)
    sampler[0, 4] = -INF  # the engine took the token for impossible
    weights = objectives.truncated_importance_weights(old, sampler, cap=2.0)
    assert_golden(weights, [1.0, 1.5, 2.0, 0.25, 2.0])
    assert not weights.requires_grad


@pytest.mark.parametrize("name", WITH_RATIO)
@seeds
def test_at_ratio_one_the_gradient_is_that_of_reinforce(name: str, seed: int) -> None:
    policy, _, advantages, mask = random_batch(seed)
    loss = WITH_RATIO[name](policy, policy.detach().clone(), advantages, mask)
    expected = gradient(batch_loss(objectives.reinforce(policy, advantages), mask), policy)
    assert expected.abs().max() > 0.01
    torch.testing.assert_close(gradient(batch_loss(loss, mask), policy), expected, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("name", WITH_RATIO)
def test_advantages_of_zero_give_no_gradient(name: str) -> None:
    policy, old, advantages, mask = random_batch(0)
    assert not gradient(batch_loss(WITH_RATIO[name](policy, old, 0 * advantages, mask), mask), policy).any()


@pytest.mark.parametrize("name", WITH_RATIO)
@seeds
def test_a_step_down_the_gradient_makes_good_completions_likelier(name: str, seed: int) -> None:
    policy, old, advantages, mask = random_batch(seed, drift=0.05)  # well inside the clip range
    step = -gradient(WITH_RATIO[name](policy, old, advantages, mask), policy)
    assert torch.equal(step.sign()[mask], advantages.sign().expand_as(step)[mask])


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize("rubbish", [NAN, INF, -INF, 1e30, -200.0, 200.0, 5.0])
@seeds
def test_padding_is_inert(name: str, rubbish: float, seed: int) -> None:
    policy, old, advantages, mask = random_batch(seed)
    clean = batch_loss(EVERY[name](policy, old, advantages, mask), mask)
    clean_gradient = gradient(clean, policy)
    assert clean_gradient.any()
    dirty_policy = torch.where(mask, policy.detach(), rubbish).requires_grad_()
    dirty_old = torch.where(mask, old, rubbish)
    cases = {
        "policy": (dirty_policy, old),
        "old": (policy, dirty_old),
        "both": (dirty_policy, dirty_old),
        "opposite": (dirty_policy, torch.where(mask, old, -rubbish)),
    }
    for which, (some_policy, some_old) in cases.items():
        loss = batch_loss(EVERY[name](some_policy, some_old, advantages, mask), mask)
        assert torch.equal(loss, clean), which
        assert torch.equal(gradient(loss, some_policy), clean_gradient), which


@pytest.mark.parametrize("name", [name for name in EVERY if name != "truncated_importance_weights"])
def test_nan_inside_the_response_is_not_hidden(name: str) -> None:
    policy, old, advantages, mask = random_batch(0)
    broken = policy.detach().clone()
    broken[0, 2] = NAN
    assert batch_loss(EVERY[name](broken, old, advantages, mask), mask).isnan()


@pytest.mark.parametrize("name", [name for name in EVERY if name not in ("truncated_importance_weights", "reinforce")])
def test_nan_in_the_other_log_probs_of_the_response_is_not_hidden(name: str) -> None:
    policy, old, advantages, mask = random_batch(0)
    old[0, 2] = NAN
    assert batch_loss(EVERY[name](policy, old, advantages, mask), mask).isnan()


@pytest.mark.parametrize("name", ["clipped_token", "clipped_sequence"])
def test_a_ratio_that_overflows_is_clipped_like_any_other(name: str) -> None:
    policy = torch.tensor([[200.0, 200.0]], requires_grad=True)
    loss = WITH_RATIO[name](policy, torch.zeros(1, 2), torch.ones(1, 1), torch.ones(1, 2, dtype=torch.bool))
    assert_golden(loss, [-1.3, -1.3])
    assert_golden(gradient(loss, policy), [0.0, 0.0])


@pytest.mark.parametrize("name", EVERY)
def test_only_the_policy_carries_a_gradient(name: str) -> None:
    policy, old, advantages, mask = random_batch(0)
    old, advantages = old.requires_grad_(), advantages.requires_grad_()
    EVERY[name](policy, old, advantages, mask).sum().backward()
    assert policy.grad is not None
    assert policy.grad.any()
    assert old.grad is None
    assert advantages.grad is None


# CISPO's gradient is not that of its value, on purpose: its goldens hold it instead.
@pytest.mark.parametrize("name", [name for name in EVERY if name not in ("cispo", "truncated_importance_weights")])
@seeds
def test_gradcheck(name: str, seed: int) -> None:
    policy, old, advantages, mask = random_batch(seed)
    old, advantages = old.double(), advantages.double()
    assert torch.autograd.gradcheck(
        lambda p: EVERY[name](p, old, advantages, mask), policy.detach().double().requires_grad_()
    )


@pytest.mark.parametrize("name", EVERY)
def test_inputs_stay_as_they_are(name: str) -> None:
    policy, old, advantages, mask = random_batch(0)
    before = [tensor.detach().clone() for tensor in (policy, old, advantages, mask)]
    EVERY[name](policy, old, advantages, mask)
    for tensor, copy in zip((policy, old, advantages, mask), before, strict=True):
        assert torch.equal(tensor, copy)


@pytest.mark.parametrize("name", [name for name in EVERY if name != "reinforce"])
def test_log_probs_of_different_shapes_are_refused(name: str) -> None:
    policy, old, advantages, mask = random_batch(0)
    with pytest.raises(ValueError, match=r"(\[4, 5\].*\[4, 6\])|(\[4, 6\].*\[4, 5\])"):
        EVERY[name](policy, old[:, :5], advantages, mask)


@pytest.mark.parametrize("name", [*WITH_RATIO, "reinforce"])
def test_advantages_that_would_broadcast_over_tokens_are_refused(name: str) -> None:
    square = torch.zeros(3, 3)
    with pytest.raises(ValueError, match=r"\[3\].*\[B, 1\].*\[3, 3\]"):
        EVERY[name](square, square, torch.ones(3), torch.ones(3, 3, dtype=torch.bool))


def test_a_mask_of_another_shape_is_refused() -> None:
    policy, old, advantages, mask = random_batch(0)
    with pytest.raises(ValueError, match=r"\[4, 2\].*\[4, 6\]"):
        clipped_sequence(policy, old, advantages, mask[:, :2])
