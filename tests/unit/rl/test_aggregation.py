"""Goldens of `grpo.rl.aggregation`, and contract 1: how a batch is cut does not change its gradient."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from grpo.rl import aggregation

NAN, INF = float("nan"), float("inf")
Weights = Callable[[Tensor], Tensor]


def constant_length(response_lengths: Tensor) -> Tensor:
    return aggregation.constant_length(response_lengths, max_tokens=8)


every_aggregation = pytest.mark.parametrize(
    "weights_of", [aggregation.sequence_mean, aggregation.token_mean, constant_length]
)


def mask_of(lengths: Tensor, width: int) -> Tensor:
    return torch.arange(width) < lengths.unsqueeze(1)


def assert_golden(actual: Tensor, expected: list[float]) -> None:
    torch.testing.assert_close(actual.detach().flatten(), torch.tensor(expected), rtol=0, atol=1e-6)


def test_sequence_mean_golden() -> None:
    # B = 4: 1 / (4 · 2), 1 / (4 · 5), nothing, 1 / (4 · 1).
    assert_golden(aggregation.sequence_mean(torch.tensor([2, 5, 0, 1])), [0.125, 0.05, 0.0, 0.25])


def test_token_mean_golden() -> None:
    # 2 + 5 + 0 + 1 = 8 tokens.
    assert_golden(aggregation.token_mean(torch.tensor([2, 5, 0, 1])), [0.125] * 4)


def test_constant_length_golden() -> None:
    # B = 4, L = 10: 1 / 40, whatever the lengths.
    assert_golden(aggregation.constant_length(torch.tensor([2, 5, 0, 1]), max_tokens=10), [0.025] * 4)


@every_aggregation
def test_a_batch_without_tokens_has_finite_weights_and_no_loss(weights_of: Weights) -> None:
    weights = weights_of(torch.tensor([0, 0]))
    losses = torch.full((2, 3), NAN, requires_grad=True)
    loss = aggregation.weighted_sum(losses, weights, torch.zeros(2, 3, dtype=torch.bool))
    loss.backward()
    assert weights.isfinite().all()
    assert loss.item() == 0.0
    assert losses.grad is not None
    assert not losses.grad.any()


def test_weighted_sum_golden() -> None:
    # Lengths 2 and 1. 0.5 · (1 + 2) + 0.25 · 4 = 2.5; the gradient is the weight, and 0 in padding.
    losses = torch.tensor([[1.0, 2.0, 50.0], [4.0, -70.0, 90.0]], requires_grad=True)
    mask = mask_of(torch.tensor([2, 1]), 3)
    loss = aggregation.weighted_sum(losses, torch.tensor([0.5, 0.25]), mask)
    loss.backward()
    assert loss.ndim == 0
    assert_golden(loss, [2.5])
    assert losses.grad is not None
    assert_golden(losses.grad, [0.5, 0.5, 0.0, 0.25, 0.0, 0.0])


@every_aggregation
def test_the_loss_of_a_batch_golden(weights_of: Weights) -> None:
    # Row 1: tokens 1, 3. Row 2: tokens 2, 4, 6, 8.
    # Sequences: (2 + 5) / 2 = 3.5. Tokens: 24 / 6 = 4. Constant length 8: (4 + 20) / (2 · 8) = 1.5.
    goldens: dict[Weights, float] = {aggregation.sequence_mean: 3.5, aggregation.token_mean: 4.0, constant_length: 1.5}
    losses = torch.tensor([[1.0, 3.0, NAN, NAN], [2.0, 4.0, 6.0, 8.0]])
    lengths = torch.tensor([2, 4])
    assert_golden(aggregation.weighted_sum(losses, weights_of(lengths), mask_of(lengths, 4)), [goldens[weights_of]])


@every_aggregation
@pytest.mark.parametrize("rubbish", [NAN, INF, -INF, 1e30])
def test_padding_is_inert(weights_of: Weights, rubbish: float) -> None:
    lengths = torch.tensor([3, 0, 1])
    mask = mask_of(lengths, 4)
    clean = torch.randn(3, 4, generator=torch.Generator().manual_seed(0)).requires_grad_()
    dirty = torch.where(mask, clean.detach(), rubbish).requires_grad_()
    losses = [aggregation.weighted_sum(some, weights_of(lengths), mask) for some in (clean, dirty)]
    gradients = [torch.autograd.grad(loss, some)[0] for loss, some in zip(losses, (clean, dirty), strict=True)]
    assert torch.equal(*losses)
    assert torch.equal(*gradients)
    assert gradients[0].any()


def test_nan_inside_the_response_is_not_hidden() -> None:
    mask = mask_of(torch.tensor([2]), 3)
    assert aggregation.weighted_sum(torch.tensor([[1.0, NAN, 1.0]]), torch.ones(1), mask).isnan()


@every_aggregation
@given(data=st.data())
@settings(deadline=None, max_examples=60)
def test_any_split_gives_the_same_loss_and_gradient(weights_of: Weights, data: st.DataObject) -> None:
    lengths = torch.tensor(data.draw(st.lists(st.integers(0, 8), min_size=1, max_size=8)))
    num_sequences = len(lengths)
    order = torch.tensor(data.draw(st.permutations(range(num_sequences))))
    cuts = data.draw(st.sets(st.integers(1, num_sequences)))
    parts = torch.tensor_split(order, sorted(cuts))
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 999)))
    features = torch.randn(num_sequences, 8, 3, generator=generator, dtype=torch.float64)
    parameters = torch.randn(3, generator=generator, dtype=torch.float64, requires_grad=True)
    weights = weights_of(lengths).double()

    def part_loss(rows: Tensor) -> Tensor:
        # Each part is padded to its own longest sequence.
        width = int(lengths[rows].max()) if len(rows) else 0
        losses = torch.tanh(features[rows, :width] @ parameters)
        return aggregation.weighted_sum(losses, weights[rows], mask_of(lengths[rows], width))

    whole = part_loss(torch.arange(num_sequences))
    (whole_gradient,) = torch.autograd.grad(whole, parameters)
    for part in parts:
        part_loss(part).backward()
    assert parameters.grad is not None
    torch.testing.assert_close(sum(part_loss(part).detach() for part in parts), whole.detach())
    torch.testing.assert_close(parameters.grad, whole_gradient, rtol=1e-10, atol=1e-12)


def test_gradcheck() -> None:
    losses = torch.randn(3, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64, requires_grad=True)
    weights = torch.tensor([0.1, 0.2, 0.3], dtype=torch.float64)
    mask = mask_of(torch.tensor([4, 2, 0]), 4)
    assert torch.autograd.gradcheck(lambda x: aggregation.weighted_sum(x, weights, mask), losses)


@every_aggregation
def test_lengths_of_another_shape_are_refused(weights_of: Weights) -> None:
    with pytest.raises(ValueError, match=r"\[2, 3\].*\[B\]"):
        weights_of(torch.ones(2, 3, dtype=torch.int64))


def test_max_tokens_of_zero_is_refused() -> None:
    with pytest.raises(ValueError, match="max_tokens=0"):
        aggregation.constant_length(torch.tensor([1]), max_tokens=0)


def test_weighted_sum_names_both_shapes() -> None:
    mask = torch.ones(3, 4, dtype=torch.bool)
    with pytest.raises(ValueError, match=r"\[3, 4\].*\[3, 5\]"):
        aggregation.weighted_sum(torch.zeros(3, 5), torch.ones(3), mask)
    with pytest.raises(ValueError, match=r"\[4\].*\[3, 4\]"):
        aggregation.weighted_sum(torch.zeros(3, 4), torch.ones(4), mask)
