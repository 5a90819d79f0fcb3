"""reward.mode=reference: responses are read, and golds may be, as the Dr. GRPO grader has it."""

import math
import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from grpo.config import RewardConfig, RewardMode, RewardName
from grpo.reward.equivalence import Verdict
from grpo.reward.extraction import Extraction, read_bare, read_reference, read_tagged
from grpo.reward.functions import TextGrader, build_grader
from grpo.reward.golds import Gold, alternatives, best_verdict
from grpo.types import Grade, Outcome, SampleKey

KEY = SampleKey(seed=0, step=0, problem=0, sample=0)
UNCLOSED = Extraction(None, "unclosed_box", is_formatted=True)


@pytest.mark.parametrize(
    ("response", "expected"),
    [
        ("So 42. </think> <answer>42</answer>", Extraction("42")),
        ("</think> <answer></answer>", Extraction("")),
        # The tags need not stand in order, nor once, nor last.
        ("</think> <answer>42</answer> or 43", Extraction("42 or 43")),
        ("</answer></think> <answer>42", Extraction("42")),
        ("</think> <answer>1</answer> <answer>2</answer> <answer>42</answer>", Extraction("42")),
        ("</think> <answer>4</answer>2</answer>", Extraction("42")),
        ("</think> <answer>42</answer> see <answer>", Extraction("")),
        ("</think> </think> <answer>42</answer>", Extraction("42")),
        ("</think> <answer> <answer>42</answer></answer>", Extraction("42")),
        # The space between them is needed all the same.
        ("</think><answer>42</answer>", Extraction(None, "tags_apart")),
        ("</think>\n<answer>42</answer>", Extraction(None, "tags_apart")),
        ("<answer>42</answer>", Extraction(None, "no_think_end")),
        ("</think> 42</answer>", Extraction(None, "no_answer_tag")),
        ("</think> <answer>42", Extraction(None, "no_answer_end")),
        # The last box counts, wherever the words around it stand.
        (r"</think> <answer>It is \boxed{7}.</answer>", Extraction("7")),
        (r"</think> <answer>\boxed{1} \boxed{2}</answer>", Extraction("2")),
        (r"</think> <answer>\boxed{x = \boxed{5}}</answer>", Extraction("5")),
        (r"</think> <answer>\boxed{\frac{1}{2}}</answer>", Extraction(r"\frac{1}{2}")),
        (r"\boxed{1} </think> <answer>2</answer>", Extraction("2")),
        # A last box that is no closed \boxed{...} is a wrong answer in the right format.
        (r"</think> <answer>\boxed{1</answer>", UNCLOSED),
        (r"</think> <answer>\boxed{1} \boxed{2</answer>", UNCLOSED),
        (r"</think> <answer>\boxed 5</answer>", UNCLOSED),
        (r"</think> <answer>\boxed {5}</answer>", UNCLOSED),
        (r"</think> <answer>\boxedness{5}</answer>", UNCLOSED),
        # An escaped brace counts there: \{ stays open, \} closes.
        (r"</think> <answer>\boxed{\{ 1}</answer>", UNCLOSED),
        (r"</think> <answer>\boxed{\{1, 2\}}</answer>", Extraction(r"\{1, 2\}")),
        # \fbox is none of its boxes.
        (r"</think> <answer>\fbox{3}</answer>", Extraction(r"\fbox{3}")),
    ],
)
def test_read_reference(response: str, expected: Extraction) -> None:
    assert read_reference(response) == expected


@given(st.lists(st.sampled_from(["</think> <answer>", "</think>", "<answer>", "</answer>", " ", r"\boxed{", "}", "4"])))
def test_what_is_strictly_right_is_right_in_reference_mode(pieces: list[str]) -> None:
    response = "".join(pieces)
    strict, reference = read_tagged(response), read_reference(response)
    if strict.answer is not None:
        assert reference.answer is not None or reference.is_formatted
        if r"\boxed" not in response:
            assert reference == strict


