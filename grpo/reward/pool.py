"""Worker processes that may hang, crash or run out of memory without the trainer noticing more than a verdict.

Cases go into one queue. Each worker has a thread that takes a chunk from it, hands it over, and waits for one verdict
after another. What a lost worker had not begun goes back into the queue, so that a bad case costs only itself.
"""

from __future__ import annotations

import os
import threading
import weakref
from collections import deque
from collections.abc import Iterable
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, field

from grpo.reward.equivalence import Verdict
from grpo.reward.process import CannotStartError, WorkerLostError, WorkerProcess

_MAX_FAILED_STARTS = 3
_MAX_DEATHS = 2  # of workers on the same case: a death may be the machine's doing, two are the case's
_MAX_CHUNK = 8  # cases: handing over more at once saves nothing, and those behind a bad case have to wait for it


class WorkerPool:
    """Grades cases in `num_workers` processes, each case within `deadline_s`.

    A worker that passes the deadline is ended and its case becomes a "deadline" error. A worker that dies has its case
    graded once more and then called a "worker_died" error. Both are replaced. May be used from any thread. Processes
    are started when cases need them, and end with `close`, with the last reference to the pool, and with this process.
    """

    def __init__(self, num_workers: int, deadline_s: float) -> None:
        """Starts nothing yet.

        Args:
            num_workers: how many processes there may be.
            deadline_s: seconds of processor time that a case may take, and a tenth of those that it may take on the
                clock; imports do not count.
        """
        self._num_workers = num_workers
        self._deadline_s = deadline_s
        self._lock = threading.Lock()
        self._crew: _Crew | None = None

    @property
    def pids(self) -> list[int]:
        """Of the workers there are."""
        return [] if self._crew is None else [worker.pid for worker in self._crew.workers]

    @property
    def busy_pids(self) -> list[int]:
        """Of the workers that are on a case."""
        return [] if self._crew is None else [worker.pid for worker in self._crew.workers if worker.is_busy]

    def submit(self, answer: str, gold: str) -> Future[Verdict]:
        """The verdict to come. It cannot be cancelled; `close` makes it a "closed" error.

        The future raises RuntimeError if workers cannot be started at all, whatever the case.
        """
        case = _Case(answer, gold)
        case.verdict.set_running_or_notify_cancel()
        with self._lock:
            if self._crew is None or self._crew.owner != os.getpid():  # threads do not survive a fork
                self._crew = _Crew(self._num_workers, self._deadline_s)
                self._end_crew = weakref.finalize(self, self._crew.close)  # runs at exit too
            self._crew.add(case)
        return case.verdict

    def judge(self, cases: Iterable[tuple[str, str]]) -> list[Verdict]:
        """One verdict per (answer, gold), in order.

        Raises:
            RuntimeError: workers cannot be started at all, whatever the case.
        """
        verdicts = [self.submit(*case) for case in cases]
        return [verdict.result() for verdict in verdicts]

    def close(self) -> None:
        """Ends the workers; cases that are pending become errors. A later `submit` starts new workers."""
        with self._lock:
            if self._crew is not None:
                self._crew = None
                self._end_crew()


@dataclass(eq=False, slots=True)
class _Case:
    """What is to be compared, the verdict to come, and how many workers it has cost."""

    answer: str
    gold: str
    verdict: Future[Verdict] = field(default_factory=Future)
    deaths: int = 0


