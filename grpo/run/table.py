"""Tables for a text file and for a terminal, from the same cells."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from textwrap import fill
from typing import Any

from grpo.run.text import printable

_WIDTH = 100


@dataclass(frozen=True, slots=True)
class Table:
    """Cells with a title and a note below.

    Attributes:
        title: a line above.
        header: of each column; the first column is names, the others are numbers.
        rows: as many cells each as the header has.
        notes: what the cells mean, below them.
    """

    title: str
    header: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]
    notes: Sequence[str] = ()

    def plain(self) -> str:
        """Names to the left, numbers to the right, two spaces between columns."""
        cells = [tuple(_cell(cell) for cell in row) for row in (self.header, *self.rows)]
        widths = [max(len(row[column]) for row in cells) for column in range(len(self.header))]
        lines = [
            "  ".join(
                [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]
            )
            for row in cells
        ]
        text = [self.title, *(f"  {line}".rstrip() for line in lines)]
        return "\n".join(
            [*text, *(fill(note, _WIDTH, initial_indent="  ", subsequent_indent="  ") for note in self.notes)]
        )

    def rich(self) -> Any:
        """The same for a terminal, which folds what it has no room for."""
        from rich.console import Group
        from rich.table import Table as RichTable
        from rich.text import Text

        table = RichTable(box=None, pad_edge=False)
        for column, name in enumerate(self.header):
            table.add_column(Text(_cell(name)), justify="right" if column else "left", overflow="fold")
        for row in self.rows:
            table.add_row(*(Text(_cell(cell)) for cell in row))
        return Group(Text(self.title, style="bold"), table, *(Text(note, style="dim") for note in self.notes))


def _cell(text: str) -> str:
    return " ".join(printable(text).split())
