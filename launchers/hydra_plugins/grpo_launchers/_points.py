"""A point of a sweep: what runs it, how it went, and the files that say so to the next start.

The leading underscore keeps Hydra from importing this module by itself.

<sweep folder>/
    sweep.json       the points, and what was submitted to Slurm
    sweep.csv        a line a point
    0/ 1/ ...        a run's folder each, and besides it
        point.yaml   the config, composed when the sweep was started, with nothing left to look up
        log.txt      what it printed
        result.json  how it ended
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

FROZEN = "point"
LOG_NAME = "log.txt"
NUM_LAST_LINES = 5
_TAIL_BYTES = 20_000
OK, FINISHED, STOPPED, SKIPPED = "ok", "finished before", "stopped", "skipped"


@dataclass
class Point:
    """One run of a sweep.

    Attributes:
        number: Hydra's hydra.job.num.
        overrides: what the point sets.
        folder: where it writes.
        command: what runs it.
        typed: the command that a person would type for the same run.
        config: the settings, resolved.
        digest: of the settings that the result depends on.
        status: how it went.
        seconds: how long it ran.
        details: what to show of a failure, a line each; where empty, the end of the log.
    """

    number: int
    overrides: tuple[str, ...]
    folder: Path
    command: tuple[str, ...] = ()
    typed: str = ""
    config: dict[str, Any] = field(default_factory=dict)
    digest: str = ""
    status: str = SKIPPED
    seconds: float = 0.0
    details: tuple[str, ...] = ()

    @property
    def log_path(self) -> Path:
        """What the point printed."""
        return self.folder / LOG_NAME

    @property
    def done(self) -> bool:
        """Whether its result is there."""
        return self.status in (OK, FINISHED)

    @property
    def failed(self) -> bool:
        """Whether it ran and went wrong."""
        return not self.done and self.status not in (STOPPED, SKIPPED) and not self.status.startswith("in the queue")

    def failure(self) -> list[str]:
        """The lines that say why it failed."""
        return list(self.details) or [f"log: {self.log_path}", *last_lines(self.log_path)]


def write_result(point: Point) -> None:
    """Notes how a point ended, for the next start of the sweep.

    Raises:
        OSError: no room.
    """
    from grpo.run.files import write_atomic

    result = {"status": point.status, "digest": point.digest, "seconds": round(point.seconds, 3)}
    write_atomic(point.folder / "result.json", json.dumps(result))


def recall(point: Point) -> None:
    """Takes over what an earlier start has finished, if that was the same point."""
    path = point.folder / "result.json"
    if not path.is_file():
        return
    result = json.loads(path.read_text(encoding="utf-8"))
    if result["status"] == OK and result["digest"] == point.digest:
        point.status, point.seconds = FINISHED, result["seconds"]


def last_lines(path: Path) -> list[str]:
    """The end of a log, without the commands in it and without what a terminal would obey."""
    if not path.is_file():
        return []
    from grpo.run.text import printable

    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - _TAIL_BYTES))
        lines = [printable(line) for line in file.read().decode(errors="replace").splitlines()]
    return [line for line in lines if line.strip() and not line.startswith("$ ")][-NUM_LAST_LINES:]


def differing(points: Sequence[Point]) -> set[str]:
    """The overrides that not all points have."""
    shared = set.intersection(*(set(point.overrides) for point in points))
    return {text for point in points for text in point.overrides} - shared


def varying(point: Point, points: Sequence[Point]) -> str:
    """The overrides that set a point apart; all of them if nothing does."""
    apart = differing(points)
    return " ".join(text for text in point.overrides if text in apart) or " ".join(point.overrides)


def say(line: str) -> None:
    """A line on standard output; a terminal that is gone costs the line and not the sweep."""
    import sys

    from grpo.run.text import LastingStream

    stream = LastingStream(sys.stdout)
    stream.write(f"{line}\n")
    stream.flush()
