r"""The typed tree that an answer is read into: numbers and expressions, and the objects that are made of them.

Every node is frozen and hashable, holds no float, and says nothing about how it was written: `\frac12`, `1/2` and `0.5`
are the same node. A tree comes from `parser` alone and is bounded there in length, depth and digits.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction


@dataclass(frozen=True, slots=True)
class Number:
    """An exact rational number; a decimal is the fraction that it stands for."""

    value: Fraction


@dataclass(frozen=True, slots=True)
class Constant:
    """`pi`, `e`, `i`, `infinity`, or one of the sets `reals`, `integers`, `naturals`, `rationals`, `complexes`."""

    name: str


@dataclass(frozen=True, slots=True)
class Symbol:
    """A variable. Case and subscript are part of its name: `x`, `X`, `x_1`, `theta`."""

    name: str


@dataclass(frozen=True, slots=True)
class Sum:
    """Two or more terms."""

    terms: tuple[Node, ...]


@dataclass(frozen=True, slots=True)
class Product:
    """Two or more factors; a quotient is a product with a power of -1."""

    factors: tuple[Node, ...]


@dataclass(frozen=True, slots=True)
class Power:
    """`base ** exponent`; the square root is a `Call`."""

    base: Node
    exponent: Node


@dataclass(frozen=True, slots=True)
class Call:
    """A function of its arguments: one of `FUNCTIONS`, or an unknown one (`f`, `P`) whose name is all that is known.

    `root` takes the radicand and the index, and the root of a negative number with an odd index is real. `log` takes
    the argument and the base; `ln` has none.
    """

    name: str
    arguments: tuple[Node, ...]


@dataclass(frozen=True, slots=True)
class PlusMinus:
    r"""`\pm value` as a term (sign 1) or `\mp value` (sign -1); all of one answer take their upper signs together."""

    value: Node
    sign: int = 1


@dataclass(frozen=True, slots=True)
class Sequence:
    """Items with a comma or semicolon between them.

    `brackets` is "" for a bare list, "()", "[]" or "{}"; a pair in "()" may be a tuple or an open interval.
    """

    brackets: str
    items: tuple[Node, ...]


@dataclass(frozen=True, slots=True)
class Interval:
    """A real interval that is not written as a plain pair in "()" or "[]"."""

    left: Node
    right: Node
    left_closed: bool
    right_closed: bool


@dataclass(frozen=True, slots=True)
class SetOperation:
    """`union`, `intersection` or `difference` of two or more sets."""

    operation: str
    sets: tuple[Node, ...]


@dataclass(frozen=True, slots=True)
class SetBuilder:
    r"""`\{variable | condition\}`."""

    variable: Node
    condition: Node


@dataclass(frozen=True, slots=True)
class Matrix:
    """Rows of equal length. `kind` is "matrix", or "determinant" if it stands between bars."""

    rows: tuple[tuple[Node, ...], ...]
    kind: str = "matrix"


@dataclass(frozen=True, slots=True)
class Relation:
    """A chain `members[0] operators[0] members[1] ...`; operators are = != < <= > >= in notin ~ (approximately)."""

    operators: tuple[str, ...]
    members: tuple[Node, ...]


@dataclass(frozen=True, slots=True)
class Logic:
    """`or` or `and` between statements, `not` of one, or "list": conditions with commas between them."""

    operation: str
    items: tuple[Node, ...]


@dataclass(frozen=True, slots=True)
class Ratio:
    """`a : b : c`; `is_time` if it is written as a clock shows it."""

    parts: tuple[Node, ...]
    is_time: bool = False


@dataclass(frozen=True, slots=True)
class Based:
    """Digits in a base that is written as a subscript."""

    digits: str
    base: int


@dataclass(frozen=True, slots=True)
class Quantity:
    """A value with a unit in its canonical spelling: `cm^2`, `%`, `degree`, `$`, or any other words."""

    value: Node
    unit: str


@dataclass(frozen=True, slots=True)
class Text:
    """Words, in lower case with single spaces."""

    words: str


Node = (
    Number
    | Constant
    | Symbol
    | Sum
    | Product
    | Power
    | Call
    | PlusMinus
    | Sequence
    | Interval
    | SetOperation
    | SetBuilder
    | Matrix
    | Relation
    | Logic
    | Ratio
    | Based
    | Quantity
    | Text
)

# Functions whose value is known, with the numbers of arguments that they take. "choose" is the binomial coefficient.
FUNCTIONS: dict[str, tuple[int, ...]] = {
    **dict.fromkeys(("sin", "cos", "tan", "cot", "sec", "csc"), (1,)),
    **dict.fromkeys(("arcsin", "arccos", "arctan", "arccot", "arcsec", "arccsc"), (1,)),
    **dict.fromkeys(("sinh", "cosh", "tanh", "coth", "sech", "csch"), (1,)),
    **dict.fromkeys(("arcsinh", "arccosh", "arctanh"), (1,)),
    **dict.fromkeys(("ln", "exp", "abs", "floor", "ceil", "sign", "factorial", "conjugate", "re", "im"), (1,)),
    **dict.fromkeys(("log", "root", "choose", "mod"), (2,)),
    **dict.fromkeys(("gcd", "lcm", "max", "min"), tuple(range(1, 9))),
}
SCALARS = (Number, Constant, Symbol, Sum, Product, Power, Call)
ZERO, ONE, MINUS_ONE, HALF = Number(Fraction(0)), Number(Fraction(1)), Number(Fraction(-1)), Number(Fraction(1, 2))


def children(node: Node) -> tuple[Node, ...]:
    """The nodes that `node` is made of, in order."""
    match node:
        case Number() | Constant() | Symbol() | Based() | Text():
            return ()
        case Sum(parts) | Product(parts) | Call(_, parts) | Sequence(_, parts) | SetOperation(_, parts):
            return parts
        case Relation(_, parts) | Logic(_, parts) | Ratio(parts):
            return parts
        case Power(base, exponent):
            return (base, exponent)
        case PlusMinus(value) | Quantity(value):
            return (value,)
        case Interval(left, right):
            return (left, right)
        case SetBuilder(variable, condition):
            return (variable, condition)
        case Matrix(rows):
            return tuple(entry for row in rows for entry in row)


def is_scalar(node: Node) -> bool:
    """Whether the tree is an expression with a numerical value: nothing in it but numbers, symbols and operations."""
    return isinstance(node, SCALARS) and all(is_scalar(child) for child in children(node))


def symbols(node: Node) -> frozenset[str]:
    """Names of the variables in the tree."""
    if isinstance(node, Symbol):
        return frozenset((node.name,))
    return frozenset[str]().union(*(symbols(child) for child in children(node)))


def negated(node: Node) -> Node:
    """`-node`."""
    return Number(-node.value) if isinstance(node, Number) else Product((MINUS_ONE, node))


def difference(left: Node, right: Node) -> Node:
    """`left - right`."""
    return Sum((left, negated(right)))


def substituted(node: Node, replacements: Mapping[Node, Node]) -> Node:
    """The expression with some of its nodes replaced; what is no expression stays as it is."""
    if node in replacements:
        return replacements[node]
    match node:
        case Sum(terms):
            return Sum(tuple(substituted(term, replacements) for term in terms))
        case Product(factors):
            return Product(tuple(substituted(factor, replacements) for factor in factors))
        case Power(base, exponent):
            return Power(substituted(base, replacements), substituted(exponent, replacements))
        case Call(name, arguments):
            return Call(name, tuple(substituted(argument, replacements) for argument in arguments))
        case _:
            return node
