from collections.abc import Iterator
from itertools import pairwise, product

import pytest

from grpo.config import RewardConfig, RewardName
from grpo.reward.functions import TextGrader, build_grader, coin_reward
from grpo.types import Grade, Outcome, SampleKey

# coin_reward of keys(16), recorded with numpy 2.4.
RECORDED_TOSSES = [1, 0, 0, 0, 1, 0, 1, 0, 0, 1, 1, 1, 1, 0, 1, 1]
RIGHT, WRONG, NO_FORMAT = "</think> <answer>42</answer>", "</think> <answer>43</answer>", "it is 42"
GRADED, FAILURE, ERROR = Outcome.graded, Outcome.format_failure, Outcome.grader_error


def keys(number: int) -> list[SampleKey]:
    return [SampleKey(seed=7, step=1, problem=0, sample=sample) for sample in range(number)]


def grades(name: RewardName, responses: list[str], gold: str = "42") -> list[Grade]:
    grader = build_grader(RewardConfig(name=name))
    result = grader.grade(responses, [gold] * len(responses), keys(len(responses)))
    assert isinstance(grader, TextGrader)
    assert grader.pool.pids == []  # none of these answers needs a process
    return result


@pytest.fixture(scope="module")
def boxed_grader() -> Iterator[TextGrader]:
    grader = build_grader(RewardConfig(name=RewardName.boxed, num_workers=1, deadline_s=20))
    assert isinstance(grader, TextGrader)
    yield grader
    grader.close()


def test_r1_zero() -> None:
    assert grades(RewardName.r1_zero, [RIGHT, WRONG, NO_FORMAT, r"\boxed{42}"]) == [
        Grade(1.0, 1.0, 1.0, GRADED, "exact", "42"),
        Grade(0.0, 1.0, 0.0, GRADED, "number", "43"),
        Grade(0.0, 0.0, 0.0, FAILURE, "no_think_end", ""),
        Grade(0.0, 0.0, 0.0, FAILURE, "no_think_end", ""),
    ]


def test_boxed() -> None:
    assert grades(RewardName.boxed, [r"\boxed{42}", r"\boxed{43}", RIGHT, r"\boxed{42"]) == [
        Grade(1.0, 1.0, 1.0, GRADED, "exact", "42"),
        Grade(0.0, 1.0, 0.0, GRADED, "number", "43"),
        Grade(0.0, 0.0, 0.0, FAILURE, "no_box", ""),
        Grade(0.0, 0.0, 0.0, FAILURE, "unclosed_box", ""),
    ]


def test_a_gold_may_come_in_a_box() -> None:
    assert grades(RewardName.r1_zero, [RIGHT], gold=r"so \boxed{42}") == [Grade(1.0, 1.0, 1.0, GRADED, "exact", "42")]


def test_format_only_pays_for_the_format_and_still_reports_the_answer() -> None:
    assert grades(RewardName.format_only, [RIGHT, WRONG, NO_FORMAT]) == [
        Grade(1.0, 1.0, 1.0, GRADED, "exact", "42"),
        Grade(1.0, 1.0, 0.0, GRADED, "number", "43"),
        Grade(0.0, 0.0, 0.0, FAILURE, "no_think_end", ""),
    ]


def test_random_pays_by_coin_and_still_reports_format_and_answer() -> None:
    responses = [RIGHT, WRONG, NO_FORMAT] * 8
    by_coin, by_answer = grades(RewardName.random, responses), grades(RewardName.r1_zero, responses)
    for coin, answer, key in zip(by_coin, by_answer, keys(len(responses)), strict=True):
        assert coin.reward == coin_reward(answer, key)
        assert (coin.format_reward, coin.answer_reward) == (answer.format_reward, answer.answer_reward)
        assert (coin.outcome, coin.reason) == (answer.outcome, answer.reason)
    for kind in range(3):  # right, wrong and malformed responses all win and all lose sometimes
        assert {grade.reward for grade in by_coin[kind::3]} == {0.0, 1.0}


