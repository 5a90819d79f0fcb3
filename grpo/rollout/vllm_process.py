"""The trainer's side of vLLM's child process: starts it, talks to it, and notices when it has died or hangs."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from multiprocessing import Pipe
from pathlib import Path
from typing import Any, TypeVar

from grpo.rollout.vllm_types import VllmError

T = TypeVar("T")

HANG_S = 25.0  # without progress
_START_S = 1800.0  # until vLLM is built: a GPU's kernels are compiled then
_START_SILENCE_S = 120.0  # until there is a sign of life: a network disk is slow to import from
_POLL_S = 0.5
_LOOK_S = 0.01
_CLOSE_S = 5.0
_LOG_LINES = 4
_BROKEN_OFF = (EOFError, OSError, TypeError)  # the last where `kill` closes a connection that is just being read
_IMPORT_ROOT = Path(__file__).resolve().parent.parent.parent
# Of torchrun and Slurm: the child is no rank of the trainer's group. Where torchrun says that it keeps the store, one
# that vLLM's group of one meets at would be started by nobody.
_RANK_VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "GROUP_RANK", "MASTER_ADDR", "MASTER_PORT")
_TORCHRUN = "TORCHELASTIC_"


def inherited(environment: Mapping[str, str]) -> dict[str, str]:
    """What a child's environment has of the trainer's: all but the trainer's place among ranks, and this package."""
    kept = {name: value for name, value in environment.items() if name not in _RANK_VARIABLES}
    paths = [str(_IMPORT_ROOT), *filter(None, [environment.get("PYTHONPATH")])]
    others = {name: value for name, value in kept.items() if not name.startswith(_TORCHRUN)}
    return {**others, "PYTHONPATH": os.pathsep.join(paths)}


class ChildLostError(Exception):
    """The child has died, or was killed because it hung; says which."""


class Starter:
    """The one thread that starts children: the kernel kills a child when the thread that started it ends."""

    def __init__(self) -> None:
        """The thread lives until `close`."""
        self._pool = ThreadPoolExecutor(1, "vllm-starter")

    def start(self, arguments: list[str], **options: Any) -> subprocess.Popen[bytes]:
        """subprocess.Popen in the starter's thread."""
        return self._pool.submit(lambda: subprocess.Popen[bytes](arguments, **options)).result()

    def close(self) -> None:
        """Ends the thread, and with it on Linux what it has started."""
        self._pool.shutdown()


