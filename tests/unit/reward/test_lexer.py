r"""`grpo.reward.answers.lexer`: what is dropped, what gets one spelling, and what is one number."""

from __future__ import annotations

from fractions import Fraction

import pytest

from grpo.reward.answers.lexer import END, MAX_TOKENS, Token, UnreadableError, respelled, tokenize


def texts(text: str) -> list[str]:
    return [token.text for token in tokenize(respelled(text))[:-1]]


# Each row: spellings of which all give the same tokens.
SPELLINGS = [
    ["x-1", "x−1", "x–1", "x—1", "x－1"],
    ["x*1", "x×1", "x·1", r"x\cdot 1", r"x\times1", "x∗1"],
    ["x/1", "x÷1", r"x\div 1", "x∕1"],
    ["x^{2}", "x**{2}", "x²"],
    ["x^{-12}", "x⁻¹²"],
    ["x_{12}", "x₁₂"],
    ["x<=1", "x≤1", r"x\le1", r"x\leq 1", r"x \leqslant 1", "x=<1"],
    [r"x!=1", "x≠1", r"x\ne1", r"x\neq 1"],
    ["(1,2)", r"\left(1,2\right)", r"\bigl(1,2\bigr)", "（1，2）", r"\lparen 1,2 \rparen"],
    [r"\{1\}", r"\lbrace 1\rbrace", r"\left\{1\right\}"],
    ["|x|", r"\lvert x\rvert", r"\left|x\right|", r"\vert x \vert"],
    [r"\frac{1}{2}", r"\dfrac{1}{2}", r"\tfrac{1}{2}", r"\cfrac{1}{2}", "½", r"\\frac{1}{2}"],
    [r"\pi", "π", "pi"],
    [r"\alpha", "α", "alpha"],
    [r"\infty", "∞", "oo", "infinity", "inf"],
    [r"\arcsin x", "asin x", "arcsin x"],
    ["2 or 3", r"2 \text{ or } 3", r"2 \lor 3", r"2\mbox{ or }3", r"2\textrm{ or}3"],
    [r"\mathbb{R}", r"\mathbb R", "ℝ"],
    ["x+1", r"\displaystyle x+1", r"\hspace{2pt}x+1", "x\u200b+1", "**x+1**", "$x+1$", r"\(x+1\)", r"x\quad+\,\!1"],
    ["90°", r"90\degree", "90º", r"90\circ"],
    ["x'", "x′", r"x\prime"],
    ["1...", r"1\dots", r"1\ldots", "1…"],
    [r"5\%", "5%"],
    [r"\left.x\right|", "x|"],
    [r"\text{3 }", "3", r"\text{3}", r"\mathrm{3}"],
]


@pytest.mark.parametrize("spellings", SPELLINGS, ids=lambda spellings: spellings[0])
def test_spellings_give_the_same_tokens(spellings: list[str]) -> None:
    assert [texts(spelling) for spelling in spellings[1:]] == [texts(spellings[0])] * (len(spellings) - 1)


NUMBERS = {
    "12": [12],
    "012": [12],
    "1.50": [Fraction(3, 2)],
    ".5": [Fraction(1, 2)],
    "1.": [1],  # and a point
    # thousands
    "1,234": [1234],
    "1,234,567": [1234567],
    "12,345.5": [Fraction(24691, 2)],
    "1, 234": [1, 234],
    "1,2345": [1, 2345],
    "1,23": [1, 23],
    "0,123": [0, 123],
    "1234,567": [1234, 567],
    "1,234,56": [1, 234, 56],  # no grouping at all, unless all of it is
    "1,100,1": [1, 100, 1],
    "5,100,200": [5100200],
    "(1,234)": [1, 234],
    "{1,234}": [1234],
    r"\{1,234\}": [1, 234],
    "[1,234]": [1, 234],
    "(x) 1,234": [1234],
    "(1{,}234)": [1234],
    r"1\,234": [1234],
    r"1\ 234": [1234],
    r"1~234": [1234],
    r"1\,23": [1, 23],
    "1 234": [1234],
    "1\u00a0234": [1234],
    "1\u202f234": [1234],
    "1 23": [1, 23],
    "1  234": [1, 234],
    r"1,\!234": [1234],
    # powers of ten
    "1e3": [1000],
    "1.5e3": [1500],
    "1.5e-3": [Fraction(15, 10000)],
    "1.5E+3": [1500],
    "2e": [2],
    "2e-3": [2, 3],  # e is Euler's number, unless a point says that this is a decimal
    "2ex": [2],
    "2e3x": [2, 3],
    # repeating decimals
    r"0.\overline{3}": [Fraction(1, 3)],
    r".\overline{3}": None,
    r"2.1\overline{36}": [Fraction(21, 10) + Fraction(36, 990)],
    r"0.\overline {09}": [Fraction(1, 11)],
    r"0.\overline{9}": [1],
    "½": [1, 2],
    "5½": [5, 1, 2],
    "x²³": [23],
}


