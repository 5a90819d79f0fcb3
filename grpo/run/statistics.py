"""What a measured share says about the true one."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from math import comb, sqrt

import numpy as np

_Z95 = 1.959963984540054  # the 97.5% quantile of the normal distribution
_NUM_DRAWS = 10_000
_CHUNK = 2**22  # values that are drawn at once: 64 MB


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


def pass_at_k(n: int, num_right: int, k: int) -> float:
    """The unbiased estimate, from n samples, of the probability that one of k samples is right.

    pass@k = 1 - C(n - c, k) / C(n, k),   c = num_right

    Source: Chen et al. 2021, Evaluating large language models trained on code, arXiv 2107.03374, eq. 1.

    Args:
        n: samples of one problem.
        num_right: how many of them are right.
        k: from 1 to n.

    Raises:
        ValueError: k is larger than n, or a count is none.
    """
    if not 1 <= k <= n:
        raise ValueError(
            f"pass@{k} cannot be estimated from {n} samples of a problem; use k from 1 to {n}, or draw more"
        )
    if not 0 <= num_right <= n:
        raise ValueError(f"{num_right} right of {n} samples is no count; count from 0 to {n}")
    return 1.0 - comb(n - num_right, k) / comb(n, k)


def mcnemar_p(only_first: int, only_second: int) -> float:
    """The exact two-sided p-value of two paired classifiers being equally often right.

    p = min(1, 2 P[X <= min(b, c)]),   X ~ Binomial(b + c, 1/2)

    Problems that both got right, or both wrong, say nothing about which is better.

    Source: McNemar 1947, Note on the sampling error of the difference between correlated proportions or percentages,
    Psychometrika 12 (2).

    Args:
        only_first: b, problems that only the first got right.
        only_second: c, problems that only the second got right.
    """
    n = only_first + only_second
    tail = sum(comb(n, i) for i in range(min(only_first, only_second) + 1))
    return min(1.0, float(Fraction(2 * tail, 2**n)))


def bootstrap_interval(values: Sequence[float], seed: int = 0) -> tuple[float, float]:
    """The 95% percentile bootstrap interval of a mean; what is drawn again is whole problems.

    Samples of one problem are not independent, so each problem gives one value: its share of right samples, or, for two
    models on the same problems, the difference of their shares, which makes the bootstrap a paired one. Where all
    values are the same there is nothing to draw: see `share_interval`.

    Source: Efron and Tibshirani 1993, An introduction to the bootstrap, chapter 13.

    Args:
        values: [P], one a problem.
        seed: of the 10,000 draws. They come from Philox's raw words, which numpy promises for all versions.

    Returns:
        The interval's ends, low and high.

    Raises:
        ValueError: no values.
    """
    if not values:
        raise ValueError("an interval of no values says nothing; give at least one")
    array = np.asarray(values, dtype=np.float64)
    words = np.random.Philox(key=seed)
    chunk = max(1, _CHUNK // len(array))
    means = [
        array[words.random_raw((min(chunk, _NUM_DRAWS - start), len(array))) % len(array)].mean(axis=1)
        for start in range(0, _NUM_DRAWS, chunk)
    ]
    low, high = np.quantile(np.concatenate(means), [0.025, 0.975])
    return float(low), float(high)


def share_interval(shares: Sequence[float], num_samples: int, seed: int = 0) -> tuple[float, float]:
    """The 95% interval of a mean of P shares, each of `num_samples` samples of one problem.

    Wilson's for one sample a problem. For several the bootstrap over problems, and Wilson's with every problem as one
    trial where all are right or all are wrong, since the bootstrap would then claim to know it for certain.

    Args:
        shares: [P], each from 0 to 1.
        num_samples: of each problem.
        seed: of the bootstrap.
    """
    if num_samples == 1 or set(shares) <= {0.0} or set(shares) <= {1.0}:
        return wilson_interval(round(sum(shares)), len(shares))
    return bootstrap_interval(shares, seed)


def difference_interval(differences: Sequence[float], seed: int = 0) -> tuple[float, float]:
    """The 95% interval of a mean of P differences of shares on the same problems: the paired bootstrap.

    Where no problem differs, the bootstrap would claim to know that none does. A difference may then be as large either
    way as Wilson's interval lets a share be that was seen in none of P problems; likewise where all differ by 1.

    Args:
        differences: [P], each from -1 to 1.
        seed: of the bootstrap.
    """
    found = set(differences)
    if len(found) != 1 or not found <= {-1.0, 0.0, 1.0}:
        return bootstrap_interval(differences, seed)
    (value,), bound = found, wilson_interval(0, len(differences))[1]
    return max(-1.0, value - bound), min(1.0, value + bound)
