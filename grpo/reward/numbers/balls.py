"""High-precision arithmetic with a bound of the error in every value.

A value is a ball: a complex midpoint and the base-2 logarithm of the largest error. Every operation widens the error by
what its derivative allows, so a value that is farther from zero than its error is certainly not zero. A value that is
not is taken for exactly zero only at a precision of 256 + 4 E bits and an error below 2**-(128 + 2 E), where E is the
largest absolute base-2 logarithm of what has been met: what somebody writes does not come that close by chance.
"""

from __future__ import annotations

from math import inf
from typing import Any, NamedTuple

from mpmath import libmp
from mpmath.libmp import fhalf, fnone, fone, fzero

from grpo.reward.numbers.rational import Budget, TooCostlyError

_MAX_GAMMA_PRECISION = 700  # the first gamma at 1,024 bits takes 0.1 s
_MAX_GAMMA_MAGNITUDE = 36  # bits of an argument of gamma
_MAX_EXPONENT = 40  # bits of an argument of exp, and of the base-2 logarithm of a power

Real = Any  # mpmath's raw number: sign, mantissa, exponent, bits of the mantissa


class SingularError(Exception):
    """The expression has no value at this point."""


class OutsideError(Exception):
    """The value is of the complex function only: a root or logarithm of a negative real number, or the like."""


class ImpreciseError(Exception):
    """The precision is too low to choose a branch, or to tell a number from zero."""


class Ball(NamedTuple):
    """All complex numbers within `2**error` of `real + i imaginary`; the imaginary part of a real value is `fzero`."""

    real: Real
    imaginary: Real
    error: float

    @property
    def is_real(self) -> bool:
        """Whether there is no imaginary part."""
        return not self.imaginary[1]

    @property
    def is_zero(self) -> bool:
        """Whether it is exactly zero; a midpoint of zero alone says little."""
        return self.error == -inf and not self.real[1] and not self.imaginary[1]

    @property
    def upper(self) -> float:
        """The midpoint is less than `2**upper`."""
        return magnitude(self.real) if self.is_real else max(magnitude(self.real), magnitude(self.imaginary)) + 1

    @property
    def lower(self) -> float:
        """The midpoint is not less than `2**lower`."""
        return max(magnitude(self.real), magnitude(self.imaginary)) - 1

    @property
    def is_apart(self) -> bool:
        """Whether it is certainly not zero."""
        return self.lower > self.error

    @property
    def is_certain(self) -> bool:
        """Whether it is certainly not zero, and each of its two parts is zero or certainly not."""
        parts = (self.real, self.imaginary)
        return self.is_apart and all(not part[1] or magnitude(part) - 1 > self.error for part in parts)


ZERO = Ball(fzero, fzero, -inf)
ONE = Ball(fone, fzero, -inf)
MINUS_ONE = Ball(fnone, fzero, -inf)
HALF = Ball(fhalf, fzero, -inf)
I = Ball(fzero, fone, -inf)  # noqa: E741
MINUS_I = Ball(fzero, fnone, -inf)


def magnitude(number: Real) -> float:
    """The m with `2**(m-1) <= |number| < 2**m`."""
    _, mantissa, exponent, bits = number
    if mantissa:
        return exponent + bits
    if exponent:  # mpmath's infinities and nan
        raise TooCostlyError
    return -inf


def _rounded(number: Real) -> int:
    nearest = libmp.to_int(number, "n")
    assert nearest is not None
    return nearest


def exactly(number: int) -> Ball:
    """The ball of a small integer."""
    return Ball(libmp.from_int(number), fzero, -inf)


def negative(ball: Ball) -> Ball:
    """`-ball`."""
    return Ball(libmp.mpf_neg(ball.real), libmp.mpf_neg(ball.imaginary), ball.error)


def _clamped(part: Real, error: float) -> Real:
    """A part that is far below the error, raised: mpmath may add the squares of both parts with all of their digits."""
    least = error - 64
    return libmp.from_man_exp(-1 if part[0] else 1, int(least)) if part[1] and magnitude(part) < least else part


