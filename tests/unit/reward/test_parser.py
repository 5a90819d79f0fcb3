r"""`grpo.reward.answers.parser`: what an answer is read as, and what is refused."""

from fractions import Fraction

import pytest

from grpo.reward.answers.lexer import UnreadableError
from grpo.reward.answers.parser import MAX_CHARS, parse
from grpo.reward.answers.tree import (
    Based,
    Call,
    Constant,
    Interval,
    Logic,
    Matrix,
    Node,
    Number,
    PlusMinus,
    Power,
    Product,
    Quantity,
    Ratio,
    Relation,
    Sequence,
    SetBuilder,
    SetOperation,
    Sum,
    Symbol,
    Text,
)

X, Y, A = Symbol("x"), Symbol("y"), Symbol("a")
INFINITY = Constant("infinity")


def number(top: int, bottom: int = 1) -> Number:
    return Number(Fraction(top, bottom))


ONE, TWO, THREE = number(1), number(2), number(3)

TREES: dict[str, Node] = {
    "007": number(7),
    "1,234,567": number(1234567),
    r"1{,}234": number(1234),
    r"11,\! 111,\!100": number(11111100),
    r"12\,345\,678.5": number(24691357, 2),
    "1,2345": Sequence("", (ONE, number(2345))),
    "32, 349": Sequence("", (number(32), number(349))),  # a space makes it a list
    "(1,234)": Sequence("()", (ONE, number(234))),  # and so does a bracket
    ".5": number(1, 2),
    "1.5e-2": number(15, 1000),
    "1e5": number(100000),
    "1e-5": number(1, 100000),
    "2e-1": Sum((Product((TWO, Constant("e"))), number(-1))),
    "2e": Product((TWO, Constant("e"))),
    r"0.\overline{3}": number(1, 3),
    r"0.1\overline{6}": number(1, 6),
    r"\frac12": number(1, 2),
    r"\frac 3{4}": number(3, 4),
    r"-\dfrac{1}{2}": number(-1, 2),
    r"{1 \over 2}": number(1, 2),
    r"5\frac12": number(11, 2),
    "1 1/2": number(3, 2),
    "5½": number(11, 2),
    r"3\frac{x}{2}": Product((number(3, 2), X)),  # no mixed number: the fraction is none of digits
    r"2\frac{3}{2}": THREE,  # nor is an improper one
    "-3^2": Product((number(-1), Power(THREE, TWO))),
    "2^3^2": Power(TWO, Power(THREE, TWO)),
    "x**2": Power(X, TWO),
    "x²": Power(X, TWO),
    "a/2x": Product((number(1, 2), A, X)),  # from left to right
    r"\sqrt[3]{x}": Call("root", (X, THREE)),
    r"\sqrt 12": Call("root", (number(12), TWO)),
    "2√3": Product((TWO, Call("root", (THREE, TWO)))),
    "sqrt(x)": Call("root", (X, TWO)),
    r"\sin^2 x": Power(Call("sin", (X,)), TWO),
    r"\sin^{-1} x": Call("arcsin", (X,)),
    r"\sin 2x": Call("sin", (Product((TWO, X)),)),
    r"\sin x \cos y": Product((Call("sin", (X,)), Call("cos", (Y,)))),
    r"\log_2 8": Call("log", (number(8), TWO)),
    "exp(x)": Power(Constant("e"), X),
    r"\binom{a}{2}": Call("choose", (A, TWO)),
    r"{a \choose 2}": Call("choose", (A, TWO)),
    "x!": Call("factorial", (X,)),
    "|x|": Call("abs", (X,)),
    r"\lfloor x \rfloor": Call("floor", (X,)),
    "x_1": Symbol("x_1"),
    "x_{1}": Symbol("x_1"),
    "x1": Symbol("x1"),
    "x[1]": Symbol("x[1]"),
    "xy": Product((X, Y)),
    r"\theta": Symbol("theta"),
    "f(x)": Call("f", (X,)),
    "a(x)": Product((A, X)),
    "P(x) = x": Relation(("=",), (Call("P", (X,)), X)),
    r"1 \pm 2": Sum((PlusMinus(TWO), ONE)),
    "(1, 2)": Sequence("()", (ONE, TWO)),
    "1; 2": Sequence("", (ONE, TWO)),
    r"\{1, 2\}": Sequence("{}", (ONE, TWO)),
    "{1, 2}": Sequence("{}", (ONE, TWO)),
    r"\emptyset": Sequence("{}", ()),
    r"1, 2 \text{ and } 3": Sequence("", (ONE, TWO, THREE)),
    "1 or 2": Sequence("", (ONE, TWO)),
    "[1, 2)": Interval(ONE, TWO, True, False),
    r"(1, \infty) \cup \{x\}": SetOperation("union", (Sequence("()", (ONE, INFINITY)), Sequence("{}", (X,)))),
    r"\{x \mid x > 1\}": SetBuilder(X, Relation((">",), (X, ONE))),
    r"\{x : |x| > 1\}": SetBuilder(X, Relation((">",), (Call("abs", (X,)), ONE))),
    r"1 < x \leqslant 2": Relation(("<", "<="), (ONE, X, TWO)),
    "x > 1 and x < 2": Logic("and", (Relation((">",), (X, ONE)), Relation(("<",), (X, TWO)))),
    "x = 1, 2": Relation(("=",), (X, Sequence("", (ONE, TWO)))),
    r"\begin{pmatrix} 1 & 2 \\ 3 & x \end{pmatrix}": Matrix(((ONE, TWO), (THREE, X))),
    r"\left[\begin{array}{c} 1 \\ 2 \end{array}\right]": Matrix(((ONE,), (TWO,))),
    r"\begin{bmatrix} 1 \\[4pt] x \end{bmatrix}": Matrix(((ONE,), (X,))),
    r"\frac12 \begin{pmatrix} 2 \\ x \end{pmatrix}": Matrix(((ONE,), (Product((number(1, 2), X)),))),
    r"\begin{vmatrix} 1 \end{vmatrix}": Matrix(((ONE,),), "determinant"),
    "1:2": Ratio((ONE, TWO)),
    "8:05 p.m.": Quantity(Ratio((number(8), number(5)), is_time=True), "pm"),
    "52_8": Based("52", 8),
    r"\text{A3F}_{16}": Based("A3F", 16),
    r"50\%": Quantity(number(50), "%"),
    "$50": Quantity(number(50), "$"),
    r"\$2 \text{ million}": Quantity(number(2_000_000), "$"),
    r"90^{\circ}": Quantity(number(90), "degree"),
    "90 degrees": Quantity(number(90), "degree"),
    r"5 \text{ square feet}": Quantity(number(5), "foot^2"),
    r"5\text{ cm}^2": Quantity(number(5), "cm^2"),
    "5cm": Quantity(number(5), "cm"),
    "5 inches^2": Quantity(number(5), "inch^2"),
    "5 m": Product((number(5), Symbol("m"))),  # a letter is a variable...
    r"5\text{ m}": Quantity(number(5), "meter"),  # ...unless it stands upright
    r"12^{\text{th}}": Quantity(number(12), "th"),
    r"\text{(E)}": Symbol("E"),
    r"\text{East}": Text("east"),
    "The answer is 5": Text("the answer is 5"),
    "None of these": Text("none of these"),
    "$x$": X,
    r"\(x\)": X,
    "x.": X,
}

