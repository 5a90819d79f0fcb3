"""Values of scalar trees at points, to any precision.

A point is a number: each symbol lies there where its name and that number put it, the same in every process.
"""

from __future__ import annotations

from collections.abc import Callable, Set
from functools import lru_cache
from hashlib import sha256
from math import inf

from mpmath import libmp

from grpo.reward.answers.tree import FUNCTIONS, Call, Constant, Node, Number, Power, Product, Sum, Symbol
from grpo.reward.numbers.balls import (
    HALF,
    MINUS_I,
    MINUS_ONE,
    ONE,
    Arithmetic,
    Ball,
    I,
    Real,
    SingularError,
    exactly,
    negative,
)
from grpo.reward.numbers.rational import Budget

_MAX_INDEX = 20
_MAX_ROOT_POWER = 64
_MAX_FALLING = 64

# Where a symbol lies at the first points: lowest value, width, and whether its sign is drawn as well.
_REGIONS = (
    (1, 2, False),
    (0, 1, False),
    (0, 3, True),
    (-1, 1, False),
    (3, 9, False),
    # For expressions that are seldom real
    (0, 12, True),
    (0, 1, False),
    (0, 1, False),
    (-3, 2, False),
    (12, 50, False),
    (20, 100, False),
    (30, 300, False),
    (-12, 9, False),
    (-60, 48, False),
    (0, 0.0625, False),
    (0, 0.0625, False),
    (0, 0.0625, False),
    (0, 2, True),
    (0, 5, True),
    # For functions that are another one far away
    (100, 900, False),
    (-900, 800, False),
)
_CELLS = 24  # of width 1/2, from -6 to 6
PRIMARY = range(5)
FURTHER = range(5, 19)
FAR = range(19, 21)
POSITIVE = tuple(point for point, (lowest, _, is_signed) in enumerate(_REGIONS) if lowest >= 0 and not is_signed)
FINE = range(len(_REGIONS), len(_REGIONS) + _CELLS)  # each symbol is once in each cell


def _hash(text: str) -> bytes:
    return sha256(text.encode("utf-8", "surrogatepass")).digest()


@lru_cache(maxsize=4096)
def _coordinate(name: str, point: int) -> Real:
    """A number with 16 binary places: where the symbol is at the point."""
    digest = _hash(f"{point} {name}")
    lowest, width, is_signed = _REGIONS[point] if point < len(_REGIONS) else (_cell(name, point), 0.5, False)
    steps = int(lowest * 65536) + 1 + int.from_bytes(digest[:8]) % int(width * 65536 - 1)
    return libmp.from_man_exp(-steps if is_signed and digest[8] % 2 else steps, -16)


def _cell(name: str, point: int) -> float:
    digest = _hash(name)
    stride = (1, 5, 7, 11)[digest[0] % 4]  # without a common factor with 24
    return (digest[1] + stride * (point - FINE.start)) % _CELLS / 2 - 6


def integer_coordinate(name: str, point: int) -> int:
    """One of 1 to 12: over the points 0 to 11 every one of them, in an order that the name determines."""
    return 1 + sorted(range(12), key=lambda number: _hash(f"{name} {number}"))[point]


