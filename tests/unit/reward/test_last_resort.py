import pytest

from grpo.reward.equivalence import Verdict
from grpo.reward.last_resort import compare


@pytest.mark.parametrize(
    ("answer", "gold", "right"),
    [
        ("1+x", "x+1", True),
        ("1-x", "x+1", False),
        (r"\frac{\sqrt2}{2}", r"\frac1{\sqrt 2}", True),
        (r"\frac{1}{\cos x}", r"\sec x", True),
        ("2,1", "1,2", True),  # unbracketed lists have no order
        ("(2,1)", "(1,2)", False),  # pairs have one
        ("x=2", "2", True),
        ("2", "x=2", True),
        ("y=2x", "y-2x=0", True),
        (r"(2,\infty)", "x>2", True),
        # What math-verify says yes to, left to itself.
        ("3=2", "2", False),
        ("x+1=2", "2", False),
        ("x<1 and 2", "2", False),
        (r"\neq 2", "2", False),
        ("2 3", "5", False),
        (r"2 \quad 3", "5", False),
        ("the answer is 2", "2", False),
        ("2 or so", "2", False),
        (r"2 \text{ or } 3", "2", False),
        (r"\boxed{2} or \boxed{3}", "2", False),
        (r"28\%", "28", False),
        (r"2 \text{ apples}", "2", False),  # its units are words of a list, and this project has rules of its own
        ("$2$", "2", True),
        ("2)", "2", False),
        ("", "2", False),
        ("\ud800", "2", False),
        ("(open)('x','w')", "2", False),
    ],
)
def test_an_answer_is_read_whole(answer: str, gold: str, right: bool) -> None:
    assert compare(answer, gold) == Verdict(right, "math_verify")


@pytest.mark.parametrize("gold", [r"\frac{1+a}c", "2)", "2 3", r"\begin{array}"])
def test_a_gold_that_cannot_be_read_is_an_error(gold: str) -> None:
    assert compare("2", gold) == Verdict(False, "gold_unreadable", is_error=True)


def test_an_exception_is_an_error() -> None:
    # latex2sympy reads a time as a quotient without a value, and math-verify cannot compare two of these.
    assert compare("1:00", "12:00") == Verdict(False, "exception", is_error=True)
