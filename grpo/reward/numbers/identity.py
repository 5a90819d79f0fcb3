"""Whether two scalar expressions are the same number or the same function.

Nothing is decided by floating point. In this order, and with the cost of every step bounded before it is done:

1. rational constants: exact fractions (`rational`);
2. rational functions, and formulas that agree term by term: residues modulo two large primes (`residues`);
3. the rest: values with error bounds, at several points if there are symbols (`sampling`).
"""

from __future__ import annotations

from contextlib import suppress
from fractions import Fraction
from itertools import pairwise
from typing import TYPE_CHECKING

from grpo.reward.answers.tree import ZERO, Node, Number, symbols
from grpo.reward.numbers.infinity import contains_infinity, extended, infinite_sign
from grpo.reward.numbers.rational import Budget, TooCostlyError, UndefinedError, simplified
from grpo.reward.numbers.residues import PRIMES, height, residue_pairs

if TYPE_CHECKING:
    from grpo.reward.numbers.sampling import Sampling

__all__ = ["UndefinedError", "are_equal", "exact_value", "order", "proportionality"]

UNITS = 16_000  # for one decision; one or two microseconds each
_PROVEN_HEIGHT = 60  # no coefficient of so few bits is a multiple of one of the primes
_MAX_HEIGHT = 1 << 80


def exact_value(node: Node) -> Fraction | None:
    """The rational value of a tree, or None if it is not rational, or too large, or not seen to be rational.

    Raises:
        UndefinedError: it has no value, as 1/0.
    """
    try:
        node = simplified(node, Budget(UNITS))
    except TooCostlyError:
        return None
    return node.value if isinstance(node, Number) else None


def are_equal(left: Node, right: Node, whole: Budget | None = None) -> bool | None:
    """Whether two scalar trees are the same number, or the same function of their symbols; None if undecided.

    Args:
        left: one tree.
        right: the other.
        whole: what several decisions may cost together; None asks for this one alone.

    Raises:
        UndefinedError: one of them has no value, as 1/0 or infinity - infinity.
    """
    with (whole or Budget(UNITS)).part(UNITS) as budget, suppress(TooCostlyError):
        left, right = simplified(left, budget), simplified(right, budget)
        if contains_infinity(left) or contains_infinity(right):
            return _equal_with_infinity(left, right, budget)
        return _equal(left, right, budget)
    return None


def proportionality(left: Node, right: Node, whole: Budget | None = None) -> int | None:
    """How `left` is a constant multiple of `right`, for the equations `left = 0` and `right = 0`.

    Args:
        left: one tree.
        right: the other.
        whole: see `are_equal`.

    Returns:
        1 or -1 for a positive or negative multiple, 2 for a multiple that is not real, 0 for none; None if undecided.
        Two functions that are zero everywhere count as 1; one alone, or different sets of symbols, as 0.

    Raises:
        UndefinedError: one of them has no value.
    """
    budget = Budget(UNITS)
    try:
        left, right = simplified(left, budget), simplified(right, budget)
        if symbols(left) != symbols(right):
            return 0
        return None if contains_infinity(left) or contains_infinity(right) else _ratio(left, right, budget)
    except TooCostlyError:
        return None


def order(left: Node, right: Node) -> int | None:
    """-1, 0 or 1 as the real constant `left` is less than, equal to or greater than `right`; None if undecided.

    Raises:
        UndefinedError: one of them has no value.
    """
    budget = Budget(UNITS)
    try:
        left, right = (
            extended(simplified(node, budget), lambda node: _sign(node, ZERO, budget)) for node in (left, right)
        )
        infinities = infinite_sign(left), infinite_sign(right)
        return _compare(*infinities) if any(infinities) else _sign(left, right, budget)
    except TooCostlyError:
        return None


def _compare(left: Fraction | int, right: Fraction | int) -> int:
    return (left > right) - (left < right)


def _sampling(left: Node, right: Node, budget: Budget) -> Sampling:
    from grpo.reward.numbers.sampling import Sampling  # imports mpmath, which takes 0.1 s, and most answers do without

    return Sampling(left, right, budget)


def _sign(left: Node, right: Node, budget: Budget) -> int | None:
    """-1, 0 or 1 for `left - right`, both simplified and finite."""
    if isinstance(left, Number) and isinstance(right, Number):
        return _compare(left.value, right.value)
    return None if symbols(left) or symbols(right) else _sampling(left, right, budget).sign_of_difference()


def _equal_with_infinity(left: Node, right: Node, budget: Budget) -> bool | None:
    try:
        left, right = (extended(node, lambda node: _sign(node, ZERO, budget)) for node in (left, right))
    except TooCostlyError:
        return True if left == right else None
    infinities = infinite_sign(left), infinite_sign(right)
    return infinities[0] == infinities[1] if any(infinities) else _equal(left, right, budget)


def _equal(left: Node, right: Node, budget: Budget) -> bool | None:
    if isinstance(left, Number) and isinstance(right, Number):
        return left.value == right.value
    places = tuple(enumerate(PRIMES))
    pairs = residue_pairs(left, right, places, budget)
    if any(pair.has_large_powers for pair in pairs) and all(pair.left == pair.right for pair in pairs):
        pairs = residue_pairs(left, right, places, budget, are_large_powers_formal=True)
    for pair in pairs:
        if pair.left != pair.right:
            # in one order, so that the two orders of the arguments cost the same and have one answer
            left, right = (left, right) if pair.left < pair.right else (right, left)
            return False if pair.is_exact else _sampling(left, right, budget).is_equal()
    largest = max(height(left), height(right))
    if largest > _MAX_HEIGHT:
        return _sampling(left, right, budget).is_equal()
    if largest > _PROVEN_HEIGHT or not all(pair.is_total for pair in pairs):
        return _sampling(left, right, budget).is_plausible()
    return True


def _ratio(left: Node, right: Node, budget: Budget) -> int | None:
    pairs = residue_pairs(left, right, tuple((point, PRIMES[0]) for point in range(2)), budget)
    if pairs[0].left > pairs[0].right:
        left, right = right, left
    products = [one.left * other.right - one.right * other.left for one, other in pairwise(pairs)]
    is_multiple = not any(product % PRIMES[0] for product in products)
    if not is_multiple and pairs[0].is_exact:
        return 0
    sampling = _sampling(left, right, budget)
    is_limited = max(height(left), height(right)) <= _MAX_HEIGHT and not any(pair.has_large_powers for pair in pairs)
    sign = sampling.sign_of_ratio() if is_multiple and is_limited and products else None
    return sign or sampling.ratio()
