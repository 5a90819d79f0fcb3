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
from typing import TypeGuard

from grpo.reward import forms, identity, real_sets
from grpo.reward.equivalence import Verdict
from grpo.reward.identity import UndefinedError
from grpo.reward.lexer import UnreadableError
from grpo.reward.parser import parse
from grpo.reward.size import is_huge
from grpo.reward.tree import (
    FUNCTIONS,
    MINUS_ONE,
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
    children,
    difference,
    is_scalar,
    substituted,
    symbols,
)
from grpo.reward.words import BARE_UNITS, NO_SOLUTION, NUMBER_WORDS, UNITS

_MAX_COMPARISONS = 200  # of values in one pair of answers: lists of n take up to n * n
_MAX_DETERMINANT = 4
_CHOICES = frozenset("ABCDE")
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
    except _UndecidedError:  # computer algebra would only try to calculate what is huge, such as 9^{9^{9^9}}
        return Verdict(False, "too_large") if is_huge(answer_tree) and not is_huge(gold_tree) else None


def are_same(left: Node, right: Node) -> bool:
    """Whether two trees mean the same.

    Raises:
        UndefinedError: a value in one of them is undefined, such as 0/0.
        _UndecidedError: a pair of values was not decided within the bounds.
    """
    return _Comparison().same(_expanded(left), _expanded(right))


def _reason(gold: Node) -> str:
    if isinstance(gold, Sequence):
        return _BRACKETS[gold.brackets]
    return _REASONS[type(gold)]


class _Comparison:
    """Compares two trees, and counts what that costs."""

    def __init__(self) -> None:
        self.num_comparisons = 0

    def same(self, left: Node, right: Node) -> bool:
        if left == right:
            return True
        if isinstance(left, Quantity) or isinstance(right, Quantity):
            return self.quantities(_measured(left), _measured(right))
        if isinstance(left, Number) or isinstance(right, Number):
            left, right = _measured(left), _measured(right)
            if isinstance(left, Quantity) or isinstance(right, Quantity):
                return self.quantities(left, right)
        if isinstance(left, Relation | Logic) or isinstance(right, Relation | Logic):
            return self.statements(left, right)
        if is_scalar(left) and is_scalar(right):
            return self.values(left, right) or _is_same_choice(left, right)
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
                return words == _letters(right)
            case Interval() | SetOperation() | SetBuilder() | Sequence(), Constant("reals"):
                return self.sets(left, right)
            case Matrix(rows, "determinant"), _ if is_scalar(right) and len(rows) == len(rows[0]) <= _MAX_DETERMINANT:
                return self.values(_determinant(rows), right)
            case _:
                return False

    # --- values

    def values(self, left: Node, right: Node) -> bool:
        """Two expressions; a logarithm without a base is one to any base, to 10, or natural."""
        if self._identical(left, right):
            return True
        if _has_open_series(left) or _has_open_series(right):
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
        verdict = identity.are_equal(left, right)
        if verdict is None:
            raise _UndecidedError
        return verdict

    def _count(self) -> None:
        self.num_comparisons += 1
        if self.num_comparisons > _MAX_COMPARISONS:
            raise UnreadableError("too_many_values")

    def quantities(self, left: Node, right: Node) -> bool:
        left_value, left_unit = _parted(left)
        right_value, right_unit = _parted(right)
        if left_unit and right_unit:
            return _are_same_units(left_unit, right_unit) and self.same(left_value, right_value)
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
            return self._assigned(left, right) or self._unordered(left.items, right.items, distinct="{}" in kinds)
        if kinds in ({"()"}, {"[]"}, {"", "()"}):
            return (len(left.items) > 1 or kinds == {"[]"}) and self._in_order(
                _unnamed(left.items), _unnamed(right.items)
            )
        return False

    def _assigned(self, left: Sequence, right: Sequence) -> bool:
        """`x = 1, y = 2` against `1, 2`: in the order in which the variables stand."""
        for one, other in ((left, right), (right, left)):
            names = [item.members[0] for item in one.items if _is_assignment(item)]
            if len(names) == len(one.items) == len(set(names)) and not any(
                _is_assignment(item) for item in other.items
            ):
                return self._in_order(_unnamed(one.items), other.items)
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
            is_about_name = len(statement.members) == 2 and _is_name(statement.members[0])
            return is_about_name and statement.operators[0] in ("in", "~") and self.same(statement.members[1], value)
        first, *others = statement.members
        if not _is_name(first):
            if len(others) == 1 and _is_name(others[0]) and is_scalar(first):
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
            or not all(map(_is_assignment, statement.items))
        ):
            return False
        names = {item.members[0] for item in statement.items if isinstance(item, Relation)}
        return len(names) == 1 and self.same(Sequence("", tuple(_unnamed(statement.items))), value)

    def _both_statements(self, left: Relation | Logic, right: Relation | Logic) -> bool:
        if isinstance(left, Relation) and isinstance(right, Relation) and self._same_relation(left, right):
            return True
        if _is_membership(left) and _is_membership(right) and left.members[0] == right.members[0]:
            return self.same(left.members[1], right.members[1])  # k = 1, 2 and k in {1, 2}
        if (isinstance(left, Logic) or isinstance(right, Logic)) and self._same_logic(left, right):
            return True
        ours, theirs = _as_equation(left), _as_equation(right)
        if ours is not None and theirs is not None:
            return self._same_equation(ours, theirs)
        return (real_sets.is_condition(left) or real_sets.is_condition(right)) and self.sets(left, right)

    def _same_logic(self, left: Relation | Logic, right: Relation | Logic) -> bool:
        operations = {statement.operation for statement in (left, right) if isinstance(statement, Logic)}
        if operations & {"or", "not"}:
            if not isinstance(left, Logic) or not isinstance(right, Logic) or len(operations) > 1:
                return False
            return self._unordered(left.items, right.items)
        return self._unordered(_links(left), _links(right))

    def _same_relation(self, left: Relation, right: Relation) -> bool:
        if left.operators == right.operators and self._in_order(left.members, right.members):
            return True
        turned = tuple(_FLIPPED.get(operator, operator) for operator in reversed(right.operators))
        if left.operators == turned and self._in_order(left.members, right.members[::-1]):
            return True
        if {type(left.members[0]), type(right.members[0])} == {Symbol, Call} and _define_same_y(left, right):
            return self.same(left.members[1], right.members[1])
        renamed = _renamed_parameter(left, right)
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
        factor = identity.proportionality(left, right)
        if factor is None:
            raise _UndecidedError
        return factor


