r"""What stands in brackets: groups, tuples, sets, absolute values, matrices, systems."""

from __future__ import annotations

from grpo.reward.answers import forms
from grpo.reward.answers.cursor import Cursor
from grpo.reward.answers.lexer import END, UnreadableError
from grpo.reward.answers.tree import Matrix, Node, Relation, Sequence, SetBuilder, Symbol

_CLOSING = {"(": ")", "[": "]", "{": "}", r"\{": r"\}", "langle": "rangle"}
_MATRICES = {
    "vmatrix": "determinant",
    **dict.fromkeys(("pmatrix", "bmatrix", "Bmatrix", "matrix", "smallmatrix", "psmallmatrix", "array"), "matrix"),
}
_SEPARATORS = frozenset(("", ",", ";", "(", ")", "[", "]", "{", "}", "=", "cup", "cap", "setminus", "in", "or", "and"))


class Brackets(Cursor):
    """Reads bracketed nodes."""

    def enclosed(self) -> Node:
        """Reads what begins with an operator."""
        opening = self.token.text
        if opening == "{" and self.is_plain and self._is_set_of_one():
            return Sequence("{}", (self.bracketed("{"),))
        if opening in ("(", "[", "{", r"\{", "langle"):
            return self.bracketed(opening)
        self.place += 1
        if opening == "|":
            return self.absolute()
        if opening == "dots":
            return Symbol("...")
        if opening in ("lfloor", "lceil"):
            node = self._inside(self.sum)
            self.expect("r" + opening[1:])
            return forms.call("floor" if opening == "lfloor" else "ceil", node)
        if opening == "sqrt":
            return self.root()
        if opening == "angle":
            return self._angle()
        raise UnreadableError("malformed")

    def _angle(self) -> Node:
        r"""`\angle ABC` is a name."""
        token = self.token
        if token.kind not in ("letters", "name", "number"):
            raise UnreadableError("malformed")
        self.place += 1
        return Symbol(f"angle {token.text}")

    def _is_set_of_one(self) -> bool:
        """Whether the braces here stand alone: in plain text they then make a set, and group nothing."""
        if self.tokens[self.place - 1].text not in _SEPARATORS and self.place:
            return False
        depth = 0
        for place in range(self.place, len(self.tokens)):
            depth += {"{": 1, "}": -1}.get(self.tokens[place].text, 0)
            if depth == 1 and self.tokens[place].text in (",", ";", "|", ":"):
                return False
            if depth == 0:
                return self.tokens[place + 1].text in _SEPARATORS
        return False

    def absolute(self) -> Node:
        r"""Reads `|x|`, or a determinant; the first bar is behind us."""
        outside, self.bars = self.bars, self.bars + 1
        node = self.sum() if not self.token.text.startswith("begin") else self.primary()
        self.expect("|")
        self.bars = outside
        if isinstance(node, Matrix):
            return Matrix(node.rows, "determinant")
        return forms.call("abs", node)

    def bracketed(self, opening: str) -> Node:
        """Reads a bracket with what is in it."""
        self.expect(opening)
        closing = _CLOSING[opening]
        brackets = {"(": "()", "[": "[]", "langle": "()"}.get(opening, "{}")
        if self.take(closing):
            if opening == "{":
                raise UnreadableError("malformed")
            return Sequence(brackets, ())
        is_builder = opening == r"\{" or (opening == "{" and self.place == 1)
        node = self._inside(self.alternatives, is_builder=is_builder)
        if is_builder and self.take("|", "mid", ":"):
            condition = self._inside(self.alternatives)
            self.expect(closing)
            return SetBuilder(node, condition)
        if brackets == "{}" and (infix := self.take("over", "choose")):
            node = self._infix(infix, node, self._inside(self.alternatives))
        actual = self.expect(closing, *(("]", ")") if opening in "([" else ()))
        if actual != closing:
            return forms.half_open(node, left_closed=opening == "[")
        return forms.bracketed(node, brackets, is_group=opening in ("(", "{"))

    @staticmethod
    def _infix(operator: str, left: Node, right: Node) -> Node:
        if operator == "choose":
            return forms.call("choose", left, right)
        return forms.multiply([left, forms.reciprocal(right)])

    def matrix(self) -> Node:
        r"""Reads `\begin{pmatrix} ... \end{pmatrix}` and the like."""
        head, _, name = self.token.text.partition(" ")
        if name == "cases":
            return self.cases()
        if head != "begin" or name not in _MATRICES:
            raise UnreadableError("unknown_notation")
        self.place += 1
        if name == "array" and self.take("{"):
            while not self.take("}"):
                if self.token is END:
                    raise UnreadableError("malformed")
                self.place += 1
        rows: list[tuple[Node, ...]] = []
        while self.token.kind != "environment" or self.token.text != f"end {name}":
            rows.append(self._row())
        self.place += 1
        if not rows or len({len(row) for row in rows}) != 1:
            raise UnreadableError("malformed")
        return Matrix(tuple(rows), _MATRICES[name])

    def cases(self) -> Node:
        """A system: statements one below the other, which hold together. Values with conditions are not read."""
        self.place += 1
        rows: list[Node] = []
        while self.token.text != "end cases":
            row = self._row() if not self.at("&") else ()
            if len(row) != 1 or not isinstance(row[0], Relation):
                raise UnreadableError("unknown_notation")
            rows += row
            self.take(",")
        self.place += 1
        return Sequence("", tuple(rows))

    def _row(self) -> tuple[Node, ...]:
        cells = [self._inside(self.statement)]
        while self.take("&"):
            cells.append(self._inside(self.statement))
        if not self.take(r"\\") and self.token.kind != "environment":
            raise UnreadableError("malformed")
        return tuple(cells)
