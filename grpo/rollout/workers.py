"""Several batches at once on a CPU, one a core.

With torch's operations, on two cores and 0.83M parameters, this is 1.5 times as fast as two threads an operation, at
53M 1.1 times; why is said in `grpo.parallel`. The kernel (`grpo.rollout.kernel`) is for one core only. A small batch
of a small model is up to twice as fast on one core as on two. Every worker reads all weights, which large models on
many cores would pay for with memory bandwidth: those keep their threads, and torch's operations, together.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from queue import SimpleQueue
from threading import Event

import torch

from grpo.parallel import one_core_each
from grpo.rollout.batch import Batch, Ended, Request
from grpo.rollout.decoder import Decoder

_MIN_SAMPLES = 16  # of a worker that has torch's operations: below, a step takes as long with fewer rows
_MAX_WEIGHT_BYTES = 2 * 2**30  # that all workers read in a step
_ONE_CORE_PRODUCTS = 2e7  # multiplications of a step; below, threads wait for one another longer than they compute


def num_workers(decoder: Decoder, num_samples: int) -> int:
    """How many batches to run at once: one a core, or one on all."""
    if not _can_split(decoder):
        return 1
    min_samples = 1 if decoder.kernel is not None else _MIN_SAMPLES
    return max(1, min(torch.get_num_threads(), num_samples // min_samples))


def suits_one_core(decoder: Decoder, num_samples: int) -> bool:
    """Whether a single batch is faster on one core than on all; the kernel knows one core only."""
    if decoder.kernel is not None:
        return _can_split(decoder)
    num_weights = decoder.weight_bytes / decoder.dtype.itemsize
    return decoder.device.type == "cpu" and num_samples * num_weights < _ONE_CORE_PRODUCTS


def _can_split(decoder: Decoder) -> bool:
    """Whether every core may read all weights; with the kernel, two always may."""
    num_threads = torch.get_num_threads()
    is_affordable = num_threads * decoder.weight_bytes <= _MAX_WEIGHT_BYTES
    return decoder.device.type == "cpu" and (is_affordable or (decoder.kernel is not None and num_threads <= 2))


def split(requests: Sequence[Request], num_parts: int) -> list[list[Request]]:
    """Deals requests out, whole where that is fair: a prompt is run by everyone who has samples of it.

    Returns:
        At most `num_parts` lists with about as many samples each; requests without samples are in none.
    """
    size = max(1, -(-sum(len(request.keys) for request in requests) // num_parts))
    pieces = [
        Request(request.first + start, request.prompt, request.keys[start : start + size])
        for request in requests
        for start in range(0, len(request.keys), size)
    ]
    parts: list[list[Request]] = [[] for _ in range(num_parts)]
    loads = [0] * num_parts
    for piece in sorted(pieces, key=lambda piece: -len(piece.keys)):
        lightest = loads.index(min(loads))
        parts[lightest].append(piece)
        loads[lightest] += len(piece.keys)
    return [part for part in parts if part]


def run_parts(
    parts: Sequence[Sequence[Request]], build: Callable[[Event], Batch], *, share_cores: bool
) -> Iterator[Ended]:
    """Runs every part in a batch of its own, and hands out rows as they end.

    Args:
        parts: of `split`.
        build: makes a batch, which leaves off once the event is set.
        share_cores: whether a batch that is alone has all cores.
    """
    cancelled = Event()
    if len(parts) == 1 and share_cores:
        yield from build(cancelled).run(parts[0])
        return
    results: SimpleQueue[Ended | None] = SimpleQueue()

    def work(part: Sequence[Request]) -> None:
        try:
            with torch.inference_mode():
                for ended in build(cancelled).run(part):
                    results.put(ended)
        finally:
            results.put(None)

    with one_core_each(len(parts)) as pool:
        try:
            futures = [pool.submit(work, part) for part in parts]
            num_open = len(parts)
            while num_open:
                ended = results.get()
                if ended is None:
                    num_open -= 1
                else:
                    yield ended
            for future in futures:
                future.result()
        finally:
            cancelled.set()
