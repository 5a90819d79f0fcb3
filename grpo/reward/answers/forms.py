r"""Builds the nodes of the tree for the parser: folds plain numbers, and refuses what has no meaning."""

from __future__ import annotations

from collections.abc import Sequence as Items
from fractions import Fraction

from grpo.reward.answers.lexer import UnreadableError
from grpo.reward.answers.tree import (
    FUNCTIONS,
    MINUS_ONE,
    ONE,
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
    SetOperation,
    Sum,
    Symbol,
    Text,
    children,
    substituted,
)
from grpo.reward.answers.words import GENERIC_UNITS, UNITS

# The base of `\log`, which may mean 10 or e: the comparison tries what it can be.
LOG_BASE = Symbol("base of log")

_MAX_TERMS = 30
_MAX_NODES = 3000  # of a sum that is written out
_MAX_BITS = 20_000
_EQUATION = ("=",)
_INVERSES = frozenset(("sin", "cos", "tan", "cot", "sec", "csc", "sinh", "cosh", "tanh"))
_MULTIPLES = {"hundred": 10**2, "thousand": 10**3, "million": 10**6, "billion": 10**9}
_DEGREE = Product((Constant("pi"), Number(Fraction(1, 180))))
_VALUE_TYPES = (Number, Constant, Symbol, Sum, Product, Power, Call, PlusMinus)


def scalar(node: Node) -> Node:
    """`node` as a value that can be calculated with: a percentage is its hundredth, an angle in degrees in radians."""
    if isinstance(node, Quantity) and node.unit == "%":
        return multiply([node.value, Number(Fraction(1, 100))])
    if isinstance(node, Quantity) and node.unit == "degree":
        return multiply([node.value, _DEGREE])
    if isinstance(node, Sequence) and node.brackets == "[]" and len(node.items) == 1:
        return scalar(node.items[0])
    if not isinstance(node, _VALUE_TYPES):
        raise UnreadableError("not_a_value")
    return node


def negative(node: Node) -> Node:
    """`-node`."""
    if isinstance(node, Number):
        return Number(-node.value)
    if isinstance(node, Based):
        return Based(f"-{node.digits}", node.base)
    return multiply([MINUS_ONE, node])


def add(terms: Items[Node]) -> Node:
    """The sum; of quantities in one unit, their quantity."""
    units = {term.unit for term in terms if isinstance(term, Quantity)}
    if len(units) == 1 and all(isinstance(term, Quantity) for term in terms):
        return Quantity(add([term.value for term in terms if isinstance(term, Quantity)]), units.pop())
    total, others = Fraction(0), []
    for term in map(scalar, terms):
        for part in term.terms if isinstance(term, Sum) else (term,):
            if isinstance(part, Number) and _bits(part.value) + _bits(total) < _MAX_BITS:
                total += part.value
            else:
                others.append(part)
    if total or not others:
        others.append(Number(total))
    return others[0] if len(others) == 1 else Sum(tuple(others))


def multiply(factors: Items[Node]) -> Node:
    """The product; a matrix is multiplied entry by entry, a quantity keeps its unit."""
    if len(factors) == 2 and isinstance(factors[0], Symbol) and isinstance(factors[1], Sequence) and factors[1].items:
        return Call(factors[0].name, factors[1].items)  # P(1, 2): a point with its name, or a function of two
    compound = [factor for factor in factors if isinstance(factor, Matrix | Quantity)]
    if len(compound) == 1:
        others = [factor for factor in factors if factor is not compound[0]]
        match compound[0]:
            case Matrix(rows, "matrix"):
                return Matrix(tuple(tuple(multiply([*others, entry]) for entry in row) for row in rows))
            case Quantity(value, unit):
                return Quantity(multiply([*others, value]), unit)
            case _:
                pass
    coefficient, others = Fraction(1), []
    for factor in map(scalar, factors):
        for part in factor.factors if isinstance(factor, Product) else (factor,):
            if isinstance(part, Number) and _bits(part.value) + _bits(coefficient) < _MAX_BITS:
                coefficient *= part.value
            else:
                others.append(part)
    if coefficient != 1 or not others:
        others.insert(0, Number(coefficient))
    return others[0] if len(others) == 1 else Product(tuple(others))


