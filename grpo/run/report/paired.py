"""Two sets of answers to the same held-out problems: which is better, and how sure that is."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from grpo.run.report.reading import read_rows
from grpo.run.statistics import difference_interval, mcnemar_p

Answers = Mapping[tuple[str, int], bool]


@dataclass(frozen=True, slots=True)
class PairedTest:
    """A comparison of two evaluations, problem by problem.

    Attributes:
        num_problems: that both answered.
        only_first, only_second: problems that only one of them got right.
        difference: of the accuracies, first minus second, a share.
        low, high: its 95% interval, by the paired bootstrap.
        p: McNemar's, exact and two-sided.
    """

    num_problems: int
    only_first: int
    only_second: int
    difference: float
    low: float
    high: float
    p: float


def read_answers(path: Path) -> dict[tuple[str, int], bool]:
    """Whether each answer of an evaluation is right, by problem; a problem that occurs twice is told apart by order."""
    seen: Counter[str] = Counter()
    answers: dict[tuple[str, int], bool] = {}
    for row in read_rows(path, []):
        problem = str(row.get("problem"))
        answers[problem, seen[problem]] = bool(row.get("answer_reward"))
        seen[problem] += 1
    return answers


def paired_test(first: Answers, second: Answers) -> PairedTest | None:
    """Compares on the problems that both have; None if there are none."""
    common = [key for key in first if key in second]
    if not common:
        return None
    differences = [float(first[key]) - float(second[key]) for key in common]
    only_first, only_second = differences.count(1.0), differences.count(-1.0)
    low, high = difference_interval(differences)
    return PairedTest(
        num_problems=len(common),
        only_first=only_first,
        only_second=only_second,
        difference=(only_first - only_second) / len(common),
        low=low,
        high=high,
        p=mcnemar_p(only_first, only_second),
    )


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values such that the chance of any false find among them all is at most the level they are compared with.

    p'_(i) = max over j <= i of min(1, (m - j + 1) p_(j)),   p_(1) <= ... <= p_(m)

    Source: Holm 1979, A simple sequentially rejective multiple test procedure, Scand. J. Statistics 6 (2).

    Args:
        p_values: [m], in any order.

    Returns:
        [m], in the same order.
    """
    adjusted = [0.0] * len(p_values)
    highest = 0.0
    for rank, place in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[place]))
        adjusted[place] = highest
    return adjusted