@pytest.mark.parametrize(
    "piece", ["{", "}", r"\boxed", r"\boxed{", "</think> <answer>", "<answer>", "</answer>", "42 "]
)
def test_a_megabyte_is_read_in_linear_time(piece: str) -> None:
    text = piece * (2**20 // len(piece))
    start = time.process_time()
    for response in (text, f"</think> <answer>{text}</answer>", rf"</think> <answer>\boxed{{{text}</answer>"):
        read_reference(response)
        read_bare(response)
    assert time.process_time() - start < 5  # quadratic time would be hours


@pytest.mark.parametrize(
    ("gold", "texts"),
    [
        ("42", ("42",)),
        (r"so \boxed{42}", ("42",)),
        (42, ("42",)),
        (-7, ("-7",)),
        (0.1, ("0.1",)),
        (2.0, ("2.0",)),
        (1e-05, ("0.00001",)),
        (1.5e22, ("15000000000000000000000",)),
        (np.float64(0.25), ("0.25",)),
        (["a", 1, 0.5], ("a", "1", "0.5")),
        (("x",), ("x",)),
    ],
)
def test_alternatives(gold: Gold, texts: tuple[str, ...]) -> None:
    assert alternatives(gold) == texts


@pytest.mark.parametrize("gold", [math.nan, math.inf, True, None, [], [None], [["1"]], {"a": 1}, b"1"])
def test_what_is_no_gold_is_refused(gold: Gold) -> None:
    with pytest.raises(ValueError, match=r"gold=.*(use|write) "):
        alternatives(gold)


def test_best_verdict() -> None:
    right, wrong, error = Verdict(True, "exact"), Verdict(False, "number"), Verdict(False, "deadline", is_error=True)
    assert best_verdict([wrong, error, right]) is right
    assert best_verdict([wrong, error]) is error  # it might have been right
    assert best_verdict([wrong, Verdict(False, "text")]) is wrong


def grade(response: str, gold: Gold, mode: RewardMode) -> Grade:
    grader = build_grader(RewardConfig(name=RewardName.r1_zero, mode=mode))
    assert isinstance(grader, TextGrader)
    return grader.grade([response], [gold], [KEY])[0]


@pytest.mark.parametrize("mode", list(RewardMode))
@pytest.mark.parametrize(
    ("gold", "answer", "right"),
    [
        (42, "42", 1.0),
        (42, "43", 0.0),
        (0.5, "1/2", 1.0),
        (1e-05, "0.00001", 1.0),
        (["41", 42.0, "43"], "42", 1.0),
        (["41", "43"], "42", 0.0),
    ],
)
def test_golds_of_any_kind_are_compared(gold: Gold, answer: str, right: float, mode: RewardMode) -> None:
    result = grade(f"</think> <answer>{answer}</answer>", gold, mode)
    assert (result.reward, result.format_reward, result.answer_reward) == (right, 1.0, right)


@pytest.mark.parametrize(
    ("response", "reference", "strict"),
    [
        ("</think> <answer>42</answer>", (1.0, 1.0, 1.0), (1.0, 1.0, 1.0)),
        ("</think> <answer>43</answer>", (0.0, 1.0, 0.0), (0.0, 1.0, 0.0)),
        ("</think> <answer></answer>", (0.0, 1.0, 0.0), (0.0, 1.0, 0.0)),
        ("</think> <answer>1</answer> <answer>42</answer>", (1.0, 1.0, 1.0), (0.0, 0.0, 0.0)),
        (r"</think> <answer>\boxed{1} \boxed{42}</answer>", (1.0, 1.0, 1.0), (0.0, 1.0, 0.0)),
        (r"</think> <answer>\boxed{42</answer>", (0.0, 1.0, 0.0), (0.0, 1.0, 0.0)),
        ("42", (0.0, 0.0, 0.0), (0.0, 0.0, 0.0)),
    ],
)
def test_rewards_by_mode(response: str, reference: tuple[float, ...], strict: tuple[float, ...]) -> None:
    for mode, expected in ((RewardMode.reference, reference), (RewardMode.strict, strict)):
        result = grade(response, "42", mode)
        assert (result.reward, result.format_reward, result.answer_reward) == expected


def test_an_unclosed_box_is_a_wrong_answer_with_its_reason() -> None:
    result = grade(r"</think> <answer>\boxed{42</answer>", "42", RewardMode.reference)
    assert result == Grade(0.0, 1.0, 0.0, Outcome.graded, "unclosed_box", "")


def test_boxed_has_no_reference_mode() -> None:
    with pytest.raises(ValueError, match=r"reward.mode=reference .* use reward.mode=strict, or reward=r1_zero"):
        RewardConfig(name=RewardName.boxed, mode=RewardMode.reference)
