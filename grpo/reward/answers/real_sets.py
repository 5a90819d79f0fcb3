r"""Sets of real numbers as unions of intervals: read from intervals, unions, set-builders and inequalities."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from functools import cmp_to_key

from grpo.reward.answers import forms
from grpo.reward.answers.tree import (
    Call,
    Constant,
    Interval,
    Logic,
    Node,
    Number,
    Relation,
    Sequence,
    SetBuilder,
    SetOperation,
    Symbol,
    difference,
    is_scalar,
    negated,
    substituted,
    symbols,
)
from grpo.reward.numbers import identity

_INFINITY: Node = Constant("infinity")
_MINUS_INFINITY: Node = forms.negative(_INFINITY)
_LINE = Interval(_MINUS_INFINITY, _INFINITY, False, False)
_FLIPPED = {"<": ">", ">": "<", "<=": ">=", ">=": "<=", "=": "=", "!=": "!="}
_NEGATED = {"<": ">=", ">": "<=", "<=": ">", ">=": "<", "=": "!=", "!=": "="}
_MAX_PIECES = 40


@dataclass(frozen=True, slots=True)
class RealSet:
    """A union of intervals, in ascending order where their ends can be ordered.

    Attributes:
        pieces: a point is an interval whose ends are equal and closed.
        variable: whose values these are, or "" if the answer does not say.
    """

    pieces: tuple[Interval, ...]
    variable: str = ""


class _NotOrderedError(Exception):
    """Two ends cannot be compared, so that a union or intersection is not known."""


def is_condition(node: Node) -> bool:
    """Whether the statement has inequalities in it: an equation alone is no set."""
    if isinstance(node, Logic):
        return any(is_condition(item) for item in node.items)
    return isinstance(node, Relation) and node.operators != ("=",)


def read(node: Node) -> RealSet | None:
    """The set, or None if it is not known to be one of real numbers."""
    try:
        found = _read(node)
        return None if found is None else RealSet(_tidied(found.pieces), found.variable)
    except _NotOrderedError:
        return None


def _read(node: Node) -> RealSet | None:
    match node:
        case Interval():
            return RealSet((node,))
        case Sequence("()" | "[]", (left, right)):
            return RealSet((Interval(left, right, node.brackets == "[]", node.brackets == "[]"),))
        case Sequence("{}" | "", items):
            return RealSet(tuple(_point(item) for item in items)) if all(map(is_scalar, items)) else None
        case Constant("reals"):
            return RealSet((_LINE,))
        case SetOperation(operation, sets):
            return _operated(operation, [_read(part) or _read_point(part) for part in sets])
        case SetBuilder(variable, condition):
            return _built(variable, condition)
        case Relation():
            return _chain(node)
        case Logic("not", (item,)):
            return _complement(_read(item))
        case Logic(operation, items):
            return _combined(operation, [_read(item) for item in items])
        case _:
            return None


def _read_point(node: Node) -> RealSet | None:
    """A value in the place of a set: in braces that LaTeX takes for a group."""
    return RealSet((_point(node),)) if is_scalar(node) else None


def _built(variable: Node, condition: Node) -> RealSet | None:
    found = _read(condition)
    if isinstance(variable, Relation) and variable.operators == ("in",):
        domain = _read(variable.members[1])
        found = _operated("intersection", [found, domain]) if found and domain else None
        variable = variable.members[0]
    if found is None or not isinstance(variable, Symbol) or found.variable not in ("", variable.name):
        return None
    return RealSet(found.pieces)


def _operated(operation: str, parts: list[RealSet | None]) -> RealSet | None:
    known = [part for part in parts if part is not None]
    names = {part.variable for part in known} - {""}
    if len(known) != len(parts) or len(names) > 1:
        return None
    total = known[0].pieces
    for part in known[1:]:
        if operation == "union":
            total = (*total, *part.pieces)
        elif operation == "intersection":
            total = _intersection(total, part.pieces)
        else:
            total = _intersection(total, _outside(part.pieces))
    return RealSet(total, names.pop() if names else "")


def _combined(operation: str, parts: list[RealSet | None]) -> RealSet | None:
    """Conditions with commas between them hold together if they can: `x < 1, x > 3` is one or the other."""
    if operation != "list":
        return _operated("union" if operation == "or" else "intersection", parts)
    try:
        both = _operated("intersection", parts)
        if both is not None and _tidied(both.pieces):
            return both
    except _NotOrderedError:
        pass
    return _operated("union", parts)


def _complement(part: RealSet | None) -> RealSet | None:
    return None if part is None else RealSet(_outside(part.pieces), part.variable)


# --- inequalities


def _chain(statement: Relation) -> RealSet | None:
    """What a chain such as `1 < x <= 3` leaves for its one variable."""
    if statement.operators == ("in",) and isinstance(statement.members[0], Symbol):
        found = _read(statement.members[1])
        return None if found is None else RealSet(found.pieces, statement.members[0].name)
    links = zip(statement.members, statement.operators, statement.members[1:], strict=False)
    parts: list[RealSet | None] = []
    for left, operator, right in links:
        if operator not in _FLIPPED or not is_scalar(left) or not is_scalar(right):
            return None
        names = symbols(left) | symbols(right)
        if len(names) != 1 and not _is_bound(left, right):
            return None
        parts.append(_solved(left, operator, right))
    return _operated("intersection", parts)


def _is_bound(left: Node, right: Node) -> bool:
    """Whether one side is a variable that the other, perhaps with parameters, bounds."""
    return any(
        isinstance(one, Symbol) and one.name not in symbols(other) for one, other in ((left, right), (right, left))
    )


def _solved(left: Node, operator: str, right: Node) -> RealSet | None:
    for one, sign, other in ((left, operator, right), (right, _FLIPPED[operator], left)):
        if isinstance(one, Symbol) and one.name not in symbols(other):
            return RealSet(_bounded(sign, other), one.name)
        if isinstance(one, Call) and one.name == "abs" and not symbols(other):
            return _solved_absolute(one.arguments[0], sign, other)
    return _solved_polynomial(difference(left, right), operator)


def _bounded(operator: str, bound: Node) -> tuple[Interval, ...]:
    is_closed = operator in ("<=", ">=")
    if operator in ("<", "<="):
        return (Interval(_MINUS_INFINITY, bound, False, is_closed),)
    if operator in (">", ">="):
        return (Interval(bound, _INFINITY, is_closed, False),)
    return (_point(bound),) if operator == "=" else _outside((_point(bound),))


def _solved_absolute(inside: Node, operator: str, bound: Node) -> RealSet | None:
    """`|f| < c` is `-c < f < c`; `|f| > c` is `f > c or f < -c`."""
    parts = [_solved(inside, operator, bound), _solved(inside, _FLIPPED[operator], negated(bound))]
    return _operated("intersection" if operator in ("<", "<=", "!=") else "union", parts)


def _solved_polynomial(function: Node, operator: str) -> RealSet | None:
    """Where a polynomial of degree 1 or 2 with rational coefficients, in one variable, is positive (negative, ...)."""
    (name,) = symbols(function) if len(symbols(function)) == 1 else ("",)
    coefficients = _quadratic(function, name) if name else None
    if coefficients is None:
        return None
    c, b, a = coefficients
    if operator in ("<", "<="):
        a, b, c, operator = -a, -b, -c, _FLIPPED[operator]
    is_closed = operator == ">="
    if operator in ("=", "!="):
        points = tuple(_point(zero) for zero in _zeros(a, b, c))
        return RealSet(points if operator == "=" else _outside(points), name)
    zeros = _zeros(a, b, c)
    if not zeros:
        return RealSet((_LINE,) if c > 0 else (), name)
    if a < 0:
        inside = (Interval(zeros[0], zeros[-1], is_closed, is_closed),)
        return RealSet(inside if len(zeros) == 2 or is_closed else (), name)
    if a > 0:
        sides = (
            Interval(_MINUS_INFINITY, zeros[0], False, is_closed),
            Interval(zeros[-1], _INFINITY, is_closed, False),
        )
        return RealSet(sides, name)
    return RealSet(_bounded((">" if b > 0 else "<") + ("=" if is_closed else ""), zeros[0]), name)


def _quadratic(function: Node, name: str) -> tuple[Fraction, Fraction, Fraction] | None:
    """Coefficients of 1, x and x^2 if the function is such a polynomial, which its values at 0, 1 and 2 would tell."""
    values = [identity.exact_value(_at(function, name, Fraction(point))) for point in (0, 1, 2)]
    if any(value is None for value in values):
        return None
    at_0, at_1, at_2 = (value for value in values if value is not None)
    a = (at_2 - 2 * at_1 + at_0) / 2
    b = at_1 - at_0 - a
    x = Symbol(name)
    candidate = forms.add([Number(at_0), forms.multiply([Number(b), x]), forms.multiply([Number(a), x, x])])
    return (at_0, b, a) if (a or b) and identity.are_equal(function, candidate) else None


def _at(node: Node, name: str, value: Fraction) -> Node:
    return substituted(node, {Symbol(name): Number(value)})


def _zeros(a: Fraction, b: Fraction, c: Fraction) -> tuple[Node, ...]:
    """Real zeros of a x^2 + b x + c in ascending order."""
    if not a:
        return (Number(-c / b),) if b else ()
    discriminant = b * b - 4 * a * c
    middle = Number(-b / (2 * a))
    if discriminant <= 0:
        return (middle,) if not discriminant else ()
    half = forms.multiply([Number(1 / abs(2 * a)), forms.root(Number(discriminant), Number(Fraction(2)))])
    return forms.add([middle, forms.negative(half)]), forms.add([middle, half])


# --- unions of intervals


def _point(value: Node) -> Interval:
    return Interval(value, value, True, True)


def _order(left: Node, right: Node) -> int:
    if left == right:
        return 0
    order = identity.order(left, right) if is_scalar(left) and is_scalar(right) else None
    if order is None:
        raise _NotOrderedError
    return order


def _tidied(pieces: tuple[Interval, ...]) -> tuple[Interval, ...]:
    """Without empty pieces, in order, and with those joined that touch."""
    if len(pieces) < 2:
        return pieces
    try:
        kept = sorted((piece for piece in pieces if not _is_empty(piece)), key=cmp_to_key(_by_left_end))
    except _NotOrderedError:  # ends with parameters: compared as they are written
        return pieces
    joined: list[Interval] = []
    for piece in kept[:_MAX_PIECES]:
        if joined and _touches(joined[-1], piece):
            joined[-1] = _joined(joined[-1], piece)
        else:
            joined.append(piece)
    return tuple(joined)


def _is_empty(piece: Interval) -> bool:
    order = _order(piece.left, piece.right)
    return order > 0 or (order == 0 and not (piece.left_closed and piece.right_closed))


def _by_left_end(left: Interval, right: Interval) -> int:
    return _order(left.left, right.left) or right.left_closed - left.left_closed


def _touches(left: Interval, right: Interval) -> bool:
    order = _order(right.left, left.right)
    return order < 0 or (order == 0 and (left.right_closed or right.left_closed))


def _joined(left: Interval, right: Interval) -> Interval:
    order = _order(left.right, right.right)
    end = left.right if order >= 0 else right.right
    is_closed = (left.right_closed and order >= 0) or (right.right_closed and order <= 0)
    return Interval(left.left, end, left.left_closed, is_closed)


def _intersection(left: tuple[Interval, ...], right: tuple[Interval, ...]) -> tuple[Interval, ...]:
    if len(left) * len(right) > _MAX_PIECES:
        raise _NotOrderedError
    pieces = [_overlap(one, other) for one in left for other in right]
    return tuple(piece for piece in pieces if not _is_empty(piece))


def _overlap(left: Interval, right: Interval) -> Interval:
    starts, ends = _order(left.left, right.left), _order(left.right, right.right)
    start = left.left if starts >= 0 else right.left
    end = left.right if ends <= 0 else right.right
    is_left_closed = (left.left_closed or starts < 0) and (right.left_closed or starts > 0)
    is_right_closed = (left.right_closed or ends > 0) and (right.right_closed or ends < 0)
    return Interval(start, end, is_left_closed, is_right_closed)


def _outside(pieces: tuple[Interval, ...]) -> tuple[Interval, ...]:
    """The real numbers that are in none of the pieces."""
    remaining: tuple[Interval, ...] = (_LINE,)
    for piece in pieces:
        below = Interval(_MINUS_INFINITY, piece.left, False, not piece.left_closed)
        above = Interval(piece.right, _INFINITY, not piece.right_closed, False)
        remaining = _intersection(remaining, (below, above))
    return remaining