def test_the_coin_is_fair_in_every_part_of_the_key() -> None:
    grade = Grade(0.0, 0.0, 0.0, FAILURE, "", "")
    for field in SampleKey._fields:
        base = SampleKey(seed=42, step=3, problem=5, sample=2)
        tosses = [coin_reward(grade, base._replace(**{field: value})) for value in range(2000)]
        # The number of heads has mean 1000 and standard deviation sqrt(2000)/2 = 22.4: five of them are 112.
        assert abs(sum(tosses) - 1000) < 112, field
        # Neighbours are as often equal as not: else the coin would follow the key's parity.
        assert abs(sum(a == b for a, b in pairwise(tosses)) - 1000) < 112, field


def test_the_coin_depends_on_the_key_only() -> None:
    grade = Grade(0.0, 0.0, 0.0, FAILURE, "", "")
    every_key = [SampleKey(*parts) for parts in product((0, 2**32 - 1), (0, 1), (0, 1), (0, 1, 2))]
    forwards = [coin_reward(grade, key) for key in every_key]
    backwards = [coin_reward(grade, key) for key in reversed(every_key)]
    assert forwards == backwards[::-1]
    # A resumed run must toss the same coins as the run it continues.
    assert [coin_reward(grade, key) for key in keys(16)] == RECORDED_TOSSES


@pytest.mark.parametrize("name", list(RewardName))
def test_a_grader_error_earns_nothing_anywhere(name: RewardName) -> None:
    # A gold of 2000 characters cannot be compared with anything but itself.
    responses = [rf"</think> <answer>\boxed{{{sample}}}</answer>" for sample in range(16)]
    for grade in grades(name, responses, gold="x" * 2000):
        assert (grade.reward, grade.format_reward, grade.answer_reward) == (0.0, 0.0, 0.0)
        assert (grade.outcome, grade.reason) == (ERROR, "gold_unreadable")


def test_no_response_needs_no_process() -> None:
    assert grades(RewardName.r1_zero, []) == []


@pytest.mark.parametrize(
    ("answer", "gold", "right"),
    [
        ("1+x", "x+1", True),
        ("1-x", "x+1", False),
        (r"\frac{\sqrt{2}}{2}", r"\frac{1}{\sqrt 2}", True),
        ("2,1", "1,2", True),  # unbracketed lists have no order
        ("(2,1)", "(1,2)", False),  # pairs have one
        ("x=5", "5", True),
        (r"28\%", "28", True),  # a sign that only one side has is forgiven
        (r"\frac{1}{2}x", "0.5x", True),
        (r"\text{(B)}", r"\text{(C)}", False),
        (r"1+x", r"$\boxed{x+1}$", True),  # golds come wrapped at times
        ("y", "x", False),
        ("2 or 3", "2", False),
    ],
)
def test_what_needs_algebra(boxed_grader: TextGrader, answer: str, gold: str, right: bool) -> None:
    (grade,) = boxed_grader.grade([rf"\boxed{{{answer}}}"], [gold], keys(1))
    assert (grade.answer_reward, grade.outcome) == (float(right), GRADED)
    assert grade.reason in ("expression", "list", "tuple", "number", "text")


def test_a_gold_that_cannot_be_parsed_is_an_error_unless_it_is_repeated(boxed_grader: TextGrader) -> None:
    gold = "1+*2"
    error, same = boxed_grader.grade([r"\boxed{x+1}", rf"\boxed{{{gold}}}"], [gold] * 2, keys(2))
    assert (error.outcome, error.reason) == (ERROR, "gold_unreadable")
    assert (same.outcome, same.reason, same.reward) == (GRADED, "exact", 1.0)


def test_grades_come_in_the_order_of_the_responses(boxed_grader: TextGrader) -> None:
    # Every fifth answer is right, and every third is plain and so decided before those that need a process.
    answers = [str(n) if n % 3 == 0 else f"{n}+x" for n in range(24)]
    golds = [str(n // 5 * 5) if n % 3 == 0 else f"x+{n // 5 * 5}" for n in range(24)]
    result = boxed_grader.grade([rf"\boxed{{{answer}}}" for answer in answers], golds, keys(24))
    assert [grade.answer_reward for grade in result] == [float(n % 5 == 0) for n in range(24)]
    assert [grade.extracted for grade in result] == answers
