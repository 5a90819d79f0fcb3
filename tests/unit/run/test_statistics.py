"""Goldens of the Wilson interval."""

import pytest

from grpo.run.statistics import wilson_interval


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
