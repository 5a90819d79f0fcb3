"""Arithmetic with signed infinity."""

from __future__ import annotations

from collections.abc import Callable

from grpo.reward.answers.tree import (
    HALF,
    MINUS_ONE,
    ZERO,
    Call,
    Constant,
    Node,
    Number,
    Power,
    Product,
    Sum,
    Symbol,
    children,
)
from grpo.reward.numbers.rational import TooCostlyError, UndefinedError

INFINITY = Constant("infinity")
MINUS_INFINITY = Product((MINUS_ONE, INFINITY))

Sign = Callable[[Node], "int | None"]


def contains_infinity(node: Node) -> bool:
    """Whether infinity occurs in the tree."""
    if isinstance(node, Number | Symbol):
        return False
    if isinstance(node, Constant):
        return node == INFINITY
    return any(map(contains_infinity, children(node)))


def infinite_sign(node: Node) -> int:
    """1 and -1 for the two infinities, 0 for all else."""
    return 1 if node == INFINITY else -1 if node == MINUS_INFINITY else 0


def extended(node: Node, sign: Sign) -> Node:
    """The tree without infinity in it, or else `INFINITY` or `MINUS_INFINITY`.

    Args:
        node: a simplified scalar tree.
        sign: of a finite tree; None if it is unknown or not real.

    Raises:
        UndefinedError: infinity - infinity, 0 * infinity, infinity**0.
        TooCostlyError: the value is not known.
    """
    if not contains_infinity(node) or infinite_sign(node):
        return node
    match node:
        case Sum(terms):
            return _sum([extended(term, sign) for term in terms])
        case Product(factors):
            return _product([extended(factor, sign) for factor in factors], sign)
        case Power(base, exponent):
            return _power(extended(base, sign), extended(exponent, sign), sign)
        case Call(name, (argument,)):
            return _call(name, infinite_sign(extended(argument, sign)))
    raise TooCostlyError


def _infinite(sign: int) -> Node:
    return INFINITY if sign > 0 else MINUS_INFINITY


def _sum(terms: list[Node]) -> Node:
    signs = {infinite_sign(term) for term in terms} - {0}
    if len(signs) == 2:
        raise UndefinedError("infinity - infinity")
    return _infinite(signs.pop()) if signs else Sum(tuple(terms))


def _product(factors: list[Node], sign: Sign) -> Node:
    finite = [factor for factor in factors if not infinite_sign(factor)]
    if len(finite) == len(factors):
        return Product(tuple(factors))
    result = 1
    for factor in factors:
        factor_sign = infinite_sign(factor) or sign(factor)
        if factor_sign is None:
            raise TooCostlyError
        result *= factor_sign
    if result == 0:
        raise UndefinedError("0 * infinity")
    return _infinite(result)


def _power(base: Node, exponent: Node, sign: Sign) -> Node:
    if not infinite_sign(base) and not infinite_sign(exponent):
        return Power(base, exponent)
    if infinite_sign(exponent):
        growth = sign(Sum((base, MINUS_ONE)))
        if infinite_sign(base) or growth != 1:
            raise TooCostlyError
        return INFINITY if infinite_sign(exponent) > 0 else ZERO
    exponent_sign = sign(exponent)
    if exponent_sign == 0:
        raise UndefinedError("infinity to the power 0")
    if exponent_sign == -1:
        return ZERO
    if exponent_sign == 1 and base == INFINITY:
        return INFINITY
    if isinstance(exponent, Number) and exponent.value.denominator == 1:
        return _infinite(1 - 2 * (exponent.value.numerator % 2))
    raise TooCostlyError


def _call(name: str, sign: int) -> Node:
    if name == "abs" and sign:
        return INFINITY
    if name in ("ln", "factorial") and sign == 1:
        return INFINITY
    if name == "arctan" and sign:
        return Product((HALF if sign > 0 else Number(-HALF.value), Constant("pi")))
    raise TooCostlyError
