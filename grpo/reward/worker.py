r"""A process that compares answers with golds: `python -m grpo.reward.worker FD PARENT_PID DEADLINE_S`.

It reads chunks of cases from a socket, one JSON line each, and says every verdict as soon as it has it, one JSON line
each. Nothing it does may last: the kernel ends it when a case has had its processor time, and where there is no parent
any more it ends by itself. It imports nothing of the trainer, so that it starts fast and small, and computer algebra
only when a case needs it.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

MEMORY_BYTES = 4 * 2**30
DEADLINE_SIGNAL = signal.SIGPROF  # what ends a worker whose case has had its processor time
OUT_OF_MEMORY = 3  # exit status
_PARENT_CHECK_S = 0.5


def main() -> None:
    """Says that it is ready, then grades until the socket closes."""
    handle, parent, deadline_s = int(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3])
    _depend_on(parent)
    _limit_resources()
    channel = socket.socket(fileno=handle)
    with suppress(OSError):
        try:
            judge = Judge(channel, deadline_s)
            _send(channel, {"state": "ready"})
            for line in channel.makefile("rb"):
                for answer, gold in json.loads(line):
                    _send(channel, judge.compare(answer, gold))
                _set_deadline(0)
        except CannotLoadError as error:
            _send(channel, {"cannot_start": str(error)})
        except MemoryError:  # the heap may be full of earlier cases: the case is tried again in a fresh process
            os._exit(OUT_OF_MEMORY)


class CannotLoadError(Exception):
    """What the comparison needs cannot be imported."""


class Judge:
    """Compares by the project's own rules, and by math-verify what they leave undecided."""

    def __init__(self, channel: socket.socket, deadline_s: float) -> None:
        """Imports what most cases need.

        Args:
            channel: to say when a case has to wait for an import, which is not the case's fault.
            deadline_s: seconds of processor time that a case may take.

        Raises:
            CannotLoadError: see there.
        """
        with _needed():
            from grpo.reward.answers.comparison import compare

        self._compare = compare
        self._channel = channel
        self._deadline_s = deadline_s
        self._last_resort: Callable[[str, str], Any] | None = None

    def compare(self, answer: str, gold: str) -> dict[str, Any]:
        """The verdict in the form that it is sent in.

        Raises:
            CannotLoadError: math-verify cannot be imported.
            MemoryError: the limit is reached.
        """
        try:
            _set_deadline(self._deadline_s)
            verdict = self._compare(answer, gold)
            if verdict is None:
                verdict = self._load_last_resort()(answer, gold)
        except (CannotLoadError, MemoryError):
            raise
        except Exception:  # nothing that a model wrote may end the run: counted as a grader error
            return {"correct": False, "reason": "exception", "is_error": True}
        return {"correct": bool(verdict.correct), "reason": verdict.reason, "is_error": bool(verdict.is_error)}

    def _load_last_resort(self) -> Callable[[str, str], Any]:
        if self._last_resort is None:
            _set_deadline(0)
            _send(self._channel, {"state": "loading"})
            with _needed():
                from grpo.reward import last_resort

                last_resort.load()
            self._last_resort = last_resort.compare
            _send(self._channel, {"state": "loaded"})
        _set_deadline(self._deadline_s)
        return self._last_resort


@contextmanager
def _needed() -> Iterator[None]:
    """For imports without which nothing can be graded."""
    try:
        yield
    except MemoryError:
        raise
    except Exception as error:
        raise CannotLoadError(f"{type(error).__name__}: {error}") from error


def _set_deadline(cpu_s: float) -> None:
    """After this much processor time, 0 for any, the kernel ends the process: even one that is lost in C code."""
    signal.setitimer(signal.ITIMER_PROF, cpu_s)


def _send(channel: socket.socket, message: dict[str, Any]) -> None:
    channel.sendall(json.dumps(message).encode() + b"\n")


def _depend_on(parent: int) -> None:
    """Lives exactly as long as the parent: ignores what a terminal or scheduler sends to all, ends when it is gone.

    Not PR_SET_PDEATHSIG: that fires when the thread that started the worker ends, and that thread may.
    """
    for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1", "SIGUSR2"):
        signal.signal(getattr(signal, name), signal.SIG_IGN)
    signal.signal(DEADLINE_SIGNAL, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {DEADLINE_SIGNAL})  # a thread's mask is inherited

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(_PARENT_CHECK_S)
        os._exit(0)

    threading.Thread(target=watch, daemon=True).start()


def _limit_resources() -> None:
    for kind, limit in ((resource.RLIMIT_AS, MEMORY_BYTES), (resource.RLIMIT_CORE, 0)):
        with suppress(ValueError, OSError):  # macOS has RLIMIT_AS in name only
            _, hard = resource.getrlimit(kind)
            bound = limit if hard == resource.RLIM_INFINITY else min(limit, hard)
            resource.setrlimit(kind, (bound, bound))


if __name__ == "__main__":
    main()
