"""Tables for the terminal and for a page of bench/results."""

from __future__ import annotations

import os
import platform
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version

from rich.console import Console
from rich.table import Table


@dataclass(frozen=True, slots=True)
class Section:
    """A table under a sentence or two."""

    title: str
    header: tuple[str, ...]
    rows: list[tuple[str, ...]]
    notes: tuple[str, ...] = ()


def show(console: Console, section: Section) -> None:
    """Prints a table."""
    table = Table(*section.header, title=section.title, title_justify="left")
    for row in section.rows:
        table.add_row(*row)
    console.print(table)
    for note in section.notes:
        console.print(note, markup=False, highlight=False, soft_wrap=True)


def markdown(title: str, command: str, sections: Sequence[Section]) -> str:
    """A page: title, the command that makes it, the machine, and the tables."""
    lines = [f"# {title}", "", f"`{command}`", "", machine()]
    for section in sections:
        lines += ["", f"## {section.title}", "", _line(section.header), _line(["---"] * len(section.header))]
        lines += [_line(row) for row in section.rows]
        lines += ["", *(f"- {note}" for note in section.notes)] if section.notes else []
    return "\n".join(lines) + "\n"


def _line(cells: Sequence[str]) -> str:
    """A row of a Markdown table."""
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"


def machine() -> str:
    """What it ran on."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    packages = ", ".join(f"{name} {version(name)}" for name in ("math-verify", "latex2sympy2_extended", "sympy"))
    return (
        f"Machine: {os.cpu_count()} cores, {platform.machine()}, {memory:.0f} GiB; {platform.system()}, "
        f"Python {platform.python_version()}, {packages}."
    )
