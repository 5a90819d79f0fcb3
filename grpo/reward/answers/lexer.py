r"""Cuts an answer, LaTeX or plain text, into tokens, in time linear in its length.

What LaTeX only shows (`\left`, `\displaystyle`, thin spaces) is dropped here, and what has several spellings gets one:
`−` is `-`, `**` is `^`, `≤`, `<=`, `\le` and `\leqslant` are `<=`, `x²` is `x^{2}`, `π` and `\pi` are the word `pi`.
"""

from __future__ import annotations

import re
from fractions import Fraction
from typing import NamedTuple

from grpo.reward.answers.words import (
    CONNECTIVES,
    CURRENCIES,
    GREEK,
    NUMBER_SETS,
    OPERATORS,
    SPELLINGS,
    UNIT_LETTERS,
    words,
)

MAX_TOKENS = 600
_MAX_EXPONENT = 2000  # of a number written like 1e5


class UnreadableError(ValueError):
    """The text is no answer that the grader can read; the message is the reason code."""


class Token(NamedTuple):
    r"""One lexical unit.

    Attributes:
        kind: "number", "letters" (a run of letters), "name" (a known word: a function, a Greek letter, a constant),
            "text" (the content of `\text{...}`), "currency" (its unit), "environment" (`\begin` or `\end` with its
            name), "op", or "end".
        text: as normalised; for a number its digits, without separators.
        spaced: white space stands before it.
        value: of a number.
    """

    kind: str
    text: str
    spaced: bool = False
    value: Fraction | None = None


END = Token("end", "")

_SUPERSCRIPTS = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻ⁿ", "0123456789+-n")
_SUBSCRIPTS = str.maketrans("₀₁₂₃₄₅₆₇₈₉", "0123456789")
_VULGAR = {
    **{"½": "12", "⅓": "13", "⅔": "23", "¼": "14", "¾": "34", "⅕": "15", "⅖": "25", "⅗": "35", "⅘": "45"},
    **{"⅙": "16", "⅚": "56", "⅛": "18", "⅜": "38", "⅝": "58", "⅞": "78"},
}
_REWRITES = (
    (re.compile(r"[⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻ⁿ]+"), lambda match: "^{" + match[0].translate(_SUPERSCRIPTS) + "}"),
    (re.compile(r"[₀₁₂₃₄₅₆₇₈₉]+"), lambda match: "_{" + match[0].translate(_SUBSCRIPTS) + "}"),
    (re.compile(r"^\s*\*\*(.*)\*\*\s*$", re.DOTALL), lambda match: match[1]),  # Markdown's bold type
    (re.compile("[" + "".join(_VULGAR) + "]"), lambda match: r"\frac{{{}}}{{{}}}".format(*_VULGAR[match[0]])),
)
_DOUBLED = re.compile(r"\\\\(?=[A-Za-z])")
_SEPARATOR = (
    r"(?:\{,\}|,\\!\s*|,\s*\\!|\\[,:;!> ]|[~ \u00a0\u2009\u202f])"  # sets off thousands, wherever the number stands
)
_TOKEN = re.compile(
    rf"""(?P<space>(?:\s|~|\\[,:;!>\ ()\[\]]|\\(?:quad|qquad|thinspace|enspace|hfill)(?![A-Za-z]))+)
    |(?P<number>(?:[0-9]{{1,3}}(?:{_SEPARATOR}[0-9]{{3}})+(?![0-9])|[0-9]+)(?:\.[0-9]+)?|\.[0-9]+)
    |\\(?P<command>[A-Za-z]+)\*?
    |(?P<letters>[A-Za-z]+)
    |(?P<op>\*\*|<=|>=|=<|=>|!=|==|:=|\.{{3}}|\\[{{}}|%$\#&_]|\\\\|.)
    (?:(?<=\\\\)\s*\[[0-9.]+\s*(?:pt|em|ex|mm|cm)\])?""",
    re.VERBOSE | re.DOTALL,
)
_SCIENTIFIC = re.compile(r"[eE]([+-]?)([0-9]{1,5})(?![0-9.A-Za-z])")
_REPEATING = re.compile(r"\\overline\s*\{([0-9]{1,60})\}")
_GROUPED = re.compile(r"(?<![0-9],)[1-9][0-9]{0,2}(?:,[0-9]{3})+(?!,?[0-9])(?:\.[0-9]+)?")
_RAW_GROUP = re.compile(r"\s*\{([^{}]*)\}")
_VALUE_ENDS = frozenset((")", "}", "]"))
_ARGUMENT = re.compile(r"\s*(?:\{[^{}]*\}|\\[A-Za-z]+|[^{}\\])?")
_UNIT_RATIO = re.compile(r"[A-Za-z]+/[A-Za-z]+(?:\^?[23])?")
_DAYTIME = re.compile(r"([aApP])\.?\s?[mM](?![A-Za-z])\.?")
_TEXT_COMMANDS = frozenset(
    words(
        """
        text textbf textit textrm textnormal textsf texttt mbox hbox mathrm mathbf mathit mathsf mathtt rm
        bf operatorname emph
        """
    )
)
_WRAPPERS = frozenset(
    ("mathbb", "mathcal", "mathfrak", "bold", "boldsymbol", "overline", "vec", "overrightarrow", "hat")
)
_IGNORED = frozenset(
    words(
        """
        left right big Big bigg Bigg bigl bigr Bigl Bigr biggl biggr Biggl Biggr displaystyle textstyle
        limits nolimits hspace phantom thinspace
        """
    )
)