class Evaluator:
    """Evaluation with one precision; the errors that it raises are those of `Arithmetic`."""

    def __init__(self, precision: int, budget: Budget, complex_names: Set[str], is_principal: bool) -> None:
        self.arithmetic = Arithmetic(precision, budget, is_principal)
        self._budget = budget
        self._complex_names = complex_names
        self._point = 0

    def value(self, node: Node, point: int) -> Ball:
        """The value of the tree at one of the points."""
        self._point = point
        return self._value(node)

    def _value(self, node: Node) -> Ball:
        self._budget.spend(4 + self.arithmetic.unit / 5)
        match node:
            case Number(value):
                return self.arithmetic.quotient(value.numerator, value.denominator)
            case Constant(name):
                return self._constant(name)
            case Symbol(name):
                return self._symbol(name)
            case Sum(terms):
                return self.arithmetic.plus(*map(self._value, terms))
            case Product(factors):
                product = self._value(factors[0])
                for factor in factors[1:]:
                    product = self.arithmetic.times(product, self._value(factor))
                return product
            case Power(base, exponent):
                return self._power(self._value(base), exponent)
            case Call(name, arguments):
                return self._call(name, arguments)
        raise AssertionError(f"not a scalar: {node}")

    def _constant(self, name: str) -> Ball:
        match name:
            case "i":
                return I
            case "pi":
                return self.arithmetic.pi()
            case "e":
                return self.arithmetic.e()
        return self._symbol(f"constant {name}")

    def _symbol(self, name: str) -> Ball:
        imaginary = _coordinate(f"i {name}", self._point) if name in self._complex_names else libmp.fzero
        return Ball(_coordinate(name, self._point), imaginary, -inf)

    def _power(self, base: Ball, exponent: Node) -> Ball:
        if not isinstance(exponent, Number):
            return self.arithmetic.power(base, self._value(exponent))
        power, index = exponent.value.numerator, exponent.value.denominator
        value = self.arithmetic.quotient(power, index)
        if base.is_zero and power <= 0:
            raise SingularError
        if index > _MAX_INDEX or (index > 1 and abs(power) > _MAX_ROOT_POWER):
            return self._large_rational_power(base, power, index, value)
        root = base if index == 1 else self.arithmetic.root(base, index)
        result = self.arithmetic.integer_power(root, abs(power))
        return result if power >= 0 else self.arithmetic.inverse(result)

    def _large_rational_power(self, base: Ball, power: int, index: int, value: Ball) -> Ball:
        if index % 2 == 0 or not base.is_real or not self.arithmetic.is_negative(base):
            return self.arithmetic.power(base, value)
        result = self.arithmetic.power(negative(base), value)
        return negative(result) if power % 2 else result

    def _call(self, name: str, arguments: tuple[Node, ...]) -> Ball:
        if name == "choose" and len(arguments) == 2:
            return self._choose(self._value(arguments[0]), arguments[1])
        balls = [self._value(argument) for argument in arguments]
        if len(arguments) not in FUNCTIONS.get(name, ()):
            return self._opaque(name, balls)
        if name in ("gcd", "lcm"):
            return self._opaque(name, sorted(balls, key=self.arithmetic.digits))
        return _FUNCTIONS[name](self.arithmetic, *balls)

    def _opaque(self, name: str, balls: list[Ball]) -> Ball:
        """A number that the name and the values of the arguments determine."""
        self._budget.spend(5 + 5 * len(balls))
        digits = [f"{part:x}" for ball in balls for part in self.arithmetic.digits(ball)]
        return self._symbol(_hash(" ".join((name, *digits))).hex())

    def _choose(self, total: Ball, chosen: Node) -> Ball:
        arithmetic = self.arithmetic
        if isinstance(chosen, Number) and chosen.value.denominator == 1 and 0 <= chosen.value <= _MAX_FALLING:
            product = ONE
            for step in range(int(chosen.value)):
                factor = arithmetic.times(arithmetic.plus(total, exactly(-step)), arithmetic.quotient(1, step + 1))
                product = arithmetic.times(product, factor)
            return product
        lower = self._value(chosen)
        parts = _factorial(arithmetic, lower), _factorial(arithmetic, arithmetic.minus(total, lower))
        return arithmetic.over(_factorial(arithmetic, total), arithmetic.times(*parts))


# Functions by way of the few that `Arithmetic` has


def _cos(arithmetic: Arithmetic, ball: Ball) -> Ball:
    return arithmetic.cosine_and_sine(ball)[0]


def _sin(arithmetic: Arithmetic, ball: Ball) -> Ball:
    return arithmetic.cosine_and_sine(ball)[1]


def _cosh(arithmetic: Arithmetic, ball: Ball) -> Ball:
    power = arithmetic.exponential(ball)
    return arithmetic.times(HALF, arithmetic.plus(power, arithmetic.inverse(power)))


def _sinh(arithmetic: Arithmetic, ball: Ball) -> Ball:
    power = arithmetic.exponential(ball)
    return arithmetic.times(HALF, arithmetic.minus(power, arithmetic.inverse(power)))


def _sqrt(arithmetic: Arithmetic, *terms: Ball) -> Ball:
    return arithmetic.root(arithmetic.plus(*terms), 2)


def _arcsin(arithmetic: Arithmetic, ball: Ball) -> Ball:
    """-i ln(i z + sqrt(1 - z^2))."""
    root = _sqrt(arithmetic, ONE, negative(arithmetic.times(ball, ball)))
    return arithmetic.times(MINUS_I, arithmetic.logarithm(arithmetic.plus(arithmetic.times(I, ball), root)))


def _arccos(arithmetic: Arithmetic, ball: Ball) -> Ball:
    return arithmetic.minus(arithmetic.times(HALF, arithmetic.pi()), _arcsin(arithmetic, ball))


