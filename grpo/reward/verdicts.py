"""What workers said about an answer, kept: a step has the same answer many times, and the next steps have it again."""

from __future__ import annotations

import threading
from collections import OrderedDict
from concurrent.futures import Future

from grpo.reward.equivalence import Verdict
from grpo.reward.pool import WorkerPool

_CAPACITY = 4096  # cases of up to 2,000 characters: some megabytes


class VerdictCache:
    """Puts each different (answer, gold) to a pool once, as long as it is among those that were asked for last.

    An error is kept for the step that met it, so that a hundred copies of a bad answer cost one deadline; the next
    step tries again. May be used from any thread.
    """

    def __init__(self, pool: WorkerPool, capacity: int = _CAPACITY) -> None:
        """Asks nothing yet.

        Args:
            pool: what compares.
            capacity: cases that are kept.
        """
        self._pool = pool
        self._capacity = capacity
        self._lock = threading.Lock()
        self._kept: OrderedDict[tuple[str, str], tuple[int, Future[Verdict]]] = OrderedDict()

    def submit(self, answer: str, gold: str, step: int) -> Future[Verdict]:
        """The verdict to come, which others may wait for too. Fails as `WorkerPool.submit` does."""
        case = (answer, gold)
        with self._lock:
            asked_in, verdict = self._kept.get(case, (step, None))
            if verdict is None or (asked_in != step and _has_failed(verdict)):
                verdict = self._pool.submit(answer, gold)
                self._kept[case] = (step, verdict)
            self._kept.move_to_end(case)
            if len(self._kept) > self._capacity:
                self._kept.popitem(last=False)
            return verdict

    def clear(self) -> None:
        """Forgets everything."""
        with self._lock:
            self._kept.clear()


def _has_failed(verdict: Future[Verdict]) -> bool:
    return verdict.done() and (verdict.exception() is not None or verdict.result().is_error)
