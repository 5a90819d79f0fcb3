import time
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from grpo.reward.equivalence import MAX_CHARS, Verdict, decide, plain_number, same_text


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("42", Fraction(42)),
        ("-7", Fraction(-7)),
        ("\u22127", Fraction(-7)),  # the typographic minus
        ("+007", Fraction(7)),
        ("1,234,567.5", Fraction(2469135, 2)),
        ("1{,}234", Fraction(1234)),
        (r"1,\!234", Fraction(1234)),
        (".25", Fraction(1, 4)),
        ("$5$.", Fraction(5)),
        (r"\(5\)", Fraction(5)),
        ("3/6", Fraction(1, 2)),
        (r"-\dfrac{3}{6}", Fraction(-1, 2)),
        (r"\frac{-3}{6}", Fraction(-1, 2)),
        (r"-\frac{-3}{6}", Fraction(1, 2)),
        (r"\frac12", Fraction(1, 2)),
        ("9" * 400, Fraction(10**400 - 1)),
    ],
)
def test_plain_numbers(text: str, value: Fraction) -> None:
    assert plain_number(text) == value


@pytest.mark.parametrize(
    "text",
    [
        "",
        "4 2",
        "1, 234",  # two numbers
        "100,20",
        "0,123",  # a decimal comma or two numbers, but no thousands
        "12,34,567",
        "1/0",
        "1e5",
        "1_000",
        "--5",
        "5%",
        "x",
        "2x",
        r"1\frac{1}{2}",
        r"\frac123",
        "٤٢",  # Arabic-Indic digits, which int() would take
        "1²",
        "nan",
        "inf",
        "9" * (MAX_CHARS + 1),
    ],
)
def test_not_plain_numbers(text: str) -> None:
    assert plain_number(text) is None


@pytest.mark.parametrize(
    ("answer", "gold"),
    [
        ("( 1 , 2 )", "(1,2)"),
        (r"1 \pm \sqrt{19}", r"1\pm\sqrt{19}"),
        (r"\left[ 0, 9 \right)", "[0,9)"),
        (r"$\tfrac{x}{2}$", r"\frac{x}{2}"),
        (r"\text{Evelyn}", "evelyn"),
        ("evelyn", r"\text{ Evelyn }"),
    ],
)
def test_same_text(answer: str, gold: str) -> None:
    assert same_text(answer, gold)


@pytest.mark.parametrize(
    ("answer", "gold"),
    [
        ("4 2", "42"),
        ("1, 234", "1,234"),
        (r"\pi r", r"\pir"),
        ("X", "x"),  # variables, not words
        ("(1,2)", "[1,2]"),
        (r"\leftarrow", "arrow"),
        ("$", "$"),  # nothing is left to compare
        ("", ""),
    ],
)
def test_different_text(answer: str, gold: str) -> None:
    assert not same_text(answer, gold)


@pytest.mark.parametrize(
    ("answer", "gold", "verdict"),
    [
        ("x+1", "x + 1", Verdict(True, "exact")),
        ("0.5", r"\frac{1}{2}", Verdict(True, "number")),
        ("0.333", r"\frac{1}{3}", Verdict(False, "number")),
        # One apart in the last of 31 digits: equal as float64.
        ("1267650600228229401496703205377", "1267650600228229401496703205376", Verdict(False, "number")),
        ("", "42", Verdict(False, "empty_answer")),
        (r"\boxed{1} \boxed{42}", "42", Verdict(False, "several_boxes")),
        (r"41} 42", "42", Verdict(False, "unbalanced_braces")),
        ("42 " * MAX_CHARS, "42", Verdict(False, "too_long")),
        ("x" * 2 * MAX_CHARS, "x" * 2 * MAX_CHARS, Verdict(True, "exact")),
        ("x", "x" * 2 * MAX_CHARS, Verdict(False, "gold_unreadable", is_error=True)),
        # Everything else is for the worker, and above all what differs as text but perhaps not as mathematics.
        ("1+x", "x+1", None),
        (r"50\%", "1/2", None),
        ("42", "x", None),
        ("4 2", "42", None),
        ("1,2", "2,1", None),
    ],
)
def test_decide(answer: str, gold: str, verdict: Verdict | None) -> None:
    assert decide(answer, gold) == verdict


@given(st.fractions(), st.fractions())
def test_fractions_compare_as_fractions(left: Fraction, right: Fraction) -> None:
    verdict = decide(rf"\frac{{{left.numerator}}}{{{left.denominator}}}", f"{right.numerator}/{right.denominator}")
    assert verdict is not None
    assert verdict.correct is (left == right)


@given(st.text(alphabet="0123456789,./-+ \\frac{}$%x"), st.sampled_from(["1/2", "1,000", "-3.5"]))
def test_false_is_said_of_plain_numbers_only(answer: str, gold: str) -> None:
    verdict = decide(answer, gold)
    if verdict is not None and not verdict.correct and verdict.reason == "number":
        assert plain_number(answer) is not None
        assert plain_number(answer) != plain_number(gold)


@pytest.mark.parametrize("piece", ["9", "1,000,", "\\left(", "{", " ", "$", "\\text{", "\\frac{1}{", "a ", ", "])
@pytest.mark.parametrize("length", [MAX_CHARS, 2**20])
def test_long_texts_are_decided_in_linear_time(piece: str, length: int) -> None:
    text = (piece * length)[:length]
    start = time.process_time()
    decide(text, "1,000")
    assert time.process_time() - start < 2
