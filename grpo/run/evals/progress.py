"""How far an evaluation is: a bar on a terminal, a line every ten seconds elsewhere."""

from __future__ import annotations

import sys
import time
from typing import Protocol, TextIO, cast

from grpo.config import ConsoleMode
from grpo.run.console import wants_rich
from grpo.run.text import LastingStream, duration, printable

_PLAIN_EVERY_S = 10.0


class Progress(Protocol):
    """What an evaluation tells while it works. Texts may come from a file or a model: shown, never interpreted."""

    def say(self, text: str) -> None:
        """A note."""
        ...

    def warn(self, text: str) -> None:
        """A note about something that is likely to be wrong."""
        ...

    def start(self, total: int, num_done: int, num_right: int) -> None:
        """Sampling begins; some completions may be there from before."""
        ...

    def advance(self, num_ended: int, num_right: int) -> None:
        """Further completions have been graded."""
        ...

    def finish(self) -> None:
        """Sampling ended, well or not; may be called again."""
        ...


def build_progress(mode: ConsoleMode, stream: TextIO | None = None) -> Progress:
    """The display; `stream` is standard output."""
    output: TextIO = stream or sys.stdout
    return LiveProgress(output) if wants_rich(mode, output) else PlainProgress(output)


class Count:
    """Completions so far, and when the last will have ended at the pace since the start."""

    def __init__(self, total: int, num_done: int, num_right: int) -> None:
        """Starts the clock."""
        self.total, self.num_done, self.num_right = total, num_done, num_right
        self._before, self._start = num_done, time.monotonic()

    def advance(self, num_ended: int, num_right: int) -> None:
        """Counts further ones."""
        self.num_done += num_ended
        self.num_right += num_right

    @property
    def remaining_s(self) -> float | None:
        """None before the first has ended."""
        num_new = self.num_done - self._before
        elapsed_s = time.monotonic() - self._start
        return elapsed_s / num_new * (self.total - self.num_done) if num_new else None

    @property
    def share_right(self) -> str:
        """Of those so far."""
        return f"{self.num_right / self.num_done:.1%}" if self.num_done else "-"


class PlainProgress:
    """Lines: for logs, pipes and terminals that cannot draw."""

    def __init__(self, stream: TextIO) -> None:
        """Writes to `stream`."""
        self._stream = cast(TextIO, LastingStream(stream))
        self._count = Count(0, 0, 0)
        self._shown = 0.0

    def say(self, text: str) -> None:
        """A line."""
        print(printable(text), file=self._stream, flush=True)

    def warn(self, text: str) -> None:
        """A line that says that it is a warning."""
        self.say(f"warning: {text}")

    def start(self, total: int, num_done: int, num_right: int) -> None:
        """Starts the clock."""
        self._count, self._shown = Count(total, num_done, num_right), time.monotonic()

    def advance(self, num_ended: int, num_right: int) -> None:
        """A line, if the last one is old enough."""
        count = self._count
        count.advance(num_ended, num_right)
        if time.monotonic() - self._shown >= _PLAIN_EVERY_S:
            self._shown = time.monotonic()
            self.say(
                f"{count.num_done} of {count.total} completions, {count.share_right} right, "
                f"{duration(count.remaining_s)} left"
            )

    def finish(self) -> None:
        """Nothing to take down."""


class LiveProgress:
    """A bar that is drawn again in place and goes when it is done; notes scroll above it."""

    def __init__(self, stream: TextIO) -> None:
        """Draws on `stream`, taken to be a terminal."""
        from rich.console import Console
        from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

        self._console = Console(file=cast(TextIO, LastingStream(stream)), force_terminal=True, highlight=False)
        columns = (
            SpinnerColumn(),
            BarColumn(),
            TextColumn("{task.completed}/{task.total} completions", markup=False),
            TextColumn("{task.fields[right]} right", markup=False),
            TimeElapsedColumn(),
            TextColumn("{task.fields[left]} left", markup=False),
        )
        self._bar = Progress(*columns, console=self._console, transient=True)
        self._count = Count(0, 0, 0)
        self._task = self._bar.add_task("", total=0, right="-", left="-")

    def say(self, text: str) -> None:
        """A line above the bar."""
        self._print(printable(text))

    def warn(self, text: str) -> None:
        """A yellow line above the bar."""
        self._print(f"warning: {printable(text)}", style="yellow")

    def start(self, total: int, num_done: int, num_right: int) -> None:
        """Shows the bar."""
        self._count = Count(total, num_done, num_right)
        self._bar.reset(self._task, total=total, completed=num_done, right=self._count.share_right, left="-")
        self._bar.start()

    def advance(self, num_ended: int, num_right: int) -> None:
        """Moves the bar."""
        count = self._count
        count.advance(num_ended, num_right)
        left = duration(count.remaining_s)
        self._bar.update(self._task, completed=count.num_done, right=count.share_right, left=left)

    def finish(self) -> None:
        """Takes the bar away."""
        self._bar.stop()

    def _print(self, text: str, style: str = "") -> None:
        from rich.text import Text

        self._console.print(Text(text, style=style))