class ChildProcess:
    """One child. Not for several threads at once, but for `kill`, which any thread may call."""

    def __init__(self, starter: Starter, module: str, log: Path, variables: Mapping[str, str], hang_s: float):
        """Starts it, and returns at once.

        Args:
            starter: see there.
            module: what it runs.
            log: what it prints is appended here.
            variables: of its environment, beside the trainer's.
            hang_s: seconds without progress after which it counts as hung.
        """
        self._hang_s, self._log = hang_s, log
        self._killing = threading.Lock()
        self._progress: Any = None
        self._early: deque[tuple[Any, ...]] = deque()  # messages that came before somebody waited for them
        self._connection, theirs = Pipe()
        log.parent.mkdir(parents=True, exist_ok=True)
        with theirs, log.open("ab") as output:
            self._process = starter.start(
                [sys.executable, "-m", module, str(theirs.fileno()), str(os.getpid())],
                env={**inherited(os.environ), **variables},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                pass_fds=(theirs.fileno(),),
                start_new_session=True,  # out of the terminal's process group: Ctrl-C is the trainer's to handle
            )
        self.pid = self._process.pid

    def send(self, *command: Any) -> None:
        """Sends a command.

        Raises:
            ChildLostError: it is dead.
        """
        self._progress = None
        self.attend(lambda: self._connection.send(command))  # a child that hangs does not read

    def receive(self, *, is_start: bool = False) -> tuple[Any, ...]:
        """The next message that is not about progress.

        Args:
            is_start: be patient, for vLLM is built: any sign of life is progress.

        Raises:
            ChildLostError: it has died; or there was no progress for `hang_s`, and it has been killed.
            VllmError: the command has failed; the child's words.
        """
        limit = _START_SILENCE_S if is_start else self._hang_s
        silent = waited = 0.0
        while True:
            began = time.monotonic()
            message = self._poll()
            spent = _waited_since(began)
            silent, waited = silent + spent, waited + spent
            if message is not None and message[0] == "error":
                raise VllmError(message[1])
            if message is not None and message[0] != "tick":
                return message
            if message is not None and (is_start or message[1] != self._progress):
                self._progress, silent = message[1], 0.0
            if silent > limit or (is_start and waited > _START_S):
                self.kill()
                raise ChildLostError(f"it hung: there was no progress for {silent or waited:.0f} s")

    def attend(self, operation: Callable[[], T], *, is_start: bool = False) -> T:
        """The result of something that needs the child's help, and would wait for ever for one that is dead.

        Args:
            operation: called in a thread.
            is_start: be patient.

        Raises:
            ChildLostError: see `receive`.
            VllmError: the child has given up its part.
        """
        outcome: list[T | Exception] = []

        def work() -> None:
            try:
                outcome.append(operation())
            except (RuntimeError, OSError) as error:
                outcome.append(error)

        thread = threading.Thread(target=work, daemon=True)
        thread.start()
        limit = _START_SILENCE_S if is_start else self._hang_s
        silent = 0.0
        while thread.is_alive():
            began = time.monotonic()
            thread.join(_LOOK_S)
            silent = 0.0 if self._look() else silent + _waited_since(began)
            if silent > limit:
                self.kill()
                raise ChildLostError(f"it hung: it took nothing for {silent:.0f} s")
        result = outcome[0]
        if isinstance(result, Exception):
            raise self._lost() from result
        return result

    def end_of_log(self) -> str:
        """Where the log is and how it ends, in one line."""
        lines = self._log.read_text(errors="replace").splitlines() if self._log.is_file() else []
        kept = [" ".join(line.split()) for line in lines[-_LOG_LINES:] if line.strip()]
        return f"its log, {self._log}, ends: {' | '.join(kept) or '(empty)'}"

    def close(self) -> None:
        """Asks it to end, and ends it if it does not."""
        try:
            self._connection.send(("close",))
            self._process.wait(_CLOSE_S)
        except (OSError, subprocess.TimeoutExpired):
            pass
        finally:
            self.kill()

    def kill(self) -> None:
        """Ends it at once; nothing of it remains."""
        with self._killing:
            self._process.kill()
            self._process.wait()
            self._connection.close()

    def _poll(self) -> tuple[Any, ...] | None:
        """A message, or None if none came within `_POLL_S`."""
        if self._early:
            return self._early.popleft()
        try:
            return self._connection.recv() if self._connection.poll(_POLL_S) else None
        except _BROKEN_OFF:
            raise self._lost() from None

    def _look(self) -> bool:
        """Whether there was a sign of progress, without waiting."""
        try:
            if not self._connection.poll(0):
                return False
            message = self._connection.recv()
        except _BROKEN_OFF:
            raise self._lost() from None
        if message[0] == "error":
            self._early.clear()  # of the command that has ended with it
            raise VllmError(message[1])
        if message[0] != "tick":
            self._early.append(message)
            return True
        moved = message[1] != self._progress
        self._progress = message[1]
        return moved

    def _lost(self) -> ChildLostError:
        """What became of a child whose end of the socket is closed."""
        try:
            status = self._process.wait(_CLOSE_S)
        except subprocess.TimeoutExpired:
            return ChildLostError("it broke off the connection")
        finally:
            self.kill()
        return ChildLostError(f"it died, with {f'signal {-status}' if status < 0 else f'exit status {status}'}")


def _waited_since(began: float) -> float:
    """Seconds of one poll: a trainer that was itself stopped for a while has not been waiting."""
    return min(time.monotonic() - began, 2 * _POLL_S)
