"""The same curves as a table in the terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from grpo.run.report.page import numbers, status
from grpo.run.report.panels import TABLE
from grpo.run.report.reading import RunRecord
from grpo.run.report.sweep import PointPair, Sweep
from grpo.run.report.sweep_page import COLUMNS, pair_rows, point_cells
from grpo.run.table import Table
from grpo.run.text import sparkline

_WIDTH = 20  # of a curve, in characters


def run_table(record: RunRecord) -> Table:
    """A row a metric: its curve in a line, and four numbers."""
    keys = {name: key for name, key, _ in TABLE}
    rows = [(name, _curve(record.metrics, keys[name]), *cells) for name, *cells in numbers(record.metrics)]
    notes = [f"missing: {sentence}" for sentence in record.missing]
    title = f"{record.folder}, {status(record)[1]}"
    return Table(title, ("metric", "curve", "first", "last", "lowest", "highest"), rows, notes)


def _curve(rows: Sequence[Mapping[str, Any]], key: str) -> str:
    """The whole curve in `_WIDTH` characters: means of neighbours where there are more."""
    values = [row[key] for row in rows if key in row]
    width = -(-len(values) // _WIDTH)
    parts = [values[start : start + width] for start in range(0, len(values), width)]
    return sparkline([sum(part) / len(part) for part in parts], _WIDTH)


def sweep_tables(sweep: Sweep, pairs: Sequence[PointPair]) -> list[Table]:
    """A row a point, and a row a pair."""
    rows = [(point.name, *point.values.values(), *point_cells(point)) for point in sweep.points]
    tables = [Table(str(sweep.folder), ("point", *sweep.swept, *COLUMNS), rows)]
    if pairs:
        header = ("first", "second", "difference, points", "only first", "only second", "p")
        note = "the same held-out problems; 95% interval by the paired bootstrap; McNemar's exact p, adjusted (Holm)"
        tables.append(Table("pairs of points", header, pair_rows(sweep.points, pairs), [note]))
    return tables
