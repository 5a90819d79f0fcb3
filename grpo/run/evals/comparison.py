"""Two models on the same problems: how much better the second is, and how much of that is answers.

Axes: P problems, n samples of each. Differences are taken problem by problem, and intervals are over problems.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from grpo.run.evals.analysis import Estimate, is_right, is_right_anywhere, shares
from grpo.run.evals.results import Row
from grpo.run.statistics import difference_interval, mcnemar_p


@dataclass(frozen=True, slots=True)
class Difference:
    """The second model less the first, as shares.

    gain = answers + form,   answers = anywhere_2 - anywhere_1,   form = lost_1 - lost_2

    `anywhere` is the share of right answers wherever they stand, `lost` the share of these that stand where they do not
    count. So `answers` is the gain beyond format correction: what is left of the gain if both models are forgiven their
    form; and `form` is what the second model gained by putting answers where they count.

    Attributes:
        gain, answers, form: means with the 95% interval of a paired bootstrap over problems.
        only_first, only_second: problems that one model alone got right; None for several samples a problem.
        p_value: McNemar's, exact and two-sided; None for several samples a problem.
    """

    gain: Estimate
    answers: Estimate
    form: Estimate
    only_first: int | None
    only_second: int | None
    p_value: float | None

    @property
    def is_shown(self) -> bool:
        """Whether the interval of the gain leaves out 0."""
        return self.gain.low > 0 or self.gain.high < 0

    def as_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


def difference(first: Sequence[Row], second: Sequence[Row]) -> Difference:
    """Compares two results of the same problems.

    Args:
        first: rows of results.jsonl, one a problem.
        second: the same problems, in the same order.

    Raises:
        ValueError: other problems, or other numbers of samples.
    """
    _check_paired(first, second)
    only_first = only_second = p_value = None
    if len(first[0]["completions"]) == 1:
        pairs = list(zip(shares(first, is_right), shares(second, is_right), strict=True))
        only_first, only_second = pairs.count((1.0, 0.0)), pairs.count((0.0, 1.0))
        p_value = mcnemar_p(only_first, only_second)
    return Difference(
        gain=_gain(first, second, is_right),
        answers=_gain(first, second, is_right_anywhere),
        form=_gain(second, first, lambda row: is_right_anywhere(row) - is_right(row)),
        only_first=only_first,
        only_second=only_second,
        p_value=p_value,
    )


def changed(first: Sequence[Row], second: Sequence[Row]) -> tuple[list[int], list[int]]:
    """Numbers of the problems that the second model got right more often, and less often."""
    before, after = shares(first, is_right), shares(second, is_right)
    pairs = list(enumerate(zip(before, after, strict=True)))
    return [place for place, (a, b) in pairs if b > a], [place for place, (a, b) in pairs if b < a]


def _gain(first: Sequence[Row], second: Sequence[Row], measure: Callable[[Row], float]) -> Estimate:
    pairs = zip(shares(first, measure), shares(second, measure), strict=True)
    values = [after - before for before, after in pairs]
    return Estimate(sum(values) / len(values), *difference_interval(values))


def _check_paired(first: Sequence[Row], second: Sequence[Row]) -> None:
    def asked(rows: Sequence[Row]) -> list[tuple[str, str, str, int]]:
        return [(row["dataset"], row["question"], row["gold"], len(row["completions"])) for row in rows]

    if not first or asked(first) != asked(second):
        raise ValueError(
            f"{len(first)} and {len(second)} results are not of the same problems with as many samples of each; "
            "compare models by one call, with compare=[A,B]"
        )
