"""`chunked_log_probs` with an expected gradient: never another result, fewer products; and the head's memory."""

from __future__ import annotations

from typing import Any, cast

import pytest
import torch
from torch import Tensor

from grpo.rl import chunked_head
from grpo.rl.chunked_head import chunked_log_probs
from grpo.rl.log_probs import TokenDistribution
from tests.unit.rl.heads import DISTRIBUTIONS, NUM_TOKENS, VOCABULARY, PeakMemory, Products, incoming, inputs

CHUNK = 4
NUM_CHUNKS = 4  # of 13 tokens
DTYPES = {
    "float32": (torch.float32, torch.float32),
    "bfloat16_hidden": (torch.bfloat16, torch.float32),
    "bfloat16": (torch.bfloat16, torch.bfloat16),
}
every_distribution = pytest.mark.parametrize("distribution", DISTRIBUTIONS.values(), ids=DISTRIBUTIONS)
every_dtype = pytest.mark.parametrize("dtypes", DTYPES.values(), ids=DTYPES)


def partly_right() -> Tensor:
    guess = incoming().clone()
    guess[NUM_TOKENS // 2 :] *= 2
    return guess


def one_bit_off() -> Tensor:
    guess = incoming().clone()
    guess[-1] = torch.nextafter(guess[-1], torch.tensor(9.0))
    return guess


WRONG = {
    "all_wrong": -incoming(),
    "partly_right": partly_right(),
    "one_bit_off": one_bit_off(),
    "a_common_factor": 3 * incoming(),
    "zeros": torch.zeros(NUM_TOKENS),
    "nan": torch.full((NUM_TOKENS,), float("nan")),
}


def results(
    guess: Tensor | None, grad: Tensor, distribution: TokenDistribution, dtypes: tuple[torch.dtype, torch.dtype]
) -> tuple[tuple[Tensor, ...], tuple[int, int]]:
    """Log-probs, entropies and both gradients; products in the forward and in the backward pass."""
    hidden, weight, targets, banned = inputs()
    hidden = hidden.detach().to(dtypes[0]).requires_grad_()
    weight = weight.detach().to(dtypes[1]).requires_grad_()
    options: dict[str, Any] = {"banned": banned, "chunk_tokens": CHUNK, "expected_grad": guess}
    with Products() as forward:
        log_probs, entropies = chunked_log_probs(hidden, weight, targets, distribution, **options)
    with Products() as backward:
        gradients = torch.autograd.grad(log_probs, (hidden, weight), grad)
    return (log_probs.detach(), entropies, *gradients), (forward.count, backward.count)


@every_dtype
@every_distribution
def test_a_right_guess_gives_the_same_gradients_in_the_forward_pass(
    distribution: TokenDistribution, dtypes: tuple[torch.dtype, torch.dtype]
) -> None:
    plain, products = results(None, incoming(), distribution, dtypes)
    assert products == (NUM_CHUNKS, 3 * NUM_CHUNKS)
    guessed, products = results(incoming(), incoming(), distribution, dtypes)
    assert products == (3 * NUM_CHUNKS, 0)
    for actual, expected in zip(guessed, plain, strict=True):
        assert torch.equal(actual, expected)


@every_dtype
@pytest.mark.parametrize("guess", WRONG.values(), ids=WRONG)
def test_a_wrong_guess_changes_nothing(guess: Tensor, dtypes: tuple[torch.dtype, torch.dtype]) -> None:
    plain, _ = results(None, incoming(), DISTRIBUTIONS["everything"], dtypes)
    guessed, products = results(guess, incoming(), DISTRIBUTIONS["everything"], dtypes)
    assert products[1] == 3 * NUM_CHUNKS
    for actual, expected in zip(guessed, plain, strict=True):
        assert torch.equal(actual, expected)


@every_dtype
@every_distribution
@pytest.mark.parametrize("guess", [None, incoming()], ids=["plain", "guessed"])
def test_blocks_of_a_chunk_change_nothing(
    monkeypatch: pytest.MonkeyPatch,
    guess: Tensor | None,
    distribution: TokenDistribution,
    dtypes: tuple[torch.dtype, torch.dtype],
) -> None:
    whole, _ = results(guess, incoming(), distribution, dtypes)
    for elements in (1, 3 * VOCABULARY):  # of 13 tokens in chunks of 4: one row, three rows and the one that is left
        monkeypatch.setattr(chunked_head, "_block_elements", lambda device, elements=elements: elements)
        for actual, expected in zip(results(guess, incoming(), distribution, dtypes)[0], whole, strict=True):
            torch.testing.assert_close(actual, expected, rtol=1e-6, atol=1e-6)


@every_dtype
def test_the_gradient_is_that_of_logits_of_the_compute_dtype(dtypes: tuple[torch.dtype, torch.dtype]) -> None:
    # Products in the compute dtype, arithmetic between them in float32, the sum over chunks in float32.
    hidden, weight, targets, _ = inputs()
    hidden, head = hidden.detach().to(dtypes[0]), weight.detach().to(dtypes[1]).to(dtypes[0])
    grad_logits = torch.nn.functional.one_hot(targets, len(head)) - (hidden @ head.T).float().softmax(dim=-1)
    grad_logits = (grad_logits * incoming().unsqueeze(1)).to(dtypes[0])
    parts = [
        grad_logits[start : start + CHUNK].T @ hidden[start : start + CHUNK] for start in range(0, NUM_TOKENS, CHUNK)
    ]
    (_, _, grad_hidden, grad_weight), _ = results(incoming(), incoming(), TokenDistribution(), dtypes)
    assert (grad_hidden.dtype, grad_weight.dtype) == dtypes
    tolerance = 1e-6 if dtypes[0] == torch.float32 else 1e-2
    torch.testing.assert_close(grad_hidden, grad_logits @ head, rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(
        grad_weight, torch.stack(parts).float().sum(dim=0).to(dtypes[1]), rtol=tolerance, atol=tolerance
    )


@pytest.mark.parametrize("guessed", [True, False])
def test_tokens_without_gradient_need_no_products(guessed: bool) -> None:
    # Of the chunks 0-3, 4-7, 8-11 and 12 the second has no gradient at all, the third one here and there.
    grad = incoming().clone()
    grad[4:8] = 0
    grad[9] = grad[11] = 0
    (_, _, *actual), products = results(grad if guessed else None, grad, DISTRIBUTIONS["everything"], DTYPES["float32"])
    assert products == ((NUM_CHUNKS + 2 * 3, 0) if guessed else (NUM_CHUNKS, 3 * 3))
    assert actual[0].abs().sum(dim=1).eq(0).tolist() == grad.eq(0).tolist()
    hidden, weight, targets, banned = inputs()
    rows = grad.nonzero().squeeze(1)
    log_probs, _ = chunked_log_probs(
        hidden[rows], weight, targets[rows], DISTRIBUTIONS["everything"], banned=banned[rows]
    )
    for one, other in zip(actual, torch.autograd.grad(log_probs, (hidden, weight), grad[rows]), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("frozen", ["hidden", "weight"])
def test_only_what_needs_a_gradient_gets_a_product(frozen: str) -> None:
    hidden, weight, targets, _ = inputs()
    tensors = {"hidden": hidden, "weight": weight}
    tensors[frozen].requires_grad_(False)
    with Products() as forward:
        log_probs, _ = chunked_log_probs(
            hidden, weight, targets, TokenDistribution(), chunk_tokens=CHUNK, expected_grad=incoming()
        )
    with Products() as backward:
        log_probs.backward(incoming())
    assert (forward.count, backward.count) == (2 * NUM_CHUNKS, 0)
    for name, tensor in tensors.items():
        assert (tensor.grad is None) == (name == frozen)


@pytest.mark.parametrize("why", ["no_grad", "frozen"])
def test_a_pass_without_gradients_computes_none(why: str) -> None:
    hidden, weight, targets, _ = inputs()
    if why == "frozen":
        hidden, weight = hidden.detach(), weight.detach()
    with torch.set_grad_enabled(why == "frozen"), Products() as forward:
        log_probs, _ = chunked_log_probs(
            hidden, weight, targets, TokenDistribution(), chunk_tokens=CHUNK, expected_grad=incoming()
        )
    assert forward.count == NUM_CHUNKS
    assert not log_probs.requires_grad


def test_gradients_are_handed_out_once_and_computed_again_after_that() -> None:
    hidden, weight, targets, _ = inputs()
    log_probs, _ = chunked_log_probs(hidden, weight, targets, TokenDistribution(), expected_grad=incoming())
    log_probs.backward(incoming(), retain_graph=True)
    assert hidden.grad is not None
    assert weight.grad is not None
    first = hidden.grad.clone(), weight.grad.clone()
    hidden.grad.zero_()
    weight.grad.zero_()
    log_probs.backward(incoming())
    assert torch.equal(hidden.grad, first[0])
    assert torch.equal(weight.grad, first[1])


def test_a_second_derivative_is_refused() -> None:
    hidden, weight, targets, _ = inputs()
    log_probs, _ = chunked_log_probs(hidden, weight, targets, TokenDistribution(), expected_grad=incoming())
    (gradient,) = torch.autograd.grad(log_probs, hidden, incoming().requires_grad_(), create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()


def test_a_guess_of_another_shape_is_named() -> None:
    hidden, weight, targets, _ = inputs()
    with pytest.raises(ValueError, match=r"expected_grad \(3,\) and targets \(13,\) do not fit"):
        chunked_log_probs(hidden, weight, targets, TokenDistribution(), expected_grad=torch.zeros(3))


@pytest.mark.parametrize("guessed", [True, False])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_one_chunk_of_logits_is_alive_at_a_time(
    monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, temperature: float, guessed: bool
) -> None:
    # Beyond the chunk's logits, in the compute dtype, and both gradients there may be four blocks of float32: logits
    # divided by the temperature, log-probs, probabilities, and one of the block before.
    num_tokens, chunk, vocabulary, width, block = 128, 64, 4096, 2, 2 * 4096
    monkeypatch.setattr(chunked_head, "_block_elements", lambda device: block)
    hidden = torch.randn(num_tokens, width, dtype=dtype, requires_grad=True)
    weight = torch.randn(vocabulary, width, dtype=dtype, requires_grad=True)
    targets, grad = torch.arange(num_tokens), torch.linspace(1, 2, num_tokens)
    gradients = 4 * width * (num_tokens + vocabulary)
    with PeakMemory() as memory:
        log_probs, _ = chunked_log_probs(
            hidden,
            weight,
            targets,
            TokenDistribution(temperature),
            chunk_tokens=chunk,
            expected_grad=grad if guessed else None,
        )
        log_probs.backward(grad)
    logits = chunk * vocabulary * dtype.itemsize
    assert logits < memory.peak <= logits + 4 * 4 * block + 2 * gradients < 1.5 * logits


@pytest.mark.parametrize("guessed", [True, False])
@pytest.mark.parametrize("dtypes", DTYPES.values(), ids=DTYPES)
def test_the_head_has_one_gradient_and_no_second_one_on_the_way(
    monkeypatch: pytest.MonkeyPatch, dtypes: tuple[torch.dtype, torch.dtype], guessed: bool
) -> None:
    # The sum is float32; a head of another dtype than the hidden states is copied, and the sum goes to its dtype last.
    num_tokens, chunk, vocabulary, width = 16, 8, 256, 512
    monkeypatch.setattr(chunked_head, "_block_elements", lambda device: 2**12)
    hidden = torch.randn(num_tokens, width, dtype=dtypes[0], requires_grad=True)
    weight = torch.randn(vocabulary, width, dtype=dtypes[1], requires_grad=True)
    targets, grad = torch.arange(num_tokens), torch.linspace(1, 2, num_tokens)
    with PeakMemory() as memory:
        log_probs, _ = chunked_log_probs(
            hidden, weight, targets, TokenDistribution(), chunk_tokens=chunk, expected_grad=grad if guessed else None
        )
        log_probs.backward(grad)
    one = 4 * vocabulary * width
    allowed = one if dtypes[0] == dtypes[1] == torch.float32 else 1.5 * one
    assert one <= memory.peak < allowed + 0.25 * one


def test_the_gradient_of_the_head_is_not_copied_on_its_way() -> None:
    hidden, weight, targets, _ = inputs()
    log_probs, _ = chunked_log_probs(hidden, weight, targets, TokenDistribution(), expected_grad=incoming())
    made = cast(Any, log_probs.grad_fn).expected[1].data_ptr()
    log_probs.backward(incoming())
    assert weight.grad is not None
    assert weight.grad.data_ptr() == made
