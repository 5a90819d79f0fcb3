"""Scores by hand, and the file that tells them."""

import json

import pytest

from grpo.run.evals.analysis import datasets, parts, scores
from grpo.run.evals.analysis_text import analysis_text, score_table
from grpo.run.statistics import bootstrap_interval, wilson_interval
from tests.unit.run.evals.rows import results

ONE_SAMPLE = results(["R", "R", "W", "F", "N", "T", "E", "R"], levels="11122233", subjects="aabbaabb")


def test_scores_of_one_sample_a_problem() -> None:
    found = scores(ONE_SAMPLE, [1])
    assert (found.num_problems, found.num_samples, found.grader_errors) == (8, 1, 1)
    estimates = {"accuracy": 3, "anywhere": 4, "format_rate": 4, "truncated": 1}
    for name, count in estimates.items():
        estimate = getattr(found, name)
        assert (estimate.value, estimate.low, estimate.high) == (count / 8, *wilson_interval(count, 8)), name
    assert found.lost_to_form == pytest.approx(1 / 8)
    assert found.pass_at[1] == found.accuracy
    assert str(found.accuracy) == "37.5% [13.7, 69.4]"


def test_scores_of_several_samples_a_problem() -> None:
    found = scores(results(["RRWW", "WWWW", "RRRR", "RWFF"]), [1, 2, 4])
    # Shares 1/2, 0, 1, 1/4.
    assert found.accuracy.value == pytest.approx(1.75 / 4)
    assert (found.accuracy.low, found.accuracy.high) == bootstrap_interval([0.5, 0.0, 1.0, 0.25])
    assert found.anywhere.value == pytest.approx(2.25 / 4)
    assert found.format_rate.value == pytest.approx(3.5 / 4)
    # pass@2: 1 - C(2, 2) / C(4, 2) = 5/6; 0; 1; 1 - C(3, 2) / 6 = 1/2.
    assert found.pass_at[2].value == pytest.approx((5 / 6 + 0 + 1 + 1 / 2) / 4)
    assert (found.pass_at[2].low, found.pass_at[2].high) == bootstrap_interval([5 / 6, 0.0, 1.0, 0.5])
    assert found.pass_at[1].value == pytest.approx(found.accuracy.value)
    assert found.pass_at[4].value == 3 / 4


def test_lengths_and_rules() -> None:
    found = scores(ONE_SAMPLE)
    everything = found.lengths["all"]  # 10, 20, ... 80
    assert (everything.count, everything.mean, everything.median, everything.max) == (8, 45.0, 45.0, 80)
    assert everything.p90 == pytest.approx(73.0)  # 0.9 * 7 = 6.3: 70 + 0.3 * 10
    assert found.lengths["right"].mean == pytest.approx((10 + 20 + 80) / 3)
    assert found.lengths["truncated"].count == 1
    assert found.lengths["no_answer"].count == 2  # what was cut is not among them
    assert ("right", "exact", 3) in found.rules
    assert sum(count for _, _, count in found.rules) == 8


def test_parts_are_levels_and_subjects_where_there_are_several() -> None:
    found = parts(ONE_SAMPLE)
    assert {field: {name: len(group) for name, group in groups.items()} for field, groups in found.items()} == {
        "level": {"1": 3, "2": 3, "3": 2},
        "subject": {"a": 4, "b": 4},
    }
    assert parts(results(["R", "W"], levels="11")) == {}
    assert list(parts(results(["R", "W"], subjects=" b"))["subject"]) == [" ", "b"]


def test_datasets_are_kept_apart() -> None:
    rows = [*results(["R", "W"]), *results(["R"], "gsm8k")]
    assert {name: scores(group).accuracy.value for name, group in datasets(rows).items()} == {"math": 0.5, "gsm8k": 1.0}


def test_the_file_says_everything() -> None:
    found = {"math": scores(ONE_SAMPLE)}
    text = analysis_text("the model", ONE_SAMPLE, found)
    for words in (
        "the model\n",
        "in brackets: 95% intervals, Wilson",
        "37.5% [13.7, 69.4]",
        "right anywhere",
        "grader errors",
        "math by level",
        "math by subject",
        "math: lengths in tokens",
        "right by exact",
        "grader_error by deadline",
        "=== math: right (3 completions)",
        "=== math: right, but not where it counts (1 completions)",
        "=== math: wrong (1 completions)",
        "=== math: no answer where it should stand (1 completions)",
        "=== math: truncated (1 completions)",
        "=== math: grader error (1 completions)",
        "gold: 3",
        "text of F",
    ):
        assert words in text, words
    assert text.count("=== math: right (3 completions)") == 2  # so many examples, and no more
    assert text.endswith("---\n")


def test_several_samples_bring_pass_at_k_and_their_own_interval() -> None:
    rows = results(["RRWW", "WWWW", "RRRR", "RWFF"])
    table = score_table("scores", {"math": scores(rows, [1, 2, 4])}).plain()
    assert "95% intervals, bootstrap over problems" in table
    assert "accuracy (avg@4)" in table
    assert all(f"pass@{k}" in table for k in (1, 2, 4))
    assert "pass@" not in score_table("scores", {"math": scores(ONE_SAMPLE, [1])}).plain()


def test_numbers_are_plain_json() -> None:
    assert json.loads(json.dumps(scores(ONE_SAMPLE, [1]).as_json()))["accuracy"]["value"] == 0.375


def test_what_a_model_wrote_cannot_reach_the_terminal() -> None:
    rows = results(["R"])
    rows[0]["completions"][0]["text"] = "\x1b[2J answer\x07"
    rows[0]["question"] = "\x1b]0;title\x07?"
    assert not {"\x1b", "\x07"} & set(analysis_text("m", rows, {"math": scores(rows)}))
