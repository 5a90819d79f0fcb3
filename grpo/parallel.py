"""Threads side by side on a CPU, one core each.

Where operations are short, threads that share each of them wait for one another most of the time. Threads that share
nothing do not: torch leaves Python's lock while it computes.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import torch


@contextmanager
def one_core_each(num_threads: int) -> Iterator[ThreadPoolExecutor]:
    """Threads for which torch's number of threads is 1; everybody else's is as before afterwards."""
    before = torch.get_num_threads()
    try:
        with ThreadPoolExecutor(num_threads, "grpo", initializer=torch.set_num_threads, initargs=(1,)) as pool:
            yield pool
    finally:
        torch.set_num_threads(before)  # of threads that are yet to come, too: they take over what was set last
