r"""Whether two answers mean the same: both are parsed whole, then compared by type, the same way in both directions.

The rules, which `docs/grading.md` states with examples: lists without brackets and sets are unordered, tuples and
intervals ordered, and the kind of bracket counts; a unit, degree sign, `$` or `%` that only one side has is forgiven,
two different units are not; `x = v` is `v`; equations are equal up to a factor, inequalities up to a positive one;
names of variables count; text is compared without case. Numbers are exact: a rounded decimal is not the fraction it was
rounded from.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from fractions import Fraction
from itertools import pairwise

from grpo.reward.answers import forms, readings, real_sets
from grpo.reward.answers.lexer import UnreadableError
from grpo.reward.answers.parser import parse
from grpo.reward.answers.size import is_huge
from grpo.reward.answers.tree import (
    FUNCTIONS,
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
    difference,
    is_scalar,
    substituted,
    symbols,
)
from grpo.reward.answers.words import NO_SOLUTION, NUMBER_WORDS
from grpo.reward.equivalence import Verdict
from grpo.reward.numbers import identity
from grpo.reward.numbers.identity import UndefinedError
from grpo.reward.numbers.rational import Budget

_DECISIONS = 4  # of the costliest kind that a pair of answers may ask for
_MAX_COMPARISONS = 200  # of values in one pair of answers: lists of n take up to n * n
_MAX_DETERMINANT = 4
_FLIPPED = {"<": ">", ">": "<", "<=": ">=", ">=": "<="}
_GREATER = {">": True, ">=": False, "<": True, "<=": False}  # whether the relation is strict
_SET_TYPES = (Interval, SetOperation, SetBuilder)
_REASONS: dict[type, str] = {
    **dict.fromkeys((Number, Constant), "number"),
    **dict.fromkeys((Symbol, Sum, Product, Power, Call, PlusMinus), "expression"),
    **dict.fromkeys((Interval, SetOperation, SetBuilder), "set"),
    **{
        Matrix: "matrix",
        Relation: "relation",
        Logic: "relation",
        Ratio: "ratio",
        Based: "base",
        Quantity: "unit",
        Text: "text",
    },
}
_BRACKETS = {"": "list", "()": "tuple", "[]": "tuple", "{}": "set"}


class _UndecidedError(Exception):
    """Two values could not be told apart, nor be proved equal, within the bounds."""


def compare(answer: str, gold: str) -> Verdict | None:
    """The verdict of parsing and typed comparison; None leaves it to computer algebra.

    An answer that cannot be read is wrong, and its reason says why. A gold that cannot be read is for computer algebra
    to try, unless it is prose, which is compared as text and nothing else.
    """
    try:
        gold_tree = parse(gold)
    except UnreadableError as error:
        return Verdict(False, "prose") if str(error) == "prose" else None
    try:
        answer_tree = parse(answer)
    except UnreadableError as error:
        return Verdict(False, str(error))
    try:
        return Verdict(are_same(answer_tree, gold_tree), _reason(gold_tree))
    except UnreadableError as error:
        return Verdict(False, str(error))
    except UndefinedError:
        return Verdict(False, "undefined")
    except _UndecidedError:
        # Computer algebra would try to calculate what is huge, such as 9^{9^{9^9}}; that is the same as itself alone.
        return Verdict(False, "too_large") if is_huge(answer_tree) or is_huge(gold_tree) else None


def are_same(left: Node, right: Node) -> bool:
    """Whether two trees mean the same.

    Raises:
        UndefinedError: a value in one of them is undefined, such as 0/0.
        _UndecidedError: a pair of values was not decided within the bounds.
    """
    return _Comparison().same(readings.expanded(left), readings.expanded(right))


def _reason(gold: Node) -> str:
    if isinstance(gold, Sequence):
        return _BRACKETS[gold.brackets]
    return _REASONS[type(gold)]


class _Comparison:
    """Compares two trees, and counts what that costs."""

    def __init__(self) -> None:
        self.num_comparisons = 0
        self.budget = Budget(_DECISIONS * identity.UNITS)

    def same(self, left: Node, right: Node) -> bool:
        if left == right:
            return True
        if isinstance(left, Relation | Logic) or isinstance(right, Relation | Logic):
            return self.statements(left, right)
        if isinstance(left, Quantity) or isinstance(right, Quantity):
            return self.quantities(readings.measured(left), readings.measured(right))
        if isinstance(left, Number) or isinstance(right, Number):
            left, right = readings.measured(left), readings.measured(right)
            if isinstance(left, Quantity) or isinstance(right, Quantity):
                return self.quantities(left, right)
        if is_scalar(left) and is_scalar(right):
            return self.values(left, right) or readings.is_same_choice(left, right)
        if isinstance(left, Sequence) and isinstance(right, Sequence):
            return self.sequences(left, right)
        if isinstance(left, (*_SET_TYPES, Sequence)) and isinstance(right, (*_SET_TYPES, Sequence)):
            return self.sets(left, right)
        return self._others(left, right) or self._others(right, left)

    def _others(self, left: Node, right: Node) -> bool:
        """Pairs of types that are compared in one way only; the caller tries both directions."""
        match left, right:
            case Matrix(), Matrix():
                return self.matrices(left, right)
            case Matrix(), Sequence(brackets) if brackets in ("()", "[]"):
                return len(left.rows[0]) == 1 and self._in_order([row[0] for row in left.rows], right.items)
            case Call(name, arguments), Sequence("()", items) if name not in FUNCTIONS and name.isupper():
                return len(items) > 1 and self._in_order(arguments, items)
            case Ratio(), Ratio():
                return self.ratios(left, right)
            case Ratio((top, bottom)), _ if is_scalar(right) and is_scalar(top) and is_scalar(bottom):
                return self.values(forms.multiply([top, forms.reciprocal(bottom)]), right)
            case Based(), Based():
                return left.base == right.base and left.digits.lstrip("0") == right.digits.lstrip("0")
            case Text(words), Number(value):
                return NUMBER_WORDS.get(words) == value
            case Text(words), Sequence("{}", ()):
                return words in NO_SOLUTION
            case Text(words), _ if not isinstance(right, Text):
                return words == readings.letters(right)
            case Interval() | SetOperation() | SetBuilder() | Sequence(), Constant("reals"):
                return self.sets(left, right)
            case Matrix(rows, "determinant"), _ if is_scalar(right) and len(rows) == len(rows[0]) <= _MAX_DETERMINANT:
                return self.values(readings.determinant(rows), right)
            case _:
                return False

    # --- values

    def values(self, left: Node, right: Node) -> bool:
        """Two expressions; a logarithm without a base is one to any base, to 10, or natural."""
        if self._identical(left, right):
            return True
        if readings.has_open_series(left) or readings.has_open_series(right):
            raise _UndecidedError
        if forms.LOG_BASE.name not in symbols(left) | symbols(right):
            return False
        bases: tuple[Node, ...] = (Number(Fraction(10)), Constant("e"))
        return any(
            self._identical(substituted(left, {forms.LOG_BASE: base}), substituted(right, {forms.LOG_BASE: base}))
            for base in bases
        )

    def _identical(self, left: Node, right: Node) -> bool:
        self._count()
        verdict = identity.are_equal(left, right, self.budget)
        if verdict is None:
            raise _UndecidedError
        return verdict

    def _count(self) -> None:
        self.num_comparisons += 1
        if self.num_comparisons > _MAX_COMPARISONS:
            raise UnreadableError("too_many_values")

    def quantities(self, left: Node, right: Node) -> bool:
        left_value, left_unit = readings.parted(left)
        right_value, right_unit = readings.parted(right)
        if left_unit and right_unit:
            return readings.are_same_units(left_unit, right_unit) and self.same(left_value, right_value)
        if self.same(left_value, right_value):
            return True
        for value, unit, other in ((left_value, left_unit, right_value), (right_value, right_unit, left_value)):
            if unit in ("%", "degree") and is_scalar(value) and is_scalar(other):
                return self.values(forms.scalar(Quantity(value, unit)), other)
        return False

    def ratios(self, left: Ratio, right: Ratio) -> bool:
        if len(left.parts) != len(right.parts):
            return False
        if left.is_time or right.is_time or not all(is_scalar(part) for part in (*left.parts, *right.parts)):
            return self._in_order(left.parts, right.parts)
        first, other_first = left.parts[0], right.parts[0]
        return all(
            self.values(forms.multiply([first, other]), forms.multiply([other_first, part]))
            for part, other in zip(left.parts[1:], right.parts[1:], strict=True)
        )

    # --- collections

    def sequences(self, left: Sequence, right: Sequence) -> bool:
        kinds = {left.brackets, right.brackets}
        if kinds <= {"", "{}"}:
            values = readings.assigned_values(left, right) or readings.assigned_values(right, left)
            if values is not None:
                return self._in_order(*values)
            return self._unordered(left.items, right.items, distinct="{}" in kinds)
        if kinds in ({"()"}, {"[]"}, {"", "()"}):
            return (len(left.items) > 1 or kinds == {"[]"}) and self._in_order(
                readings.unnamed(left.items), readings.unnamed(right.items)
            )
        return False

    def _in_order(self, left: Iterable[Node], right: Iterable[Node]) -> bool:
        left, right = tuple(left), tuple(right)
        return len(left) == len(right) and all(self.same(*pair) for pair in zip(left, right, strict=True))

    def _unordered(self, left: Iterable[Node], right: Iterable[Node], *, distinct: bool = False) -> bool:
        """Whether each item of one side has its partner on the other. In a set, an item counts once."""
        ours, theirs = list(left), list(right)
        if distinct:
            ours, theirs = self._distinct(ours), self._distinct(theirs)
        if len(ours) != len(theirs):
            return False
        shared = Counter(ours) & Counter(theirs)
        ours, theirs = (list((Counter(items) - shared).elements()) for items in (ours, theirs))
        for item in ours:
            partner = next((other for other in theirs if self.same(item, other)), None)
            if partner is None:
                return False
            theirs.remove(partner)
        return True

    def _distinct(self, items: list[Node]) -> list[Node]:
        kept: list[Node] = []
        for item in dict.fromkeys(items):
            if not any(self.same(item, other) for other in kept):
                kept.append(item)
        return kept

    def matrices(self, left: Matrix, right: Matrix) -> bool:
        is_alike = left.kind == right.kind and len(left.rows) == len(right.rows)
        return is_alike and all(self._in_order(*rows) for rows in zip(left.rows, right.rows, strict=True))

    def sets(self, left: Node, right: Node) -> bool:
        """Sets of real numbers, whose ends may be expressions."""
        ours, theirs = real_sets.read(left), real_sets.read(right)
        if ours is None or theirs is None:
            return False
        if ours.variable and theirs.variable and ours.variable != theirs.variable:
            return False
        return len(ours.pieces) == len(theirs.pieces) and self._unordered_pieces(ours.pieces, theirs.pieces)

    def _unordered_pieces(self, ours: Iterable[Interval], theirs: Iterable[Interval]) -> bool:
        remaining = list(theirs)
        for piece in ours:
            partner = next((other for other in remaining if self._same_piece(piece, other)), None)
            if partner is None:
                return False
            remaining.remove(partner)
        return True

    def _same_piece(self, left: Interval, right: Interval) -> bool:
        are_closed_alike = (left.left_closed, left.right_closed) == (right.left_closed, right.right_closed)
        return are_closed_alike and self.same(left.left, right.left) and self.same(left.right, right.right)

    # --- statements

    def statements(self, left: Node, right: Node) -> bool:
        if isinstance(left, Relation | Logic) and isinstance(right, Relation | Logic):
            return self._both_statements(left, right)
        statement, value = (left, right) if isinstance(left, Relation | Logic) else (right, left)
        if isinstance(value, (*_SET_TYPES, Sequence)) and real_sets.is_condition(statement) and self.sets(left, right):
            return True
        if isinstance(statement, Logic):
            return self._listed_alternatives(statement, value)
        assert isinstance(statement, Relation), statement
        return self._states(statement, value)

    def _states(self, statement: Relation, value: Node) -> bool:
        """`name = value`, where what stands between further signs of equality is that value too."""
        if set(statement.operators) - {"="}:
            is_about_name = len(statement.members) == 2 and readings.is_name(statement.members[0])
            return is_about_name and statement.operators[0] in ("in", "~") and self.same(statement.members[1], value)
        first, *others = statement.members
        if not readings.is_name(first):
            if len(others) == 1 and readings.is_name(others[0]) and is_scalar(first):
                return self.same(first, value) or self._defines_y(statement, value)
            if not self._is_true(statement):
                return self._defines_y(statement, value)
        elif not all(self.same(*pair) for pair in pairwise(others)):
            return False
        return self.same(others[-1], value)

    def _is_true(self, statement: Relation) -> bool:
        """Whether each side of the equations is the same as the next."""
        return all(self.same(*pair) for pair in pairwise(statement.members))

    def _defines_y(self, statement: Relation, value: Node) -> bool:
        """`y + 1 = x` against `x - 1`: an equation that is linear in y, by what y is."""
        y = Symbol("y")
        if (
            len(statement.members) != 2
            or not is_scalar(value)
            or "y" in symbols(value)
            or "y" not in symbols(statement)
        ):
            return False
        return self._same_equation(statement, Relation(("=",), (y, value)))

    def _listed_alternatives(self, statement: Logic, value: Node) -> bool:
        if (
            statement.operation != "or"
            or not isinstance(value, Sequence)
            or not all(map(readings.is_assignment, statement.items))
        ):
            return False
        names = {item.members[0] for item in statement.items if isinstance(item, Relation)}
        return len(names) == 1 and self.same(Sequence("", tuple(readings.unnamed(statement.items))), value)

    def _both_statements(self, left: Relation | Logic, right: Relation | Logic) -> bool:
        if isinstance(left, Relation) and isinstance(right, Relation) and self._same_relation(left, right):
            return True
        if readings.is_membership(left) and readings.is_membership(right) and left.members[0] == right.members[0]:
            return self.same(left.members[1], right.members[1])  # k = 1, 2 and k in {1, 2}
        if (isinstance(left, Logic) or isinstance(right, Logic)) and self._same_logic(left, right):
            return True
        ours, theirs = readings.as_equation(left), readings.as_equation(right)
        if ours is not None and theirs is not None:
            return self._same_equation(ours, theirs)
        return (real_sets.is_condition(left) or real_sets.is_condition(right)) and self.sets(left, right)

    def _same_logic(self, left: Relation | Logic, right: Relation | Logic) -> bool:
        operations = {statement.operation for statement in (left, right) if isinstance(statement, Logic)}
        if operations & {"or", "not"}:
            if not isinstance(left, Logic) or not isinstance(right, Logic) or len(operations) > 1:
                return False
            return self._unordered(left.items, right.items)
        return self._unordered(readings.links(left), readings.links(right))

    def _same_relation(self, left: Relation, right: Relation) -> bool:
        if left.operators == right.operators and self._in_order(left.members, right.members):
            return True
        turned = tuple(_FLIPPED.get(operator, operator) for operator in reversed(right.operators))
        if left.operators == turned and self._in_order(left.members, right.members[::-1]):
            return True
        if {type(left.members[0]), type(right.members[0])} == {Symbol, Call} and readings.define_same_y(left, right):
            return self.same(left.members[1], right.members[1])
        renamed = readings.renamed_parameter(left, right)
        if renamed is not None:
            return self.same(left.members[1], renamed)
        if len(left.operators) != 1 or len(right.operators) != 1:
            return False
        return self._same_inequality(left, right)

    def _same_inequality(self, left: Relation, right: Relation) -> bool:
        operators = left.operators[0], right.operators[0]
        if not all(is_scalar(member) for member in (*left.members, *right.members)):
            return False
        if operators == ("!=", "!="):
            return self._same_equation(left, right)
        if any(operator not in _GREATER for operator in operators) or _GREATER[operators[0]] != _GREATER[operators[1]]:
            return False
        sides = [
            difference(*(statement.members if statement.operators[0].startswith(">") else statement.members[::-1]))
            for statement in (left, right)
        ]
        return self._proportionality(*sides) == 1

    def _same_equation(self, left: Relation, right: Relation) -> bool:
        if len(left.members) != 2 or len(right.members) != 2:
            return False
        if not all(is_scalar(member) for member in (*left.members, *right.members)):
            return False
        return self._proportionality(difference(*left.members), difference(*right.members)) != 0

    def _proportionality(self, left: Node, right: Node) -> int:
        self._count()
        factor = identity.proportionality(left, right, self.budget)
        if factor is None:
            raise _UndecidedError
        return factor
