r"""`grpo.reward.answers.comparison`: which answers mean the same, by which rule, and what is left to computer algebra.

`labelled_pairs.jsonl` holds golds and answers whose label follows from the two strings; a pair that needs a convention
is here, under the convention that the grader has.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from grpo.reward.answers.comparison import are_same, compare
from grpo.reward.answers.lexer import UnreadableError
from grpo.reward.answers.parser import parse
from grpo.reward.equivalence import Verdict

LINES = Path(__file__).with_name("labelled_pairs.jsonl").read_text(encoding="utf-8").splitlines()
PAIRS = [(pair["gold"], pair["answer"], pair["equivalent"]) for pair in map(json.loads, LINES)]


def is_readable(text: str) -> bool:
    try:
        parse(text)
    except UnreadableError:
        return False
    return True


def verdict(answer: str, gold: str) -> Verdict:
    found = compare(answer, gold)
    assert found is not None, "undecided"
    return found


@pytest.mark.parametrize(("gold", "answer", "is_equivalent"), PAIRS)
def test_labelled_pair(gold: str, answer: str, is_equivalent: bool) -> None:
    assert verdict(answer, gold).correct is is_equivalent
    if is_readable(answer):  # else there is no tree to compare with
        assert verdict(gold, answer).correct is is_equivalent


def test_labelled_pairs_are_many_and_unique() -> None:
    assert len({(gold, answer) for gold, answer, _ in PAIRS}) == len(PAIRS) > 800
    for is_equivalent in (True, False):
        assert sum(label is is_equivalent for _, _, label in PAIRS) > 350


@pytest.mark.parametrize("gold", sorted({gold for gold, _, _ in PAIRS}))
def test_gold_is_its_own_answer(gold: str) -> None:
    assert verdict(gold, gold).correct


CONVENTIONS = [
    # a percentage is N and its hundredth, an angle its degrees and its radians
    (r"30\%", "0.3", True),
    (r"30\%", "30", True),
    (r"30\%", "300", False),
    (r"45^\circ", r"\frac{\pi}{4}", True),
    (r"10\%", r"5\% + 5\%", True),
    (r"5\%", r"3 + 5\%", False),
    (r"\sin 30^\circ", r"\frac12", True),
    (r"\sin 30", r"\frac12", False),
    # a ratio of two is its quotient; ratios are equal up to a factor, times of the day are not
    ("2:3", r"\frac23", True),
    ("2:3", "1.5", False),
    ("2:04", "1:02", False),
    ("1:2:3", r"\frac12", False),
    # a logarithm without a base is one to any base, 10 or e
    (r"\log 100", "2", True),
    (r"\log e", "1", True),
    (r"\log 8", r"3 \log 2", True),
    (r"\log 8", "3", False),
    # the letter of a choice, and words that stand for a value
    ("B", "b", True),
    ("x", "X", False),
    (r"\text{five}", "5", True),
    (r"\text{five}", "6", False),
    (r"\emptyset", r"\text{no solution}", True),
    (r"\emptyset", r"\text{None}", True),
    (r"\emptyset", r"\text{infinitely many}", False),
    ("AB", r"\text{AB}", True),
    ("AB", r"\text{BA}", False),
    # alternatives are a list of values if they are those of one variable
    ("1, 2", r"x = 1 \text{ or } x = 2", True),
    ("1, 2", r"x = 1 \text{ or } y = 2", False),
    # sums and products over an index are written out
    (r"\sum_{k=1}^{4} k", "10", True),
    (r"\prod_{k=1}^{4} k", "24", True),
    (r"\prod_{k=1}^{4} k", "10", False),
    (r"\prod_{k=1}^{3} (x + k)", "(x+3)(x+2)(x+1)", True),
    # an equation is its solutions written as alternatives; y = ... is f(x) = ..., and what y is
    ("x^2 = 4", r"x = 2 \text{ or } x = -2", True),
    (r"x = \pm 2", "x^2 = 4", True),
    ("x^2 = 4", r"x = 2 \text{ or } x = 2", False),
    ("f(x) = 2x", "y = 2x", True),
    ("f(x) = 2x", "z = 2x", False),
    ("N^2 + N = 6", "N(N+1) = 6", True),  # a factor, since it stands in the brackets too
    ("N(N+1) = 6", "6", False),
    ("f(n) = n^2", "f(m) = m^2", True),
    ("f(n) = nm", "f(m) = mm", False),
    ("x - 1", "y + 1 = x", True),
    ("x - 1", "z + 1 = x", False),
    # letters behind a plain number are units beside another number, and variables beside an expression
    ("5", "5 m", True),
    ("5", r"5\text{ m}", True),
    ("5", "5 x", False),
    ("5x", "5", False),
    ("5n", "5m", False),
    # units: words that say nothing, ordinals, one unit in several spellings
    ("5", r"5^{\text{th}}", True),
    (r"5 \text{ units}^2", r"5 \text{ cm}^2", True),
    (r"5 \text{ cm}", r"5 \text{ cm tall}", True),
    (r"5 \text{ cm}", r"5 \text{ cm per second}", False),
    (r"5 \text{ m/s}", r"5 \text{ meters per second}", True),
    # a named point is a tuple; a column is one too
    ("(1, 2)", "P(1, 2)", True),
    ("(1, 2)", "f(1, 2)", False),
    ("(1, 2)", r"\begin{pmatrix} 1 \\ 2 \end{pmatrix}", True),
    ("(1, 2)", r"\begin{pmatrix} 1 & 2 \end{pmatrix}", False),
    (r"\{1, 2\}", r"\begin{pmatrix} 1 \\ 2 \end{pmatrix}", False),
    # a list between no brackets is a tuple in its order; a set counts an item once
    ("(1, 2)", "1, 2", True),
    ("(1, 2)", "2, 1", False),
    ("[1, 2]", "1, 2", False),
    (r"\{1, 2\}", "1, 1, 2", True),
    ("1, 2", "1, 1, 2", False),
    # the upper signs go together
    (r"1 \pm 2", "3, -1", True),
    (r"\pm 1 \mp 2", "-1, 1", True),
    (r"\pm 1 \pm 2", "3, -3", True),
    (r"\pm 1 \pm 2", "3, -3, 1, -1", False),
    (r"(1, \pm 2)", "(1, 2), (1, -2)", True),
    (r"x = 1 \pm 2", r"x = 3 \text{ or } x = -1", True),
    (r"\pm 5 \text{ cm}", r"5, -5", True),
    # chains that hold, approximations of what is named
    ("2", "x + 1 = 2", False),
    ("2", r"x \approx 2", True),
    ("2", r"1 + 1 \approx 2", False),
    ("0 < x < y", r"0 < x \text{ and } x < y", True),
    (r"x < 1 \text{ or } y < 2", r"y < 2 \text{ or } x < 1", True),
    (r"x < 1 \text{ or } y < 2", r"x < 1 \text{ and } y < 2", False),
    ("0 < x < y", "y > x > 0", True),
    ("0 < x < y", r"(0 < x \text{ and } x < y)", True),
    ("0 < x < y", "0 < x \\le y", False),
    ("x = 1, y = 2", "y = 2, x = 1", True),
    ("x = 1, y = 2", "x = 2, y = 1", False),
    ("x = 1, y = 2", "(1, 2)", True),
]


@pytest.mark.parametrize(("gold", "answer", "is_equivalent"), CONVENTIONS)
def test_convention(gold: str, answer: str, is_equivalent: bool) -> None:
    assert verdict(answer, gold).correct is is_equivalent
    assert verdict(gold, answer).correct is is_equivalent


REASONS = {
    "5": "number",
    r"\pi": "number",
    "x + 1": "expression",
    r"\sqrt{2}": "expression",
    "1, 2": "list",
    r"1 \text{ or } 2": "list",
    "(1, 2)": "tuple",
    "[1, 2]": "tuple",
    r"\{1, 2\}": "set",
    r"\emptyset": "set",
    "(1, 2]": "set",
    r"(1, 2) \cup (3, 4)": "set",
    r"\{x \mid x > 1\}": "set",
    r"5 \text{ cm}": "unit",
    r"50\%": "unit",
    "x = 5": "relation",
    "x < 5": "relation",
    r"x < 5 \text{ or } x > 6": "relation",
    r"\begin{pmatrix} 1 \\ 2 \end{pmatrix}": "matrix",
    "1:2": "ratio",
    "52_8": "base",
    r"\text{east}": "text",
}


@pytest.mark.parametrize("gold", REASONS)
def test_reason_is_the_type_of_the_gold(gold: str) -> None:
    assert compare(gold, gold) == Verdict(True, REASONS[gold])
    assert compare("7777", gold) == Verdict(False, REASONS[gold])


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        ("", "empty_answer"),
        ("4 2", "malformed"),
        ("(1, 2", "malformed"),
        (r"\foo{2}", "unknown_command"),
        ("🤖", "unknown_character"),
        ("2 is wrong", "prose"),
        ("1" * 1001, "too_long"),
        ("{" * 60 + "2" + "}" * 60, "too_deep"),
        ("1e99999", "too_large"),
        (r"\begin{tabular}{c} 2 \end{tabular}", "unknown_notation"),
        ("(1, 2) + 1", "not_a_value"),
        (r"\frac{2}{0}", "undefined"),
        (r"\frac{2}{1 - 1}", "undefined"),
        (r"\infty - \infty", "undefined"),
        (", ".join(map(str, range(100, 250))), "number"),  # a list is no number, however long
    ],
)
def test_unreadable_answer_is_wrong(answer: str, reason: str) -> None:
    assert compare(answer, "2") == Verdict(False, reason)


def test_lists_over_the_limit_of_comparisons_are_wrong() -> None:
    """30 + 29 + ... values have to be told apart; the 10 + 9 + ... of shorter lists are within the limit."""
    for length, verdict in ((10, Verdict(True, "list")), (30, Verdict(False, "too_many_values"))):
        gold = ",".join(f"x+{n}y" for n in range(length))
        answer = ",".join(f"{n}y+x" for n in reversed(range(length)))
        assert compare(answer, gold) == verdict


@pytest.mark.parametrize(
    "gold", ["4 2", r"\foo{2}", "", "1" * 1001, "🤖", r"\frac{1}{0}", "(1,", "{" * 60 + "2" + "}" * 60]
)
def test_unreadable_gold_is_left_to_computer_algebra(gold: str) -> None:
    assert compare("2", gold) is None


@pytest.mark.parametrize("gold", ["5 is wrong", "8 except for 2", r"5 \text{ or so}"])
def test_gold_of_prose_is_never_computed(gold: str) -> None:
    assert compare("2", gold) == Verdict(False, "prose")
    assert compare(r"\frac{1}{0}", gold) == Verdict(False, "prose")


@pytest.mark.parametrize(
    ("answer", "gold"),
    [
        (r"\sum_{k=1}^{n} k", r"\frac{n(n+1)}{2}"),  # a sum that is not written out
        (r"\sum_{k=1}^{\infty} \frac{1}{k^2}", r"\frac{\pi^2}{6}"),
    ],
)
def test_undecided_is_left_to_computer_algebra(answer: str, gold: str) -> None:
    assert compare(answer, gold) is None


def test_are_same_compares_trees() -> None:
    assert are_same(parse(r"\frac12"), parse("0.5"))
    assert not are_same(parse(r"\frac12"), parse("0.50001"))