def _arccot(arithmetic: Arithmetic, ball: Ball) -> Ball:
    """Between 0 and pi, as most textbooks have it."""
    return arithmetic.minus(arithmetic.times(HALF, arithmetic.pi()), arithmetic.arctangent(ball))


def _arcsinh(arithmetic: Arithmetic, ball: Ball) -> Ball:
    return arithmetic.logarithm(arithmetic.plus(ball, _sqrt(arithmetic, arithmetic.times(ball, ball), ONE)))


def _arccosh(arithmetic: Arithmetic, ball: Ball) -> Ball:
    roots = arithmetic.times(_sqrt(arithmetic, ball, ONE), _sqrt(arithmetic, ball, MINUS_ONE))
    return arithmetic.logarithm(arithmetic.plus(ball, roots))


def _arctanh(arithmetic: Arithmetic, ball: Ball) -> Ball:
    upper, lower = arithmetic.plus(ONE, ball), arithmetic.plus(ONE, negative(ball))
    return arithmetic.times(HALF, arithmetic.minus(arithmetic.logarithm(upper), arithmetic.logarithm(lower)))


def _conjugate(arithmetic: Arithmetic, ball: Ball) -> Ball:
    del arithmetic
    return Ball(ball.real, libmp.mpf_neg(ball.imaginary), ball.error)


def _re(arithmetic: Arithmetic, ball: Ball) -> Ball:
    return arithmetic.times(HALF, arithmetic.plus(ball, _conjugate(arithmetic, ball)))


def _im(arithmetic: Arithmetic, ball: Ball) -> Ball:
    return _re(arithmetic, arithmetic.times(MINUS_I, ball))


def _sign(arithmetic: Arithmetic, ball: Ball) -> Ball:
    arithmetic.require_real(ball)
    return ball if ball.is_zero else MINUS_ONE if arithmetic.is_negative(ball) else ONE


def _ceil(arithmetic: Arithmetic, ball: Ball) -> Ball:
    return negative(arithmetic.floor(negative(ball)))


def _max(arithmetic: Arithmetic, *balls: Ball) -> Ball:
    largest = balls[0]
    for ball in balls:
        arithmetic.require_real(ball)
        if arithmetic.is_negative(arithmetic.minus(largest, ball)):
            largest = ball
    return largest


def _min(arithmetic: Arithmetic, *balls: Ball) -> Ball:
    return negative(_max(arithmetic, *map(negative, balls)))


def _mod(arithmetic: Arithmetic, left: Ball, right: Ball) -> Ball:
    quotient = arithmetic.floor(arithmetic.over(left, right))
    return arithmetic.minus(left, arithmetic.times(right, quotient))


def _factorial(arithmetic: Arithmetic, ball: Ball) -> Ball:
    return arithmetic.gamma(arithmetic.plus(ball, ONE))


_Function = Callable[..., Ball]


def _ratio(upper: _Function, lower: _Function) -> _Function:
    return lambda arithmetic, ball: arithmetic.over(upper(arithmetic, ball), lower(arithmetic, ball))


def _inverse_of(function: _Function) -> _Function:
    return lambda arithmetic, ball: arithmetic.inverse(function(arithmetic, ball))


def _of_inverse(function: _Function) -> _Function:
    return lambda arithmetic, ball: function(arithmetic, arithmetic.inverse(ball))


_FUNCTIONS: dict[str, _Function] = {
    "sin": _sin,
    "cos": _cos,
    "tan": _ratio(_sin, _cos),
    "cot": _ratio(_cos, _sin),
    "sec": _inverse_of(_cos),
    "csc": _inverse_of(_sin),
    "arcsin": _arcsin,
    "arccos": _arccos,
    "arctan": Arithmetic.arctangent,
    "arccot": _arccot,
    "arcsec": _of_inverse(_arccos),
    "arccsc": _of_inverse(_arcsin),
    "sinh": _sinh,
    "cosh": _cosh,
    "tanh": _ratio(_sinh, _cosh),
    "coth": _ratio(_cosh, _sinh),
    "sech": _inverse_of(_cosh),
    "csch": _inverse_of(_sinh),
    "arcsinh": _arcsinh,
    "arccosh": _arccosh,
    "arctanh": _arctanh,
    "ln": Arithmetic.logarithm,
    "abs": Arithmetic.absolute,
    "floor": Arithmetic.floor,
    "ceil": _ceil,
    "sign": _sign,
    "max": _max,
    "min": _min,
    "mod": _mod,
    "factorial": _factorial,
    "conjugate": _conjugate,
    "re": _re,
    "im": _im,
}
