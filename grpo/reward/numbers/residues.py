"""Trees as elements of a prime field: sums, products and integer powers are exact there and nearly free.

A symbol, pi and e are residues that their names determine. In both fields -1 and the primes below 100 are squares, so
`i` and sqrt(6) are what they should be, and logarithms of rational numbers are sums of those of primes. Whatever else
is not rational (a cube root, a sine) is a residue that its name and the residues of its arguments determine.

Different residues: the two differ if all operations were of the first kind. (That e, pi and the logarithms of primes
satisfy no equation is Schanuel's conjecture.) The same residues: the two are the same formula, unless chance
(Schwartz-Zippel, about degree / 2**127) or very large coefficients made them so; `height` bounds both.
"""

from __future__ import annotations

from collections.abc import Iterable
from fractions import Fraction
from functools import lru_cache
from hashlib import sha256
from math import gcd
from typing import NamedTuple

from grpo.reward.answers.tree import FUNCTIONS, Call, Constant, Node, Number, Power, Product, Sum, Symbol
from grpo.reward.numbers.rational import Budget, UndefinedError, bit_length

_SMALL = (2, 3, 5, 7, 11, 13, 17, 19, 23, 29, 31, 37, 41, 43, 47, 53, 59, 61, 67, 71, 73, 79, 83, 89, 97)
# 1 modulo 8 and modulo every odd prime below 100: by quadratic reciprocity those are squares, and 2 and -1 too.
PRIMES = (396327133002234617215058259126328868433001, 52520838218678909715875666916217403274601)
_MAX_POWER = 1 << 32
_MAX_FALLING = 64
_MAX_FACTORED_BITS = 256
_SYMMETRIC = frozenset(("gcd", "lcm", "max", "min"))
_TOTAL = frozenset(("sin", "cos", "sinh", "cosh", "abs", "arctan", "arcsinh", "conjugate", "re", "im", "max", "min"))


class _VanishingError(Exception):
    """A denominator is zero at this point of the field."""


class Pair(NamedTuple):
    """The residues of two trees at one place.

    Attributes:
        left: of the first one.
        right: of the second one.
        is_exact: neither has anything that only its name and arguments determine.
        is_total: neither has an operation that has no value somewhere without the field showing it.
        has_large_powers: there is a power whose degree is beyond what two equal residues say something about.
    """

    left: int
    right: int
    is_exact: bool
    is_total: bool
    has_large_powers: bool


def residue_pairs(
    left: Node, right: Node, places: Iterable[tuple[int, int]], budget: Budget, *, are_large_powers_formal: bool = False
) -> list[Pair]:
    """Both trees at those of the places at which they have values.

    Args:
        left: a simplified tree without infinity.
        right: another one.
        places: pairs of the number of a point and a prime.
        budget: what this may cost.
        are_large_powers_formal: whether a large power is determined by its base and exponent alone.

    Raises:
        UndefinedError: there is no such place: one of them divides by zero.
    """
    pairs: list[Pair] = []
    for point, prime in places:
        field = _Residues(prime, point, budget, are_large_powers_formal)
        try:
            values = field.value(left), field.value(right)
        except _VanishingError:
            continue
        pairs.append(Pair(*values, field.is_exact, field.is_total, field.has_large_powers))
    if not pairs:
        raise UndefinedError("division by zero")
    return pairs


def _residue(prime: int, *parts: str | int) -> int:
    """A residue that `parts` determine, the same in every process."""
    key = " ".join(part if isinstance(part, str) else f"{part:x}" for part in parts)  # decimals take quadratic time
    return int.from_bytes(sha256(key.encode("utf-8", "surrogatepass")).digest()) % prime


