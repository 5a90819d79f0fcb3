"""SIGTERM and SIGINT end a run at a step's end, not in the middle of one."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from types import FrameType, TracebackType


class Interrupt:
    """While entered, the first SIGTERM or SIGINT is noted; a second one acts as it would without this."""

    def __init__(self, tell: Callable[[str], None]) -> None:
        """Nothing has been received.

        Args:
            tell: told, when a signal comes, what will happen.
        """
        self._tell = tell
        self.signal: signal.Signals | None = None
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
        self.signal = signal.Signals(number)
        self._restore()
        sentence = f"{self.signal.name}: this step is finished and saved, then the run ends; again to end it at once"
        # From a thread: the handler may have interrupted a write to the stream that it would write to.
        threading.Thread(target=self._tell, args=(sentence,), daemon=True).start()

    def _restore(self) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)  # type: ignore[arg-type]
        self._previous = {}

    @property
    def exit_status(self) -> int:
        """What a shell expects of a process that a signal ended."""
        return 128 + self.signal if self.signal else 0
