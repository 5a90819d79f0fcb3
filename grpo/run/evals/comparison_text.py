"""comparison.txt: several models on the same problems, each against the first."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from grpo.run.evals.analysis import Estimate, Scores, datasets, is_right, parts, scores
from grpo.run.evals.analysis_text import example, score_table
from grpo.run.evals.comparison import Difference, changed, difference
from grpo.run.evals.results import Row
from grpo.run.table import Table

_GAIN_NOTE = (
    "gain: accuracy less that of the first model; in brackets the 95% interval of a paired bootstrap over "
    "problems. It is the sum of answers, the gain in right answers wherever they stand, which is the gain "
    "beyond format correction, and form, the gain by putting right answers where they count."
)
_MCNEMAR_NOTE = "p: McNemar's exact test of the problems that only one of the two got right."


def comparison_tables(results: Mapping[str, Sequence[Row]], found: Mapping[str, Mapping[str, Scores]]) -> list[Table]:
    """What is printed: for each dataset the models' scores, and each model against the first.

    Args:
        results: rows of results.jsonl of each model, two or more; the first is what others are compared with.
        found: the scores of each model by dataset.
    """
    tables = []
    first = next(iter(results))
    for number, (name, rows) in enumerate(datasets(results[first]).items()):
        columns = {model: found[model][name] for model in results}
        tables.append(score_table(name, columns, has_note=number == 0))
        others = {model: datasets(results[model])[name] for model in results if model != first}
        tables.append(_gain_table(name, first, rows, others, has_note=number == 0))
    return tables


def comparison_text(
    headline: str, results: Mapping[str, Sequence[Row]], found: Mapping[str, Mapping[str, Scores]]
) -> str:
    """The whole file; arguments as of `comparison_tables`."""
    blocks = [headline, *(table.plain() for table in comparison_tables(results, found))]
    by_model = {model: datasets(rows) for model, rows in results.items()}
    first, *others = by_model
    for name in by_model[first]:
        blocks += [table.plain() for table in _part_tables(name, {model: by_model[model][name] for model in by_model})]
    for other in others:
        for name in by_model[first]:
            blocks += _changes(f"{name}: {first} -> {other}", by_model[first][name], by_model[other][name])
    return "\n\n".join(blocks) + "\n"


def _gain_table(
    name: str, first: str, rows: Sequence[Row], others: Mapping[str, Sequence[Row]], *, has_note: bool
) -> Table:
    differences = {model: difference(rows, other) for model, other in others.items()}
    found = list(differences.values())
    tests: list[tuple[str, ...]] = []
    if all(one.p_value is not None for one in found):
        tests = [
            ("only the first right", *(str(one.only_first) for one in found)),
            ("only this one right", *(str(one.only_second) for one in found)),
            ("p", *(_p_value(one.p_value or 0.0) for one in found)),
        ]
    cells = [
        ("gain in points", *(points(one.gain) for one in found)),
        ("of it answers", *(points(one.answers) for one in found)),
        ("of it form", *(points(one.form) for one in found)),
        *tests,
        ("", *(_finding(one) for one in found)),
    ]
    notes = [_GAIN_NOTE, *([_MCNEMAR_NOTE] if tests else []), *_caution(len(found), bool(tests))]
    return Table(f"{name}: against {first}", ("", *differences), cells, notes if has_note else ())


def _p_value(p: float) -> str:
    return "< 0.0001" if p < 1e-4 else f"{p:.4f}"


def _finding(one: Difference) -> str:
    if not one.is_shown:
        return "no difference shown"
    return "better" if one.gain.value > 0 else "worse"


def _caution(num_tests: int, has_p: bool) -> list[str]:
    if num_tests == 1 or not has_p:
        return []
    return [f"{num_tests} models are tested here: by Bonferroni's correction p must be below {0.05 / num_tests:.3g}."]


def points(one: Estimate) -> str:
    """A difference of shares in points of a hundred."""
    return f"{100 * one.value:+.1f} [{100 * one.low:+.1f}, {100 * one.high:+.1f}]"


def _part_tables(name: str, by_model: Mapping[str, Sequence[Row]]) -> list[Table]:
    """Accuracy by level and by subject; with the gain where two models are compared."""
    grouped = {model: parts(rows) for model, rows in by_model.items()}
    first, *others = by_model
    tables = []
    for field, groups in grouped[first].items():
        rows = [
            (
                part,
                str(len(group)),
                *(str(scores(grouped[model][field][part]).accuracy) for model in by_model),
                *(points(difference(group, grouped[other][field][part]).gain) for other in others if len(others) == 1),
            )
            for part, group in groups.items()
        ]
        header = ("", "problems", *by_model, *(("gain",) if len(others) == 1 else ()))
        tables.append(Table(f"{name} by {field}: accuracy", header, rows))
    return tables


def _changes(title: str, first: Sequence[Row], second: Sequence[Row]) -> list[str]:
    """Which problems changed, and one of each kind as both models answered it."""
    gained, lost = changed(first, second)
    blocks = [
        f"{title}: {len(gained)} problems gained, {len(lost)} lost, {len(first) - len(gained) - len(lost)} as before"
    ]
    for kind, places in (("gained", gained), ("lost", lost)):
        for place in places[:1]:
            before = min(first[place]["completions"], key=is_right if kind == "gained" else lambda one: -is_right(one))
            after = min(second[place]["completions"], key=is_right if kind == "lost" else lambda one: -is_right(one))
            shown = f"{example(first[place], before)}\n{example(second[place], after)}"
            blocks.append(f"=== {title}: {kind}\n{shown}")
    return blocks