class _Crew:
    """The queue, and the threads that serve it. Does not know its pool, so that a pool that nobody holds ends."""

    def __init__(self, num_workers: int, deadline_s: float) -> None:
        self.owner = os.getpid()
        self.workers: list[WorkerProcess] = []
        self._num_workers, self._deadline_s = num_workers, deadline_s
        self._changed = threading.Condition()  # guards everything that changes
        self._queue: deque[_Case] = deque()
        self._num_threads = self._num_idle = self._failed_starts = 0
        self._is_closed = False

    def add(self, case: _Case) -> None:
        with self._changed:
            self._queue.append(case)
            if self._num_idle < len(self._queue) and self._num_threads < self._num_workers:
                self._num_threads += 1
                threading.Thread(target=self._serve, name="grader", daemon=True).start()
            self._changed.notify()

    def close(self) -> None:
        """Ends the workers; their threads see to the cases that they have."""
        if os.getpid() != self.owner:  # in a fork of the trainer: not its workers, and a lock that may be held for ever
            return
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()
            pending, workers = list(self._queue), list(self.workers)
            self._queue.clear()
        for worker in workers:
            worker.kill()
        for case in pending:
            case.verdict.set_result(_error("closed"))

    def _serve(self) -> None:
        """What a thread does: keeps one worker, and gives it chunk after chunk."""
        worker: WorkerProcess | None = None
        while self._wait_for_cases():
            try:
                worker = worker or self._hire()
                if chunk := self._take_chunk():
                    self._grade(worker, chunk)
            except WorkerLostError:
                worker = self._dismiss(worker)
            except Exception as error:  # without a thread the cases would wait for ever
                worker = self._dismiss(worker)
                self._fail_pending(error)
        self._dismiss(worker)

    def _wait_for_cases(self) -> bool:
        """Whether there are cases to grade, rather than the end."""
        with self._changed:
            self._num_idle += 1
            self._changed.wait_for(lambda: self._queue or self._is_closed)
            self._num_idle -= 1
            return not self._is_closed

    def _take_chunk(self) -> deque[_Case]:
        """A share of the queue that leaves the other workers theirs; perhaps none."""
        with self._changed:
            size = min(_MAX_CHUNK, -(-len(self._queue) // (2 * self._num_workers)))
            return deque(self._queue.popleft() for _ in range(size))

    def _grade(self, worker: WorkerProcess, chunk: deque[_Case]) -> None:
        """Settles the cases of a chunk one by one; those it cannot go back into the queue."""
        try:
            worker.give([(case.answer, case.gold) for case in chunk])
            while chunk:
                verdict = worker.next_verdict()
                chunk.popleft().verdict.set_result(verdict)
        except WorkerLostError as loss:
            if worker.is_busy:  # else it had died of something before
                self._blame(chunk.popleft(), loss.reason)
            raise
        finally:
            self._put_back(chunk)

    def _blame(self, case: _Case, reason: str) -> None:
        """Settles what becomes of the case that a worker was lost on."""
        case.deaths += 1
        if reason == "worker_died" and case.deaths < _MAX_DEATHS:
            self._put_back([case])
        else:
            case.verdict.set_result(_error(reason))

    def _put_back(self, cases: Iterable[_Case]) -> None:
        with self._changed:
            if not self._is_closed:
                self._queue.extend(cases)
                self._changed.notify_all()
                return
        for case in cases:
            case.verdict.set_result(_error("closed"))

    def _hire(self) -> WorkerProcess:
        """A worker that is ready.

        Raises:
            WorkerLostError: it ended before it was.
            RuntimeError: so did several in a row, or it says that none ever will be.
        """
        worker = WorkerProcess(self._deadline_s)
        with self._changed:
            self.workers.append(worker)
            if self._is_closed:
                worker.kill()
        try:
            worker.wait_until_ready()
        except WorkerLostError:
            self._dismiss(worker)
            self._count_failed_start(worker.exit_status)
            raise
        except CannotStartError:
            self._dismiss(worker)
            raise
        with self._changed:
            self._failed_starts = 0
        return worker

    def _count_failed_start(self, exit_status: int | None) -> None:
        with self._changed:
            self._failed_starts = (self._failed_starts + 1) % _MAX_FAILED_STARTS
            if self._failed_starts > 0:
                return
        raise RuntimeError(
            f"the grader's workers cannot start: {_MAX_FAILED_STARTS} in a row ended with exit status {exit_status}; "
            "free memory, or set reward.num_workers=1"
        )

    def _dismiss(self, worker: WorkerProcess | None) -> None:
        if worker is not None:
            worker.end()
            with self._changed, suppress(ValueError):
                self.workers.remove(worker)

    def _fail_pending(self, error: Exception) -> None:
        with self._changed:
            pending = list(self._queue)
            self._queue.clear()
        for case in pending:
            case.verdict.set_exception(error)


def _error(reason: str) -> Verdict:
    return Verdict(False, reason, is_error=True)
