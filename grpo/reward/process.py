"""The trainer's side of one worker: a fresh interpreter, and a socket to it on which nothing waits without a limit.

It is not a `multiprocessing` process: even with the spawn method that imports the trainer's `__main__`, and torch with
it, in every worker. Nor is it forked: a process that has used CUDA cannot be.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from grpo.reward.equivalence import Verdict
from grpo.reward.worker import DEADLINE_SIGNAL

_START_DEADLINE_S = 120.0  # imports take a second, and far more on a busy machine or a network disk
# The deadline is processor time, which a busy machine cannot use up. On the clock a case gets this many times as long,
# for a worker that is stopped or waits for something.
_CLOCK_FACTOR = 10.0
_IMPORT_ROOT = Path(__file__).resolve().parent.parent.parent


class CannotStartError(RuntimeError):
    """What a worker needs is not installed; its own words say what."""


class WorkerLostError(Exception):
    """The worker has died or does not answer; it has been ended.

    Attributes:
        reason: "deadline" or "worker_died".
    """

    def __init__(self, reason: str) -> None:
        """Takes the reason."""
        super().__init__(reason)
        self.reason = reason


class WorkerProcess:
    """One worker. Belongs to one thread, but for `kill`, which any thread may call."""

    def __init__(self, deadline_s: float) -> None:
        """Starts it, and returns before it is ready.

        Args:
            deadline_s: seconds of processor time that a case may take.
        """
        self._clock_s = _CLOCK_FACTOR * deadline_s
        self._lines: deque[bytes] = deque()
        self._part = b""
        self._num_open = 0
        self._channel, theirs = socket.socketpair()
        arguments = [str(theirs.fileno()), str(os.getpid()), str(deadline_s)]
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "grpo.reward.worker", *arguments],
                cwd=_IMPORT_ROOT,
                env={**os.environ, "PYTHONHASHSEED": "0"},  # sympy's verdicts may follow the order of its sets
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                pass_fds=(theirs.fileno(),),
                start_new_session=True,  # out of the terminal's process group: Ctrl-C is the trainer's to handle
            )
        self.pid = self._process.pid

    def wait_until_ready(self) -> None:
        """Returns when it can take cases.

        Raises:
            CannotStartError, WorkerLostError: it never will.
        """
        self._receive(_START_DEADLINE_S)

    @property
    def is_busy(self) -> bool:
        """Whether it has cases."""
        return self._num_open > 0

    @property
    def exit_status(self) -> int | None:
        """As `subprocess` has it; None while it lives."""
        return self._process.poll()

    def give(self, cases: Sequence[tuple[str, str]]) -> None:
        """Hands over (answer, gold) pairs, whose verdicts `next_verdict` returns in the same order.

        Raises:
            WorkerLostError: it cannot take them.
        """
        try:
            self._channel.settimeout(self._clock_s)
            self._channel.sendall(json.dumps(cases).encode() + b"\n")
        except OSError:
            raise self._lost() from None
        self._num_open = len(cases)

    def next_verdict(self) -> Verdict:
        """The verdict on the next case; what the worker has to import before it has all the time of a start.

        Raises:
            CannotStartError, WorkerLostError: there will be none.
        """
        message = self._receive(self._clock_s)
        if message.get("state") == "loading":
            self._receive(_START_DEADLINE_S)
            message = self._receive(self._clock_s)
        self._num_open -= 1
        return Verdict(message["correct"], message["reason"], message["is_error"])

    def kill(self) -> None:
        """Ends the process, and returns when it is gone; who talks to it learns that it is lost."""
        self._process.kill()
        self._process.wait()

    def end(self) -> None:
        """Ends the process and the connection."""
        self.kill()
        self._channel.close()

    def _receive(self, limit_s: float) -> dict[str, Any]:
        try:
            while not self._lines:
                self._channel.settimeout(limit_s)
                data = self._channel.recv(1 << 16)
                if not data:
                    raise self._lost()
                *lines, self._part = (self._part + data).split(b"\n")
                self._lines.extend(lines)
            message: dict[str, Any] = json.loads(self._lines.popleft())
        except TimeoutError:
            self.end()
            raise WorkerLostError("deadline") from None
        except (OSError, ValueError):
            raise self._lost() from None
        if "cannot_start" in message:
            raise CannotStartError(
                f"the grader's worker cannot start: {message['cannot_start']}; install the project's dependencies again"
            )
        return message

    def _lost(self) -> WorkerLostError:
        self.end()
        return WorkerLostError("deadline" if self._process.returncode == -DEADLINE_SIGNAL else "worker_died")
