"""Exact rational arithmetic on scalar trees, each step of it bounded before it is done.

`simplified` puts a `Number` in the place of every subtree whose value is rational. What is too large stays as it is.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from fractions import Fraction

from grpo.reward.answers.tree import FUNCTIONS, ONE, Call, Constant, Node, Number, Power, Product, Sum, Symbol

MAX_BITS = 20_000  # of a numerator or denominator
_EULER = Constant("e")
_NONZERO = (_EULER, Constant("pi"), Constant("i"))
_NO_VALUES: Mapping[str, int] = {}


class UndefinedError(ValueError):
    """The expression has no value: it divides by zero, or takes the logarithm of zero."""


class TooCostlyError(Exception):
    """A step would cost more than the caller gave; it has not been done."""


class Budget:
    """Work that is left to one decision, in units of about a microsecond."""

    def __init__(self, units: float) -> None:
        self.left = units

    def spend(self, units: float) -> None:
        """Take `units` away.

        Raises:
            TooCostlyError: fewer are left.
        """
        self.left -= units
        if self.left < 0:
            raise TooCostlyError

    @contextmanager
    def part(self, units: float) -> Iterator[Budget]:
        """At most so much of what is left, for one of several decisions."""
        part = Budget(min(units, self.left))
        allowed = part.left
        try:
            yield part
        finally:
            self.left -= allowed - max(part.left, 0.0)


def simplified(node: Node, budget: Budget, values: Mapping[str, int] = _NO_VALUES) -> Node:
    """An equal tree in which rational subtrees are numbers, and roots, `exp` and `log` are powers and `ln`.

    Args:
        node: a scalar tree.
        budget: what this may cost.
        values: of some of the symbols.

    Raises:
        UndefinedError: a rational subtree has no value, as 1/0.
        TooCostlyError: the budget is spent.
    """
    budget.spend(3)
    match node:
        case Number():
            return node
        case Sum(terms):
            terms = tuple([simplified(term, budget, values) for term in terms])
            return _folded(terms, _total, budget) or Sum(terms)
        case Product(factors):
            factors = tuple([simplified(factor, budget, values) for factor in factors])
            return _folded(factors, _product, budget) or Product(factors)
        case Power(base, exponent):
            return _simplified_power(simplified(base, budget, values), simplified(exponent, budget, values), budget)
        case Call(name, arguments):
            return _simplified_call(name, tuple([simplified(item, budget, values) for item in arguments]), budget)
        case Symbol(name) if name in values:
            return Number(Fraction(values[name]))
    return node


def bit_length(value: Fraction) -> int:
    """Of the larger of numerator and denominator."""
    return max(value.numerator.bit_length(), value.denominator.bit_length())


_Exact = Callable[[list[Fraction], Budget], Fraction | None]  # None: not rational, or too large


def _folded(nodes: tuple[Node, ...], function: _Exact, budget: Budget) -> Number | None:
    values = [node.value for node in nodes if isinstance(node, Number)]
    if len(values) < len(nodes):
        return None
    value = function(values, budget)
    return None if value is None else Number(value)


def _spend(budget: Budget, bits: int) -> None:
    budget.spend(1 + 1e-6 * bits * bits)  # a greatest common divisor takes quadratic time, at 20,000 bits about 0.3 ms


def _total(terms: list[Fraction], budget: Budget) -> Fraction | None:
    total = Fraction(0)
    for term in terms:
        _spend(budget, bit_length(total) + bit_length(term))
        total += term
        if bit_length(total) > MAX_BITS:
            return None
    return total


def _product(factors: list[Fraction], budget: Budget) -> Fraction | None:
    product = Fraction(1)
    for factor in factors:
        _spend(budget, bit_length(product) + bit_length(factor))
        product *= factor
        if bit_length(product) > MAX_BITS:
            return None
    return product


def _simplified_power(base: Node, exponent: Node, budget: Budget) -> Node:
    if not isinstance(exponent, Number):
        return Power(base, exponent)
    if exponent.value == 1:
        return base
    if not isinstance(base, Number):
        return ONE if not exponent.value and base in _NONZERO else Power(base, exponent)
    value = _power(base.value, exponent.value, budget)
    return Power(base, exponent) if value is None else Number(value)


def _power(base: Fraction, exponent: Fraction, budget: Budget) -> Fraction | None:
    """The real power if it is rational and not too large; a root of a negative number is real if its index is odd."""
    power, index = exponent.numerator, exponent.denominator
    if not base:
        if power <= 0:
            raise UndefinedError("zero to a power that is not positive")
        return base
    _spend(budget, bit_length(base))
    root = base if index == 1 else _exact_root(base, index)
    if root is None:
        return None
    if abs(root.numerator) == root.denominator:  # 1 or -1
        return root if power % 2 else root * root
    if abs(power) * (bit_length(root) - 1) > MAX_BITS:
        return None
    _spend(budget, abs(power) * bit_length(root))
    return root**power


def _exact_root(value: Fraction, index: int) -> Fraction | None:
    if value < 0:
        root = _exact_root(-value, index) if index % 2 else None
        return None if root is None else -root
    numerator = _exact_integer_root(value.numerator, index)
    denominator = None if numerator is None else _exact_integer_root(value.denominator, index)
    return None if numerator is None or denominator is None else Fraction(numerator, denominator)


def _exact_integer_root(value: int, index: int) -> int | None:
    """The integer whose power is the positive `value`, if there is one: Newton's method from a guess of 40 bits."""
    if index >= value.bit_length():
        return 1 if value == 1 else None
    if index == 2:
        root = math.isqrt(value)
        return root if root * root == value else None
    bits = math.log2(value) / index
    shift = max(int(bits) - 40, 0)
    root = (int(2 ** (bits - shift) * (1 + 1e-9)) + 1) << shift  # not below the root, from where each step goes down
    while True:
        lower = ((index - 1) * root + value // root ** (index - 1)) // index
        if lower >= root:
            return root if root**index == value else None
        root = lower


def _simplified_call(name: str, arguments: tuple[Node, ...], budget: Budget) -> Node:
    if len(arguments) not in FUNCTIONS.get(name, ()):
        return Call(name, arguments)
    if name == "exp":
        return _simplified_power(_EULER, arguments[0], budget)
    if name == "root":
        return _simplified_power(arguments[0], _reciprocal(arguments[1], budget), budget)
    number = _folded(arguments, _EXACT[name], budget) if name in _EXACT else None
    if number is not None:
        return number
    if name == "log":
        logarithm, base = (_simplified_call("ln", (argument,), budget) for argument in arguments)
        return Product((logarithm, _reciprocal(base, budget)))
    return Call(name, arguments)


def _reciprocal(node: Node, budget: Budget) -> Node:
    return _simplified_power(node, Number(Fraction(-1)), budget)


def _factorial(values: list[Fraction], budget: Budget) -> Fraction | None:
    (value,) = values
    if value.denominator > 1:
        return None
    if value < 0:
        raise UndefinedError("factorial of a negative integer")
    if value > MAX_BITS or math.lgamma(float(value) + 1) > MAX_BITS * math.log(2):
        return None
    budget.spend(float(value))
    return Fraction(math.factorial(value.numerator))


def _choose(values: list[Fraction], budget: Budget) -> Fraction | None:
    """The binomial coefficient n (n-1) ... (n-k+1) / k!, which is 0 for a negative k."""
    total, chosen = values
    if chosen.denominator > 1:
        return None
    if total.denominator == 1 and total >= 0:
        return _choose_integers(total.numerator, min(chosen.numerator, total.numerator - chosen.numerator), budget)
    if chosen < 0:
        return Fraction(0)
    count = int(chosen)
    if count * (bit_length(total) + count.bit_length()) > MAX_BITS:
        return None
    _spend(budget, count * bit_length(total))
    return math.prod((total - step for step in range(count)), start=Fraction(1)) / math.factorial(count)


def _choose_integers(total: int, chosen: int, budget: Budget) -> Fraction | None:
    if chosen <= 0:
        return Fraction(chosen == 0)
    if chosen * (math.log2(total) - math.log2(chosen) + math.log2(math.e)) > MAX_BITS:  # (e n / k)^k is an upper bound
        return None
    budget.spend(chosen)
    return Fraction(math.comb(total, chosen))


def _log(values: list[Fraction], budget: Budget) -> Fraction | None:
    value, base = values
    if value == 0 or base == 0:
        raise UndefinedError("logarithm of zero or to the base zero")
    if value < 0 or base < 0:
        return None
    divisor = _approximate_log(base)
    if divisor == 0:
        return None
    ratio = Fraction(_approximate_log(value) / divisor).limit_denominator(64)
    return ratio if _power(base, ratio, budget) == value else None


def _approximate_log(value: Fraction) -> float:
    difference = float(value - 1) if bit_length(value) < 1000 else 1.0
    return math.log1p(difference) if abs(difference) < 0.5 else math.log(value.numerator) - math.log(value.denominator)


def _ln(values: list[Fraction], budget: Budget) -> Fraction | None:
    del budget
    if not values[0]:
        raise UndefinedError("logarithm of zero")
    return Fraction(0) if values[0] == 1 else None


def _mod(values: list[Fraction], budget: Budget) -> Fraction:
    if not values[1]:
        raise UndefinedError("remainder of a division by zero")
    _spend(budget, sum(map(bit_length, values)))
    return values[0] % values[1]


def _of_integers(function: Callable[..., int]) -> _Exact:
    def exact(values: list[Fraction], budget: Budget) -> Fraction | None:
        bits = sum(map(bit_length, values))
        if bits > MAX_BITS or any(value.denominator > 1 for value in values):
            return None
        _spend(budget, bits)
        return Fraction(function(*(value.numerator for value in values)))

    return exact


def _of_one(function: Callable[[Fraction], int | Fraction]) -> _Exact:
    return lambda values, budget: Fraction(function(values[0]))


def _at_zero(result: int) -> _Exact:
    return lambda values, budget: None if values[0] else Fraction(result)


_EXACT: dict[str, _Exact] = {
    "abs": _of_one(abs),
    "floor": _of_one(math.floor),
    "ceil": _of_one(math.ceil),
    "sign": _of_one(lambda value: (value > 0) - (value < 0)),
    "conjugate": _of_one(lambda value: value),
    "re": _of_one(lambda value: value),
    "im": _of_one(lambda value: 0),
    "max": lambda values, budget: max(values),
    "min": lambda values, budget: min(values),
    "gcd": _of_integers(math.gcd),
    "lcm": _of_integers(math.lcm),
    "mod": _mod,
    "factorial": _factorial,
    "choose": _choose,
    "log": _log,
    "ln": _ln,
    **dict.fromkeys(("sin", "tan", "sinh", "tanh", "arcsin", "arctan", "arcsinh", "arctanh"), _at_zero(0)),
    **dict.fromkeys(("cos", "sec", "cosh", "sech"), _at_zero(1)),
}