def reciprocal(node: Node) -> Node:
    """`1 / node`."""
    node = scalar(node)
    if isinstance(node, Number):
        if not node.value:
            raise UnreadableError("undefined")
        return Number(1 / node.value)
    if isinstance(node, Product):
        return multiply([reciprocal(factor) for factor in node.factors])
    return Power(node, MINUS_ONE)


def raised(base: Node, exponent: Node) -> Node:
    """`base ^ exponent`."""
    base, exponent = scalar(base), scalar(exponent)
    return base if exponent == ONE else Power(base, exponent)


def root(radicand: Node, index: Node) -> Node:
    """The root of the given index."""
    return call("root", radicand, index)


def call(name: str, *arguments: Node) -> Node:
    """A function of values."""
    arguments = tuple(scalar(argument) for argument in arguments)
    if name in FUNCTIONS and len(arguments) not in FUNCTIONS[name]:
        raise UnreadableError("malformed")
    return Call(name, arguments)


def applied(name: str, arguments: tuple[Node, ...], base: Node | None, power: Node | None) -> Node:
    """A named function with what may stand at its name: the base of a logarithm, a power (-1: the inverse function)."""
    if power == MINUS_ONE and name in _INVERSES:
        name, power = f"arc{name}", None
    if name in ("log", "lg"):
        default = LOG_BASE if name == "log" else Number(Fraction(10))
        node = call("log", arguments[0], *(arguments[1:] or (base or default,)))
    elif name in ("sqrt", "cbrt"):
        node = call("root", *arguments, Number(Fraction(2 if name == "sqrt" else 3)))
    elif name == "root" and len(arguments) == 1:
        node = call("root", *arguments, Number(Fraction(2)))
    elif name == "exp":
        node = raised(Constant("e"), arguments[0]) if len(arguments) == 1 else call("exp", *arguments)
    else:
        node = call(name, *arguments)
    return node if power is None else raised(node, power)


def series(name: str, body: Node, variable: Node, lower: Node, upper: Node) -> Node:
    """A sum or product over an index: written out if it is short, else a function of which nothing is known."""
    if not isinstance(variable, Symbol):
        raise UnreadableError("malformed")
    if isinstance(lower, Number) and isinstance(upper, Number) and 0 <= upper.value - lower.value < _MAX_TERMS:
        first, last = lower.value, upper.value
        if first.denominator == last.denominator == 1:
            if _size(body) * (last - first + 1) > _MAX_NODES:  # sums of sums of sums
                raise UnreadableError("too_large")
            indices = [Number(Fraction(index)) for index in range(int(first), int(last) + 1)]
            parts = [substituted(scalar(body), {variable: index}) for index in indices]
            return add(parts) if name == "sum" else multiply(parts)
    return call(name, body, variable, lower, upper)


def with_unit(node: Node, unit: str) -> Node:
    """A value in a unit; `2 million` is a number."""
    first, _, rest = unit.partition(" ")
    if first in _MULTIPLES and not isinstance(node, Quantity):
        node = multiply([node, Number(Fraction(_MULTIPLES[first]))])
        return with_unit(node, rest) if rest else node
    if isinstance(node, Quantity):
        return Quantity(node.value, unit if node.unit in ("th", unit, "dollar") else f"{node.unit} {unit}")
    if isinstance(node, Text):
        raise UnreadableError("prose")
    return Quantity(node, unit)


