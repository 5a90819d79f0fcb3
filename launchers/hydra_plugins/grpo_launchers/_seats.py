"""Places at this machine: which GPUs, and how many of its cores, each of the points that run at a time has."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence

from hydra_plugins.grpo_launchers._points import Point, say


def seats(parallel: int, points: Sequence[Point]) -> list[dict[str, str]]:
    """Environment variables for each of so many points at a time.

    Raises:
        ValueError: more GPUs are needed than there are.
    """
    needed = max((_num_gpus(point.config.get("hardware", {})) for point in points if not point.done), default=0)
    if parallel == 1:
        return [{}]
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    # Points that all take every core wait for one another most of the time.
    threads = {} if "OMP_NUM_THREADS" in os.environ else {"OMP_NUM_THREADS": str(max(1, cores // parallel))}
    if needed == 0:
        return [dict(threads) for _ in range(parallel)]
    gpus = visible_gpus(os.environ)
    if len(gpus) == 1:
        say(f"sweep.parallel={parallel}: all points at a time share one GPU and its memory")
        return [dict(threads) for _ in range(parallel)]
    if parallel * needed > len(gpus):
        raise ValueError(
            f"sweep.parallel={parallel} points with {needed} GPUs each need {parallel * needed}, and {len(gpus)} are "
            f"here; use sweep.parallel={max(1, len(gpus) // needed)}"
        )
    share = len(gpus) // parallel
    return [
        {**threads, "CUDA_VISIBLE_DEVICES": ",".join(gpus[seat * share : (seat + 1) * share])}
        for seat in range(parallel)
    ]


def _num_gpus(hardware: Mapping[str, object]) -> int:
    """GPUs that a point's devices name."""
    named = {str(hardware.get(key)) for key in ("policy_device", "engine_device")}
    return len({name if ":" in name else f"{name}:0" for name in named if name.startswith("cuda")})


def visible_gpus(environment: Mapping[str, str]) -> list[str]:
    """The GPUs of this process, as CUDA_VISIBLE_DEVICES names them."""
    if (named := environment.get("CUDA_VISIBLE_DEVICES")) is not None:
        return [name.strip() for name in named.split(",") if name.strip()]
    import torch

    return [str(number) for number in range(torch.cuda.device_count())]


def wait_for_others(points: Sequence[Point]) -> None:
    """Waits until points of a start that was killed have saved and ended; their guards are ending them."""
    from grpo.run.files import hold_folder

    for point in points:
        if point.done or not point.folder.is_dir():
            continue
        try:
            with hold_folder(point.folder):
                continue
        except ValueError:
            say(f"point {point.number} of an earlier start still runs; waiting for it to save and end")
        started = time.monotonic()
        with hold_folder(point.folder, wait=True):
            say(f"point {point.number} has ended, after {time.monotonic() - started:.0f} s")
