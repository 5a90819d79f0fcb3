r"""What an answer says, apart from how: names and values, units, alternatives, definitions."""

from __future__ import annotations

from collections.abc import Iterable
from fractions import Fraction
from itertools import pairwise
from typing import TypeGuard

from grpo.reward.answers import forms
from grpo.reward.answers.lexer import UnreadableError
from grpo.reward.answers.tree import (
    FUNCTIONS,
    MINUS_ONE,
    Call,
    Constant,
    Logic,
    Node,
    Number,
    PlusMinus,
    Power,
    Product,
    Quantity,
    Ratio,
    Relation,
    Sequence,
    Sum,
    Symbol,
    Text,
    children,
    difference,
    is_scalar,
    substituted,
    symbols,
)
from grpo.reward.answers.words import BARE_UNITS, UNITS

_CHOICES = frozenset("ABCDE")


def expanded(node: Node) -> Node:
    r"""`1 \pm 2` as the list of its two values, in a list or set as two of its items."""
    if not forms.contains(node, PlusMinus):
        return node
    match node:
        case Sequence(brackets, items) if brackets in ("", "{}"):
            return Sequence(brackets, tuple(part for item in items for part in _branches(item)))
        case Relation(("=",), (name, value)) if not forms.contains(name, PlusMinus):
            return Relation(("=",), (name, expanded(value)))
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


def determinant(rows: tuple[tuple[Node, ...], ...]) -> Node:
    """By the first row, and so on."""
    if len(rows) == 1:
        return rows[0][0]
    minors = [tuple(row[:column] + row[column + 1 :] for row in rows[1:]) for column in range(len(rows))]
    products = [forms.multiply([entry, determinant(minor)]) for entry, minor in zip(rows[0], minors, strict=True)]
    return forms.add([forms.negative(part) if place % 2 else part for place, part in enumerate(products)])


def parted(node: Node) -> tuple[Node, str]:
    """Value and unit; a unit that says nothing, such as `units` or the `th` of an ordinal, is none."""
    if not isinstance(node, Quantity):
        return node, ""
    words = [word for word in node.unit.split() if word != "th" and not forms.is_generic(word)]
    return node.value, " ".join(words)


def measured(node: Node) -> Node:
    """`5 m` as five metres: a number before one letter that is a unit, beside a number or a quantity."""
    match node:
        case Product((Number() as value, Symbol(name))) if name in BARE_UNITS:
            return Quantity(value, UNITS[name.lower()])
        case Product((Number() as value, Power(Symbol(name), Number(exponent)))) if name in BARE_UNITS:
            return Quantity(value, f"{UNITS[name.lower()]}^{exponent}")
        case _:
            return node


def are_same_units(left: str, right: str) -> bool:
    """Whether two units differ at most in words that one of them leaves out."""
    ours, theirs = ({"$" if word == "dollar" else word for word in unit.split()} for unit in (left, right))
    return "per" not in ours ^ theirs and (ours <= theirs or theirs <= ours)


def links(statement: Node) -> list[Node]:
    """The single relations that hold together: `0 < x < y` is `0 < x` and `x < y`."""
    if isinstance(statement, Logic) and statement.operation != "or":
        return [link for item in statement.items for link in links(item)]
    if isinstance(statement, Relation):
        pairs = zip(statement.operators, pairwise(statement.members), strict=True)
        return [Relation((operator,), members) for operator, members in pairs]
    return [statement]


def has_open_series(node: Node) -> bool:
    """Whether there is a sum or product in it whose bounds are variables: it may have a closed form."""
    match node:
        case Call("sum" | "prod", (_, _, lower, upper)):
            return bool(symbols(lower) | symbols(upper))
        case _:
            return any(has_open_series(child) for child in children(node))


def is_same_choice(left: Node, right: Node) -> bool:
    """`b` for the choice B of a question."""
    if not isinstance(left, Symbol) or not isinstance(right, Symbol):
        return False
    return left.name.upper() == right.name.upper() and not _CHOICES.isdisjoint((left.name, right.name))


def letters(node: Node) -> str | None:
    """The letters of a product of one-letter variables as a word, or None."""
    factors = node.factors if isinstance(node, Product) else (node,)
    names = [factor.name for factor in factors if isinstance(factor, Symbol | Constant)]
    return "".join(names).casefold() if len(names) == len(factors) and all(len(name) == 1 for name in names) else None


def is_name(node: Node) -> bool:
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
            return all(is_name(item) for item in items)
        case _:
            return False


def _is_segment(node: Node) -> bool:
    return isinstance(node, Product) and is_name(node)


def is_assignment(node: Node) -> TypeGuard[Relation]:
    """Whether this is `name = ...`."""
    return isinstance(node, Relation) and node.operators == ("=",) and is_name(node.members[0])


def assigned_values(left: Sequence, right: Sequence) -> tuple[list[Node], list[Node]] | None:
    """`x = 1, y = 2` against `1, 2`: the values of both, in the order in which the variables stand; else None."""
    names = [item.members[0] for item in left.items if is_assignment(item)]
    if not len(names) == len(left.items) == len(set(names)) or any(is_assignment(item) for item in right.items):
        return None
    return unnamed(left.items), list(right.items)


def is_membership(node: Node) -> TypeGuard[Relation]:
    r"""Whether this is `name = ...` or `name \in ...`."""
    return isinstance(node, Relation) and node.operators in (("=",), ("in",)) and is_name(node.members[0])


def unnamed(items: Iterable[Node]) -> list[Node]:
    """The values of the assignments among the items, and the other items."""
    return [item.members[1] if isinstance(item, Relation) and is_assignment(item) else item for item in items]


def define_same_y(left: Relation, right: Relation) -> bool:
    """`y = ...` and `f(x) = ...`."""
    heads = {left.members[0], right.members[0]}
    are_definitions = left.operators == right.operators == ("=",) and is_assignment(left) and is_assignment(right)
    return are_definitions and Symbol("y") in heads


def renamed_parameter(left: Relation, right: Relation) -> Node | None:
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


def as_equation(statement: Relation | Logic) -> Relation | None:
    """The statement as one equation; alternatives are one whose sides are multiplied: `a = 0 or b = 0` is `ab = 0`."""
    if isinstance(statement, Relation):
        if statement.operators != ("=",):
            return None
        value = statement.members[1]
        if isinstance(value, Sequence) and not value.brackets and is_scalar(statement.members[0]):
            parts = [Relation(("=",), (statement.members[0], item)) for item in value.items]
            return as_equation(Logic("or", tuple(parts)))
        return statement
    if statement.operation != "or":
        return None
    equations = [as_equation(item) if isinstance(item, Relation | Logic) else None for item in statement.items]
    known = [equation for equation in equations if equation is not None]
    if len(known) != len(equations) or not all(is_scalar(member) for equation in known for member in equation.members):
        return None
    product = forms.multiply([difference(*equation.members) for equation in known if len(equation.members) == 2])
    return Relation(("=",), (product, Number(Fraction(0))))
