"""Goldens of `grpo.rl.log_probs`; the chunked log-probs and their gradients against the plain ones; memory."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from grpo.rl.chunked_head import chunked_log_probs
from grpo.rl.log_probs import TokenDistribution, entropy, sampled_log_probs, sampled_logits
from tests.unit.rl.heads import DISTRIBUTIONS, NUM_TOKENS, incoming, inputs

INF = float("inf")
PROBS = [0.5, 0.3, 0.15, 0.05]
every_distribution = pytest.mark.parametrize("distribution", DISTRIBUTIONS.values(), ids=DISTRIBUTIONS)


def golden(distribution: TokenDistribution, expected: list[float], **options: Any) -> None:
    """Compares probabilities of the row log PROBS with their golden values."""
    log_probs = sampled_log_probs(torch.tensor([PROBS]).log(), distribution, **options)
    assert log_probs.dtype == torch.float32
    torch.testing.assert_close(log_probs.exp(), torch.tensor([expected], dtype=torch.float32), rtol=0, atol=1e-6)


def test_temperature_golden() -> None:
    golden(TokenDistribution(), PROBS)
    # T = 1/2 squares probabilities: 0.25, 0.09, 0.0225, 0.0025 over their sum 0.365.
    golden(TokenDistribution(temperature=0.5), [0.684932, 0.246575, 0.061644, 0.006849])


def test_top_k_golden() -> None:
    # 0.5 / 0.8, 0.3 / 0.8
    golden(TokenDistribution(top_k=2), [0.625, 0.375, 0, 0])
    golden(TokenDistribution(top_k=9), PROBS)


def test_top_p_golden() -> None:
    # 0.5 < 0.7 <= 0.5 + 0.3: two tokens. 0.8 < 0.81 <= 0.95: three, over 0.95. Below 0.5: one.
    golden(TokenDistribution(top_p=0.7), [0.625, 0.375, 0, 0])
    golden(TokenDistribution(top_p=0.81), [0.526316, 0.315789, 0.157895, 0])
    golden(TokenDistribution(top_p=0.1), [1, 0, 0, 0])


def test_top_p_counts_what_top_k_has_left() -> None:
    # Of 0.625 and 0.375 the first alone reaches 0.6; without top-k it would take both (0.5 < 0.6).
    golden(TokenDistribution(top_k=2, top_p=0.6), [1, 0, 0, 0])
    golden(TokenDistribution(top_p=0.6), [0.625, 0.375, 0, 0])


def test_temperature_comes_before_top_p() -> None:
    # At T = 1/2 the first token has 0.684932 and reaches 0.6 alone.
    golden(TokenDistribution(temperature=0.5, top_p=0.6), [1, 0, 0, 0])


def test_banned_golden() -> None:
    # Without token 0: 0.3, 0.15, 0.05 over 0.5; and nothing where `banned` is False.
    distribution = TokenDistribution(banned_ids=(0,))
    golden(distribution, [0, 0.6, 0.3, 0.1], banned=torch.tensor([True]))
    golden(distribution, PROBS, banned=torch.tensor([False]))
    golden(distribution, PROBS)
    # top-k counts what is left.
    golden(TokenDistribution(top_k=2, banned_ids=(0,)), [0, 0.666667, 0.333333, 0], banned=torch.tensor([True]))


def test_what_was_given_is_not_banned_in_place() -> None:
    logits = torch.zeros(2, 4)
    sampled_logits(logits, TokenDistribution(banned_ids=(0, 3)), banned=torch.tensor([True, False]))
    assert torch.equal(logits, torch.zeros(2, 4))


def test_a_kept_token_stays() -> None:
    # Tokens 0 and 1 by top-k, token 3 by `keep`: 0.5, 0.3, 0.05 over 0.85.
    golden(TokenDistribution(top_k=2), [0.588235, 0.352941, 0, 0.058824], keep=torch.tensor([3]))
    golden(TokenDistribution(top_p=0.7), [0.588235, 0.352941, 0, 0.058824], keep=torch.tensor([3]))
    golden(TokenDistribution(top_k=2), [0.625, 0.375, 0, 0], keep=torch.tensor([1]))


def test_equal_logits_are_told_apart_by_their_ids() -> None:
    log_probs = sampled_log_probs(torch.zeros(1, 4), TokenDistribution(top_k=2))
    assert log_probs.isneginf().tolist() == [[False, False, True, True]]


def test_entropy_golden() -> None:
    # ln 4 = 1.386294; 0; -(0.5 ln 0.5 + 0.3 ln 0.3 + 0.15 ln 0.15 + 0.05 ln 0.05)
    #   = 0.346574 + 0.361192 + 0.284568 + 0.149787 = 1.142120
    rows = torch.tensor([[0.25] * 4, [0.0, 1.0, 0.0, 0.0], PROBS]).log()
    torch.testing.assert_close(entropy(rows), torch.tensor([1.386294, 0.0, 1.142120]), rtol=0, atol=1e-6)


def test_the_input_is_left_alone() -> None:
    logits = torch.randn(3, 9)
    before = logits.clone()
    sampled_log_probs(logits, DISTRIBUTIONS["everything"], banned=torch.ones(3, dtype=torch.bool))
    assert torch.equal(logits, before)


# --- In chunks ------------------------------------------------------------------------------------------------------


@every_distribution
@pytest.mark.parametrize("chunk_tokens", [1, 4, NUM_TOKENS, 1000])
def test_any_chunk_size_gives_the_plain_values_and_gradients(
    distribution: TokenDistribution, chunk_tokens: int
) -> None:
    hidden, weight, targets, banned = inputs()
    plain = sampled_log_probs(hidden @ weight.T, distribution, banned=banned, keep=targets)
    expected = plain.gather(1, targets.unsqueeze(1)).squeeze(1)
    gradients = torch.autograd.grad(expected, (hidden, weight), incoming())

    log_probs, entropies = chunked_log_probs(
        hidden, weight, targets, distribution, banned=banned, chunk_tokens=chunk_tokens
    )
    torch.testing.assert_close(log_probs, expected, rtol=0, atol=1e-6)
    torch.testing.assert_close(entropies, entropy(plain), rtol=0, atol=1e-6)
    assert log_probs.isfinite().all()
    assert not entropies.requires_grad
    for actual, golden_gradient in zip(
        torch.autograd.grad(log_probs, (hidden, weight), incoming()), gradients, strict=True
    ):
        assert golden_gradient.abs().max() > 0.05
        torch.testing.assert_close(actual, golden_gradient, rtol=1e-6, atol=1e-6)


def test_gradient_golden() -> None:
    # One token, hidden [1], head [[0], [ln 3]]: z = [0, ln 3], p = [1/4, 3/4], target 0, T = 1/2 squares them:
    # p = [1/10, 9/10], log p_0 = -ln 10. d log p_0 / dz = ([1, 0] - p) / T = [1.8, -1.8];
    # d / d hidden = 1.8 · 0 - 1.8 · ln 3 = -1.977502; d / d head = [1.8, -1.8].
    hidden = torch.tensor([[1.0]], requires_grad=True)
    weight = torch.tensor([[0.0], [math.log(3)]], requires_grad=True)
    log_probs, entropies = chunked_log_probs(hidden, weight, torch.tensor([0]), TokenDistribution(temperature=0.5))
    log_probs.sum().backward()
    assert log_probs.item() == pytest.approx(-2.302585, abs=1e-6)
    # -(0.1 ln 0.1 + 0.9 ln 0.9) = 0.230259 + 0.094824
    assert entropies.item() == pytest.approx(0.325083, abs=1e-6)
    assert hidden.grad is not None
    assert weight.grad is not None
    assert hidden.grad.item() == pytest.approx(-1.977502, abs=1e-5)
    assert weight.grad.flatten().tolist() == pytest.approx([1.8, -1.8], abs=1e-5)


@every_distribution
def test_gradients_are_those_of_differences_in_float64(distribution: TokenDistribution) -> None:
    # The arithmetic is float32 by contract, so gradcheck cannot see it; here the slope is taken of the same formula in
    # float64, with the support that float32 found.
    hidden, weight, targets, banned = inputs()
    log_probs, _ = chunked_log_probs(hidden, weight, targets, distribution, banned=banned, chunk_tokens=5)
    actual = torch.autograd.grad(log_probs, (hidden, weight), incoming())
    support = sampled_log_probs(hidden @ weight.T, distribution, banned=banned, keep=targets).isfinite()

    def total(hidden: Tensor, weight: Tensor) -> Tensor:
        logits = (hidden @ weight.T / distribution.temperature).masked_fill(~support, -INF)
        chosen = logits.gather(1, targets.unsqueeze(1)).squeeze(1) - logits.logsumexp(1)
        return (chosen * incoming().double()).sum()

    step = 1e-5
    pair = [tensor.detach().double() for tensor in (hidden, weight)]
    for place, gradient in enumerate(actual):
        for index in range(0, gradient.numel(), 5):
            values = []
            for sign in (1, -1):
                moved = [tensor.clone() for tensor in pair]
                moved[place].view(-1)[index] += sign * step
                values.append(total(*moved))
            slope = float(values[0] - values[1]) / (2 * step)
            assert float(gradient.flatten()[index]) == pytest.approx(slope, rel=1e-4, abs=1e-5)


@pytest.mark.parametrize("frozen", ["hidden", "weight"])
def test_only_what_needs_a_gradient_gets_one(frozen: str) -> None:
    hidden, weight, targets, _ = inputs()
    tensors = {"hidden": hidden, "weight": weight}
    tensors[frozen].requires_grad_(False)
    log_probs, _ = chunked_log_probs(hidden, weight, targets, TokenDistribution(), chunk_tokens=5)
    log_probs.sum().backward()
    for name, tensor in tensors.items():
        assert (tensor.grad is None) == (name == frozen)


def test_a_bfloat16_hidden_state_and_a_float32_head() -> None:
    hidden, weight, targets, _ = inputs()
    low = hidden.detach().bfloat16().requires_grad_()
    log_probs, entropies = chunked_log_probs(low, weight, targets, TokenDistribution(), chunk_tokens=5)
    assert log_probs.dtype == entropies.dtype == torch.float32
    log_probs.sum().backward()
    assert low.grad is not None
    assert weight.grad is not None
    assert (low.grad.dtype, weight.grad.dtype) == (torch.bfloat16, torch.float32)
    full, _ = chunked_log_probs(hidden, weight, targets, TokenDistribution(), chunk_tokens=5)
    # bfloat16 keeps 8 bits: logits of up to about 8 are off by 8 / 256 at most, thrice.
    torch.testing.assert_close(log_probs, full, rtol=0, atol=0.1)


def test_no_tokens_at_all() -> None:
    hidden, weight, targets, _ = inputs()
    log_probs, entropies = chunked_log_probs(hidden[:0], weight, targets[:0], TokenDistribution())
    assert log_probs.shape == entropies.shape == (0,)


class LargestTensor(TorchDispatchMode):
    """Notes how many elements the largest tensor has that any operation returns."""

    largest = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        sizes = [leaf.numel() for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]
        self.largest = max([self.largest, *sizes])
        return result


@every_distribution
def test_logits_exist_for_one_chunk_at_a_time(distribution: TokenDistribution) -> None:
    num_tokens, chunk_tokens, vocabulary = 64, 8, 100
    hidden = torch.randn(num_tokens, 4, requires_grad=True)
    weight = torch.randn(vocabulary, 4, requires_grad=True)
    targets = torch.arange(num_tokens) + 10
    banned = torch.ones(num_tokens, dtype=torch.bool)
    kept: list[int] = []

    def note(tensor: Tensor) -> Tensor:
        kept.append(tensor.numel())
        return tensor

    with LargestTensor() as forward, torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        log_probs, _ = chunked_log_probs(
            hidden, weight, targets, distribution, banned=banned, chunk_tokens=chunk_tokens
        )
    with LargestTensor() as backward:
        log_probs.sum().backward()
    assert forward.largest == backward.largest == chunk_tokens * vocabulary
    assert max(kept) == weight.numel() < chunk_tokens * vocabulary  # nothing of the logits waits for the backward pass


@pytest.mark.parametrize(
    ("hidden", "weight", "targets"), [((3, 4), (9, 5), 3), ((3, 4), (9, 4), 2)], ids=["hidden_size", "tokens"]
)
def test_shapes_that_do_not_fit_are_named(hidden: tuple[int, int], weight: tuple[int, int], targets: int) -> None:
    with pytest.raises(ValueError, match="do not fit as") as caught:
        chunked_log_probs(torch.zeros(hidden), torch.zeros(weight), torch.zeros(targets).long(), TokenDistribution())
    for shape in (hidden, weight, (targets,)):
        assert str(shape) in str(caught.value)
