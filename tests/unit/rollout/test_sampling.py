"""Random numbers that belong to a key, and tokens drawn with them."""

from __future__ import annotations

import pytest
import torch

from grpo.rl.log_probs import TokenDistribution
from grpo.rollout.sampling import _invert, sample_tokens, uniforms
from grpo.types import SampleKey

PLAIN = TokenDistribution()
LARGEST = 1 - 2**-24  # the largest number that `uniforms` returns


def test_uniforms_golden() -> None:
    # Philox4x64-10 with key (seed · 2^32 + step, problem · 2^32 + sample), the upper 24 bits of each word over 2^24.
    # Key (0, 0) begins with the word 213000021201967259: floor(213000021201967259 / 2^40) / 2^24 = 193722 / 16777216.
    golden = 193722 / 16777216
    assert uniforms([SampleKey(0, 0, 0, 0)], 1).item() == golden
    # Key (2^64 - 1, 2^64 - 1): 7874205360917102206 // 2^40 = 7161548, 10542541251131640768 // 2^40 = 9588385.
    top = 2**32 - 1
    assert uniforms([SampleKey(top, top, top, top)], 2).tolist() == [[7161548 / 2**24, 9588385 / 2**24]]


def test_uniforms_depend_on_every_part_of_the_key_and_on_nothing_else() -> None:
    keys = [SampleKey(0, 0, 0, 0), *(SampleKey(*(int(place == part) for place in range(4))) for part in range(4))]
    together = uniforms(keys, 50)
    assert len({tuple(row) for row in together.tolist()}) == 5
    for row, key in zip(together, keys, strict=True):
        assert torch.equal(uniforms([key], 50)[0], row)
        assert torch.equal(uniforms([key], 13)[0], row[:13])


def test_uniforms_are_uniform_below_one_and_uncorrelated() -> None:
    numbers = uniforms([SampleKey(7, 1, place, sample) for place in range(20) for sample in range(20)], 50)
    assert numbers.dtype == torch.float32
    assert 0 <= numbers.min() < 1e-3
    assert 0.999 < numbers.max() < 1
    # 400 · 50 = 20000 numbers in 20 bins of 1000: chi-square with 19 degrees of freedom, 99.9 % quantile 43.8.
    counts = torch.histc(numbers, bins=20, min=0, max=1)
    assert float(((counts - 1000) ** 2 / 1000).sum()) < 43.8
    # Neighbours in position and in key: the standard deviation of a correlation is 1 / sqrt(20000) = 0.007.
    centred = numbers - 0.5
    for first, second in ((centred[:, 1:], centred[:, :-1]), (centred[1:], centred[:-1])):
        assert abs(float((first * second).mean()) * 12) < 4 * 0.0071


def test_inversion_picks_the_token_whose_share_holds_the_number() -> None:
    # Shares [0, 0.25), [0.25, 0.75), [0.75, 1): a border belongs to the token that begins there.
    logits = torch.tensor([0.25, 0.5, 0.25]).log()
    numbers = torch.tensor([0.0, 0.2499, 0.2501, 0.7499, 0.7501, LARGEST])
    tokens, log_probs = sample_tokens(logits.expand(6, 3), numbers, PLAIN, None)
    assert tokens.tolist() == [0, 0, 1, 1, 2, 2]
    # log 0.25 = -1.386294, log 0.5 = -0.693147
    expected = torch.tensor([-1.386294, -1.386294, -0.693147, -0.693147, -1.386294, -1.386294])
    torch.testing.assert_close(log_probs, expected, rtol=0, atol=1e-6)


def test_a_border_belongs_to_the_token_that_begins_there() -> None:
    # Four tokens of probability 1/4 are exact in float32, so 0.25, 0.5 and 0.75 are borders exactly.
    tokens, _ = sample_tokens(torch.zeros(4, 4), torch.tensor([0.0, 0.25, 0.5, 0.75]), PLAIN, None)
    assert tokens.tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize("number", [0.0, 0.25, 0.5, LARGEST])
