r"""Sums, products, powers and quantities."""

from __future__ import annotations

import re

from grpo.reward.answers import forms
from grpo.reward.answers.atoms import Atoms, is_function_prefix
from grpo.reward.answers.lexer import Token, UnreadableError
from grpo.reward.answers.tree import Node, Number, PlusMinus
from grpo.reward.answers.words import ORDINALS, PROSE, UNITS

_MAX_DEPTH = 40
_WORD = re.compile(r"[A-Za-z][a-z]{3,}|[A-Za-z]+[-'][A-Za-z]+")


class Expressions(Atoms):
    """Reads values with their units."""

    def item(self) -> Node:
        """Reads a value with its unit."""
        sign = self.take("-") if self.tokens[self.place + 1].kind == "currency" else ""
        if currency := self._currency():
            node = self.sum()
            node = forms.with_unit(forms.with_unit(node, self.unit() or currency), currency)
            return forms.negative(node) if sign else node
        node = self.sum()
        if currency := self._currency():
            node = forms.with_unit(node, currency)
        unit = self.unit()
        return forms.with_unit(node, unit) if unit else node

    def unit(self) -> str:
        r"""The words behind a value, such as `cm^2`, `\text{ square feet}` or `miles per hour`, in one spelling."""
        words: list[str] = []
        while True:
            token = self.token
            if token.kind in ("text", "letters", "name"):
                if token.kind != "text" and not words and not self._is_unit_word(token):
                    break
                words += token.text.replace("-", " ").replace("/", " per ").split()
                self.place += 1
            elif self.at("in") and self.tokens[self.place + 1].text in ("", "^", ",", ")", ".", "}"):
                self.place += 1
                words.append("inch")
            elif words and self.at("/", ".", "^", "in"):
                self._unit_operator(words)
            else:
                break
        if any(word.lower().strip(".,") in PROSE or word[:1].isdigit() for word in words):
            raise UnreadableError("prose")
        return forms.unit_name(words)

    def _unit_operator(self, words: list[str]) -> None:
        operator = self.token.text
        self.place += 1
        if operator == "^":
            is_group = bool(self.take("{"))
            if self.token.text not in ("2", "3"):
                raise UnreadableError("malformed")
            words[-1] += f"^{self.token.text}"
            self.place += 1
            if is_group:
                self.expect("}")
        elif operator == "/":
            words.append("per")
        elif operator == "in":
            words.append("in")

    def _is_unit_word(self, token: Token) -> bool:
        if token.kind == "name":
            return (
                token.text in UNITS and self.tokens[self.place + 1].kind in ("end", "op") and not self._is_call_next()
            )
        return (len(token.text) > 1 and token.text.lower() in UNITS) or _WORD.fullmatch(token.text) is not None

    def _is_call_next(self) -> bool:
        return self.tokens[self.place + 1].text in ("(", "{", "[", "^", "_")

    def _currency(self) -> str:
        token = self.token
        self.place += token.kind == "currency"
        return token.text if token.kind == "currency" else ""

    def sum(self) -> Node:
        """See `Cursor`."""
        return self._nested(self._terms)

    def _terms(self) -> Node:
        terms = [self._signed(self.take("+", "-", "pm", "mp"))]
        while sign := self.take("+", "-", "pm", "mp"):
            terms.append(self._signed(sign))
        return terms[0] if len(terms) == 1 else forms.add(terms)

    def _signed(self, sign: str) -> Node:
        further = self.take("+", "-")
        node = self.product()
        if further == "-":
            node = forms.negative(node)
        if sign == "-":
            return forms.negative(node)
        return PlusMinus(node, 1 if sign == "pm" else -1) if sign in ("pm", "mp") else node

    def product(self) -> Node:
        """See `Cursor`."""
        factors = [self.power()]
        while True:
            if operator := self.take("*", "/"):
                sign = self.take("-", "+")
                factor = self.power()
                factor = forms.negative(factor) if sign == "-" else factor
                factors.append(forms.reciprocal(factor) if operator == "/" else factor)
            elif self.continues_product(factors[-1]):
                factors.append(self.power())
            else:
                return factors[0] if len(factors) == 1 else forms.multiply(factors)

    def continues_product(self, last: Node) -> bool:
        """See `Cursor`."""
        token = self.token
        if token.kind == "number":
            if isinstance(last, Number):
                raise UnreadableError("malformed")
            return True
        if token.kind == "letters":
            return not self._is_unit_word(token) or is_function_prefix(token.text)
        if token.kind == "name":
            return not self._is_unit_word(token)
        if token.kind == "op":
            if token.text == "|":
                return self.bars == 0 and not self.is_builder
            return token.text in ("(", "[", "{", r"\{", "lfloor", "lceil", "sqrt", "angle", "dots")
        return token.kind == "environment" and token.text.startswith("begin")

    def power(self) -> Node:
        """See `Cursor`."""
        base = self.postfix(self.primary())
        if not self.take("^"):
            return base
        return self.postfix(self._raised(base))

    def _raised(self, base: Node) -> Node:
        if self.take("degree"):
            return self._degrees(base)
        start = self.place
        if self.take("{"):
            if self.take("degree"):
                self.expect("}")
                return self._degrees(base)
            if self.token.text in ORDINALS and self.token.kind in ("letters", "text"):
                self.place += 1
                self.expect("}")
                return forms.with_unit(base, "th")
            self.place = start
        elif self.token.text in ORDINALS:
            self.place += 1
            return forms.with_unit(base, "th")
        elif self.token.text == "o" and isinstance(base, Number):
            self.place += 1
            return self._degrees(base)
        return forms.raised(base, self.exponent())

    def _degrees(self, node: Node) -> Node:
        """Of an angle, or of temperature if F or C follows."""
        if self.token.text in ("F", "C") and self.token.kind in ("letters", "text"):
            self.place += 1
            return forms.with_unit(node, f"degree {self.tokens[self.place - 1].text.lower()}")
        return forms.with_unit(node, "degree")

    def exponent(self) -> Node:
        """See `Cursor`."""
        return self._nested(self._exponent)

    def _exponent(self) -> Node:
        sign = self.take("-", "+")
        node = self.postfix(self.primary())
        if self.take("^"):
            node = forms.raised(node, self.exponent())
        return forms.negative(node) if sign == "-" else node

    def postfix(self, node: Node) -> Node:
        r"""Reads `!`, `%` and `°` behind a value."""
        while True:
            if self.at("!") and self.tokens[self.place + 1].text != "=":
                self.place += 1
                if self.at("!"):
                    raise UnreadableError("unknown_notation")
                node = forms.call("factorial", node)
            elif self.take("%"):
                node = forms.with_unit(node, "%")
            elif self.take("degree"):
                node = self._degrees(node)
            else:
                return node
