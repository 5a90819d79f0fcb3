"""How fast a device multiplies bfloat16 matrices: `python -m bench.peers.gpu_rate`, a job on standard input."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from bench.peers.gpu_device import answer, device_name, seconds_of


@dataclass(frozen=True, slots=True)
class RateJob:
    """What is multiplied.

    Attributes:
        device: of torch.
        shapes: rows, inner, columns of every product.
        seconds: that each is repeated for, so that a device which slows down when it is hot has done so.
    """

    device: str
    shapes: list[list[int]]
    seconds: float


@dataclass(frozen=True, slots=True)
class Rate:
    """`flops` operations per second of a product of this shape on the device called so."""

    device: str
    shape: list[int]
    flops: float


def measure(job: RateJob) -> list[Rate]:
    """Every shape."""
    device = torch.device(job.device)
    return [Rate(device_name(device), shape, _rate(shape, job.seconds, device)) for shape in job.shapes]


def _rate(shape: list[int], seconds: float, device: torch.device) -> float:
    rows, inner, columns = shape
    # Random numbers: a GPU multiplies zeros faster, because it takes less power.
    left = torch.randn(rows, inner, dtype=torch.bfloat16, device=device)
    right = torch.randn(columns, inner, dtype=torch.bfloat16, device=device)

    def repeat(number: int) -> None:
        for _ in range(number):
            torch.mm(left, right.T)

    repeat(3)
    number = math.ceil(seconds / seconds_of(lambda: repeat(1), device))
    return 2 * rows * inner * columns * number / seconds_of(lambda: repeat(number), device)


if __name__ == "__main__":
    answer(RateJob, measure)
