r"""`grpo.reward.answers.real_sets`: which union of intervals an answer is."""

from __future__ import annotations

import pytest

from grpo.reward.answers import real_sets
from grpo.reward.answers.parser import parse
from grpo.reward.answers.tree import Constant, Interval, Node, Number, Product, Symbol
from grpo.reward.numbers import identity


def end(node: Node) -> str:
    match node:
        case Number(value):
            return str(value)
        case Symbol(name):
            return name
        case Constant("infinity"):
            return "∞"
        case Product((Number(), Constant("infinity"))):
            return "-∞"
        case _:
            value = identity.exact_value(node)
            return "?" if value is None else str(value)


def shown(pieces: tuple[Interval, ...]) -> str:
    """`(-∞, 1] {2}` for the pieces, in their order."""
    texts = []
    for piece in pieces:
        left, right = end(piece.left), end(piece.right)
        is_point = left == right and piece.left_closed and piece.right_closed and left != "?"
        brackets = "[" if piece.left_closed else "(", "]" if piece.right_closed else ")"
        texts.append(f"{{{left}}}" if is_point else f"{brackets[0]}{left}, {right}{brackets[1]}")
    return " ".join(texts)


SETS = {
    # intervals and points
    "(1, 2)": "(1, 2)",
    "[1, 2]": "[1, 2]",
    "[1, 2)": "[1, 2)",
    r"(-\infty, 2]": "(-∞, 2]",
    r"\{1, 2\}": "{1} {2}",
    r"\{2, 1\}": "{1} {2}",
    r"\{1, 1\}": "{1}",
    r"\emptyset": "",
    r"\mathbb{R}": "(-∞, ∞)",
    # unions: pieces that touch or overlap are joined, in any order
    r"(1, 2) \cup (3, 4)": "(1, 2) (3, 4)",
    r"(3, 4) \cup (1, 2)": "(1, 2) (3, 4)",
    r"(1, 3) \cup (2, 4)": "(1, 4)",
    r"(1, 4) \cup (2, 3)": "(1, 4)",
    r"(1, 4] \cup [2, 4)": "(1, 4]",
    r"(1, 4) \cup [2, 3]": "(1, 4)",
    r"(1, 4) \cup [2, 4]": "(1, 4]",
    r"[1, 2] \cup (1, 3)": "[1, 3)",
    r"(1, 2) \cup [1, 2)": "[1, 2)",
    r"(1, 2] \cup (2, 3)": "(1, 3)",
    r"(1, 2) \cup [2, 3)": "(1, 3)",
    r"(1, 2) \cup (2, 3)": "(1, 2) (2, 3)",
    r"(1, 2) \cup \{2\}": "(1, 2]",
    r"(1, 2) \cup \{2\} \cup (2, 3)": "(1, 3)",
    r"\{0\} \cup (1, 2)": "{0} (1, 2)",
    r"(1, 2) \cup (4, 3)": "(1, 2)",  # an interval of nothing
    r"(1, 2) \cup (5, 5)": "(1, 2)",
    r"(1, 2) \cup [5, 5]": "(1, 2) {5}",
    r"(1, 2) \cup \emptyset": "(1, 2)",
    # intersections
    r"(1, 3) \cap (2, 4)": "(2, 3)",
    r"[1, 3] \cap (2, 3)": "(2, 3)",
    r"(1, 3] \cap [1, 2]": "(1, 2]",
    r"[1, 3] \cap (1, 2]": "(1, 2]",
    r"(1, 3) \cap [2, 3]": "[2, 3)",
    r"[1, 3] \cap [3, 4]": "{3}",
    r"[1, 3) \cap [3, 4]": "",
    r"[1, 3] \cap (3, 4]": "",
    r"(1, 2) \cap (3, 4)": "",
    # differences and complements
    r"\mathbb{R} \setminus \{2\}": "(-∞, 2) (2, ∞)",
    r"\mathbb{R} \setminus \{2, 1\}": "(-∞, 1) (1, 2) (2, ∞)",
    r"(0, 3) \setminus [1, 2]": "(0, 1) (2, 3)",
    r"(0, 3) \setminus (1, 2)": "(0, 1] [2, 3)",
    r"[0, 3] \setminus [0, 3)": "{3}",
    r"\text{not } x < 2": "[2, ∞)",
    r"\text{not } 1 < x < 2": "(-∞, 1] [2, ∞)",
    # set-builders
    r"\{x \mid x > 1\}": "(1, ∞)",
    r"\{x : 1 \le x < 2\}": "[1, 2)",
    r"\{t \in \mathbb{R} \mid t \ne 0\}": "(-∞, 0) (0, ∞)",
    r"\{x \in [0, 5] \mid x > 3\}": "(3, 5]",
    # inequalities: chains, both directions, equality and its negation
    "x < 2": "(-∞, 2)",
    "2 < x": "(2, ∞)",
    r"2 \ge x": "(-∞, 2]",
    r"2 \le x": "[2, ∞)",
    "1 < x < 2": "(1, 2)",
    r"2 \ge x > 1": "(1, 2]",
    r"x \ne 2": "(-∞, 2) (2, ∞)",
    r"x \in [1, 2)": "[1, 2)",
    r"x < 1 \text{ or } x > 2": "(-∞, 1) (2, ∞)",
    r"x > 1 \text{ and } x < 2": "(1, 2)",
    "x > 1, x < 2": "(1, 2)",  # together, since they can hold together
    "x < 1, x > 2": "(-∞, 1) (2, ∞)",  # one or the other, since they cannot
    r"x \ne 1, x \ne 2": "(-∞, 1) (1, 2) (2, ∞)",
    r"1 < x < 2 \text{ or } x = 5": "(1, 2) {5}",
    # linear: the sign of the coefficient turns the relation
    "2x > 6": "(3, ∞)",
    "-2x > 6": "(-∞, -3)",
    r"1 - x \le 4": "[-3, ∞)",
    r"3 < 2x + 1 \le 7": "(1, 3]",
    r"2x \ne 6": "(-∞, 3) (3, ∞)",
    # absolute values
    "|x| < 3": "(-3, 3)",
    r"|x| \le 3": "[-3, 3]",
    "|x| > 3": "(-∞, -3) (3, ∞)",
    r"|x| \ge 3": "(-∞, -3] [3, ∞)",
    "3 > |x|": "(-3, 3)",
    "|x - 1| < 3": "(-2, 4)",
    r"|2x| \ge 3": "(-∞, -3/2] [3/2, ∞)",
    r"|x| \ne 3": "(-∞, -3) (-3, 3) (3, ∞)",
    r"1 < |x| \le 2": "[-2, -1) (1, 2]",
    # quadratics: two zeros, one, none; open above and below
    "x^2 < 4": "(-2, 2)",
    r"x^2 \le 4": "[-2, 2]",
    "x^2 > 4": "(-∞, -2) (2, ∞)",
    r"x^2 \ge 4": "(-∞, -2] [2, ∞)",
    "4 > x^2": "(-2, 2)",
    "-x^2 > -4": "(-2, 2)",
    "(x - 1)(x - 3) < 0": "(1, 3)",
    "x^2 > 0": "(-∞, 0) (0, ∞)",
    r"x^2 \ge 0": "(-∞, ∞)",
    r"x^2 \le 0": "{0}",
    "x^2 < 0": "",
    "x^2 > -1": "(-∞, ∞)",
    "x^2 < -1": "",
    r"x^2 \ne 4": "(-∞, -2) (-2, 2) (2, ∞)",
    r"x^2 \ne -1": "(-∞, ∞)",
    "x^2 + x < x^2 + 2": "(-∞, 2)",  # linear after all
    # ends that are symbols are kept, and not put in an order
    "(a, b)": "(a, b)",
    "x > a": "(a, ∞)",
    r"(c, d) \cup (a, b)": "(c, d) (a, b)",
}


