"""The end of a sweep: a table, sweep.csv, and why what failed failed."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from hydra_plugins.grpo_launchers._points import FINISHED, OK, SKIPPED, STOPPED, Point, say, varying
from hydra_plugins.grpo_launchers._record import Record


def summarise(points: Sequence[Point], record: Record, metrics: Sequence[str], console: str) -> None:
    """Writes sweep.csv, and prints the table, what failed with the end of its log, and the counts.

    Args:
        points: of this start.
        record: of the sweep, with points of other starts and batches.
        metrics: columns of the table.
        console: auto, rich or plain.
    """
    from grpo.run.sweep_summary import SweepRow, print_table, write_csv

    everything = [*points, *_others(record, points)]
    everything.sort(key=lambda point: point.number)
    rows = [
        SweepRow(p.number, tuple(p.overrides), varying(p, everything), p.status, p.seconds, p.folder)
        for p in everything
    ]
    say("")
    print_table(rows, metrics, console)
    try:
        path = record.folder / "sweep.csv"
        write_csv(path, rows, metrics)
        say(f"table: {path}")
    except OSError as error:
        say(f"sweep.csv could not be written ({error.strerror or error}); make room on the disk and start again")
    failing = [point for point in points if point.failed]
    for point in failing:
        say("")
        say(f"point {point.number} ({varying(point, points)}): {point.status}")
        for line in point.failure():
            say(f"    {line}")
    say("")
    say(f"{len(points)} points: {counts(points)}")


def counts(points: Sequence[Point]) -> str:
    """Such as `2 ok, 1 failed`."""
    numbers = {status: sum(point.status == status for point in points) for status in (OK, FINISHED, STOPPED, SKIPPED)}
    numbers["failed"] = sum(point.failed for point in points)
    numbers["in the queue"] = len(points) - sum(numbers.values())
    return ", ".join(f"{number} {status}" for status, number in numbers.items() if number)


def _others(record: Record, points: Sequence[Point]) -> list[Point]:
    """Points that another start or batch of the sweep ran."""
    own = {point.number for point in points}
    queued = record.in_queue
    found = []
    for number, values in record.points.items():
        if number in own:
            continue
        point = Point(number, tuple(values["overrides"]), Path(values["folder"]))
        path = point.folder / "result.json"
        if path.is_file():
            result = json.loads(path.read_text(encoding="utf-8"))
            point.status = FINISHED if result["status"] == OK else result["status"]
            point.seconds = result["seconds"]
        if number in queued:
            point.status = f"in the queue: job {queued[number]}"
        found.append(point)
    return found
