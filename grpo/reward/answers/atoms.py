r"""The smallest parts of an expression: numbers, variables, constants, and functions with their arguments."""

from __future__ import annotations

import re
from fractions import Fraction

from grpo.reward.answers import forms
from grpo.reward.answers.brackets import Brackets
from grpo.reward.answers.lexer import END, Token, UnreadableError
from grpo.reward.answers.tree import Based, Call, Constant, Node, Number, Quantity, Sequence, Symbol, Text
from grpo.reward.answers.words import BASES, FUNCTION_NAMES, ORDINALS

_CONSTANTS = frozenset(("pi", "infinity", "reals", "integers", "naturals", "rationals", "complexes"))
_INVERSE = ["^", "{", "-", "1", "}", "("]
_CALLED = frozenset("fgh")
_DIGITS = re.compile(r"[0-9A-F.]+")
_WORD = re.compile(r"[A-Za-z][a-z]{3,}|[A-Za-z]+[-'][A-Za-z]+")


def is_function_prefix(run: str) -> bool:
    """Whether a run of letters begins with a function: `sinx`."""
    return any(run.startswith(name) and len(name) > 2 for name in FUNCTION_NAMES)


class Atoms(Brackets):
    """Reads what is no sum, product or power."""

    def primary(self) -> Node:
        """See `Cursor`."""
        token = self.token
        if token.kind == "number":
            return self.number()
        if token.kind == "letters":
            return self.letters()
        if token.kind == "name":
            return self.name()
        if token.kind == "text":
            self.place += 1
            if self.take("_"):
                return self._based(token.text)
            return Text(token.text.strip(" .").casefold())
        if token.kind == "environment":
            return self.matrix()
        if token.kind == "op":
            return self.enclosed()
        raise UnreadableError("malformed")

    def number(self) -> Node:
        r"""Reads a number with its base, or the fraction of a mixed number."""
        token = self.token
        self.place += 1
        assert token.value is not None, token
        if self.take("_"):
            return self._based(token.text)
        following = self.token
        if following.kind == "text" and self.tokens[self.place + 1].text == "_" and not following.spaced:
            self.place += 2
            return self._based(token.text + following.text)
        if token.text.isdigit():
            if following.kind == "name" and following.text == "frac":
                return self._mixed(token.value)
            is_plain_mixed = following.kind == "number" and following.spaced and self.tokens[self.place + 1].text == "/"
            if is_plain_mixed:
                return self._plain_mixed(token.value)
            if following.kind == "letters" and not following.spaced and following.text in ORDINALS:
                self.place += 1
                return Quantity(Number(token.value), "th")
        return Number(token.value)

    def _mixed(self, whole: Fraction) -> Node:
        r"""`5\frac{1}{2}`: a sum if both are plain integers and the fraction is a proper one, else a product."""
        start = self.place
        fraction = self.primary()
        if isinstance(fraction, Number) and 0 < fraction.value < 1 and self._is_literal_fraction(start):
            return Number(whole + fraction.value)
        return forms.multiply([Number(whole), fraction])

    def _is_literal_fraction(self, start: int) -> bool:
        return all(
            token.kind == "number" or token.text in ("frac", "{", "}") for token in self.tokens[start : self.place]
        )

    def _plain_mixed(self, whole: Fraction) -> Node:
        top, bottom = self.token, self.tokens[self.place + 2]
        if top.value is None or bottom.value is None or not 0 < top.value < bottom.value:
            raise UnreadableError("malformed")
        self.place += 3
        return Number(whole + top.value / bottom.value)

    def _based(self, digits: str) -> Node:
        is_group = bool(self.take("{"))
        base = self.token
        if not _DIGITS.fullmatch(digits):
            raise UnreadableError("malformed")
        value = BASES.get(base.text) if base.value is None else base.value
        if value is None or value.denominator != 1:
            raise UnreadableError("malformed")
        self.place += 1
        if is_group:
            self.expect("}")
        return Based(digits, int(value))

    def letters(self) -> Node:
        """The first variable, or function, of a run of letters; the rest stays where it is."""
        token = self.token
        for name in sorted(FUNCTION_NAMES | {"pi"}, key=len, reverse=True):
            if token.text.startswith(name):
                self._split(Token("name", name, token.spaced), token.text[len(name) :])
                return self.name()
        if _WORD.fullmatch(token.text) and len(token.text) > 4:
            raise UnreadableError("prose")
        if len(token.text) > 1:
            self._split(Token("letters", token.text[0], token.spaced), token.text[1:])
        self.place += 1
        return self.named(token.text[0])

    def named(self, name: str) -> Node:
        """A variable, a constant or the application of an unknown function; its name is behind us."""
        following = self.token
        if following.kind == "number" and not following.spaced and following.text.isdigit() and name not in "ei":
            self.place += 1
            name += following.text
        if self.take("_"):
            name += "_" + self.subscript()
        elif self.at("[") and not self.token.spaced and self.tokens[self.place + 2].text == "]":
            name += f"[{self.tokens[self.place + 1].text}]"  # x[1] is a variable like x_1, and another one
            self.place += 3
        while primes := self.take("'", "''"):
            name += primes
        if name in self.functions and [token.text for token in self.tokens[self.place : self.place + 6]] == _INVERSE:
            self.place += 5
            name += "^-1"
            self.functions.add(name)
        if self.at("(") and (name in self.functions or name.rstrip("'") in _CALLED):
            return Call(name, self.arguments())
        if name in ("e", "i"):
            return Constant(name)
        return Symbol(name)

    def subscript(self) -> str:
        r"""Reads what stands behind `_`: a part of a name."""
        if not self.take("{"):
            token = self.token
            if token.kind not in ("number", "letters", "name"):
                raise UnreadableError("malformed")
            if token.kind == "letters" and len(token.text) > 1:
                self._split(Token("letters", token.text[0]), token.text[1:])
            self.place += 1
            return self.tokens[self.place - 1].text
        texts: list[str] = []
        while not self.at("}"):
            if self.token is END or self.at("{"):
                raise UnreadableError("malformed")
            texts.append(self.token.text)
            self.place += 1
        self.place += 1
        return "".join(texts)

    def arguments(self) -> tuple[Node, ...]:
        """Reads what a function is applied to, in round brackets."""
        node = self.bracketed("(")
        if node == Sequence("()", ()):
            raise UnreadableError("malformed")
        return node.items if isinstance(node, Sequence) and node.brackets == "()" else (node,)

    def name(self) -> Node:
        r"""Reads what begins with a known word: a function, a constant, a Greek letter."""
        name = self.token.text
        self.place += 1
        if name == "frac":
            return self.fraction()
        if name == "sqrt":
            return self.root()
        if name == "binom":
            return forms.call("choose", self.argument(), self.argument())
        if name in ("sum", "prod"):
            return self.series(name)
        if name == "emptyset":
            return Sequence("{}", ())
        if name in _CONSTANTS:
            return Constant(name)
        if name in FUNCTION_NAMES:
            return self.function(name)
        return self.named(name)

    def fraction(self) -> Node:
        """Of two groups, or of digits as LaTeX takes them: one each."""
        token = self.token
        if token.kind == "number":
            digits = token.text
            if not digits.isdigit() or len(digits) > 2:
                raise UnreadableError("malformed")
            self.place += 1
            if len(digits) == 2:
                return forms.multiply(
                    [Number(Fraction(int(digits[0]))), forms.reciprocal(Number(Fraction(int(digits[1]))))]
                )
            top: Node = Number(Fraction(int(digits)))
        else:
            top = self.argument()
        return forms.multiply([top, forms.reciprocal(self.argument())])

    def argument(self) -> Node:
        """A group, or one token: a digit, a letter."""
        token = self.token
        if token.kind == "number":
            if not token.text.isdigit():
                raise UnreadableError("malformed")
            self.place += 1
            if len(token.text) > 1:  # LaTeX would take the first digit only, which nobody means
                raise UnreadableError("malformed")
            return Number(token.value if token.value is not None else Fraction(0))
        if token.kind == "letters" and len(token.text) > 1:
            self._split(Token("letters", token.text[0]), token.text[1:])
        return self._operand()

    def _operand(self) -> Node:
        """What a root or fraction takes: brackets count their depth themselves."""
        return self.primary() if self.at("{", "(") else self._nested(self.primary)

    def root(self) -> Node:
        """See `Cursor`."""
        index: Node = Number(Fraction(2))
        if self.at("["):
            self.place += 1
            index = self.sum()
            self.expect("]")
        token = self.token
        if token.kind == "number":
            self.place += 1
            return forms.root(Number(token.value if token.value is not None else Fraction(0)), index)
        return forms.root(self._operand(), index)

    def function(self, name: str) -> Node:
        r"""`sin`, `\sin^2`, `\log_3` and the like, with or without brackets around the argument."""
        base: Node | None = None
        if name == "log" and self.take("_"):
            base = self.argument() if self.token.kind != "number" else self.number()
        power = self.exponent() if self.take("^") else None
        if base is None and name == "log" and self.take("_"):
            base = self.argument()
        if self.at("("):
            arguments = self.arguments()
        elif self.at("{") or self.token.kind in ("number", "letters", "name", "op"):
            arguments = (self._nested(self._open_argument),)
        else:
            raise UnreadableError("malformed")
        return forms.applied(name, arguments, base, power)

    def _open_argument(self) -> Node:
        """What a function without brackets is applied to: the factors up to a sign, an operator or another function."""
        factors = [self.power()]
        while self.continues_product(factors[-1]) and not (
            (self.token.kind == "name" and self.token.text in FUNCTION_NAMES - {"sqrt"}) or self.at("(", "[")
        ):
            if self.token.kind == "letters" and is_function_prefix(self.token.text):
                break
            factors.append(self.power())
        if self.at("/") and self.tokens[self.place + 1].kind == "number":
            self.place += 1
            factors.append(forms.reciprocal(self.power()))
        return factors[0] if len(factors) == 1 else forms.multiply(factors)

    def series(self, name: str) -> Node:
        r"""`\sum_{k=1}^{n} k^2`."""
        self.expect("_")
        self.expect("{")
        variable = self.letters()
        self.expect("=")
        lower = self.sum()
        self.expect("}")
        self.expect("^")
        upper = self.argument() if self.token.kind != "number" else self.number()
        return forms.series(name, self.product(), variable, lower, upper)
