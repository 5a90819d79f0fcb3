"""Where a parser is in its tokens, what it may step over, and how deep it is in brackets."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence

from grpo.reward.answers.lexer import END, Token, UnreadableError
from grpo.reward.answers.tree import Node

_MAX_DEPTH = 40
_CALLED = frozenset("fgh")


class Cursor(ABC):
    """A place in a list of tokens.

    Attributes:
        tokens: with enough `END` tokens behind them that looking ahead needs no check.
        place: of the next token.
        is_plain: there is no LaTeX in the answer.
        bars: absolute values that are open in the innermost bracket.
        is_builder: the innermost bracket is one of a set, where | or : may separate.
        functions: names that are applied to what stands in brackets behind them, not multiplied with it.
    """

    def __init__(self, tokens: Sequence[Token], *, is_plain: bool) -> None:
        """Starts at the first token."""
        self.tokens = [*tokens, END, END, END, END]
        self.is_plain = is_plain
        self.place = 0
        self.depth = 0
        self.bars = 0
        self.is_builder = False
        self.functions = set(_CALLED)

    @abstractmethod
    def alternatives(self) -> Node:
        """Reads a whole statement, list or value, as it may stand in brackets."""

    @abstractmethod
    def statement(self) -> Node:
        """Reads one item of a list."""

    @abstractmethod
    def sum(self) -> Node:
        """Reads a value."""

    @abstractmethod
    def product(self) -> Node:
        """Reads a term of a sum."""

    @abstractmethod
    def power(self) -> Node:
        """Reads a factor of a product."""

    @abstractmethod
    def primary(self) -> Node:
        """Reads a factor without exponent and what else may follow it."""

    @abstractmethod
    def root(self) -> Node:
        """Reads what a sign of a root, which is behind us, stands before."""

    @abstractmethod
    def continues_product(self, last: Node) -> bool:
        """Whether what comes next is multiplied with `last`, with no sign between the two."""

    @abstractmethod
    def exponent(self) -> Node:
        """Reads what stands behind `^`."""

    @property
    def token(self) -> Token:
        """The next one."""
        return self.tokens[self.place]

    def at(self, *texts: str) -> bool:
        """Whether the next token is one of these operators."""
        token = self.tokens[self.place]
        return token.kind == "op" and token.text in texts

    def take(self, *texts: str) -> str:
        """The operator here if it is one of `texts`, which is then behind us; else ""."""
        token = self.tokens[self.place]
        if token.kind == "op" and token.text in texts:
            self.place += 1
            return token.text
        return ""

    def expect(self, *texts: str) -> str:
        """The operator here, which must be one of `texts`."""
        taken = self.take(*texts)
        if not taken:
            raise UnreadableError("malformed")
        return taken

    def _split(self, first: Token, rest: str) -> None:
        """Puts `first` and the rest of a run of letters in the place of the run."""
        self.tokens = [*self.tokens]
        self.tokens[self.place : self.place + 1] = [first, Token("letters", rest)] if rest else [first]

    def _inside(self, read: Callable[[], Node], *, is_builder: bool = False) -> Node:
        """Reads what stands in brackets: what is open outside of them does not count inside."""
        outside = self.bars, self.is_builder
        self.bars, self.is_builder = 0, is_builder
        node = self._nested(read)
        self.bars, self.is_builder = outside
        return node

    def _nested(self, read: Callable[[], Node]) -> Node:
        self.depth += 1
        if self.depth > _MAX_DEPTH:
            raise UnreadableError("too_deep")
        node = read()
        self.depth -= 1
        return node
