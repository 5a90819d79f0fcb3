"""The processes that `bench.step` measures, one at a time, each with the same threads, and what is left to do."""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

from bench.environments import ROOT
from bench.peers.step_job import StepJob, StepResult

_WAIT_POLICY = "OMP_WAIT_POLICY"


def environment(threads: int, wait_policy: str) -> dict[str, str]:
    """Of every process: this one's, without what `grpo` has set in it for its own sake.

    Args:
        threads: of OpenMP.
        wait_policy: how they wait, "passive" or "active"; "default" leaves it to each program, which is passive for
            ours (`grpo/__init__.py`) and the OpenMP library's own for others.
    """
    own = {name: value for name, value in os.environ.items() if name != _WAIT_POLICY}
    policy = {} if wait_policy == "default" else {_WAIT_POLICY: wait_policy.upper()}
    return {**own, **policy, "OMP_NUM_THREADS": str(threads), "HF_HUB_OFFLINE": "1"}


class Progress:
    """A line a measurement, with the time that is left by guesses that are corrected by what the others took."""

    def __init__(self, guesses_s: Sequence[float]) -> None:
        """Takes a guess of every measurement, in their order."""
        self._guesses_s = list(guesses_s)
        self._num_done = 0
        self._start = time.monotonic()

    def done(self, text: str) -> None:
        """One more is done."""
        self._num_done += 1
        passed = sum(self._guesses_s[: self._num_done])
        pace = (time.monotonic() - self._start) / passed
        left = pace * sum(self._guesses_s[self._num_done :])
        print(f"[{self._num_done}/{len(self._guesses_s)}] {text}; {left / 60:.1f} min left", flush=True)


class TooSlow(RuntimeError):
    """A process was not done within its limit."""


def run_job(
    python: str, module: str, job: StepJob, folder: Path, env: dict[str, str], limit_s: float | None = None
) -> StepResult:
    """Runs a job in a process of its own, in a new folder, and checks that it did the work that was asked for.

    Raises:
        TooSlow: it was not done in `limit_s` seconds.
        RuntimeError: it failed, or its completions have other lengths.
    """
    folder.mkdir(parents=True)
    job = replace(job, folder=str(folder / "run"))
    (folder / "job.json").write_text(json.dumps(asdict(job)), encoding="utf-8")
    command = [python, "-m", module, str(folder / "job.json"), str(folder / "result.json")]
    run_process(command, folder / "output.txt", env, limit_s)
    result = StepResult(**json.loads((folder / "result.json").read_text(encoding="utf-8")))
    check_lengths(job, result)
    return result


def check_lengths(job: StepJob, result: StepResult) -> None:
    """Every step's completions have the lengths that they were to have.

    Raises:
        RuntimeError: they have not.
    """
    expected = [job.expected_lengths(step) for step in range(job.num_steps)]
    if result.completion_tokens != expected:
        raise RuntimeError(f"completions of {result.completion_tokens} tokens, but {expected} were forced")


def run_process(command: Sequence[str], output: Path, env: dict[str, str], limit_s: float | None = None) -> None:
    """Runs a command from the project's root, its output into a file.

    Raises:
        TooSlow: it was not done in `limit_s` seconds.
        RuntimeError: it failed; with its last lines.
    """
    with output.open("wb") as file:
        try:
            status = subprocess.run(
                command, cwd=ROOT, env=env, stdout=file, stderr=subprocess.STDOUT, timeout=limit_s
            ).returncode
        except subprocess.TimeoutExpired:
            raise TooSlow(f"not done in {limit_s:.0f} s") from None
    if status:
        last = output.read_text(encoding="utf-8", errors="replace").splitlines()[-15:]
        raise RuntimeError(f"{' '.join(command[:3])} ended with status {status}:\n" + "\n".join(last))
