"""How far long work is and how long it will take, on standard error."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable
from time import monotonic

from grpo.run.text import duration

_BAR_WIDTH = 24


class Progress:
    """A bar that rewrites itself on a terminal; elsewhere a line every 10 s."""

    def __init__(
        self, what: str, total: int, form: Callable[[int], str] = "{:,}".format, *, num_reused: int = 0
    ) -> None:
        """Shows nothing before the first `add`.

        Args:
            what: is being done, such as "golds".
            total: how many there are to do.
            form: writes a number of them.
            num_reused: of those to come, how many were done before and tell nothing about the pace.
        """
        self.num_done = 0
        self._what, self._total, self._form = what, total, form
        self._is_terminal = sys.stderr.isatty()
        self._start = self._shown = monotonic()
        self._num_reused = num_reused

    def add(self, num: int) -> None:
        """So many more are done; fewer, if something was thrown away."""
        self.num_done += num
        self._show()

    def finish(self) -> None:
        """Takes the bar away."""
        if self._is_terminal:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)

    def _show(self) -> None:
        now = monotonic()
        if now - self._shown < (0.2 if self._is_terminal else 10):
            return
        self._shown = now
        share = min(1.0, max(0.0, self.num_done / self._total)) if self._total else 1.0
        text = f"{share:4.0%}  {self._form(self.num_done)} of {self._form(self._total)}{self._remaining(now)}"
        if not self._is_terminal:
            print(f"{self._what}: {text.strip()}", file=sys.stderr, flush=True)
            return
        num_filled = round(share * _BAR_WIDTH)
        line = f"{self._what}  {'━' * num_filled}{'─' * (_BAR_WIDTH - num_filled)} {text}"
        print(f"\r{line[: shutil.get_terminal_size().columns - 1]}\x1b[K", end="", file=sys.stderr, flush=True)

    def _remaining(self, now: float) -> str:
        num_new = self.num_done - self._num_reused
        if num_new <= 0 or now <= self._start:
            return ""
        pace = num_new / (now - self._start)
        return f", {self._form(round(pace))}/s, {duration((self._total - self.num_done) / pace)} left"


def bytes_text(num_bytes: int) -> str:
    """A number of bytes to read, such as 3.09 GB."""
    size = float(num_bytes)
    for unit in ("bytes", "kB", "MB", "GB"):
        if abs(size) < 1000 or unit == "GB":
            return f"{size:.0f} {unit}" if unit == "bytes" else f"{size:.3g} {unit}"
        size /= 1000
    raise AssertionError