class Arithmetic:
    """Operations with one precision.

    All of them raise `SingularError` where they have no value, `ImpreciseError` where the precision is too low,
    `TooCostlyError` where a number is too large or the budget is spent, and `OutsideError` if there is only a principal
    value and `is_principal` does not ask for it.

    Attributes:
        spread: E, the largest |log2| of the values that have been met.
        unit: how many times as long as with a low precision a logarithm takes.
    """

    def __init__(self, precision: int, budget: Budget, is_principal: bool) -> None:
        self.spread = 0.0
        self._is_principal = is_principal
        self._precision = precision
        self._budget = budget
        self.unit = max(precision / 400, 1) ** 1.75

    def quotient(self, numerator: int, denominator: int) -> Ball:
        """A rational number."""
        if numerator:
            self.spread = max(self.spread, numerator.bit_length(), denominator.bit_length())
        if denominator == 1 and numerator.bit_length() <= self._precision:
            return Ball(libmp.from_int(numerator), fzero, -inf)
        real = libmp.from_rational(numerator, denominator, self._precision, "n")
        return Ball(real, fzero, magnitude(real) - self._precision)

    def pi(self) -> Ball:
        """The ratio of a circle."""
        return Ball(libmp.mpf_pi(self._precision, "n"), fzero, 3 - self._precision)

    def e(self) -> Ball:
        """The base of the natural logarithm."""
        return Ball(libmp.mpf_e(self._precision, "n"), fzero, 3 - self._precision)

    def plus(self, *terms: Ball) -> Ball:
        """The sum."""
        real = imaginary = fzero
        peak = error = -inf
        for term in terms:
            real = libmp.mpf_add(real, term.real, self._precision, "n")
            peak = max(peak, magnitude(real))
            if term.imaginary[1]:
                imaginary = libmp.mpf_add(imaginary, term.imaginary, self._precision, "n")
                peak = max(peak, magnitude(imaginary))
            error = max(error, term.error)
        return self._settled(real, imaginary, max(error, peak - self._precision) + len(terms).bit_length() + 1)

    def minus(self, left: Ball, right: Ball) -> Ball:
        """`left - right`."""
        return self.plus(left, negative(right))

    def times(self, left: Ball, right: Ball) -> Ball:
        """The product."""
        error = max(left.upper + right.error, right.upper + left.error, left.error + right.error) + 2
        if left.is_real and right.is_real:
            return self._settled(libmp.mpf_mul(left.real, right.real, self._precision, "n"), fzero, error)
        return self._settled(*libmp.mpc_mul(left[:2], right[:2], self._precision, "n"), error)

    def inverse(self, ball: Ball) -> Ball:
        """`1 / ball`."""
        self._require_apart(ball)
        error = ball.error - 2 * ball.lower + 2
        if ball.is_real:
            return self._settled(libmp.mpf_div(fone, ball.real, self._precision, "n"), fzero, error)
        return self._settled(*libmp.mpc_reciprocal(ball[:2], self._precision, "n"), error)

    def over(self, left: Ball, right: Ball) -> Ball:
        """`left / right`."""
        return self.times(left, self.inverse(right))

    def _settled(self, real: Real, imaginary: Real, error: float) -> Ball:
        """The ball, with the error of one rounding added, and parts that stand for zero put to zero."""
        sizes = (magnitude(real), magnitude(imaginary)) if imaginary[1] else (magnitude(real),)
        error = max(error, max(sizes) - self._precision + 2) + 1
        are_clear = True
        for size in sizes:
            if size - 1 <= error:
                are_clear = False
            else:
                self.spread = max(self.spread, abs(size))
        if are_clear:
            return Ball(real, imaginary, error)
        if error <= -(128 + 2 * self.spread) and self._precision >= 256 + 4 * self.spread:
            real = real if sizes[0] - 1 > error else fzero
            imaginary = imaginary if sizes[-1] - 1 > error else fzero
            return Ball(real, imaginary, error) if real[1] or imaginary[1] else ZERO
        return Ball(_clamped(real, error), _clamped(imaginary, error), error + 1)

    def _require_apart(self, ball: Ball) -> None:
        if ball.is_zero:
            raise SingularError
        if ball.lower <= ball.error + 1:
            raise ImpreciseError

    def _leave_reals(self) -> None:
        if not self._is_principal:
            raise OutsideError

    def require_real(self, ball: Ball) -> None:
        """Functions of real numbers only have no value elsewhere."""
        if not ball.is_real:
            raise SingularError if magnitude(ball.imaginary) - 1 > ball.error else ImpreciseError

    def is_negative(self, ball: Ball) -> bool:
        """Whether a real value is; zero is not."""
        if ball.is_zero:
            return False
        if magnitude(ball.real) - 1 <= ball.error:
            raise ImpreciseError
        return bool(ball.real[0])

    def integer_power(self, base: Ball, power: int) -> Ball:
        """A power with an exponent that is not negative."""
        if power == 0:
            return ONE
        if power == 1 or base.is_zero:
            return base
        largest, bits = max(base.upper, base.error) + 1, power.bit_length()
        if bits > 64 or power * abs(largest) >= 1 << _MAX_EXPONENT:
            raise TooCostlyError
        self._budget.spend(2 * bits * self.unit)
        if base.is_real:
            real, imaginary = libmp.mpf_pow_int(base.real, power, self._precision + bits, "n"), fzero
        else:
            # by way of the logarithm, whose multiple takes up to _MAX_EXPONENT bits before the point
            real, imaginary = libmp.mpc_pow_int(base[:2], power, self._precision + 2 * _MAX_EXPONENT, "n")
        error = (power - 1) * largest + bits + base.error
        relative = bits + base.error - base.lower + 2
        if relative < -4:
            error = min(error, max(magnitude(real), magnitude(imaginary)) + 1 + relative)
        return self._settled(real, imaginary, error)

    def root(self, base: Ball, index: int) -> Ball:
        """The principal root, but the real one of a negative number if the index is odd."""
        if base.is_zero:
            return base
        if not base.is_real:
            return self.power(base, self.quotient(1, index))
        if self.is_negative(base):
            if index % 2:
                return negative(self.root(negative(base), index))
            self._leave_reals()
            return (
                self.times(I, self.root(negative(base), 2)) if index == 2 else self.power(base, self.quotient(1, index))
            )
        self._budget.spend((4 + index) * self.unit)
        if index == 2:
            real = libmp.mpf_sqrt(base.real, self._precision, "n")
        else:
            real = libmp.mpf_nthroot(base.real, index, self._precision, "n")
        return self._settled(real, fzero, magnitude(real) + base.error - base.lower + 1)

    def power(self, base: Ball, exponent: Ball) -> Ball:
        """`exp(exponent * ln base)`."""
        if base.is_zero:
            self.require_real(exponent)
            if exponent.is_zero or self.is_negative(exponent):
                raise SingularError
            return ZERO
        return self.exponential(self.times(exponent, self.logarithm(base)))

    def logarithm(self, ball: Ball) -> Ball:
        """The principal natural logarithm."""
        self._require_apart(ball)
        self._budget.spend((20 if ball.is_real else 60) * self.unit)
        error = ball.error - ball.lower + 2
        if ball.is_real:
            real, imaginary = libmp.mpf_log(libmp.mpf_abs(ball.real), self._precision, "n"), fzero
            if ball.real[0]:
                self._leave_reals()
                imaginary = libmp.mpf_pi(self._precision, "n")
            return self._settled(real, imaginary, error)
        if ball.real[0] and magnitude(ball.imaginary) - 1 <= ball.error:
            raise ImpreciseError  # on which side of the negative real axis?
        return self._settled(*libmp.mpc_log(ball[:2], self._precision, "n"), error)

    def exponential(self, ball: Ball) -> Ball:
        """`e ** ball`."""
        if ball.upper > _MAX_EXPONENT:
            raise TooCostlyError
        if ball.error > -1:
            raise ImpreciseError
        self._budget.spend((20 if ball.is_real else 60) * self.unit)
        if ball.is_real:
            real, imaginary = libmp.mpf_exp(ball.real, self._precision, "n"), fzero
        else:
            real, imaginary = libmp.mpc_exp(ball[:2], self._precision, "n")
        return self._settled(real, imaginary, max(magnitude(real), magnitude(imaginary)) + ball.error + 2)

    def cosine_and_sine(self, ball: Ball) -> tuple[Ball, Ball]:
        """Both."""
        if magnitude(ball.imaginary) > _MAX_EXPONENT:
            raise TooCostlyError
        if ball.error > -1:  # a real part beyond the precision has a larger error
            raise ImpreciseError
        self._budget.spend((25 if ball.is_real else 75) * self.unit)
        if ball.is_real:
            cosine, sine = libmp.mpf_cos_sin(ball.real, self._precision, "n")
            return self._settled(cosine, fzero, ball.error), self._settled(sine, fzero, ball.error)
        values = libmp.mpc_cos_sin(ball[:2], self._precision, "n")
        growth = max(0.0, *(magnitude(part) for value in values for part in value)) + 2  # |cos z|, |sin z| < 2**growth
        return self._settled(*values[0], ball.error + growth), self._settled(*values[1], ball.error + growth)

    def arctangent(self, ball: Ball) -> Ball:
        """i/2 (ln(1 - i z) - ln(1 + i z))."""
        if ball.is_real:
            self._budget.spend(20 * self.unit)
            return self._settled(libmp.mpf_atan(ball.real, self._precision, "n"), fzero, ball.error)
        turned = self.times(I, ball)
        lower, upper = self.plus(ONE, negative(turned)), self.plus(ONE, turned)
        return self.times(self.times(HALF, I), self.minus(self.logarithm(lower), self.logarithm(upper)))

    def absolute(self, ball: Ball) -> Ball:
        """`|ball|`."""
        if ball.is_real:
            return Ball(libmp.mpf_abs(ball.real), fzero, ball.error)
        return self._settled(libmp.mpc_abs(ball[:2], self._precision, "n"), fzero, ball.error)

    def floor(self, ball: Ball) -> Ball:
        """The largest integer that is not greater."""
        self.require_real(ball)
        if ball.upper > self._precision // 2:
            raise ImpreciseError
        nearest = exactly(_rounded(ball.real))
        return self.plus(nearest, MINUS_ONE) if self.is_negative(self.minus(ball, nearest)) else nearest

    def gamma(self, ball: Ball) -> Ball:
        """The gamma function of a positive number."""
        self.require_real(ball)
        if ball.is_zero or self.is_negative(ball):
            raise SingularError
        if self._precision > _MAX_GAMMA_PRECISION or ball.upper > _MAX_GAMMA_MAGNITUDE:
            raise TooCostlyError
        if ball.error > -32:
            raise ImpreciseError
        self._budget.spend(60 * self.unit)
        real = libmp.mpf_gamma(ball.real, self._precision, "n")
        slope = abs(ball.upper) + 4  # digamma(x) is between -1/x - 1 and ln x + 1
        return self._settled(real, fzero, magnitude(real) + ball.error + slope)

    def digits(self, ball: Ball) -> tuple[int, int]:
        """Both parts to half of the precision, as integers: the same ones for equal values."""
        bits = self._precision // 2
        if ball.error > -bits - 16:
            raise ImpreciseError
        if ball.upper > self._precision:
            raise TooCostlyError
        return _rounded(libmp.mpf_shift(ball.real, bits)), _rounded(libmp.mpf_shift(ball.imaginary, bits))
