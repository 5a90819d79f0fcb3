"""What a sweep found out: one row a point, on the terminal and in sweep.csv."""

from __future__ import annotations

import csv
import io
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO, cast

from grpo.config import ConsoleMode
from grpo.run.console import wants_rich
from grpo.run.files import write_atomic
from grpo.run.metrics import read_jsonl
from grpo.run.text import LastingStream, accuracy, duration

_ACCURACY = "eval/accuracy"
_ENDS = ("_low", "_high")


@dataclass(frozen=True, slots=True)
class SweepRow:
    """A point of a sweep.

    Attributes:
        number: of the point.
        overrides: all that it sets, key=value.
        varying: those that set it apart, in one line.
        status: how it went.
        seconds: how long it ran, in the start that ended it.
        folder: with its metrics.jsonl, if it got that far.
    """

    number: int
    overrides: tuple[str, ...]
    varying: str
    status: str
    seconds: float
    folder: Path


def last_value(folder: Path, metric: str) -> float | None:
    """The last value of a metric in a run's folder; None if it never had one."""
    return _last(_rows(folder), metric).get(metric)


def print_table(rows: Sequence[SweepRow], metrics: Sequence[str], console: str, stream: TextIO | None = None) -> None:
    """The table, drawn on a terminal and in columns elsewhere."""
    output: TextIO = stream or sys.stdout
    lasting = cast(TextIO, LastingStream(output))
    header, cells = table(rows, metrics)
    if wants_rich(ConsoleMode[console], output):
        _print_rich(header, cells, lasting)
        return
    widths = [max(len(line[column]) for line in (header, *cells)) for column in range(len(header))]
    for line in (header, *cells):
        text = "  ".join(f"{cell:<{width}}" for cell, width in zip(line, widths, strict=True))
        print(text.rstrip(), file=lasting, flush=True)


def table(rows: Sequence[SweepRow], metrics: Sequence[str]) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Header and cells: the point, what sets it apart, how it went, and the metrics that any point has.

    Of eval/accuracy both ends of training are shown, with intervals; of another metric its last value.
    """
    logs = [_rows(row.folder) for row in rows]
    known = [name for name in metrics if any(_last(log, name) for log in logs)]
    names = [name for metric in known for name in ((f"{metric} before", metric) if metric == _ACCURACY else (metric,))]
    cells = []
    for row, log in zip(rows, logs, strict=True):
        step = next((f"{line['step']}" for line in reversed(log)), "-")
        values = [cell for name in known for cell in _cells(log, name)]
        cells.append((str(row.number), row.varying, row.status, duration(row.seconds), step, *values))
    return ("point", "overrides", "status", "time", "step", *names), cells


def write_csv(path: Path, rows: Sequence[SweepRow], metrics: Sequence[str]) -> None:
    """One line a point: a column for each setting that differs, and numbers in full.

    Raises:
        OSError: no room; a former file stays.
    """
    settings = [dict(text.split("=", 1) for text in row.overrides if "=" in text) for row in rows]
    keys = list(dict.fromkeys(key for own in settings for key in own))
    swept = [key for key in keys if len({own.get(key) for own in settings}) > 1]
    logs = [_rows(row.folder) for row in rows]
    columns = [
        name
        for metric in metrics
        for name in (f"{metric} before", metric, *(f"{metric}{end}" for end in _ENDS))
        if any(_value(log, name) is not None for log in logs)
    ]
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(["point", *swept, "status", "seconds", "step", *columns, "folder"])
    for row, own, log in zip(rows, settings, logs, strict=True):
        step = log[-1]["step"] if log else ""
        values = ["" if (value := _value(log, name)) is None else value for name in columns]
        seconds = f"{row.seconds:.1f}"
        writer.writerow(
            [row.number, *(own.get(key, "") for key in swept), row.status, seconds, step, *values, row.folder]
        )
    write_atomic(path, buffer.getvalue())


def _rows(folder: Path) -> list[dict[str, Any]]:
    path = folder / "metrics.jsonl"
    return read_jsonl(path) if path.is_file() else []


def _last(log: Sequence[Mapping[str, Any]], metric: str) -> Mapping[str, Any]:
    return next((line for line in reversed(log) if line.get(metric) is not None), {})


def _before(log: Sequence[Mapping[str, Any]], metric: str) -> Mapping[str, Any]:
    return next((line for line in log if line["step"] == 0 and line.get(metric) is not None), {})


def _value(log: Sequence[Mapping[str, Any]], column: str) -> Any:
    metric, _, when = column.partition(" ")
    return (_before if when else _last)(log, metric).get(metric)


def _cells(log: Sequence[Mapping[str, Any]], metric: str) -> tuple[str, ...]:
    last = _last(log, metric)
    if metric == _ACCURACY:
        return accuracy(_before(log, metric)), accuracy(last)
    return (f"{last[metric]:.4g}" if last else "-",)


def _print_rich(header: Sequence[str], cells: Sequence[Sequence[str]], stream: TextIO) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    drawn = Table(box=None, pad_edge=False, header_style="bold")
    for name in header:
        drawn.add_column(name, overflow="fold")
    for line in cells:
        good = line[2] in ("ok", "finished before")
        waits = line[2] in ("stopped", "skipped") or line[2].startswith("in the queue")
        style = "green" if good else "yellow" if waits else "red"
        drawn.add_row(*(Text(cell, style=style if place == 2 else "") for place, cell in enumerate(line)))
    Console(file=stream, force_terminal=True, highlight=False).print(drawn)