def respelled(text: str) -> str:
    """The text with LaTeX for raised and lowered digits and fractions that are one character."""
    for pattern, rewrite in _REWRITES:
        text = pattern.sub(rewrite, text)
    return text if r"\begin" in text else _DOUBLED.sub(r"\\", text)


def tokenize(text: str) -> list[Token]:
    """The tokens of `text`, with an `END` after the last.

    Raises:
        UnreadableError: too many tokens, or a character or LaTeX group that no answer has.
    """
    lexer = _Lexer(text, are_dollars_delimiters=len(re.findall(r"(?<!\\)\$", text)) % 2 == 0)
    return lexer.run()


class _Lexer:
    def __init__(self, text: str, *, are_dollars_delimiters: bool) -> None:
        self.text = text
        self.position = 0
        self.tokens: list[Token] = []
        self.brackets = 0
        self.spaced = False
        self.are_dollars_delimiters = are_dollars_delimiters

    def run(self) -> list[Token]:
        while self.position < len(self.text):
            match = _TOKEN.match(self.text, self.position)
            assert match is not None, self.position
            kind, start = match.lastgroup or "", self.position
            self.position = match.end()
            if kind == "space":
                self.spaced = True
                continue
            getattr(self, f"_{kind}")(match[kind], start)
            if len(self.tokens) > MAX_TOKENS:
                raise UnreadableError("too_long")
        self.tokens.append(END)
        return self.tokens

    def _emit(self, kind: str, text: str, value: Fraction | None = None) -> None:
        self.tokens.append(Token(kind, text, self.spaced, value))
        self.spaced = False

    def _number(self, text: str, start: int) -> None:
        grouped = _GROUPED.match(self.text, start) if self.brackets == 0 else None
        if grouped is not None and grouped.end() > self.position:
            text, self.position = grouped[0], grouped.end()
        digits = re.sub(r"[^0-9.]", "", text)
        value = Fraction(digits)
        scientific = _SCIENTIFIC.match(self.text, self.position)
        repeating = _REPEATING.match(self.text, self.position) if "." in digits or self._skip_point() else None
        if scientific and ("." in digits or digits == "1" or not scientific[1]):  # but 2e-1 is 2e less 1
            value *= Fraction(10) ** _exponent(scientific)
            digits, self.position = f"{digits}e", scientific.end()
        elif repeating:
            shift = len(digits.partition(".")[2])
            period = repeating[1]
            value += Fraction(int(period), (10 ** len(period) - 1) * 10**shift)
            digits, self.position = f"{digits}r", repeating.end()
        self._emit("number", digits, value)

    def _skip_point(self) -> bool:
        r"""Steps over the point of `0.\overline{3}`."""
        is_point = (
            self.text.startswith(".", self.position) and _REPEATING.match(self.text, self.position + 1) is not None
        )
        self.position += is_point
        return is_point

    def _letters(self, run: str, start: int) -> None:
        daytime = _DAYTIME.match(self.text, start)
        if daytime is not None and self.tokens and self.tokens[-1].kind == "number":
            self._emit("text", f"{daytime[1]}m".lower())
            self.position = daytime.end()
            return
        name = SPELLINGS.get(run)
        if run.lower() in CONNECTIVES:
            self._emit("op", CONNECTIVES[run.lower()])
        elif run in CURRENCIES:
            self._emit("currency", CURRENCIES[run])
        elif name is not None and run not in NUMBER_SETS:
            self._emit("name", name)
        else:
            self._emit("letters", run)

    def _command(self, name: str, start: int) -> None:
        if name in _TEXT_COMMANDS:
            self._text_group()
        elif name in _WRAPPERS:
            self._wrapped(name)
        elif name in ("begin", "end"):
            self._emit("environment", f"{name} {self._raw_group()}")
        elif name in _IGNORED:
            if name in ("left", "right") and self.text.startswith(".", self.position):
                self.position += 1
            elif name == "hspace":
                self._raw_group()
            elif name == "phantom":  # leaves the place of its argument empty
                self.position = _ARGUMENT.match(self.text, self.position).end()  # pyright: ignore[reportOptionalMemberAccess]
        elif name in OPERATORS:
            self._operator(OPERATORS[name])
        elif name in ("sum", "prod"):
            self._emit("name", name)
        elif name in SPELLINGS or name in GREEK:
            self._emit("name", SPELLINGS.get(name, name))
        elif name in ("frac", "dfrac", "tfrac", "cfrac", "sqrt", "binom", "dbinom", "tbinom"):
            self._emit("name", {"f": "frac", "s": "sqrt", "b": "binom"}[name.lstrip("dtc")[0]])
        else:
            raise UnreadableError("unknown_command")

    def _operator(self, text: str) -> None:
        if text:
            self.brackets += (text in ("(", "[", "\\{")) - (text in (")", "]", "\\}"))
            self._emit("op", text)

    def _op(self, text: str, _start: int) -> None:
        if text == "$" and self.are_dollars_delimiters:
            self.spaced = True
            return
        if text in CURRENCIES:
            self._emit("currency", CURRENCIES[text])
            return
        if text in SPELLINGS:
            self._emit("name", SPELLINGS[text])
            return
        if text not in OPERATORS:
            raise UnreadableError("unknown_character")
        self._operator(OPERATORS[text])

    def _raw_group(self) -> str:
        match = _RAW_GROUP.match(self.text, self.position)
        if match is None:
            raise UnreadableError("malformed")
        self.position = match.end()
        return match[1].strip()

    def _text_group(self) -> None:
        r"""`\text{...}` becomes a text token; one without words, such as `\text{9}` or `\text{, }`, its content."""
        match = _RAW_GROUP.match(self.text, self.position)
        if match is None:  # \mathrm x, or \text{ with commands or groups in it
            if self.text[self.position :].lstrip().startswith("{"):
                raise UnreadableError("malformed")
            return
        self.position = match.end()
        content = " ".join(match[1].replace("~", " ").split())
        bare = content.strip(" ,;").lower()
        follows_value = (bool(self.tokens) and self.tokens[-1].text in _VALUE_ENDS) or self._expects_unit()
        if follows_value and (content in UNIT_LETTERS or _UNIT_RATIO.fullmatch(content)):
            self._emit("text", content)
            return
        if self.text.startswith("_", self.position):  # digits of a number in another base
            self._emit("text", content)
            return
        if bare in CONNECTIVES:
            self._emit("op", CONNECTIVES[bare])
        elif not bare:
            for separator in content.replace(" ", ""):
                self._operator(separator)
        elif re.search(r"[A-Za-z]{2}|[A-Za-z]\.", content) and not re.match(r"[-+−]?[0-9.$]", content):
            self._emit("text", content)
        elif re.search(r"[A-Za-z0-9]", content):
            self._splice(content, match.end())
        else:
            self.tokens += _Lexer(content, are_dollars_delimiters=False).run()[:-1]

    def _expects_unit(self) -> bool:
        if len(self.tokens) > 1 and self.tokens[-1].text == "/" and self.tokens[-2].kind == "text":
            return True  # the second part of m/s
        return bool(self.tokens) and self.tokens[-1].kind in ("number", "name")

    def _splice(self, content: str, end: int) -> None:
        inner = _Lexer(content, are_dollars_delimiters=True).run()[:-1]
        is_part = bool(self.tokens) or end < len(self.text)
        self.tokens += [Token("op", "{"), *inner, Token("op", "}")] if is_part else inner
        self.position = end

    def _wrapped(self, name: str) -> None:
        content = self._raw_group() if self.text[self.position :].lstrip().startswith("{") else None
        if content is None:
            match = re.compile(r"\s*([A-Za-z])").match(self.text, self.position)
            if match is None:
                raise UnreadableError("malformed")
            content, self.position = match[1], match.end()
        sets = {"R": "reals", "Z": "integers", "N": "naturals", "Q": "rationals", "C": "complexes"}
        if name == "mathbb" and content in sets:
            self._emit("name", sets[content])
        elif re.fullmatch(r"[A-Za-z]+", content):
            self._emit("letters", content)
        else:
            raise UnreadableError("unknown_command")


def _exponent(match: re.Match[str]) -> int:
    exponent = int(match[1] + match[2])
    if abs(exponent) > _MAX_EXPONENT:
        raise UnreadableError("too_large")
    return exponent
