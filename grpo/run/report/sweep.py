"""A sweep's folder: its points, what was swept, how each went, and which of two is better.

What the launchers leave beside a point's run is used where it is there, and not needed: log.txt, what the point
printed; result.json, how it ended; point.yaml, its config, from before it started; and the sweep's own sweep.json.
"""

from __future__ import annotations

import platform
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

from grpo.run.report.paired import PairedTest, holm, paired_test, read_answers
from grpo.run.report.panels import tokens_sampled
from grpo.run.report.reading import RunRecord, as_object, holds_run, read_run
from grpo.run.report.swept import LOG_NAME, log_lines, swept_values
from grpo.run.text import printable

MAX_COMPARED = 10  # points that are tested against one another
_NUM_LAST_LINES = 12


@dataclass(frozen=True, slots=True)
class Point:
    """A point of a sweep.

    Attributes:
        name: of its folder.
        record: what its folder says.
        values: what was swept, by setting; "?" where it is not known.
        status: finished, running, stopped, failed, or not finished: of a run on another machine nobody can tell.
        reason: how its process ended, where that is known and went wrong.
        last_lines: of its log, where it failed.
    """

    name: str
    record: RunRecord
    values: Mapping[str, str]
    status: str
    reason: str
    last_lines: tuple[str, ...]

    @property
    def label(self) -> str:
        """What sets it apart, in words."""
        return ", ".join(f"{key}={value}" for key, value in self.values.items()) or f"point {self.name}"

    @property
    def accuracy(self) -> Mapping[str, Any]:
        """The last evaluation's row; empty if there was none."""
        return self.record.evaluated[-1] if self.record.evaluated else {}

    @property
    def best(self) -> Mapping[str, Any]:
        """The first of the rows with the highest held-out accuracy; empty if there was none."""
        return max(self.record.evaluated, key=lambda row: row["eval/accuracy"], default={})

    @property
    def seconds(self) -> float | None:
        """What the steps and the first evaluation took; None if not known."""
        times = [_step_seconds(row) for row in self.record.metrics]
        return sum(times) if any(times) else None

    @property
    def num_tokens(self) -> int | None:
        """Sampled in training; None if not known."""
        return round(sum(map(tokens_sampled, self.record.metrics))) or None


@dataclass(frozen=True, slots=True)
class PointPair:
    """Two points on the same held-out problems, after the last evaluation of each.

    Attributes:
        first, second: places in the sweep's points.
        test: None if they have no problem in common.
        p_adjusted: by Holm's procedure, over all pairs that are tested; None without a test.
    """

    first: int
    second: int
    test: PairedTest | None
    p_adjusted: float | None


@dataclass(frozen=True, slots=True)
class Sweep:
    """All points of a sweep.

    Attributes:
        folder: of the sweep.
        swept: settings that differ between points, groups first.
        points: in the order of their names.
        num_not_started: points that the sweep has and that have no folder yet.
    """

    folder: Path
    swept: tuple[str, ...]
    points: tuple[Point, ...]
    num_not_started: int = 0

    @property
    def axes(self) -> tuple[str, str] | None:
        """The two settings with the most values; None unless two were swept."""
        counts = {key: len({point.values[key] for point in self.points}) for key in self.swept}
        widest = sorted(self.swept, key=lambda key: -counts[key])[:2]
        return (widest[0], widest[1]) if len(widest) == 2 else None


def point_folders(folder: Path) -> list[Path]:
    """The folders of a sweep's points: those that hold a run, or the log of one that never got that far."""
    found = [path for path in folder.iterdir() if path.is_dir() and not path.name.startswith(".")]
    return sorted((path for path in found if holds_run(path) or (path / LOG_NAME).is_file()), key=_natural)


def read_sweep(folder: Path, progress: Callable[[int], None] | None = None) -> Sweep:
    """Reads every point.

    Args:
        folder: of the sweep.
        progress: told of every point that has been read.
    """
    folders = point_folders(folder)
    records: list[RunRecord] = []
    for path in folders:
        records.append(read_run(path))
        if progress is not None:
            progress(1)
    planned = _json(folder / "sweep.json").get("points")
    swept, values = swept_values(records, planned if isinstance(planned, Mapping) else {})
    points = [_point(record, own) for record, own in zip(records, values, strict=True)]
    num_planned = len(planned) if isinstance(planned, Mapping) else 0
    return Sweep(folder, swept, tuple(points), max(0, num_planned - len(points)))


def _point(record: RunRecord, values: Mapping[str, str]) -> Point:
    ended = _json(record.folder / "result.json").get("status")
    status = _status(record, ended)
    reason = str(ended) if status == "failed" and ended is not None else ""
    return Point(
        record.folder.name, record, values, status, reason, lastlog_lines(record) if status == "failed" else ()
    )


def _json(path: Path) -> dict[str, Any]:
    """What a launcher noted; nothing where it did not, or where the file is broken."""
    return (as_object(path.read_bytes()) or {}) if path.is_file() else {}


def _status(record: RunRecord, ended: Any) -> str:
    if record.is_finished or ended == "ok":
        return "finished"
    if record.is_running:
        return "running"
    if ended is not None:
        return "stopped" if ended == "stopped" else "failed"
    host = record.provenance.get("host")
    if host is not None and host != platform.node():
        return "not finished"
    stopped = any(line.startswith("stopped by ") for line in lastlog_lines(record))
    return "stopped" if stopped else "failed"


def lastlog_lines(record: RunRecord) -> tuple[str, ...]:
    """The end of a point's log."""
    lines = [printable(line) for line in log_lines(record.folder / LOG_NAME)]
    return tuple([line for line in lines if line.strip() and not line.startswith("$ ")][-_NUM_LAST_LINES:])


def compare_points(points: Sequence[Point], progress: Callable[[int], None] | None = None) -> list[PointPair]:
    """Tests every pair of the best points, MAX_COMPARED of them."""
    have = [place for place, point in enumerate(points) if _last_answers(point) is not None]
    best = sorted(have, key=lambda place: -points[place].accuracy["eval/accuracy"])[:MAX_COMPARED]
    answers = {place: read_answers(path) for place in best if (path := _last_answers(points[place])) is not None}
    pairs = list(combinations(sorted(best), 2))
    tests: list[PairedTest | None] = []
    for first, second in pairs:
        tests.append(paired_test(answers[first], answers[second]))
        if progress is not None:
            progress(1)
    adjusted = iter(holm([test.p for test in tests if test is not None]))
    return [
        PointPair(first, second, test, None if test is None else next(adjusted))
        for (first, second), test in zip(pairs, tests, strict=True)
    ]


def _last_answers(point: Point) -> Path | None:
    return point.record.evaluations.get(point.accuracy["step"]) if point.accuracy else None


def _step_seconds(row: Mapping[str, Any]) -> float:
    times = [value for key, value in row.items() if key.startswith("time/") and key != "time/step_s"]
    return row.get("time/step_s", sum(times))


def _natural(path: Path) -> list[tuple[int, str]]:
    """2 before 10."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", path.name)]
