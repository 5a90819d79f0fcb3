"""The numbers of an evaluation, from its results.

Axes: P problems of a dataset, n samples of each. A number of a problem is the mean over its samples, and intervals are
over problems: samples of one problem are not independent.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from grpo.run.evals.results import Row
from grpo.run.statistics import pass_at_k, share_interval


@dataclass(frozen=True, slots=True)
class Estimate:
    """A share with its 95% interval."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{100 * self.value:.1f}% [{100 * self.low:.1f}, {100 * self.high:.1f}]"


@dataclass(frozen=True, slots=True)
class Lengths:
    """Tokens of some completions: how many completions, and their mean, median, ninth decile and maximum."""

    count: int
    mean: float
    median: float
    p90: float
    max: int


@dataclass(frozen=True)
class Scores:
    """What was measured on some problems.

    Attributes:
        num_problems: P.
        num_samples: n.
        accuracy: right answers where they should stand; a grader error is none.
        anywhere: right answers wherever they stand, the former among them.
        format_rate: answers where they should stand, right or wrong.
        truncated: completions that were cut at max_tokens.
        pass_at: by k.
        grader_errors: completions that could not be graded.
        lengths: of "all" completions, and by verdict and finish reason.
        rules: how often each (verdict, rule) decided.
    """

    num_problems: int
    num_samples: int
    accuracy: Estimate
    anywhere: Estimate
    format_rate: Estimate
    truncated: Estimate
    pass_at: Mapping[int, Estimate]
    grader_errors: int
    lengths: Mapping[str, Lengths]
    rules: Sequence[tuple[str, str, int]]

    @property
    def lost_to_form(self) -> float:
        """Share of completions whose answer is right and stands where it should not."""
        return self.anywhere.value - self.accuracy.value

    def as_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


def is_right(completion: Row) -> float:
    """1 for a right answer where it should stand."""
    return float(completion["answer_reward"])


def is_right_anywhere(completion: Row) -> float:
    """1 for a right answer wherever it stands."""
    return float(max(completion["answer_reward"], completion["anywhere_reward"]))


def is_formatted(completion: Row) -> float:
    """1 for an answer where it should stand."""
    return float(completion["format_reward"])


def is_truncated(completion: Row) -> float:
    """1 for a completion that was cut."""
    return float(completion["finish_reason"] == "length")


def shares(rows: Sequence[Row], measure: Callable[[Row], float]) -> list[float]:
    """[P] means of a measure over each problem's samples."""
    return [sum(map(measure, row["completions"])) / len(row["completions"]) for row in rows]


def scores(rows: Sequence[Row], pass_at: Sequence[int] = ()) -> Scores:
    """The scores of one dataset, or of a part of it.

    Args:
        rows: of results.jsonl, one a problem; at least one.
        pass_at: the k of pass@k.
    """
    completions = [completion for row in rows for completion in row["completions"]]
    n = len(rows[0]["completions"])
    return Scores(
        num_problems=len(rows),
        num_samples=n,
        accuracy=_estimate(rows, is_right),
        anywhere=_estimate(rows, is_right_anywhere),
        format_rate=_estimate(rows, is_formatted),
        truncated=_estimate(rows, is_truncated),
        pass_at={k: _pass_at(rows, k) for k in pass_at},
        grader_errors=sum(completion["outcome"] == "grader_error" for completion in completions),
        lengths=_lengths(completions),
        rules=_rules(completions),
    )


def datasets(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """The problems of each dataset, in their order."""
    return grouped(rows, "dataset")


def grouped(rows: Sequence[Row], field: str) -> dict[str, list[Row]]:
    """The problems by a field of theirs; in the order in which its values occur."""
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(row[field], []).append(row)
    return groups


def parts(rows: Sequence[Row]) -> dict[str, dict[str, list[Row]]]:
    """The problems by level and by subject, sorted, where they have several of these."""
    by_field = {field: grouped(rows, field) for field in ("level", "subject")}
    return {
        field: {name or "(none)": groups[name] for name in sorted(groups)}
        for field, groups in by_field.items()
        if len(groups) > 1
    }


def _estimate(rows: Sequence[Row], measure: Callable[[Row], float]) -> Estimate:
    values = shares(rows, measure)
    return Estimate(sum(values) / len(values), *share_interval(values, len(rows[0]["completions"])))


def _pass_at(rows: Sequence[Row], k: int) -> Estimate:
    n = len(rows[0]["completions"])
    values = [pass_at_k(n, sum(int(is_right(one)) for one in row["completions"]), k) for row in rows]
    return Estimate(sum(values) / len(values), *share_interval(values, n))


def _lengths(completions: Sequence[Row]) -> dict[str, Lengths]:
    groups: dict[str, list[int]] = {"all": [completion["num_tokens"] for completion in completions]}
    for completion in completions:
        name = "truncated" if is_truncated(completion) else completion["verdict"]
        groups.setdefault(name, []).append(completion["num_tokens"])
    return {name: _length(values) for name, values in groups.items()}


def _length(tokens: Sequence[int]) -> Lengths:
    median, p90 = np.quantile(tokens, [0.5, 0.9])
    return Lengths(len(tokens), float(np.mean(tokens)), float(median), float(p90), max(tokens))


def _rules(completions: Sequence[Row]) -> list[tuple[str, str, int]]:
    counts = Counter((completion["verdict"], completion["rule"]) for completion in completions)
    return [(*pair, count) for pair, count in sorted(counts.items(), key=lambda item: (item[0][0], -item[1]))]
