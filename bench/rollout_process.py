"""One engine, one measurement, one process: where it runs, with which environment, and what became of it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from bench.environments import ROOT, python_of
from bench.peers.rollout_job import Job, Measured

# What a shell or grpo may have set, and would reach every engine.
_OPENMP = ("OMP_", "GOMP_", "KMP_", "MKL_", "LD_PRELOAD")
_QUIET = {
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_VERBOSITY": "error",
    "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_NO_USAGE_STATS": "1",
    "PYTHONUNBUFFERED": "1",
}
VARIANTS = ("one-thread", "unseeded", "iomp", "compiled")


class NotMeasured(Exception):
    """An engine has no number; the message says why, `details` what it printed."""

    def __init__(self, reason: str, details: str = "") -> None:
        """`reason` may stand on a page: it names no paths."""
        super().__init__(reason)
        self.details = details


class TimedOut(NotMeasured):
    """It would have taken longer than there was time."""


_LOAD_S = 60.0  # more than any engine takes before it samples


@dataclass(frozen=True, slots=True)
class Runner:
    """What all measurements share.

    Attributes:
        scratch: folder for jobs, results and logs.
        threads: of every engine.
        wait_policy: of OpenMP's threads, for every engine alike; "default" leaves each its own.
        limit_s: of one process.
    """

    scratch: Path
    threads: int
    wait_policy: str
    limit_s: float

    def run(self, engine: str, job: Job, variant: str = "") -> Measured:
        """One measurement.

        Args:
            engine: "ours", "generate" or "vllm".
            job: what to sample.
            variant: of vLLM, words of `VARIANTS` joined by "+".

        Raises:
            NotMeasured: it has no environment, failed, or ran into the limit.
        """
        words = set(variant.split("+")) & set(VARIANTS)
        python = sys.executable
        extra = dict[str, str]()
        if engine == "vllm":
            python = peer_python(engine)
            job = replace(
                job,
                threads=1 if "one-thread" in words else job.threads,
                options={**job.options, "seeded": "unseeded" not in words, "compiled": "compiled" in words},
            )
            extra = {"VLLM_CACHE_ROOT": str(self.scratch / "vllm_cache")}
            if "iomp" in words:
                extra["LD_PRELOAD"] = str(Path(python).parent.parent / "lib" / "libiomp5.so")
        result = self.call([python, "-m", f"bench.peers.rollout_{engine}"], asdict(job), extra)
        return Measured(**result)

    def call(
        self, command: Sequence[str], job: Mapping[str, Any], extra: Mapping[str, str], *, shown: bool = False
    ) -> dict[str, Any]:
        """Runs a process that reads a job and writes a result; `shown` leaves it the terminal.

        Raises:
            NotMeasured: see `run`.
        """
        files = [self.scratch / name for name in ("job.json", "result.json", "log.txt")]
        files[0].write_text(json.dumps(job), encoding="utf-8")
        files[1].unlink(missing_ok=True)
        environment = environment_of(os.environ, int(job["threads"]), self.wait_policy) | dict(extra)
        arguments = [*command, *map(str, files[:2])]
        with files[2].open("w", encoding="utf-8") as log:
            output = None if shown else log
            try:
                done = subprocess.run(
                    arguments, cwd=ROOT, env=environment, stdout=output, stderr=log, timeout=self.limit_s
                )
            except subprocess.TimeoutExpired:
                raise TimedOut(f"not done in {self.limit_s:.0f} s") from None
        if done.returncode or not files[1].is_file():
            raise NotMeasured("failed", last_words(files[2].read_text(encoding="utf-8", errors="replace")))
        return json.loads(files[1].read_text(encoding="utf-8"))


def last_words(log: str) -> str:
    """The end of a log, without what nanobind says of every process that vLLM ends in."""
    lines = [line for line in log.splitlines() if not line.startswith(("nanobind", " - ", "See https://nanobind"))]
    return "\n".join(lines)[-2000:]


def environment_of(inherited: Mapping[str, str], threads: int, wait_policy: str) -> dict[str, str]:
    """The environment of a process: so many threads, and of OpenMP's settings no other but the wait policy."""
    kept = {name: value for name, value in inherited.items() if not name.startswith(_OPENMP)}
    policy = {} if wait_policy == "default" else {"OMP_WAIT_POLICY": wait_policy.upper()}
    return kept | _QUIET | {"OMP_NUM_THREADS": str(threads)} | policy


def peer_python(name: str) -> str:
    """The interpreter of a peer's environment.

    Raises:
        NotMeasured: there is none and none can be made.
    """
    try:
        return python_of(name)
    except (RuntimeError, OSError) as error:
        raise NotMeasured("its environment could not be made", str(error)) from error


@dataclass
class Series:
    """The measurements of one engine over the rounds.

    Attributes:
        name: as the table has it.
        by_round: what was measured in which round.
        reason: why there is no (further) number, or "".
        timed_out: whether that is because it took too long.
        least_s: what it takes at least, if it took too long: the limit, less what loading may take.
    """

    name: str
    by_round: dict[int, Measured] = field(default_factory=dict)
    reason: str = ""
    timed_out: bool = False
    least_s: float = 0.0

    def measure(self, runner: Runner, engine: str, job: Job, variant: str, number: int) -> None:
        """One more round, unless there was a reason not to."""
        if self.reason:
            return
        try:
            self.by_round[number] = runner.run(engine, job, variant)
        except NotMeasured as error:
            self.reason, self.timed_out = str(error), isinstance(error, TimedOut)
            self.least_s = max(0.0, runner.limit_s - _LOAD_S) if self.timed_out else 0.0
            if error.details:
                print(f"{self.name}: {self.reason}\n{error.details}", file=sys.stderr, flush=True)
