"""The points of a sweep as processes: start one, wait for it, pass a signal on, show how it went.

The leading underscore keeps Hydra from importing this module by itself.
"""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

LOG_NAME = "log.txt"
NUM_LAST_LINES = 5
# How long a signal may wait until it is passed on.
POLL_S = 0.2


@dataclass
class Point:
    """One run of a sweep.

    Attributes:
        number: Hydra's hydra.job.num.
        overrides: what the point sets.
        folder: where it writes.
        command: what runs it.
        status: how it went.
        seconds: how long it ran.
    """

    number: int
    overrides: tuple[str, ...]
    folder: Path
    command: tuple[str, ...]
    status: str = "skipped"
    seconds: float = 0.0

    @property
    def log_path(self) -> Path:
        """What the point printed."""
        return self.folder / LOG_NAME

    @property
    def failed(self) -> bool:
        """Whether it ran and went wrong."""
        return self.status not in ("ok", "skipped", "stopped")


@dataclass
class StopRequest:
    """The first signal that asked the sweep to stop, if one did."""

    signum: int | None = None

    def __call__(self, signum: int, frame: FrameType | None) -> None:
        """The signal handler: it only takes note."""
        if self.signum is None:
            self.signum = signum
        else:
            _say(f"{_name(self.signum)} has been passed on already; waiting for the point to save and end")


def run_points(points: Sequence[Point]) -> int:
    """Runs one point after another and returns the exit status: 0, 1 if one failed, 128 + n after signal n."""
    with _stop_request() as stop:
        for place, point in enumerate(points, start=1):
            if stop.signum is not None:
                break
            head = f"[{place}/{len(points)}]"
            _say(f"{head} start  {varying(point, points)}  log: {point.log_path}")
            _run(point, stop)
            _say(f"{head} end    {varying(point, points)}  {_outcome(point)}{_time_left(points, place, stop)}")
    if stop.signum is not None:
        return 128 + stop.signum
    return int(any(point.failed for point in points))


def describe(points: Sequence[Point]) -> None:
    """What is about to run: the number of points and what they have in common."""
    common = [text for text in points[0].overrides if len(points) > 1 and text not in _differing(points)]
    shared = f", all with {' '.join(common)}" if common else ""
    _say(f"sweep: {len(points)} points into {points[0].folder.parent}, one process each{shared}")


def table(points: Sequence[Point]) -> str:
    """One line a point; below it the log's path and last lines of each that failed."""
    rows = [("point", "overrides", "status", "time")]
    rows += [(str(p.number), varying(p, points), p.status, duration(p.seconds)) for p in points]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = ["", *("  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)) for row in rows)]
    failing = [point for point in points if point.failed]
    for point in failing:
        lines += ["", f"point {point.number} ({varying(point, points)}): {point.status}, log: {point.log_path}"]
        lines += [f"    {line}" for line in _last_lines(point.log_path)]
    counts = {status: sum(p.status == status for p in points) for status in ("ok", "stopped", "skipped")}
    parts = [f"{number} {status}" for status, number in counts.items() if number]
    parts += [f"{len(failing)} failed"] if failing else []
    return "\n".join([*(line.rstrip() for line in lines), "", f"{len(points)} points: {', '.join(parts)}"])


def duration(seconds: float) -> str:
    """Seconds as a person reads them.

    >>> duration(3.21), duration(75), duration(7260)
    ('3.2 s', '1 min 15 s', '2 h 01 min')
    """
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


@contextmanager
def _stop_request() -> Iterator[StopRequest]:
    """Collects SIGINT, SIGTERM and SIGHUP, but for those that whoever started the sweep had ignored (nohup does)."""
    request = StopRequest()
    wanted = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = {signum: signal.getsignal(signum) for signum in wanted}
    taken = [signum for signum in wanted if before[signum] is not signal.SIG_IGN]
    for signum in taken:
        signal.signal(signum, request)
    try:
        yield request
    finally:
        for signum in taken:
            signal.signal(signum, before[signum])


def _run(point: Point, stop: StopRequest) -> None:
    """Runs a point to its end and notes how it went."""
    started = time.monotonic()
    try:
        point.folder.mkdir(parents=True, exist_ok=True)
        with point.log_path.open("ab") as log:
            log.write(f"$ {shlex.join(point.command)}\n".encode())
            log.flush()
            point.status = _status(*_wait(point, log.fileno(), stop))
    except OSError as error:
        point.status = f"could not start: {error}"
    point.seconds = time.monotonic() - started


def _wait(point: Point, log_fd: int, stop: StopRequest) -> tuple[int, bool]:
    """Runs a point's process; returns its return code, and whether it was asked to stop."""
    # A session of its own keeps the terminal's Ctrl-C from the point: it gets the signal once, from here.
    process = subprocess.Popen(
        point.command,
        stdin=subprocess.DEVNULL,
        stdout=log_fd,
        stderr=subprocess.STDOUT,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
        start_new_session=True,
    )
    passed_on = False
    while True:
        try:
            return process.wait(timeout=POLL_S), passed_on
        except subprocess.TimeoutExpired:
            if stop.signum is not None and not passed_on:
                passed_on = True
                process.send_signal(signal.SIGINT if stop.signum == signal.SIGINT else signal.SIGTERM)
                _say(
                    f"{_name(stop.signum)}: passed on to point {point.number} (process {process.pid}); waiting for it "
                    "to save and end; the rest is skipped"
                )


def _status(returncode: int, asked_to_stop: bool) -> str:
    stopping = {0, *(sign for signum in (signal.SIGINT, signal.SIGTERM) for sign in (128 + signum, -signum))}
    if asked_to_stop and returncode in stopping:
        return "stopped"
    if returncode == 0:
        return "ok"
    return f"killed by {_name(-returncode)}" if returncode < 0 else f"exit status {returncode}"


def _outcome(point: Point) -> str:
    status = "exit status 0" if point.status == "ok" else point.status
    return f"{status} after {duration(point.seconds)}"


def _time_left(points: Sequence[Point], ended: int, stop: StopRequest) -> str:
    remaining = len(points) - ended
    if not remaining or stop.signum is not None:
        return ""
    mean = sum(point.seconds for point in points[:ended]) / ended
    return f", about {duration(mean * remaining)} left"


def _differing(points: Sequence[Point]) -> set[str]:
    shared = set.intersection(*(set(point.overrides) for point in points))
    return {text for point in points for text in point.overrides} - shared


def varying(point: Point, points: Sequence[Point]) -> str:
    """The overrides that set a point apart; all of them if nothing does."""
    differing = _differing(points)
    return " ".join(text for text in point.overrides if text in differing) or " ".join(point.overrides)


def _last_lines(path: Path) -> list[str]:
    if not path.is_file():
        return []
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    return [line for line in lines if line.strip() and not line.startswith("$ ")][-NUM_LAST_LINES:]


def _name(signum: int) -> str:
    return signal.Signals(signum).name


def _say(line: str) -> None:
    print(line, flush=True)