@pytest.mark.parametrize("removed_by", ["logits", "top_k", "top_p", "banned"])
def test_a_token_of_probability_zero_is_never_drawn(number: float, removed_by: str) -> None:
    # Tokens 0, 2, 3 and 5 have probability 0: before, between and after the two that remain.
    zeros = [0, 2, 3, 5]
    logits = torch.tensor([[-5.0, 1.0, -5.0, -5.0, 1.0, -5.0]])
    distribution = {
        "logits": PLAIN,
        "top_k": TokenDistribution(top_k=2),
        "top_p": TokenDistribution(top_p=0.9),
        "banned": TokenDistribution(banned_ids=tuple(zeros)),
    }[removed_by]
    if removed_by == "logits":
        logits[:, zeros] = float("-inf")
    tokens, log_probs = sample_tokens(logits, torch.tensor([number]), distribution, torch.tensor([True]))
    assert tokens.item() == (1 if number < 0.5 else 4)
    assert log_probs.item() == pytest.approx(-0.693147, abs=1e-6)  # log 1/2


@pytest.mark.parametrize("num_tokens", [3, 255, 256, 257, 512, 1000])
def test_the_token_is_that_of_the_whole_cumulative_distribution(num_tokens: int) -> None:
    generator = torch.Generator().manual_seed(num_tokens)
    logits = torch.randn(2000, num_tokens, generator=generator)
    numbers = torch.rand(2000, generator=generator)
    cumulative = logits.double().softmax(dim=-1).cumsum(dim=-1)
    threshold = numbers.double().unsqueeze(1)
    expected = (cumulative <= threshold).sum(dim=-1)
    distance = (
        (cumulative - threshold).abs().amin(dim=-1)
    )  # of the nearest border; float32 shares are off by 1e-7 or so
    tokens, _ = sample_tokens(logits, numbers, PLAIN, None)
    clear = distance > 1e-6
    assert clear.sum() > 1900
    assert torch.equal(tokens[clear], expected[clear])


@pytest.mark.parametrize("number", [0.0, 0.5, LARGEST])
@pytest.mark.parametrize("place", [0, 255, 256, 511, 512, 599])
def test_the_only_token_that_can_be_drawn_is_drawn_wherever_it_stands(place: int, number: float) -> None:
    logits = torch.full((1, 600), float("-inf"))
    logits[0, place] = 3.0
    tokens, log_probs = sample_tokens(logits, torch.tensor([number]), PLAIN, None)
    assert (tokens.item(), log_probs.item()) == (place, 0.0)


@pytest.mark.parametrize("place", range(0, 256, 15))
def test_a_blocks_rounded_sum_leads_to_no_token_behind_it(place: int) -> None:
    # Each small share is 0.915 of half a unit in the last place of 1: in float32 some are rounded up to a whole unit as
    # they are added, so that the block's sum is above that of its shares, and a number may lie between the two.
    probs = torch.zeros(1, 512)
    probs[0, :256] = 0.915 * 2**-24
    probs[0, place] = 1.0
    assert _invert(probs, torch.tensor([LARGEST])).item() < 256


def test_large_vocabularies_keep_to_tokens_that_can_be_drawn() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(1, 150_000, generator=generator) * 4
    kept = logits.topk(50).indices[0]
    rows = 60
    numbers = torch.linspace(0, LARGEST, rows)
    tokens, log_probs = sample_tokens(logits.expand(rows, -1), numbers, TokenDistribution(top_k=50), None)
    assert set(tokens.tolist()) <= set(kept.tolist())
    assert log_probs.isfinite().all()


def test_greedy_takes_the_most_likely_token_and_reports_log_probs_of_the_distribution() -> None:
    # softmax of [log 1, log 4] is [1/5, 4/5]: log 4/5 = -0.223144
    tokens, log_probs = sample_tokens(torch.tensor([[1.0, 4.0]]).log(), None, PLAIN, None)
    assert tokens.tolist() == [1]
    assert log_probs.item() == pytest.approx(-0.223144, abs=1e-6)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("distribution", [PLAIN, TokenDistribution(top_k=2, top_p=0.5)], ids=["plain", "filtered"])
@pytest.mark.parametrize("greedy", [True, False])
def test_a_broken_row_gives_some_token_and_a_log_prob_that_is_nan(
    bad: float, distribution: TokenDistribution, greedy: bool
) -> None:
    logits = torch.zeros(3, 5)
    logits[1, 2] = bad
    numbers = None if greedy else torch.tensor([0.3, 0.3, 0.3])
    tokens, log_probs = sample_tokens(logits, numbers, distribution, None)
    assert ((tokens >= 0) & (tokens < 5)).all()
    assert log_probs.isnan().tolist() == [False, True, False]
