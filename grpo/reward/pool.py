"""Worker processes that may hang, crash or run out of memory without the trainer noticing more than a verdict.

A worker is a fresh interpreter, started at the first case and kept warm. It is not a `multiprocessing` process: even
with the spawn method that imports the trainer's `__main__`, and torch with it, in every worker.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
import weakref
from collections import deque
from collections.abc import Sequence
from multiprocessing.connection import Pipe, wait
from pathlib import Path
from typing import Any

from grpo.reward.equivalence import Verdict

_START_DEADLINE_S = 120.0  # importing sympy takes a second, and far more on a busy machine or a network disk
_MAX_FAILED_STARTS = 3
_MAX_DEATHS = 2  # of workers on the same case: a death may be the machine's doing, two are the case's
_IMPORT_ROOT = Path(__file__).resolve().parent.parent.parent


class WorkerPool:
    """Grades cases in `num_workers` processes, each case within `deadline_s`.

    A worker that passes the deadline is killed and its case becomes a "deadline" error. A worker that dies has its
    case graded once more and then called a "worker_died" error. Both are replaced. May be used from any thread.
    """

    def __init__(self, num_workers: int, deadline_s: float) -> None:
        """Starts nothing yet.

        Args:
            num_workers: how many processes there may be.
            deadline_s: wall-clock seconds that a case may take; a worker's start does not count.
        """
        self._num_workers = num_workers
        self._deadline_s = deadline_s
        self._workers: list[_Worker] = []
        self._lock = threading.Lock()
        self._failed_starts = 0
        weakref.finalize(self, _end_all, self._workers)  # runs at exit too

    @property
    def pids(self) -> list[int]:
        """Of the workers there are."""
        return [worker.process.pid for worker in self._workers]

    @property
    def busy_pids(self) -> list[int]:
        """Of the workers that are on a case."""
        return [worker.process.pid for worker in self._workers if worker.case is not None]

    def judge(self, cases: Sequence[tuple[str, str]]) -> list[Verdict]:
        """One verdict per (answer, gold), in order.

        Raises:
            RuntimeError: workers cannot be started at all, whatever the case.
        """
        with self._lock:
            batch = _Batch(cases)
            try:
                while batch.num_open:
                    self._hire(len(batch.waiting))
                    self._hand_out(batch)
                    self._collect(batch)
            finally:
                self._dismiss([worker for worker in self._workers if worker.case is not None])
            return [batch.verdicts[case] for case in range(len(cases))]

    def close(self) -> None:
        """Ends the workers; a later `judge` starts new ones."""
        with self._lock:
            _end_all(self._workers)

    def _hire(self, num_waiting: int) -> None:
        num_free = sum(worker.case is None for worker in self._workers)
        num_missing = self._num_workers - len(self._workers)
        for _ in range(min(num_missing, num_waiting - num_free)):
            self._workers.append(_Worker(self._deadline_s))

    def _hand_out(self, batch: _Batch) -> None:
        for worker in [worker for worker in self._workers if worker.is_idle][: len(batch.waiting)]:
            case = batch.waiting.popleft()
            try:
                worker.give(case, batch.cases[case], self._deadline_s)
            except OSError:  # it died since its last case, and not of this one
                batch.waiting.append(case)
                self._dismiss([worker])

    def _collect(self, batch: _Batch) -> None:
        """Waits until a worker says something or is out of time, and acts on it."""
        watched = [worker for worker in self._workers if not worker.is_idle]
        if not watched:
            return
        pause_s = min(worker.expires for worker in watched) - time.monotonic()
        ready = wait([worker.pipe for worker in watched], max(0.0, pause_s))
        for worker in watched:
            if worker.pipe in ready:
                self._receive(worker, batch)
            elif worker.expires <= time.monotonic():
                self._give_up(worker, batch, "deadline")

    def _receive(self, worker: _Worker, batch: _Batch) -> None:
        try:
            message: dict[str, Any] = json.loads(worker.pipe.recv_bytes())
        except (EOFError, OSError, ValueError):
            self._give_up(worker, batch, "worker_died")
            return
        if "cannot_start" in message:
            self._dismiss([worker])
            raise RuntimeError(
                f"the grader's worker cannot start: {message['cannot_start']}; install the project's dependencies again"
            )
        if worker.case is None:
            worker.is_ready, self._failed_starts = True, 0
        else:
            error = message.get("error", "")
            batch.verdicts[worker.case] = Verdict(message.get("correct", False), error or "math_verify", bool(error))
            worker.case = None

    def _give_up(self, worker: _Worker, batch: _Batch, reason: str) -> None:
        """Ends a worker that hangs or has died, and settles what becomes of its case."""
        self._dismiss([worker])
        if worker.case is None:
            self._failed_starts += 1
            if self._failed_starts >= _MAX_FAILED_STARTS:
                self._failed_starts = 0
                raise RuntimeError(
                    f"the grader's workers cannot start: {_MAX_FAILED_STARTS} in a row ended with exit status "
                    f"{worker.process.returncode}; free memory, or set reward.num_workers=1"
                )
        else:
            batch.deaths[worker.case] += 1
            if reason == "worker_died" and batch.deaths[worker.case] < _MAX_DEATHS:
                batch.waiting.append(worker.case)
            else:
                batch.verdicts[worker.case] = Verdict(False, reason, is_error=True)

    def _dismiss(self, workers: Sequence[_Worker]) -> None:
        for worker in workers:
            worker.end()
            self._workers.remove(worker)


class _Batch:
    """The cases of one call: which wait for a worker, which have a verdict, how many workers each has cost."""

    def __init__(self, cases: Sequence[tuple[str, str]]) -> None:
        self.cases = cases
        self.waiting = deque(range(len(cases)))
        self.verdicts: dict[int, Verdict] = {}
        self.deaths = [0] * len(cases)

    @property
    def num_open(self) -> int:
        return len(self.cases) - len(self.verdicts)


class _Worker:
    """A process, its pipe, and the case it works on (None: none). `expires` is on the monotonic clock."""

    def __init__(self, deadline_s: float) -> None:
        self.pipe, theirs = Pipe()
        command = [sys.executable, "-m", "grpo.reward.worker", str(theirs.fileno()), str(os.getpid()), str(deadline_s)]
        self.process = subprocess.Popen(
            command,
            cwd=_IMPORT_ROOT,
            env={**os.environ, "PYTHONHASHSEED": "0"},  # sympy's verdicts may follow the order of its sets
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            pass_fds=(theirs.fileno(),),
            start_new_session=True,  # out of the terminal's process group: Ctrl-C is the trainer's to handle
        )
        theirs.close()
        self.case: int | None = None
        self.is_ready = False
        self.expires = time.monotonic() + _START_DEADLINE_S

    @property
    def is_idle(self) -> bool:
        return self.is_ready and self.case is None

    def give(self, case: int, texts: tuple[str, str], deadline_s: float) -> None:
        answer, gold = texts
        self.pipe.send_bytes(json.dumps({"answer": answer, "gold": gold}).encode())
        self.case, self.expires = case, time.monotonic() + deadline_s

    def end(self) -> None:
        self.process.kill()
        self.process.wait()
        self.pipe.close()


def _end_all(workers: list[_Worker]) -> None:
    while workers:
        workers.pop().end()
