"""Tables for the terminal and for a page of bench/results."""

from __future__ import annotations

import os
import platform
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from rich.console import Console
from rich.table import Table

_GRADER_PACKAGES = ("math-verify", "latex2sympy2_extended", "sympy")
# What decides how fast matrix products are, by the names that Linux has for it.
_INSTRUCTION_SETS = ("avx2", "avx512f", "avx512_bf16", "amx_bf16")


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


def markdown(title: str, command: str, sections: Sequence[Section], packages: Sequence[str] = _GRADER_PACKAGES) -> str:
    """A page: title, the command that makes it, the machine with the versions of these packages, and the tables."""
    lines = [f"# {title}", "", f"`{command}`", "", machine(packages)]
    for section in sections:
        lines += ["", f"## {section.title}", "", _line(section.header), _line(["---"] * len(section.header))]
        lines += [_line(row) for row in section.rows]
        lines += ["", *(f"- {note}" for note in section.notes)] if section.notes else []
    return "\n".join(lines) + "\n"


def _line(cells: Sequence[str]) -> str:
    """A row of a Markdown table."""
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"


def machine(packages: Sequence[str] = _GRADER_PACKAGES) -> str:
    """What it ran on, with the versions of these packages."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    versions = ", ".join(f"{name} {version(name)}" for name in packages)
    return (
        f"Machine: {os.cpu_count()} cores, {processor()}, {memory:.0f} GiB; {platform.system()}, "
        f"Python {platform.python_version()}, {versions}."
    )


def processor(cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """Architecture, and where the system says them the model and those of `_INSTRUCTION_SETS` that it has."""
    if not cpuinfo.is_file():
        return platform.machine()
    # The same for every core; the first one's lines are enough.
    lines = [line.partition(":") for line in cpuinfo.read_text(encoding="utf-8").partition("\n\n")[0].splitlines()]
    fields = {key.strip(): value.strip() for key, _, value in lines}
    flags = fields.get("flags", "").split()
    known = [name for name in _INSTRUCTION_SETS if name in flags]
    model = f" {fields['model name']}" if "model name" in fields else ""
    return f"{platform.machine()}{model}" + (f" ({', '.join(known)})" if known else "")