# --- what an answer says, apart from how


def _expanded(node: Node) -> Node:
    r"""`1 \pm 2` as the list of its two values, in a list or set as two of its items."""
    if not forms.contains(node, PlusMinus):
        return node
    match node:
        case Sequence(brackets, items) if brackets in ("", "{}"):
            expanded = [part for item in items for part in _branches(item)]
            return Sequence(brackets, tuple(expanded))
        case Relation(("=",), (name, value)) if not forms.contains(name, PlusMinus):
            return Relation(("=",), (name, _expanded(value)))
        case _:
            branches = _branches(node)
            return Sequence("", branches)


def _branches(node: Node) -> tuple[Node, ...]:
    if not forms.contains(node, PlusMinus):
        return (node,)
    return _with_sign(node, 1), _with_sign(node, -1)


def _with_sign(node: Node, sign: int) -> Node:
    match node:
        case PlusMinus(value, own):
            inner = _with_sign(value, sign)
            return inner if own == sign else forms.negative(inner)
        case Sum(terms):
            return forms.add([_with_sign(term, sign) for term in terms])
        case Product(factors):
            return forms.multiply([_with_sign(factor, sign) for factor in factors])
        case Power(base, exponent):
            return Power(_with_sign(base, sign), _with_sign(exponent, sign))
        case Call(name, arguments):
            return Call(name, tuple(_with_sign(argument, sign) for argument in arguments))
        case Sequence(brackets, items):
            return Sequence(brackets, tuple(_with_sign(item, sign) for item in items))
        case Relation(operators, members):
            return Relation(operators, tuple(_with_sign(member, sign) for member in members))
        case Quantity(value, unit):
            return Quantity(_with_sign(value, sign), unit)
        case _:
            if forms.contains(node, PlusMinus):
                raise UnreadableError("unknown_notation")
            return node


def _determinant(rows: tuple[tuple[Node, ...], ...]) -> Node:
    """By the first row, and so on."""
    if len(rows) == 1:
        return rows[0][0]
    minors = [tuple(row[:column] + row[column + 1 :] for row in rows[1:]) for column in range(len(rows))]
    products = [forms.multiply([entry, _determinant(minor)]) for entry, minor in zip(rows[0], minors, strict=True)]
    return forms.add([forms.negative(part) if place % 2 else part for place, part in enumerate(products)])


def _parted(node: Node) -> tuple[Node, str]:
    """Value and unit; a unit that says nothing, such as `units` or the `th` of an ordinal, is none."""
    if not isinstance(node, Quantity):
        return node, ""
    words = [word for word in node.unit.split() if word != "th" and not forms.is_generic(word)]
    return node.value, " ".join(words)


def _measured(node: Node) -> Node:
    """`5 m` as five metres: a number before one letter that is a unit, beside a number or a quantity."""
    match node:
        case Product((Number() as value, Symbol(name))) if name in BARE_UNITS:
            return Quantity(value, UNITS[name.lower()])
        case Product((Number() as value, Power(Symbol(name), Number(exponent)))) if name in BARE_UNITS:
            return Quantity(value, f"{UNITS[name.lower()]}^{exponent}")
        case _:
            return node


def _are_same_units(left: str, right: str) -> bool:
    ours, theirs = ({"$" if word == "dollar" else word for word in unit.split()} for unit in (left, right))
    return "per" not in ours ^ theirs and (ours <= theirs or theirs <= ours)


