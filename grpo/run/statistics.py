"""What a measured share says about the true one."""

from __future__ import annotations

from math import sqrt

_Z95 = 1.959963984540054  # the 97.5% quantile of the normal distribution


def wilson_interval(successes: int, n: int) -> tuple[float, float]:
    """The 95% score interval of a share.

    (p + z²/2n ± z √(p(1-p)/n + z²/4n²)) / (1 + z²/n),   p = successes / n,   z = 1.96

    Unlike p ± 1.96 standard errors it stays inside [0, 1] and has a width at p = 0 and p = 1.

    Source: Wilson 1927, Probable inference, the law of succession, and statistical inference, JASA 22 (158).

    Args:
        successes: how many of `n`.
        n: independent trials; of none nothing is known, and the interval is (0, 1).

    Returns:
        The interval's ends, low and high.

    Raises:
        ValueError: successes are not between 0 and n.
    """
    if not 0 <= successes <= n:
        raise ValueError(f"{successes} successes of {n} trials are no share; count from 0 to {n}")
    if n == 0:
        return 0.0, 1.0
    share, z2_n = successes / n, _Z95**2 / n
    center = (share + z2_n / 2) / (1 + z2_n)
    half_width = _Z95 * sqrt(share * (1 - share) / n + z2_n / (4 * n)) / (1 + z2_n)
    low = 0.0 if successes == 0 else center - half_width
    high = 1.0 if successes == n else center + half_width
    return low, high
