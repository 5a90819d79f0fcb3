"""The points of a sweep as processes of this machine: start them, wait, pass a signal on, say how each went."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

from hydra_plugins.grpo_launchers._points import OK, STOPPED, Point, say, varying, write_result

POLL_S = 0.05
_GUARD = Path(__file__).with_name("_guard.py")
_STOPPING = {0, *(code for signum in (signal.SIGINT, signal.SIGTERM) for code in (128 + signum, -signum))}


@dataclass
class StopRequest:
    """The first signal that asked the sweep to stop, if one did.

    Attributes:
        answer: what a second one is answered with.
        signum: None as long as none came.
    """

    answer: str = "has been passed on already; waiting for the point to save and end"
    signum: int | None = None

    def __call__(self, signum: int, frame: FrameType | None) -> None:
        """The signal handler: it only takes note."""
        if self.signum is None:
            self.signum = signum
        else:
            os.write(1, f"{name_of(self.signum)} {self.answer}\n".encode())  # not print: it may be what was interrupted

    @contextmanager
    def listening(self) -> Iterator[StopRequest]:
        """Collects SIGINT, SIGTERM and SIGHUP, but for those that were ignored already, as nohup does."""
        wanted = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
        before = {signum: signal.getsignal(signum) for signum in wanted}
        taken = [signum for signum in wanted if before[signum] is not signal.SIG_IGN]
        for signum in taken:
            signal.signal(signum, self)
        try:
            yield self
        finally:
            for signum in taken:
                signal.signal(signum, before[signum])


@dataclass
class _Running:
    """A point's process.

    Attributes:
        point: which.
        process: the guard, which ends as the point does.
        seat: which of the places at the machine it has.
        lifeline: closed by the end of this process, however it ends; the guard watches it.
        started: on the clock of `time.monotonic`.
        told: whether the request to stop has been passed on.
    """

    point: Point
    process: subprocess.Popen[bytes]
    seat: int
    lifeline: int
    started: float = field(default_factory=time.monotonic)
    told: bool = False


def run_points(points: Sequence[Point], seats: Sequence[dict[str, str]], *, total: int) -> int:
    """Runs the points that are not done, as many at a time as there are seats.

    Args:
        points: of the sweep, or of one batch of it.
        seats: environment variables of the points that run there.
        total: points of the whole sweep.

    Returns:
        0, 1 if a point failed, or 128 + n after signal n.
    """
    waiting = [point for point in points if not point.done]
    running: list[_Running] = []
    ended: list[Point] = []
    with StopRequest().listening() as stop:
        while running or (waiting and stop.signum is None):
            free = [seat for seat in range(len(seats)) if seat not in [one.seat for one in running]]
            for seat in free[: len(waiting)] if stop.signum is None else []:
                point = waiting.pop(0)
                say(f"[{point.number + 1}/{total}] start  {varying(point, points)}  log: {point.log_path}")
                if (started := _start(point, seats[seat], seat)) is None:
                    ended.append(point)
                    _report(point, points, total, "")
                else:
                    running.append(started)
            time.sleep(POLL_S)
            _pass_on(running, stop)
            for one in [one for one in running if one.process.poll() is not None]:
                running.remove(one)
                _finish(one)
                ended.append(one.point)
                left = _time_left(ended, len(waiting) + len(running), len(seats)) if stop.signum is None else ""
                _report(one.point, points, total, left)
    if stop.signum is not None:
        return 128 + stop.signum
    return int(any(point.failed for point in points))


def _start(point: Point, environment: dict[str, str], seat: int) -> _Running | None:
    """Starts a point's process; None, with the reason in its status, if that cannot be."""
    reading, writing = os.pipe()
    try:
        point.folder.mkdir(parents=True, exist_ok=True)
        (point.folder / "result.json").unlink(missing_ok=True)
        with point.log_path.open("ab") as log:
            log.write(f"$ {point.typed}  # as frozen in {point.folder / 'point.yaml'}\n".encode())
            log.flush()
            process = subprocess.Popen(
                [sys.executable, "-I", "-S", str(_GUARD), str(reading), *point.command],
                stdin=subprocess.DEVNULL,
                stdout=log.fileno(),
                stderr=subprocess.STDOUT,
                env={**os.environ, "PYTHONUNBUFFERED": "1", "GRPO_TYPED_COMMAND": point.typed, **environment},
                pass_fds=[reading],
                # A session of its own keeps the terminal's Ctrl-C from the point: it gets the signal once, from here.
                start_new_session=True,
            )
    except OSError as error:
        point.status = f"could not start: {error}"
        os.close(writing)
        return None
    finally:
        os.close(reading)
    return _Running(point, process, seat, writing)


def _finish(one: _Running) -> None:
    """Notes how a point ended, and ends what it may have left behind."""
    point = one.point
    os.close(one.lifeline)
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(one.process.pid, signal.SIGKILL)
    point.seconds = time.monotonic() - one.started
    point.status = status_of(one.process.returncode, one.told)
    try:
        write_result(point)
    except OSError as error:
        say(f"{point.folder / 'result.json'}: {error.strerror}; the next start will run point {point.number} again")


def _pass_on(running: Sequence[_Running], stop: StopRequest) -> None:
    for one in running:
        if stop.signum is not None and not one.told and one.process.poll() is None:
            one.told = True
            one.process.send_signal(signal.SIGINT if stop.signum == signal.SIGINT else signal.SIGTERM)
            say(
                f"{name_of(stop.signum)}: passed on to point {one.point.number} (process {one.process.pid}); waiting "
                "for it to save and end; the rest is skipped"
            )


def status_of(returncode: int, asked_to_stop: bool) -> str:
    """How a process ended, in words."""
    if asked_to_stop and returncode in _STOPPING - {0}:
        return STOPPED
    if returncode == 0:
        return OK
    return f"killed by {name_of(-returncode)}" if returncode < 0 else f"exit status {returncode}"


def _report(point: Point, points: Sequence[Point], total: int, left: str) -> None:
    from grpo.run.text import duration

    outcome = "exit status 0" if point.status == OK else point.status
    place = f"[{point.number + 1}/{total}]"
    say(f"{place} end    {varying(point, points)}  {outcome} after {duration(point.seconds)}{left}")


def _time_left(ended: Sequence[Point], remaining: int, num_seats: int) -> str:
    if not remaining:
        return ""
    from grpo.run.text import duration

    mean = sum(point.seconds for point in ended) / len(ended)
    return f", about {duration(mean * -(-remaining // num_seats))} left"


def name_of(signum: int) -> str:
    """Such as SIGTERM."""
    return signal.Signals(signum).name
