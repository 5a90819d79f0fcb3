r"""Reads the whole of an answer, LaTeX or plain text, into a typed tree (`grpo.reward.answers.tree`), or refuses it.

Recursive descent without backtracking over at most `MAX_TOKENS` tokens: linear in time, bounded in depth. Nothing is
ever read out of a text that does not parse to its end.

    answer    := group ("or" group)*
    group     := list (";" list)*
    list      := statement (("," | "and") statement)*
    statement := set (("=" | "<" | ... | "in") set)*
    set       := ratio (("cup" | "cap" | "setminus") ratio)*
    ratio     := item (":" item)*
    item      := [currency] sum [unit]
    sum       := [sign] product (sign product)*
    product   := power (("*" | "/" | nothing) power)*
"""

from __future__ import annotations

import re
from functools import lru_cache

from grpo.reward.answers import forms
from grpo.reward.answers.expressions import Expressions
from grpo.reward.answers.lexer import END, Token, UnreadableError, respelled, tokenize
from grpo.reward.answers.tree import Based, Logic, Node, Sequence, SetOperation, Text
from grpo.reward.answers.words import FUNCTION_NAMES, PROSE, SHORT_WORDS, UNITS

MAX_CHARS = 1000
_MAX_DEPTH = 40
_RELATIONS = frozenset(("=", "<", ">", "<=", ">=", "!=", "~", "in", "notin"))
_SET_OPERATIONS = {"cup": "union", "cap": "intersection", "setminus": "difference"}
_MAX_SPACES_OF_ITEM = 3  # in a list of words; what is longer is a sentence with commas
_NAME = re.compile(r"[A-Za-z][a-z]{2,}")
_BASED = re.compile(r"\$?([0-9A-F]*[A-F][0-9A-F]*)_\{?(1[1-6])\}?\$?")  # A3F_16; decimal digits are no special case
_LETTERS = re.compile(r"(?!.?pi)[a-z]{3}")
_IN_TEXT = frozenset(("-", "'", ",", "and", "or", "not", "in", "."))


@lru_cache(maxsize=4096)
def parse(text: str) -> Node:
    """The tree of an answer.

    Raises:
        UnreadableError: the text is no answer, or it is over a limit.
    """
    text = text.strip().rstrip("\\")
    if len(text) > MAX_CHARS:
        raise UnreadableError("too_long")
    based = _BASED.fullmatch(text)
    if based is not None:
        return Based(based[1], int(based[2]))
    text = respelled(_without_period(text))
    tokens = tokenize(text)
    if tokens[0] is END:
        raise UnreadableError("empty_answer")
    return _as_text(tokens) or _Parser(tokens, is_plain="\\" not in text).answer()


def _without_period(text: str) -> str:
    bare = text.rstrip(" $")
    return bare[:-1] + text[len(bare) :] if bare.endswith((".", ",", ";")) and not bare.endswith("..") else text


def _as_text(tokens: list[Token]) -> Node | None:
    """The words of an answer that has words only, like `east`, `none of these` or `red, blue`; else None."""
    words = [token for token in tokens[:-1] if token.text not in ("{", "}")]
    if not words or words[0].kind not in ("text", "letters", "name") or not _starts_words(words[0]):
        return None
    if len(words) == 1 and words[0].kind == "letters" and _may_be_product(words[0].text):
        return None
    if any(token.kind not in ("text", "letters", "number") and token.text not in _IN_TEXT for token in words[1:]):
        return None
    texts = "".join((" " if token.spaced else "") + token.text for token in words)
    parts = [" ".join(part.split()).strip(" .").casefold() for part in re.split(r",|\band\b", texts)]
    if len(parts) > 1 and all(part and part.count(" ") < _MAX_SPACES_OF_ITEM for part in parts):
        return Sequence("", tuple(map(Text, parts)))
    return Text(" ".join(texts.replace(",", " ").split()).strip(" .").casefold())


_IN_TEXT = frozenset(("-", "'", ",", "and", "or", "not", "in", "."))


def _may_be_product(run: str) -> bool:
    """Whether `xyz` may be `yzx`: three letters that are no common word. With a text they are compared as letters."""
    return _LETTERS.fullmatch(run) is not None and run not in SHORT_WORDS | PROSE | UNITS.keys()


