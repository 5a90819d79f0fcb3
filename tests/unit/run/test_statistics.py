"""Goldens of intervals, pass@k and McNemar's test."""

import itertools

import pytest

from grpo.run import statistics
from grpo.run.statistics import (
    bootstrap_interval,
    difference_interval,
    mcnemar_p,
    pass_at_k,
    share_interval,
    wilson_interval,
)


@pytest.mark.parametrize(
    ("successes", "n", "low", "high"),
    [
        # z² = 3.8415. (0.8 + 0.19207) / 1.38415 = 0.71674; 1.95996 sqrt(0.016 + 0.0096037) / 1.38415 = 0.22657.
        (8, 10, 0.4902, 0.9433),
        # 0 of n: 0 to z² / (n + z²) = 3.8415 / 13.8415; n of n is its mirror image.
        (0, 10, 0.0, 0.2775),
        (10, 10, 0.7225, 1.0),
        # Near p ± 1.96 sqrt(p (1 - p) / n) = 0.5 ± 0.04383 for a large n.
        (250, 500, 0.4563, 0.5437),
        (1, 1, 0.2065, 1.0),
    ],
)
def test_goldens(successes: int, n: int, low: float, high: float) -> None:
    assert wilson_interval(successes, n) == pytest.approx((low, high), abs=5e-5)


def test_mirror_image() -> None:
    low, high = wilson_interval(3, 40)
    assert wilson_interval(37, 40) == pytest.approx((1 - high, 1 - low), abs=1e-15)


def test_nothing_is_known_of_no_trials() -> None:
    assert wilson_interval(0, 0) == (0.0, 1.0)


@pytest.mark.parametrize(("successes", "n"), [(11, 10), (-1, 10), (1, 0)])
def test_no_share(successes: int, n: int) -> None:
    with pytest.raises(ValueError, match=f"{successes} successes of {n} trials"):
        wilson_interval(successes, n)


@pytest.mark.parametrize(
    ("n", "num_right", "k", "expected"),
    [
        (5, 2, 2, 0.7),  # 1 - C(3, 2) / C(5, 2) = 1 - 3/10
        (10, 3, 5, 1 - 21 / 252),  # 1 - C(7, 5) / C(10, 5)
        (8, 3, 1, 3 / 8),  # the share itself
        (8, 0, 8, 0.0),
        (8, 1, 8, 1.0),
        (4, 3, 2, 1.0),  # no two wrong ones are left to draw
        (200, 1, 100, 0.5),  # a draw of half of them holds the one with probability one half
    ],
)
def test_pass_at_k_goldens(n: int, num_right: int, k: int, expected: float) -> None:
    assert pass_at_k(n, num_right, k) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("k", range(1, 7))
def test_pass_at_k_is_the_share_of_subsets_that_hold_a_right_one(k: int) -> None:
    samples = [True, False, True, False, False, False]
    subsets = list(itertools.combinations(samples, k))
    assert pass_at_k(6, 2, k) == pytest.approx(sum(map(any, subsets)) / len(subsets), abs=1e-12)


@pytest.mark.parametrize(("n", "num_right", "k"), [(4, 1, 5), (4, 1, 0), (4, 5, 2), (4, -1, 2)])
def test_pass_at_k_of_nothing(n: int, num_right: int, k: int) -> None:
    with pytest.raises(ValueError, match=r"cannot be estimated from 4 samples|is no count"):
        pass_at_k(n, num_right, k)


@pytest.mark.parametrize(
    ("only_first", "only_second", "p"),
    [
        (1, 9, 22 / 1024),  # 2 (C(10, 0) + C(10, 1)) / 2^10
        (9, 1, 22 / 1024),
        (5, 5, 1.0),
        (0, 0, 1.0),
        (0, 6, 2 / 64),
        (6, 14, 0.11531829833984375),  # scipy.stats.binomtest(6, 20).pvalue
        (400, 500, 0.0009596),  # a normal with continuity: erfc(99 / sqrt(2 * 900)) = 0.000967
    ],
)
def test_mcnemar_goldens(only_first: int, only_second: int, p: float) -> None:
    assert mcnemar_p(only_first, only_second) == pytest.approx(p, rel=1e-2 if p < 0.001 else 1e-12)


def test_the_bootstrap_of_zeros_and_ones_is_a_binomial() -> None:
    """Its means are Binomial(100, 0.3) / 100, whose 2.5% and 97.5% quantiles are 21 and 39 (scipy.stats.binom.ppf)."""
    low, high = bootstrap_interval([1.0] * 30 + [0.0] * 70)
    assert low == pytest.approx(0.21, abs=0.0101)
    assert high == pytest.approx(0.39, abs=0.0101)


def test_the_bootstrap_of_many_values_is_a_normal() -> None:
    """Values 0 ... 999: the mean is 499.5, its standard error 288.67 / sqrt(1000) = 9.1286; 1.96 of these are 17.89."""
    low, high = bootstrap_interval([float(value) for value in range(1000)])
    assert low == pytest.approx(499.5 - 17.89, abs=0.8)
    assert high == pytest.approx(499.5 + 17.89, abs=0.8)


def test_the_bootstrap_draws_the_same_every_time_whatever_the_chunk(monkeypatch: pytest.MonkeyPatch) -> None:
    values = [0.0, 0.21, 0.53, 0.5, 1.0, 0.77, 0.04]
    once = bootstrap_interval(values)
    assert bootstrap_interval(values) == once
    assert bootstrap_interval(values, seed=1) != pytest.approx(once, abs=1e-6)
    monkeypatch.setattr(statistics, "_CHUNK", 1000)
    assert bootstrap_interval(values) == once


def test_the_bootstrap_moves_with_its_values() -> None:
    values = [0.0, 0.25, 0.5, 0.5, 1.0]
    low, high = bootstrap_interval(values)
    assert bootstrap_interval([3 * value - 1 for value in values]) == pytest.approx(
        (3 * low - 1, 3 * high - 1), abs=1e-12
    )
    with pytest.raises(ValueError, match="no values"):
        bootstrap_interval([])


def test_a_share_has_wilsons_interval_unless_samples_depend_on_one_another() -> None:
    assert share_interval([1.0] * 8 + [0.0] * 2, 1) == wilson_interval(8, 10)
    values = [0.5] * 6 + [1.0] * 2 + [0.0] * 2
    assert share_interval(values, 4) == bootstrap_interval(values)
    # All right in every problem: 10 problems, not 40 samples.
    assert share_interval([1.0] * 10, 4) == wilson_interval(10, 10)
    assert share_interval([0.0] * 10, 4) == wilson_interval(0, 10)


def test_a_difference_has_the_bootstraps_interval_unless_nothing_differs() -> None:
    values = [1.0, 0.0, -1.0, 0.0, 1.0, 1.0]
    assert difference_interval(values) == bootstrap_interval(values)
    bound = wilson_interval(0, 50)[1]  # 3.8415 / 53.8415
    assert bound == pytest.approx(0.07135, abs=1e-5)
    assert difference_interval([0.0] * 50) == (-bound, bound)
    assert difference_interval([1.0] * 50) == (1 - bound, 1.0)
    assert difference_interval([-1.0] * 50) == (-1.0, -1 + bound)