def unit_name(words: Items[str]) -> str:
    """One spelling for the words of a unit: `square feet`, `sq. ft` and `ft^2` are `foot^2`."""
    names: list[str] = []
    power = ""
    for word in words:
        name, _, exponent = word.lower().strip(".,()").partition("^")
        if name in ("square", "squared", "sq"):
            power = "^2"
        elif name in ("cubic", "cubed", "cu"):
            power = "^3"
        elif name:
            known = UNITS.get(name) or (name[:-1] if name.endswith("s") and len(name) > 3 else name)
            names.append(known + (f"^{exponent}" if exponent else power))
            power = ""
            continue
        if name in ("squared", "cubed") and names:
            names[-1] += power
            power = ""
    return " ".join(names)


def is_generic(unit: str) -> bool:
    """Whether the words say no more than that there is a unit."""
    return unit.partition("^")[0] in GENERIC_UNITS


def ratio(parts: Items[Node], *, is_time: bool) -> Node:
    """`a : b`; a unit behind the last part belongs to the whole (`4:30 pm`)."""
    last = parts[-1]
    if isinstance(last, Quantity):
        return Quantity(Ratio((*parts[:-1], last.value), is_time), last.unit)
    return Ratio(tuple(parts), is_time)


def relation(operators: Items[str], members: Items[Node]) -> Node:
    """A chain of relations."""
    return Relation(tuple(operators), tuple(members))


def listed(items: Items[Node]) -> Node:
    """Items between commas: conditions, `x = 1, 2` for one variable, or a list."""
    if all(_is_condition(item) for item in items):
        return Logic("list", tuple(items))
    return _shared_name(items) or Sequence("", tuple(items))


def joined(items: Items[Node]) -> list[Node]:
    """What `and` joins: conditions become one, values stay items of a list."""
    return [Logic("and", tuple(items))] if any(_is_condition(item) for item in items) else list(items)


def disjunction(parts: Items[Node]) -> Node:
    """Alternatives: statements or sets stay what they are, values become a list."""
    shared = _shared_name([item for part in parts for item in _items(part)])
    if shared is not None:
        return shared
    if any(isinstance(part, Relation | Logic | Interval | SetOperation) for part in parts):
        return Logic("or", tuple(parts))
    return Sequence("", tuple(item for part in parts for item in _items(part)))


def bracketed(node: Node, brackets: str, *, is_group: bool) -> Node:
    """What stands in brackets: a list gets them; around one value they only group it, if these brackets can."""
    if isinstance(node, Sequence) and not node.brackets:
        return Sequence(brackets, node.items)
    if isinstance(node, Logic) and node.operation in ("and", "list") and brackets in ("()", "[]"):
        return Sequence(brackets, node.items) if not is_group or node.operation == "list" else node
    if is_group or (isinstance(node, Matrix) and brackets == "[]"):
        return node
    return Sequence(brackets, (node,))


def half_open(node: Node, *, left_closed: bool) -> Node:
    """`[a, b)` or `(a, b]`."""
    if not isinstance(node, Sequence) or node.brackets or len(node.items) != 2:
        raise UnreadableError("malformed")
    return Interval(*node.items, left_closed, not left_closed)


def contains(node: Node, kind: type) -> bool:
    """Whether a node of this type stands anywhere in the tree."""
    return isinstance(node, kind) or any(contains(child, kind) for child in children(node))


def _items(part: Node) -> tuple[Node, ...]:
    return part.items if isinstance(part, Sequence) and not part.brackets else (part,)


def _is_condition(node: Node) -> bool:
    return isinstance(node, Logic) or (isinstance(node, Relation) and node.operators != _EQUATION)


def _shared_name(items: Items[Node]) -> Node | None:
    """`x = 1, 2, 3` as one equation between a variable and a list."""
    first = items[0]
    if isinstance(first, Relation) and first.operators == _EQUATION and isinstance(first.members[0], Symbol):
        others = items[1:]
        if not any(isinstance(item, Relation | Logic) for item in others):
            return Relation(_EQUATION, (first.members[0], Sequence("", (first.members[1], *others))))
    return None


def _size(node: Node) -> int:
    return 1 + sum(map(_size, children(node)))


def _bits(value: Fraction) -> int:
    return value.numerator.bit_length() + value.denominator.bit_length()
