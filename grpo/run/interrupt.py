"""SIGTERM and SIGINT end a run at a step's end, not in the middle of one."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable
from types import FrameType, TracebackType

from grpo.distributed import Ranks

# Slurm sends SIGTERM to every process of a job, srun passes it on to them, and so does torchrun: one request, not two.
_ECHO_S = 5.0


class Interrupt:
    """While entered, the first SIGTERM or SIGINT is noted; a second one acts as it would without this.

    A SIGTERM soon after the first is no second one, but its echo.
    """

    def __init__(self, tell: Callable[[str], None]) -> None:
        """Nothing has been received.

        Args:
            tell: told, when a signal comes, what will happen.
        """
        self._tell = tell
        self.signal: signal.Signals | None = None
        self._noted_at: float | None = None  # on the clock of `time.monotonic`
        self._previous: dict[signal.Signals, object] = {}

    def __enter__(self) -> Interrupt:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                self._previous[number] = signal.signal(number, self._note)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._restore()

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self._noted_at is not None:
            if time.monotonic() > self._noted_at + _ECHO_S:
                self._restore()
                signal.raise_signal(number)
            return
        self.signal, self._noted_at = signal.Signals(number), time.monotonic()
        if signal.SIGINT in self._previous:
            signal.signal(signal.SIGINT, self._previous.pop(signal.SIGINT))  # type: ignore[arg-type]
        sentence = f"{self.signal.name}: this step is finished and saved, then the run ends; again to end it at once"
        # From a thread: the handler may have interrupted a write to the stream that it would write to.
        threading.Thread(target=self._tell, args=(sentence,), daemon=True).start()

    def noted_by_any(self, ranks: Ranks) -> bool:
        """Whether any rank has received one; the first rank's counts for all. All ranks ask together."""
        received = [number for number in ranks.gather(self.signal) if number]
        if received:  # one may have come meanwhile: it is not to be lost
            self.signal = received[0]
        return bool(received)

    def _restore(self) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)  # type: ignore[arg-type]
        self._previous = {}

    @property
    def exit_status(self) -> int:
        """What a shell expects of a process that a signal ended."""
        return 128 + self.signal if self.signal else 0