@lru_cache(maxsize=len(PRIMES))
def _not_a_square(prime: int) -> int:
    return next(base for base in range(_SMALL[-1], 10_000) if pow(base, prime // 2, prime) == prime - 1)


@lru_cache(maxsize=2 * (len(_SMALL) + 1))
def square_root(value: int, prime: int) -> int:
    """A square root of a square modulo a prime, by Tonelli and Shanks."""
    odd, level = prime - 1, 0
    while odd % 2 == 0:
        odd, level = odd // 2, level + 1
    generator, rest, root = (
        pow(_not_a_square(prime), odd, prime),
        pow(value, odd, prime),
        pow(value, odd // 2 + 1, prime),
    )
    while rest != 1:
        order, square = 0, rest
        while square != 1:
            order, square = order + 1, square * square % prime
        step = pow(generator, 1 << (level - order - 1), prime)
        level, generator = order, step * step % prime
        rest, root = rest * generator % prime, root * step % prime
    return root


@lru_cache(maxsize=1024)
def _factored(value: Fraction) -> tuple[tuple[int, int], ...]:
    """Pairs of a factor and its multiplicity: primes below 100, and what is left of a positive rational number."""
    factors: list[tuple[int, int]] = []
    for rest, sign in ((value.numerator, 1), (value.denominator, -1)):
        for prime in _SMALL:
            multiplicity = 0
            while rest % prime == 0:
                rest, multiplicity = rest // prime, multiplicity + 1
            if multiplicity:
                factors.append((prime, sign * multiplicity))
        if rest > 1:
            factors.append((rest, sign))
    return tuple(factors)


class _Residues:
    """Evaluation at one point of one prime field; what has no symbol in it has one residue in a field."""

    def __init__(self, prime: int, point: int, budget: Budget, are_large_powers_formal: bool) -> None:
        self.is_exact = True
        self.is_total = True
        self.has_large_powers = False
        self._are_large_powers_formal = are_large_powers_formal
        self._prime = prime
        self._point = point
        self._budget = budget

    def value(self, node: Node) -> int:
        """The residue of a tree."""
        self._budget.spend(2)
        match node:
            case Number(value):
                return self._quotient(value)
            case Symbol(name):
                return _residue(self._prime, "symbol", self._point, name)
            case Sum(terms):
                return sum(map(self.value, terms)) % self._prime
            case Product(factors):
                product = 1
                for factor in factors:
                    product = product * self.value(factor) % self._prime
                return product
            case Power(Number(base), Number(exponent)) if exponent.denominator > 1:
                return self._rational_power(base, exponent)
            case Power(base, exponent):
                is_positive = isinstance(exponent, Number) and exponent.value > 0
                self.is_total &= is_positive or _shows_zeros(base)
                return self._power(self.value(base), exponent)
            case Constant(name):
                return (
                    square_root(self._prime - 1, self._prime)
                    if name == "i"
                    else _residue(self._prime, "constant", name)
                )
            case Call(name, arguments):
                return self._call(name, arguments)
        raise AssertionError(f"not a scalar: {node}")

    def _atom(self, *parts: str | int) -> int:
        self.is_exact = False
        self._budget.spend(3)
        return _residue(self._prime, *parts)

    def _quotient(self, value: Fraction) -> int:
        if value.denominator == 1:
            return value.numerator % self._prime
        return value.numerator * self._inverse(value.denominator % self._prime) % self._prime

    def _inverse(self, residue: int) -> int:
        if residue == 0:
            raise _VanishingError
        self._budget.spend(10)
        return pow(residue, -1, self._prime)

    def _power(self, base: int, exponent: Node) -> int:
        if not isinstance(exponent, Number):
            return self._atom("power", base, self.value(exponent))
        power, index = exponent.value.numerator, exponent.value.denominator
        if base == 0 and power <= 0:
            raise _VanishingError
        if index > 1 and base:
            base = self._atom("root", base, index)
        if abs(power) > _MAX_POWER:
            self.has_large_powers = True
            if self._are_large_powers_formal:
                return self._atom("power", base, power)
        self._budget.spend(10 + power.bit_length() / 4)
        result = pow(base, abs(power), self._prime)
        return result if power >= 0 else self._inverse(result)

    def _rational_power(self, base: Fraction, exponent: Fraction) -> int:
        """A power that is no rational number, as a product of one of each prime factor of the base."""
        power, index = exponent.numerator, exponent.denominator
        if (
            bit_length(base) > _MAX_FACTORED_BITS
            or abs(power) > _MAX_POWER
            or (base < 0 and index % 2 == 0 and index > 2)
        ):
            return self._atom("power", base.numerator, base.denominator, power, index)
        result = 1
        if base < 0:
            unit = square_root(self._prime - 1, self._prime) if index == 2 else -1
            result = pow(unit, power, self._prime)
        self._budget.spend(10)
        for factor, multiplicity in _factored(abs(base)):
            self._budget.spend(20)
            whole, rest = divmod(multiplicity * power, index)
            result = result * pow(factor, whole, self._prime) * self._root(factor, rest, index) % self._prime
        return result

    def _root(self, factor: int, power: int, index: int) -> int:
        if power == 0:
            return 1
        common = gcd(power, index)
        if index == 2 * common and factor in _SMALL:
            return square_root(factor, self._prime)
        return pow(self._atom("root", factor, index // common), power // common, self._prime)

    def _call(self, name: str, arguments: tuple[Node, ...]) -> int:
        if name == "ln" and isinstance(arguments[0], Number) and bit_length(arguments[0].value) <= _MAX_FACTORED_BITS:
            return self._logarithm(arguments[0].value)
        residues = [self.value(argument) for argument in arguments]
        if name == "choose" and len(arguments) == 2 and isinstance(arguments[1], Number):
            chosen = arguments[1].value
            if chosen.denominator == 1 and 0 <= chosen <= _MAX_FALLING:
                return self._falling(residues[0], chosen.numerator)
        if name == "ln" and residues == [0]:
            raise _VanishingError
        if name in _SYMMETRIC:
            residues.sort()
        self.is_total &= name in _TOTAL or name not in FUNCTIONS or (name == "ln" and _shows_zeros(arguments[0]))
        return self._atom("call", name, *residues)

    def _logarithm(self, value: Fraction) -> int:
        total = 0 if value > 0 else square_root(self._prime - 1, self._prime) * self.value(Constant("pi"))
        for factor, multiplicity in _factored(abs(value)):
            self.is_exact &= factor in _SMALL
            total += multiplicity * _residue(self._prime, "logarithm", factor)
        return total % self._prime

    def _falling(self, total: int, chosen: int) -> int:
        self._budget.spend(chosen)
        numerator = denominator = 1
        for step in range(chosen):
            numerator = numerator * (total - step) % self._prime
            denominator *= step + 1
        return numerator * self._inverse(denominator % self._prime) % self._prime


def _shows_zeros(node: Node) -> bool:
    """Whether the residue is certainly zero if the tree is zero everywhere."""
    match node:
        case Sum(terms):
            return all(map(_is_algebraic, terms))
        case Product(factors):
            return all(map(_shows_zeros, factors))
        case Power(base, _):
            return _shows_zeros(base)
    return not isinstance(node, Call)


def _is_algebraic(node: Node) -> bool:
    match node:
        case Sum(parts) | Product(parts):
            return all(map(_is_algebraic, parts))
        case Power(base, Number(exponent)):
            return isinstance(base, Number) or (exponent.denominator == 1 and _is_algebraic(base))
    return not isinstance(node, Call | Power)


def height(node: Node) -> int:
    """An upper bound of the degree in every symbol, and of the bits of every coefficient."""
    match node:
        case Number(value):
            return bit_length(value)
        case Sum(terms) | Product(terms):
            return sum(map(height, terms)) + len(terms)
        case Power(base, Number(exponent)) if exponent.denominator == 1 and abs(exponent) <= _MAX_POWER:
            return height(base) * max(abs(exponent.numerator), 1)
        case Power(base, Number(exponent)) if exponent.denominator > 1 and abs(exponent.numerator) <= _MAX_POWER:
            return height(base) * abs(exponent.numerator)
        case Call("choose", (total, Number(chosen))) if 0 <= chosen <= _MAX_FALLING:
            return (height(total) + 7) * (int(chosen) + 1)
        case Call(_, arguments):
            return max((height(argument) for argument in arguments), default=1)
        case Power(base, exponent):
            return max(height(base), height(exponent))
    return 1