@pytest.mark.parametrize("text", NUMBERS)
def test_numbers(text: str) -> None:
    expected = NUMBERS[text]
    if expected is None:
        with pytest.raises(UnreadableError):
            tokenize(respelled(text))
    else:
        assert [token.value for token in tokenize(respelled(text)) if token.kind == "number"] == expected


def test_tokens_know_their_kind_and_the_space_before_them() -> None:
    assert tokenize(r"ab \sin(2\text{ cm})$") == [
        Token("letters", "ab"),
        Token("name", "sin", spaced=True),
        Token("op", "("),
        Token("number", "2", value=Fraction(2)),
        Token("text", "cm"),
        Token("op", ")"),
        Token("currency", "$"),
        END,
    ]
    assert tokenize(r"\begin{pmatrix}1\\[4pt]2\end{pmatrix}") == [
        Token("environment", "begin pmatrix"),
        Token("number", "1", value=Fraction(1)),
        Token("op", r"\\"),
        Token("number", "2", value=Fraction(2)),
        Token("environment", "end pmatrix"),
        END,
    ]


@pytest.mark.parametrize(
    ("text", "kinds"),
    [
        ("$5$", ["number"]),  # two dollars enclose, one is money
        ("$5", ["currency", "number"]),
        (r"\$5", ["currency", "number"]),
        (r"$\$5$", ["currency", "number"]),
        ("5$", ["number", "currency"]),
        ("€5", ["currency", "number"]),
        ("5 USD", ["number", "currency"]),
        ("5 usd", ["number", "letters"]),
        ("5 pm", ["number", "text"]),
        ("5 p.m.", ["number", "text"]),
        ("pm", ["letters"]),
        ("5 pmx", ["number", "letters"]),
        (r"5\text{m}", ["number", "text"]),
        (r"x + \text{m}", ["letters", "op", "op", "letters", "op"]),  # {m}, a variable that stands upright
        (r"5\text{m}/\text{s}", ["number", "text", "op", "text"]),
        (r"5\text{m/s}", ["number", "text"]),
        (r"\text{km}", ["text"]),
        (r"\text{A1}_{16}", ["text", "op", "op", "number", "op"]),
        (r"\text{, }", ["op"]),
        (r"\text{}", []),
        ("naturals", ["letters"]),  # a set of numbers only with a sign of its own
        ("ℕ", ["name"]),
        (r"\phantom{0}5", ["number"]),
        (r"\phantom 05", ["number"]),
        (r"\phantom{0", ["op", "number"]),
    ],
)
def test_kinds(text: str, kinds: list[str]) -> None:
    assert [token.kind for token in tokenize(respelled(text))[:-1]] == kinds


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("x@y", "unknown_character"),
        ("\x00", "unknown_character"),
        ("x#", "unknown_character"),
        ('"x"', "unknown_character"),
        (r"\foo", "unknown_command"),
        (r"\input{/etc/passwd}", "unknown_command"),
        (r"\def\x{1}", "unknown_command"),
        (r"\mathbb{1}", "unknown_command"),
        (r"\mathbb", "malformed"),
        (r"\begin", "malformed"),
        (r"\text{a{b}}", "malformed"),
        (r"\hspace", "malformed"),
        ("1e2001", "too_large"),
        ("1.5e-2001", "too_large"),
        ("+" * (MAX_TOKENS + 1), "too_long"),
    ],
)
def test_refused(text: str, reason: str) -> None:
    with pytest.raises(UnreadableError) as error:
        tokenize(text)
    assert str(error.value) == reason


def test_limits_are_inclusive() -> None:
    assert len(tokenize("+" * MAX_TOKENS)) == MAX_TOKENS + 1
    (number, _) = tokenize("1e2000")
    assert number.value == 10**2000


def test_every_character_is_cut_or_refused() -> None:
    """One at a time, behind a letter and in a text: nothing but the one error comes out."""
    for code in range(0x3000):
        for text in (chr(code), f"x{chr(code)}", rf"\text{{{chr(code)}}}"):
            try:
                assert tokenize(respelled(text))[-1] is END
            except UnreadableError:
                continue