def _starts_words(token: Token) -> bool:
    if token.kind == "text":
        return True
    is_word = _NAME.fullmatch(token.text) is not None or token.text.lower() in SHORT_WORDS
    if any(token.text.startswith(name) for name in FUNCTION_NAMES if len(token.text) < len(name) + 3):
        return False
    return token.kind == "letters" and (is_word or (token.text.isupper() and len(token.text) > 4))


def _is_factor(name: str, bracketed: list[Token]) -> bool:
    """Whether `x(x + 1)`, or `y(x + 1)`, is a product: what is applied is a capital, or takes single values."""
    if any(name in token.text for token in bracketed if token.kind == "letters"):
        return True
    return name.islower() and any(token.kind == "op" and token.text != "," for token in bracketed)


class _Parser(Expressions):
    """Reads statements and lists."""

    def answer(self) -> Node:
        self.take("=", "~")  # "= 5", "\\approx 5"
        node = self.alternatives()
        if self.token is not END:
            raise UnreadableError("malformed")
        return node

    def alternatives(self) -> Node:
        parts = [self.group()]
        while self.take("or"):
            parts.append(self.group())
        return parts[0] if len(parts) == 1 else forms.disjunction(parts)

    def group(self) -> Node:
        parts = [self.list()]
        while self.take(";"):
            parts.append(self.list())
        if len(parts) == 1:
            return parts[0]
        return Sequence("", tuple(parts))

    def list(self) -> Node:
        """Items between commas; statements that `and` joins are one of them."""
        items = self._joined()
        while self.take(",") and not self.at("or"):
            self.take("and")
            items += self._joined()
        return items[0] if len(items) == 1 else forms.listed(items)

    def _joined(self) -> list[Node]:
        parts = [self.statement()]
        while self.take("and"):
            parts.append(self.statement())
        return parts if len(parts) == 1 else forms.joined(parts)

    def statement(self) -> Node:
        if self.take("not"):
            return Logic("not", (self._nested(self.statement),))
        self._find_defined_function()
        members, operators = [self.set()], []
        while self.token.kind == "op" and self.token.text in _RELATIONS:
            operators.append(self.token.text)
            self.place += 1
            members.append(self.set())
        return forms.relation(operators, members) if operators else members[0]

    def _find_defined_function(self) -> None:
        """Notes P in `P(x) = ...`: there, and from there on, it is applied and not multiplied."""
        name, depth = self.token, 0
        if name.kind not in ("letters", "name") or (len(name.text) > 1 and name.kind == "letters"):
            return
        start = self.place + 1
        if self.tokens[start].text == "_":
            start += 2 if self.tokens[start + 1].text != "{" else 4
        if start >= len(self.tokens) or self.tokens[start].text != "(":
            return
        for place in range(start, len(self.tokens) - 1):
            depth += {"(": 1, ")": -1}.get(self.tokens[place].text, 0)
            if depth == 0:
                is_definition = self.tokens[place + 1].text == "=" and place > start + 1
                if is_definition and not _is_factor(name.text, self.tokens[start + 1 : place]):
                    self.functions.add(name.text)
                return

    def set(self) -> Node:
        node, depth = self.ratio(), self.depth
        while self.token.kind == "op" and self.token.text in _SET_OPERATIONS:
            operation = _SET_OPERATIONS[self.token.text]
            self.place += 1
            part = self.ratio()
            if isinstance(node, SetOperation) and node.operation == operation:
                node = SetOperation(operation, (*node.sets, part))
                continue
            depth += 1
            if depth > _MAX_DEPTH:
                raise UnreadableError("too_deep")
            node = SetOperation(operation, (node, part))
        return node

    def ratio(self) -> Node:
        start = self.place
        parts = [self.item()]
        while not self.is_builder and self.take(":"):
            parts.append(self.item())
        if len(parts) == 1:
            return parts[0]
        minutes = [token.text for token in self.tokens[start + 1 : self.place] if token.kind == "number"]
        is_time = any(len(digits) == 2 and digits.startswith("0") for digits in minutes)
        return forms.ratio(parts, is_time=is_time)
