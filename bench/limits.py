"""How fast this machine reads memory and multiplies matrices, measured with torch on the threads that it has."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

_READ_BYTES = tuple(2**power for power in (20, 22, 24, 26, 28))
_PRODUCTS = ((64, 512, 512), (256, 1024, 1024), (512, 2048, 2048), (2048, 2048, 2048))
_SECONDS = 0.3


@dataclass(frozen=True, slots=True)
class Limits:
    """What no program on this machine goes beyond.

    Attributes:
        read_rates: bytes per second by the size of what is read over and over, in bytes: small things stay in caches.
        flops: float32 operations per second in matrix products.
    """

    read_rates: dict[int, float]
    flops: float

    def read_rate(self, num_bytes: float) -> float:
        """Bytes per second for so many bytes: that of the next larger size which was measured."""
        return self.read_rates[
            min((size for size in self.read_rates if size >= num_bytes), default=max(self.read_rates))
        ]

    def seconds(self, num_bytes: float, operations: float) -> float:
        """The least time for work that reads so much and computes so much."""
        return max(num_bytes / self.read_rate(num_bytes), operations / self.flops)


def measure_limits(seconds: float = _SECONDS) -> Limits:
    """Takes the best of a few shapes for `seconds` each."""
    rates: dict[int, float] = {}
    for size in _READ_BYTES:
        numbers = torch.ones(size // 4)
        rates[size] = size / min(_best(numbers.sum, seconds), _best(lambda n=numbers: torch.dot(n, n), seconds))
    # What fits a larger size fits a smaller one; a call's overhead alone makes the smallest look slow.
    for size in sorted(rates, reverse=True):
        rates[size] = max(rate for other, rate in rates.items() if other >= size)
    products: list[float] = []
    for rows, inner, columns in _PRODUCTS:
        left, right = torch.ones(rows, inner), torch.ones(columns, inner)
        best = _best(lambda a=left, b=right: torch.nn.functional.linear(a, b), seconds)
        products.append(2 * rows * inner * columns / best)
    return Limits(rates, max(products))


def _best(call: Callable[[], object], limit_s: float) -> float:
    """Seconds of the fastest call among those that fit the limit; two at least, the first of which warms up."""
    call()
    times: list[float] = []
    while not times or sum(times) < limit_s:
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return min(times)
