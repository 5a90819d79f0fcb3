"""What the processes of `bench.gpu` share: a device's clock and memory, a model on it, and how they answer.

The same on a CPU, whose memory torch does not count.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any, TypeVar

import torch

from bench.rollout_cases import Size, build_model

T = TypeVar("T")


def synchronize(device: torch.device) -> None:
    """Waits until the device has done what it was told."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds_of(call: Callable[[], object], device: torch.device) -> float:
    """Of a call, until the device is done with it."""
    synchronize(device)
    start = time.perf_counter()
    call()
    synchronize(device)
    return time.perf_counter() - start


def reset_peak(device: torch.device) -> None:
    """Starts `peak_bytes` over."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def peak_bytes(device: torch.device) -> tuple[int | None, int | None]:
    """The most that tensors took since `reset_peak`, and the most that torch had of the device for them."""
    if device.type != "cuda":
        return None, None
    return torch.cuda.max_memory_allocated(device), torch.cuda.max_memory_reserved(device)


def device_name(device: torch.device) -> str:
    """As its maker calls it, with its memory."""
    if device.type != "cuda":
        return str(device)
    return (
        f"{torch.cuda.get_device_name(device)}, {torch.cuda.get_device_properties(device).total_memory / 2**30:.0f} GiB"
    )


def random_model(size: Size, context: int, dtype: torch.dtype, device: torch.device) -> Any:
    """Random weights, drawn on the device: a CPU takes longer for 1.5e9 of them than all that is measured."""
    previous = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with device:
            model = build_model(size, context)
    finally:
        torch.set_default_dtype(previous)
    weight = model.lm_head.weight
    assert (weight.dtype, weight.device.type) == (dtype, device.type)
    return model


def answer(job_type: Callable[..., T], measure: Callable[[T], Sequence[Any]]) -> None:
    """The `main` of a process: a job on standard input, a JSON list of what was measured as the last line of output."""
    print(json.dumps([asdict(one) for one in measure(job_type(**json.load(sys.stdin)))]))
