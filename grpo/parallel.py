"""Threads side by side on a CPU, one core each.

Where operations are short, threads that share each of them wait for one another most of the time. Threads that share
nothing do not: torch leaves Python's lock while it computes.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import torch

# Parameters of glibc's mallopt, and as much of each as it takes or threads can use.
_TRIM_THRESHOLD, _TOP_PAD, _MMAP_THRESHOLD = -1, -2, -3
_KEEP_ALL = {_MMAP_THRESHOLD: 32 * 2**20, _TRIM_THRESHOLD: 2**31 - 1, _TOP_PAD: 64 * 2**20}


def keep_freed_memory() -> None:
    """Has malloc keep what this process frees, and give it out again, where it is glibc's.

    Else tensors of more than 128 KiB go back to the system, and each new one is pages that the kernel clears, under a
    lock that the threads of a process share: more work than many an operation of a small model is.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if os.name == "posix" else None
    if mallopt is not None:
        for parameter, value in _KEEP_ALL.items():
            mallopt(parameter, value)


@contextmanager
def one_core_each(num_threads: int) -> Iterator[ThreadPoolExecutor]:
    """Threads for which torch's number of threads is 1; everybody else's is as before afterwards."""
    before = torch.get_num_threads()
    try:
        with ThreadPoolExecutor(num_threads, "grpo", initializer=torch.set_num_threads, initargs=(1,)) as pool:
            yield pool
    finally:
        torch.set_num_threads(before)  # of threads that are yet to come, too: they take over what was set last
