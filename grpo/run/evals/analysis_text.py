"""analysis.txt: what an evaluation found, as tables and examples."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from grpo.run.evals.analysis import (
    Scores,
    datasets,
    is_formatted,
    is_right,
    is_right_anywhere,
    is_truncated,
    parts,
    scores,
)
from grpo.run.evals.results import Row
from grpo.run.table import Table
from grpo.run.text import excerpt, printable

_NUM_EXAMPLES = 2  # of each outcome

ANYWHERE = (
    "right anywhere: what counts as right, and right answers that stand elsewhere: in the last closed "
    "<answer></answer>, else in the last \\boxed{}, else as the last number, which can be right by chance. "
    "What it exceeds the accuracy by is lost to form."
)


def score_table(title: str, found: Mapping[str, Scores], *, has_note: bool = True) -> Table:
    """A column for each of several scores, which have as many samples each.

    Args:
        title: of the table.
        found: scores by the name of their column, at least one.
        has_note: whether it is said below what the rows mean.
    """
    columns = list(found.values())
    n, notes = columns[0].num_samples, [ANYWHERE]
    rows = [
        ("problems", *(str(one.num_problems) for one in columns)),
        ("accuracy" if n == 1 else f"accuracy (avg@{n})", *(str(one.accuracy) for one in columns)),
        *((f"pass@{k}", *(str(one.pass_at[k]) for one in columns)) for k in columns[0].pass_at if n > 1),
        ("right anywhere", *(str(one.anywhere) for one in columns)),
        ("format", *(str(one.format_rate) for one in columns)),
        ("truncated", *(str(one.truncated) for one in columns)),
        ("length in tokens", *(f"{one.lengths['all'].mean:.0f}" for one in columns)),
        ("grader errors", *(str(one.grader_errors) for one in columns)),
    ]
    if n > 1:
        notes.insert(0, "pass@k: the chance that one of k samples is right, estimated without bias (arXiv 2107.03374).")
    return Table(f"{title} ({interval_name(columns[0])})", ("", *found), rows, notes if has_note else ())


def interval_name(one: Scores) -> str:
    """What is in the brackets."""
    kind = "Wilson" if one.num_samples == 1 else "bootstrap over problems"
    return f"in brackets: 95% intervals, {kind}"


def analysis_text(headline: str, rows: Sequence[Row], found: Mapping[str, Scores]) -> str:
    """The whole file.

    Args:
        headline: the model and how it was asked.
        rows: of results.jsonl.
        found: the scores of each dataset.
    """
    blocks = [headline, score_table("scores", found).plain()]
    for name, group in datasets(rows).items():
        blocks += [table.plain() for table in _detail_tables(name, group, found[name])]
    for name, group in datasets(rows).items():
        blocks += _examples(name, group)
    return "\n\n".join(blocks) + "\n"


def _detail_tables(name: str, rows: Sequence[Row], found: Scores) -> list[Table]:
    tables = [
        Table(
            f"{name} by {field}",
            ("", "problems", "accuracy", "right anywhere", "format", "truncated", "tokens"),
            [_part_row(part, scores(group)) for part, group in groups.items()],
        )
        for field, groups in parts(rows).items()
    ]
    lengths = [
        (kind, str(one.count), f"{one.mean:.0f}", f"{one.median:.0f}", f"{one.p90:.0f}", str(one.max))
        for kind, one in found.lengths.items()
    ]
    header = ("completions", "number", "mean", "median", "90%", "longest")
    tables.append(Table(f"{name}: lengths in tokens", header, lengths))
    total = sum(count for _, _, count in found.rules)
    rules = [(f"{verdict} by {rule}", str(count), f"{count / total:.1%}") for verdict, rule, count in found.rules]
    return [*tables, Table(f"{name}: verdicts and the rules that decided", ("", "number", "share"), rules)]


def _part_row(name: str, one: Scores) -> tuple[str, ...]:
    estimates = (one.accuracy, one.anywhere, one.format_rate, one.truncated)
    return (name, str(one.num_problems), *map(str, estimates), f"{one.lengths['all'].mean:.0f}")


_OUTCOMES: dict[str, Callable[[Row], bool]] = {
    "right": lambda one: bool(is_right(one)),
    "right, but not where it counts": lambda one: bool(is_right_anywhere(one) and not is_right(one)),
    "wrong": lambda one: one["verdict"] == "wrong" and not is_right_anywhere(one),
    "no answer where it should stand": lambda one: (
        not is_formatted(one) and one["verdict"] == "no_answer" and not is_right_anywhere(one) and not is_truncated(one)
    ),
    "truncated": lambda one: bool(is_truncated(one)) and not is_right_anywhere(one),
    "grader error": lambda one: one["verdict"] == "grader_error",
}


def _examples(name: str, rows: Sequence[Row]) -> list[str]:
    """The first few problems of each outcome."""
    blocks = []
    for outcome, belongs in _OUTCOMES.items():
        found = [(row, one) for row in rows for one in row["completions"] if belongs(one)]
        problems: dict[str, tuple[Row, Row]] = {}
        for row, one in found:
            problems.setdefault(row["problem"], (row, one))
        heading = f"=== {name}: {outcome} ({len(found)} completions)"
        blocks += [f"{heading}\n{example(row, one)}" for row, one in list(problems.values())[:_NUM_EXAMPLES]]
    return blocks


def example(row: Row, completion: Mapping[str, Any]) -> str:
    """One problem and one completion of it, shortened."""
    lines = [
        f"problem {printable(row['problem'])}: {excerpt(row['question'], 8, 600)}",
        f"gold: {printable(row['gold'])}",
        f"--- {completion['verdict']} by {completion['rule']}; read: {printable(completion['extracted'])!r}; anywhere: "
        f"{printable(completion['anywhere_extracted'])!r}; {completion['num_tokens']} tokens, "
        f"{completion['finish_reason']}",
        excerpt(completion["text"], 24, 1600),
        "---",
    ]
    return "\n".join(lines)