def _links(statement: Node) -> list[Node]:
    """The single relations that hold together: `0 < x < y` is `0 < x` and `x < y`."""
    if isinstance(statement, Logic) and statement.operation != "or":
        return [link for item in statement.items for link in _links(item)]
    if isinstance(statement, Relation):
        pairs = zip(statement.operators, pairwise(statement.members), strict=True)
        return [Relation((operator,), members) for operator, members in pairs]
    return [statement]


def _has_open_series(node: Node) -> bool:
    """Whether there is a sum or product in it whose bounds are variables: it may have a closed form."""
    match node:
        case Call("sum" | "prod", (_, _, lower, upper)):
            return bool(symbols(lower) | symbols(upper))
        case _:
            return any(_has_open_series(child) for child in children(node))


def _is_same_choice(left: Node, right: Node) -> bool:
    """`b` for the choice B of a question."""
    if not isinstance(left, Symbol) or not isinstance(right, Symbol):
        return False
    return left.name.upper() == right.name.upper() and not _CHOICES.isdisjoint((left.name, right.name))


def _letters(node: Node) -> str | None:
    """The letters of a product of one-letter variables as a word, or None."""
    factors = node.factors if isinstance(node, Product) else (node,)
    names = [factor.name for factor in factors if isinstance(factor, Symbol | Constant)]
    return "".join(names).casefold() if len(names) == len(factors) and all(len(name) == 1 for name in names) else None


def _is_name(node: Node) -> bool:
    """Whether `node = value` gives something a value: a variable, `f(x)`, a segment `AB`, a ratio of two, a point."""
    match node:
        case Symbol() | Text():
            return True
        case Call(name, arguments):
            return name not in FUNCTIONS or (name == "abs" and _is_segment(arguments[0]))
        case Product(factors):
            parts = [
                factor.base if isinstance(factor, Power) and factor.exponent == MINUS_ONE else factor
                for factor in factors
            ]
            return all(isinstance(part, Symbol) and part.name[0].isupper() for part in parts)
        case Sequence("()" | "", items) | Ratio(items):
            return all(_is_name(item) for item in items)
        case _:
            return False


def _is_segment(node: Node) -> bool:
    return isinstance(node, Product) and _is_name(node)


def _is_assignment(node: Node) -> TypeGuard[Relation]:
    return isinstance(node, Relation) and node.operators == ("=",) and _is_name(node.members[0])


def _is_membership(node: Node) -> TypeGuard[Relation]:
    return isinstance(node, Relation) and node.operators in (("=",), ("in",)) and _is_name(node.members[0])


def _unnamed(items: Iterable[Node]) -> list[Node]:
    return [item.members[1] if isinstance(item, Relation) and _is_assignment(item) else item for item in items]


def _define_same_y(left: Relation, right: Relation) -> bool:
    """`y = ...` and `f(x) = ...`."""
    heads = {left.members[0], right.members[0]}
    are_definitions = left.operators == right.operators == ("=",) and _is_assignment(left) and _is_assignment(right)
    return are_definitions and Symbol("y") in heads


def _renamed_parameter(left: Relation, right: Relation) -> Node | None:
    """The right side of `f(m) = ...` in the parameters of `f(n) = ...`; None if these are not two such definitions."""
    heads = left.members[0], right.members[0]
    if left.operators != ("=",) or right.operators != ("=",) or len(left.members) != 2 or len(right.members) != 2:
        return None
    ours, theirs = heads
    if not isinstance(ours, Call) or not isinstance(theirs, Call) or ours.name != theirs.name or ours.name in FUNCTIONS:
        return None
    if len(ours.arguments) != len(theirs.arguments) or ours == theirs:
        return None
    renaming: dict[Node, Node] = dict(zip(theirs.arguments, ours.arguments, strict=True))
    if not all(isinstance(name, Symbol) for pair in renaming.items() for name in pair):
        return None
    if symbols(right.members[1]) & (symbols(ours) - symbols(theirs)):
        return None
    return substituted(right.members[1], renaming)


def _as_equation(statement: Relation | Logic) -> Relation | None:
    """The statement as one equation; alternatives are one whose sides are multiplied: `a = 0 or b = 0` is `ab = 0`."""
    if isinstance(statement, Relation):
        if statement.operators != ("=",):
            return None
        value = statement.members[1]
        if isinstance(value, Sequence) and not value.brackets and is_scalar(statement.members[0]):
            parts = [Relation(("=",), (statement.members[0], item)) for item in value.items]
            return _as_equation(Logic("or", tuple(parts)))
        return statement
    if statement.operation != "or":
        return None
    equations = [_as_equation(item) if isinstance(item, Relation | Logic) else None for item in statement.items]
    known = [equation for equation in equations if equation is not None]
    if len(known) != len(equations) or not all(is_scalar(member) for equation in known for member in equation.members):
        return None
    product = forms.multiply([difference(*equation.members) for equation in known if len(equation.members) == 2])
    return Relation(("=",), (product, Number(Fraction(0))))
