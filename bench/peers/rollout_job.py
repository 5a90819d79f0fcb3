"""What the process of one engine is told to sample, and what it says of it; standard library only.

A peer's interpreter has neither this project nor its dependencies.
"""

from __future__ import annotations

import json
import resource
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

WARM_UP_TOKENS = 4


@dataclass(frozen=True, slots=True)
class Job:
    """Prompts, and how many tokens to sample for each.

    Attributes:
        model: folder of weights and tokenizer.
        dtype: "float32" or "bfloat16".
        threads: of the engine.
        prompts: token ids.
        lengths: of the completions, one a prompt.
        cap: max_tokens of the call; no length is above it.
        seed: of sampling.
        options: what is this engine's alone.
    """

    model: str
    dtype: str
    threads: int
    prompts: list[list[int]]
    lengths: list[int]
    cap: int
    seed: int
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def is_fixed(self) -> bool:
        """Whether every completion is as long as the call allows."""
        return all(length == self.cap for length in self.lengths)

    def short(self) -> Job:
        """The same rows and a few tokens, to warm up with."""
        cap = min(WARM_UP_TOKENS, self.cap)
        lengths = [min(cap, length) for length in self.lengths]
        # Other tokens than those of the measurement, so that no cache of prefixes knows its prompts.
        prompts = [prompt[::-1] for prompt in self.prompts]
        return Job(self.model, self.dtype, self.threads, prompts, lengths, cap, self.seed, self.options)


@dataclass(frozen=True, slots=True)
class Measured:
    """What one process measured.

    Attributes:
        seconds: of the call, without start and warm-up.
        peak_bytes: resident memory of the process at most.
        version: of the engine.
        extra: what this engine alone says.
    """

    seconds: float
    peak_bytes: int
    version: str
    extra: dict[str, Any] = field(default_factory=dict)


def timed(sample: Callable[[Job], Sequence[int]], job: Job) -> float:
    """Seconds of one call after a short one.

    Args:
        sample: runs a job and returns the lengths of its completions.
        job: what to sample.

    Raises:
        RuntimeError: the completions are not as long as they were to be.
    """
    _check(sample(job.short()), job.short())
    start = time.perf_counter()
    lengths = sample(job)
    seconds = time.perf_counter() - start
    _check(lengths, job)
    return seconds


def _check(lengths: Sequence[int], job: Job) -> None:
    wrong = [row for row, pair in enumerate(zip(lengths, job.lengths, strict=True)) if pair[0] != pair[1]]
    if wrong:
        row = wrong[0]
        raise RuntimeError(
            f"{len(wrong)} of {len(job.lengths)} completions have another length than asked for; completion {row} has "
            f"{lengths[row]} tokens instead of {job.lengths[row]}"
        )


def peak_bytes() -> int:
    """Resident memory of this process at most."""
    status = Path("/proc/self/status")
    if status.is_file():  # getrusage there still counts the parent, whose memory a child has until it executes
        lines = dict(line.split(":", 1) for line in status.read_text().splitlines())
        return int(lines["VmHWM"].split()[0]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def answer(measure: Callable[[Job], Measured]) -> None:
    """The `main` of an engine's process: reads the job of the first file, writes the result to the second."""
    job = Job(**json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")))
    Path(sys.argv[2]).write_text(json.dumps(asdict(measure(job))), encoding="utf-8")