REFUSED = {
    "": "empty_answer",
    " ": "empty_answer",
    "4 2": "malformed",
    r"\text{3}2": "malformed",
    r"\frac{1}": "malformed",
    r"\frac123": "malformed",
    r"\frac{1}{0}": "undefined",
    "(1": "malformed",
    "1)": "malformed",
    "(1,)": "malformed",
    "1 +": "malformed",
    "^": "malformed",
    r"\neq 2": "malformed",
    r"\text{": "malformed",
    "{" * 60 + "1" + "}" * 60: "too_deep",
    "x" + "^{x" * 100 + "}" * 100: "too_deep",
    "1" + "+1" * 400: "too_long",
    "1" * (MAX_CHARS + 1): "too_long",
    "1e9999": "too_large",
    r"\write18{touch x}": "unknown_command",
    "٤٢": "unknown_character",
    "🤖": "unknown_character",
    "5 is wrong": "prose",
    "__import__('os')": "malformed",
}


@pytest.mark.parametrize("text", TREES)
def test_answer_is_read_as(text: str) -> None:
    assert parse(text) == TREES[text]


@pytest.mark.parametrize("text", REFUSED)
def test_answer_is_refused(text: str) -> None:
    with pytest.raises(UnreadableError) as error:
        parse(text)
    assert str(error.value) == REFUSED[text]
