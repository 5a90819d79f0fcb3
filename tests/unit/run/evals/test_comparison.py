"""Two models by hand: what was gained, and how much of that is answers."""

import pytest

from grpo.run.evals.analysis import scores
from grpo.run.evals.comparison import changed, difference
from grpo.run.evals.comparison_text import comparison_tables, comparison_text
from grpo.run.statistics import bootstrap_interval, mcnemar_p, wilson_interval
from tests.unit.run.evals.rows import results

# Right: 2 and 6 of 10. Right anywhere: 2 + 4 = 6, and 6 + 1 = 7.
BEFORE = results(list("RRFFFFWWNN"), levels="1111122222")
AFTER = results(list("RWRRRRRWNF"), levels="1111122222")


def test_a_gain_is_answers_and_form() -> None:
    found = difference(BEFORE, AFTER)
    assert found.gain.value == pytest.approx(0.4)
    assert found.answers.value == pytest.approx(0.1)  # 7 less 6 of 10
    assert found.form.value == pytest.approx(0.3)  # 4 were lost to form, 1 still is
    assert found.gain.value == pytest.approx(found.answers.value + found.form.value)
    assert (found.only_first, found.only_second) == (1, 5)
    assert found.p_value == mcnemar_p(1, 5)


def test_its_interval_is_that_of_differences_problem_by_problem() -> None:
    found = difference(BEFORE, AFTER)
    values = [0.0, -1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 0.0, 0.0, 0.0]
    assert (found.gain.low, found.gain.high) == bootstrap_interval(values)
    assert found.is_shown == (found.gain.low > 0)


def test_the_other_way_round_everything_changes_its_sign() -> None:
    there, back = difference(BEFORE, AFTER), difference(AFTER, BEFORE)
    for name in ("gain", "answers", "form"):
        assert getattr(there, name).value == pytest.approx(-getattr(back, name).value)
    assert (there.only_first, there.only_second, there.p_value) == (back.only_second, back.only_first, back.p_value)


def test_a_model_against_itself() -> None:
    found = difference(BEFORE, BEFORE)
    bound = wilson_interval(0, 10)[1]  # ten problems do not prove that there is no difference
    assert (found.gain.value, found.gain.low, found.gain.high, found.p_value) == (0.0, -bound, bound, 1.0)
    assert not found.is_shown


def test_several_samples_have_no_mcnemar() -> None:
    found = difference(results(["RW", "WW"]), results(["RR", "RF"]))
    assert found.gain.value == pytest.approx(0.5)
    assert found.answers.value == pytest.approx((0.5 + 1.0) / 2)
    assert found.form.value == pytest.approx((0.0 - 0.5) / 2)
    assert (found.only_first, found.only_second, found.p_value) == (None, None, None)


@pytest.mark.parametrize(
    "other", [results(["R"]), results(["RR"] * 10), results(["R"] * 10, "gsm8k"), list(reversed(BEFORE)), []]
)
def test_what_cannot_be_paired_is_refused(other: list[dict[str, object]]) -> None:
    with pytest.raises(ValueError, match="are not of the same problems"):
        difference(BEFORE, other)


def test_which_problems_changed() -> None:
    assert changed(BEFORE, AFTER) == ([2, 3, 4, 5, 6], [1])


def test_the_table_and_the_file() -> None:
    models = {"before": BEFORE, "after": AFTER}
    found = {name: {"math": scores(rows)} for name, rows in models.items()}
    text = comparison_text("two models", models, found)
    for words in (
        "two models\n",
        "20.0% [5.7, 51.0]",
        "60.0% [31.3, 83.2]",
        "math: against before",
        "gain in points",
        "+40.0 [",
        "of it answers",
        "+10.0 [",
        "of it form",
        "+30.0 [",
        "only this one right",
        f"{mcnemar_p(1, 5):.4f}",
        "math by level: accuracy",
        "5 problems gained, 1 lost, 4 as before",
        "math: before -> after: gained",
        "math: before -> after: lost",
    ):
        assert words in text, words
    assert "Bonferroni" not in text
    titles = [table.title for table in comparison_tables(models, found)]
    assert titles == ["math (in brackets: 95% intervals, Wilson)", "math: against before"]


def test_three_models_are_told_that_they_are_many() -> None:
    models = {"before": BEFORE, "after": AFTER, "same": BEFORE}
    found = {name: {"math": scores(rows)} for name, rows in models.items()}
    text = comparison_text("three models", models, found)
    assert "2 models are tested here: by Bonferroni's correction p must be below 0.025" in text
    assert "no difference shown" in text