@pytest.mark.parametrize("text", SETS)
def test_set_is_read_as(text: str) -> None:
    found = real_sets.read(parse(text))
    assert found is not None
    assert shown(found.pieces) == SETS[text]


@pytest.mark.parametrize(
    "text",
    [
        "5",
        "x + 1",
        r"\text{east}",
        "(1, 2, 3)",
        r"\{(1, 2)\}",
        "x < y^2 + z < 3",  # which of them is the variable?
        "x + y < 2",
        "x^3 < 8",
        r"\sin x < 0",
        "|x| < x",
        r"x \approx 2",
        r"\{x \mid y > 1\}",
        r"\{x + 1 \mid x > 1\}",
        r"x > 1 \text{ or } y > 2",
        r"(a, 2) \cap (1, b)",  # which end is the greater?
        r"\{x \in \mathbb{Z} \mid x > 1\}",
        r"[1, 2] \cup x^2 = 4",
    ],
)
def test_what_is_not_known_to_be_a_set_is_none(text: str) -> None:
    assert real_sets.read(parse(text)) is None


def test_ends_may_be_irrational() -> None:
    found = real_sets.read(parse("x^2 - 2x - 1 < 0"))
    assert found is not None
    (piece,) = found.pieces
    assert identity.are_equal(piece.left, parse(r"1 - \sqrt2"))
    assert identity.are_equal(piece.right, parse(r"1 + \sqrt2"))
    joined = real_sets.read(parse(r"(0, \sqrt2] \cup [1.4142, \pi) \cup (3.1416, 4)"))
    assert joined is not None
    assert [end(piece.left) for piece in joined.pieces] == ["0", "3927/1250"]


@pytest.mark.parametrize(
    ("text", "variable"),
    [
        ("x < 2", "x"),
        (r"1 < \theta < 2", "theta"),
        ("2t > 4", "t"),
        ("|x| < 2", "x"),
        ("x^2 < 4", "x"),
        (r"x < 1 \text{ or } x > 2", "x"),
        (r"x \in (1, 2)", "x"),
        (r"\text{not } x < 2", "x"),
        (r"\{x \mid x > 1\}", ""),  # the variable of a set-builder is bound
        ("(1, 2)", ""),
    ],
)
def test_variable_is_whose_values_these_are(text: str, variable: str) -> None:
    found = real_sets.read(parse(text))
    assert found is not None
    assert found.variable == variable


def test_too_many_pieces_are_no_known_set() -> None:
    """Seven pieces against seven are more overlaps than the limit of 40; six against six are not."""
    for length, is_known in ((6, True), (7, False)):
        gaps = r"\cup".join(f"({2 * n}, {2 * n + 1})" for n in range(length))
        found = real_sets.read(parse(rf"\{{x \mid x \in {gaps} \text{{ and }} x \in {gaps}\}}"))
        assert (found is not None) is is_known


@pytest.mark.parametrize(
    ("text", "is_condition"),
    [
        ("x < 1", True),
        (r"x \ne 1", True),
        ("x = 1", False),
        (r"x = 1 \text{ or } x = 2", False),
        (r"x = 1 \text{ or } x > 2", True),
        ("(1, 2)", False),
    ],
)
def test_equations_alone_are_no_condition(text: str, is_condition: bool) -> None:
    assert real_sets.is_condition(parse(text)) is is_condition
