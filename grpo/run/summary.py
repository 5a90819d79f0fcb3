"""The last thing a run says: what it was worth, and where it is kept."""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO, cast

from grpo.config import ConsoleMode
from grpo.run.console import wants_rich
from grpo.run.text import LastingStream, accuracy, excerpt, number, printable


@dataclass(frozen=True, slots=True)
class Comparison:
    """One held-out problem, answered before and after training."""

    question: str
    answer: str
    before: str
    before_right: bool
    after: str
    after_right: bool


@dataclass(frozen=True, slots=True)
class RunSummary:
    """What is told at the end of a run.

    Attributes:
        before, after: `eval/...` of the evaluations; empty if there was none.
        comparison: None if there was no evaluation.
        files: a name and a path each, such as ("curves", .../curves.png).
    """

    before: Mapping[str, Any]
    after: Mapping[str, Any]
    comparison: Comparison | None
    files: Sequence[tuple[str, Path]]


def print_summary(summary: RunSummary, mode: ConsoleMode, stream: TextIO | None = None) -> None:
    """Prints accuracy before and after, two completions side by side, and where the files are."""
    output: TextIO = stream or sys.stdout
    lasting = cast(TextIO, LastingStream(output))
    if wants_rich(mode, output):
        _print_rich(summary, lasting)
    else:
        print(_plain(summary), file=lasting, flush=True)


def verdict(before: Mapping[str, Any], after: Mapping[str, Any]) -> str:
    """The change of accuracy in points, and whether the intervals leave a doubt; "" without two evaluations."""
    if before.get("eval/accuracy") is None or after.get("eval/accuracy") is None:
        return ""
    change = f"{100 * (after['eval/accuracy'] - before['eval/accuracy']):+.1f} points"
    ends = [side.get(f"eval/accuracy_{end}", math.nan) for side in (before, after) for end in ("low", "high")]
    before_low, before_high, after_low, after_high = ends
    apart = not (after_low <= before_high and before_low <= after_high)
    return change if apart else f"{change}; the intervals overlap"


def _rows(summary: RunSummary) -> list[tuple[str, str, str]]:
    """A name, its value before, its value after."""
    before, after = summary.before, summary.after
    others = (
        ("format", "eval/format_rate", ".1%"),
        ("length in tokens", "eval/length_mean", ".0f"),
        ("truncated", "eval/truncated_share", ".1%"),
    )
    return [
        ("accuracy, 95% interval", accuracy(before), accuracy(after)),
        *((name, number(before, key, form), number(after, key, form)) for name, key, form in others),
    ]


def _mark(right: bool) -> str:
    return "right ✓" if right else "wrong ✗"


def _plain(summary: RunSummary) -> str:
    lines = ["", f"{'held-out problems':<24}{'before':<24}after"]
    lines += [f"{name:<24}{before:<24}{after}" for name, before, after in _rows(summary)]
    lines += [verdict(summary.before, summary.after)]
    if (shown := summary.comparison) is not None:
        lines += [f"problem: {excerpt(shown.question, 8, 600)}", f"gold answer: {printable(shown.answer)}"]
        lines += [f"--- before: {_mark(shown.before_right)}", excerpt(shown.before, 20, 1500)]
        lines += [f"--- after: {_mark(shown.after_right)}", excerpt(shown.after, 20, 1500), "---"]
    lines += [f"{name:<16}{path}" for name, path in summary.files]
    return "\n".join(lines)


def _print_rich(summary: RunSummary, stream: TextIO) -> None:
    from rich.console import Console, Group, RenderableType
    from rich.panel import Panel
    from rich.table import Table
    from rich.text import Text

    console = Console(file=stream, force_terminal=True, highlight=False)
    numbers = Table(box=None, pad_edge=False)
    for heading in ("held-out problems", "before", "after"):
        numbers.add_column(heading, overflow="fold")
    for row in _rows(summary):
        numbers.add_row(*row)
    parts: list[RenderableType] = [numbers, Text(verdict(summary.before, summary.after), style="bold"), Text()]
    if summary.comparison is not None:
        parts += _side_by_side(summary.comparison, narrow=console.width < 60)
    files = Table.grid(padding=(0, 2))
    for name, path in summary.files:
        files.add_row(Text(name, style="dim"), Text(str(path), overflow="fold"))
    console.print(Panel(Group(*parts, files), title="before and after", border_style="cyan"))


def _side_by_side(shown: Comparison, *, narrow: bool) -> list[Any]:
    """The problem and two boxes, one below the other where there is no room for both."""
    from rich.panel import Panel
    from rich.table import Table
    from rich.text import Text

    boxes = [
        Panel(
            Text(excerpt(completion, 16, 1000)),
            title=f"{when}: {_mark(right)}",
            border_style="green" if right else "red",
        )
        for when, completion, right in (
            ("before", shown.before, shown.before_right),
            ("after", shown.after, shown.after_right),
        )
    ]
    problem = Text(f"{excerpt(shown.question, 8, 600)}\ngold answer: {printable(shown.answer)}")
    if narrow:
        return [problem, *boxes]
    pair = Table.grid(expand=True, padding=(0, 1))
    pair.add_column(ratio=1)
    pair.add_column(ratio=1)
    pair.add_row(*boxes)
    return [problem, pair]
