"""Comparison of two trees by their values at points.

At a point where an even root or a logarithm of a negative number occurs, nothing is compared: sqrt(x^2) is |x| and
not x, and ln(x^2) is 2 ln x. If fewer than three points are left, symbols in exponents are taken for positive integers;
then the principal complex values at positive points are compared, as they are from the start where `i` occurs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from enum import Enum
from typing import NamedTuple

from grpo.reward.answers.tree import Call, Constant, Node, Number, Power, Symbol, children
from grpo.reward.numbers.balls import Ball, ImpreciseError, OutsideError, SingularError
from grpo.reward.numbers.evaluation import (
    FAR,
    FINE,
    FURTHER,
    POSITIVE,
    PRIMARY,
    Evaluator,
    integer_coordinate,
)
from grpo.reward.numbers.rational import Budget, TooCostlyError, UndefinedError, simplified

_START_PRECISION = 384
_MAX_PRECISION = 256 + 4 * 4000
_SYMBOL_PRECISION = 1400
_INTEGERS = 12
_ENOUGH = 3
_PIECEWISE = frozenset(("abs", "sign", "max", "min", "floor", "ceil", "mod"))


class _Outcome(Enum):
    AGREE = "agree"
    DIFFER = "differ"
    SINGULAR = "singular"
    OUTSIDE = "outside"
    UNDECIDED = "undecided"


class _Sample(NamedTuple):
    """A pair of trees and a point; `is_lenient` if values that leave the reals are compared as well."""

    left: Node
    right: Node
    point: int
    is_lenient: bool


_Test = Callable[[_Sample], _Outcome]


class Sampling:
    """Two simplified trees, neither of which contains infinity, and what one decision may cost."""

    def __init__(self, left: Node, right: Node, budget: Budget) -> None:
        self._left = left
        self._right = right
        self._budget = budget
        self._names: set[str] = set()
        self._complex_names: set[str] = set()
        self._discrete_names: set[str] = set()
        self._has_i = False
        self._is_piecewise = False
        self._read(left, False, False)
        self._read(right, False, False)
        self._limit = _SYMBOL_PRECISION if self._names else _MAX_PRECISION

    def _read(self, node: Node, is_discrete: bool, is_complex: bool) -> None:
        """Note the symbols of the tree: all, those in exponents, those whose real part matters."""
        match node:
            case Symbol(name):
                self._names.add(name)
                if is_discrete:
                    self._discrete_names.add(name)
                if is_complex:
                    self._complex_names.add(name)
            case Constant(name):
                self._has_i |= name == "i"
            case Power(base, exponent):
                self._is_piecewise |= isinstance(exponent, Number) and exponent.value.denominator % 2 == 0
                self._read(base, is_discrete, is_complex)
                self._read(exponent, True, is_complex)
            case Call(name, arguments):
                self._is_piecewise |= name in _PIECEWISE
                is_complex |= name in ("conjugate", "re", "im")
                for argument in arguments:
                    self._read(argument, is_discrete, is_complex)
            case _:
                for child in children(node):
                    self._read(child, is_discrete, is_complex)

    def is_equal(self) -> bool | None:
        """Whether the two agree wherever they are compared."""
        return self._holds(lambda sample: self._outcome(sample, lambda ev: _difference(ev, sample)))

    def is_plausible(self) -> bool:
        """Whether two that are formally equal have a value somewhere, and no different ones at that point."""
        for sample in self._real_samples():
            try:
                outcome = self._outcome(sample, lambda ev, sample=sample: _difference(ev, sample))
            except TooCostlyError:
                return True
            if outcome is not _Outcome.SINGULAR:
                return outcome is not _Outcome.DIFFER
        raise UndefinedError("no value at any point")

    def sign_of_difference(self) -> int | None:
        """-1, 0 or 1 for two real constants; None if one is not real."""
        sample = _Sample(self._left, self._right, 0, True)
        try:
            left = self._resolved(sample, lambda ev: ev.value(sample.left, 0), lambda ball: ball.is_certain)
            ball = self._resolved(sample, lambda ev: _difference(ev, sample), lambda ball: ball.is_certain)
        except SingularError:
            raise UndefinedError("no value") from None
        return _sign(ball) if left.is_real and ball.is_real else None

    def ratio(self) -> int | None:
        """As `identity.proportionality`."""
        bases: list[_Sample] = []
        verdict = self._holds(lambda sample: self._is_multiple(sample, bases))
        if not verdict:
            return None if verdict is None else 0
        return self._sign_of_ratio_at(bases[0]) if bases else 1

    def sign_of_ratio(self) -> int | None:
        """1, -1 or 2, as `ratio`, of two that are known to be proportional."""
        for samples, _ in self._phases():
            for sample in samples:
                sign = self._sign_of_ratio_at(sample)
                if sign is not None:
                    return sign
        return None

    def _sign_of_ratio_at(self, sample: _Sample) -> int | None:
        try:
            ball = self._resolved(sample, lambda ev: _quotient(ev, sample), lambda ball: ball.is_certain)
        except (SingularError, OutsideError):
            return None
        except TooCostlyError:
            self._budget.spend(0)
            return None
        return (_sign(ball) or None) if ball.is_real else 2

    def _is_multiple(self, sample: _Sample, bases: list[_Sample]) -> _Outcome:
        """Whether left / right is here what it is at the first of `bases`, which becomes `sample` if there is none."""
        if bases:
            return self._outcome(sample, lambda ev: _cross_difference(ev, sample, bases[0]))
        left = self._outcome(sample, lambda ev: ev.value(sample.left, sample.point))
        right = self._outcome(sample, lambda ev: ev.value(sample.right, sample.point))
        if left is right is _Outcome.DIFFER:
            bases.append(sample)
            return _Outcome.AGREE
        for outcome in (_Outcome.SINGULAR, _Outcome.OUTSIDE, _Outcome.UNDECIDED, _Outcome.DIFFER):
            if outcome in (left, right):
                return outcome
        return _Outcome.AGREE

    def _holds(self, test: _Test) -> bool | None:
        """Whether a test succeeds wherever it can be made, in the first phase in which it can be at enough points."""
        outcomes: set[_Outcome] = set()
        for samples, least in self._phases():
            if self._succeeds(test, samples, least, outcomes):
                return self._holds_elsewhere(test)
            if _Outcome.DIFFER in outcomes:
                return False
        if outcomes == {_Outcome.SINGULAR}:
            raise UndefinedError("no value at any point")
        return None

    def _succeeds(self, test: _Test, samples: Iterable[_Sample], least: int, outcomes: set[_Outcome]) -> bool:
        """Whether a test succeeds at enough points, of `least` points or more; `outcomes` collects what it says."""
        needed = _ENOUGH if self._names else 1
        agreed = 0
        for count, sample in enumerate(samples):
            if count >= least and agreed >= needed:
                break
            outcome = test(sample)
            outcomes.add(outcome)
            if outcome is _Outcome.DIFFER:
                return False
            agreed += outcome is _Outcome.AGREE
        return agreed >= needed

    def _holds_elsewhere(self, test: _Test) -> bool:
        """Whether a test that has succeeded does not fail far away, nor in a piece of a function that may have some."""
        if not self._names or self._complex_names:
            return True
        points = (*FAR, *FINE) if self._is_piecewise else FAR
        whole = self._budget
        self._budget = Budget(whole.left / 2)
        try:
            return all(test(self._real_sample(point)) is not _Outcome.DIFFER for point in points)
        except TooCostlyError:
            return True
        finally:
            whole.left /= 2
            self._budget = whole

    def _outcome(self, sample: _Sample, compute: Callable[[Evaluator], Ball]) -> _Outcome:
        """Whether what is computed is zero."""
        try:
            ball = self._resolved(sample, compute, lambda ball: ball.is_apart)
        except SingularError:
            return _Outcome.SINGULAR
        except OutsideError:
            return _Outcome.OUTSIDE
        except TooCostlyError:
            self._budget.spend(0)  # of this point alone, or of the whole decision?
            return _Outcome.UNDECIDED
        return _Outcome.AGREE if ball.is_zero else _Outcome.DIFFER

    def _resolved(
        self, sample: _Sample, compute: Callable[[Evaluator], Ball], is_enough: Callable[[Ball], bool]
    ) -> Ball:
        """What is computed, at the lowest precision at which it is exactly zero or `is_enough`."""
        precision = _START_PRECISION
        while precision <= self._limit:
            evaluator = Evaluator(precision, self._budget, self._complex_names, sample.is_lenient)
            try:
                ball = compute(evaluator)
                if ball.is_zero or is_enough(ball):
                    return ball
            except ImpreciseError:
                pass
            precision = max(2 * precision, int(256 + 4 * evaluator.arithmetic.spread) + 64)
        raise TooCostlyError

    def _phases(self) -> Iterator[tuple[Iterable[_Sample], int]]:
        """Samples, and how many of them are to be seen at least."""
        yield self._real_samples(), len(PRIMARY)
        if self._names and not self._complex_names:
            if self._discrete_names:
                yield self._integer_samples(), _INTEGERS
            if not self._has_i:
                yield (_Sample(self._left, self._right, point, True) for point in POSITIVE), len(PRIMARY)

    def _real_samples(self) -> Iterable[_Sample]:
        points = POSITIVE if self._complex_names else (*PRIMARY, *FURTHER) if self._names else (0,)
        return map(self._real_sample, points)

    def _real_sample(self, point: int) -> _Sample:
        is_complex = self._has_i or not self._names or bool(self._complex_names)
        return _Sample(self._left, self._right, point, is_complex and point in POSITIVE)

    def _integer_samples(self) -> Iterator[_Sample]:
        for point in range(_INTEGERS):
            values = {name: integer_coordinate(name, point) for name in self._discrete_names}
            try:
                pair = [simplified(node, self._budget, values) for node in (self._left, self._right)]
            except UndefinedError:
                continue
            yield _Sample(pair[0], pair[1], point, False)


def _sign(ball: Ball) -> int:
    return 0 if ball.is_zero else -1 if ball.real[0] else 1


def _difference(evaluator: Evaluator, sample: _Sample) -> Ball:
    left, right = evaluator.value(sample.left, sample.point), evaluator.value(sample.right, sample.point)
    return evaluator.arithmetic.minus(left, right)


def _quotient(evaluator: Evaluator, sample: _Sample) -> Ball:
    left, right = evaluator.value(sample.left, sample.point), evaluator.value(sample.right, sample.point)
    return evaluator.arithmetic.over(left, right)


def _cross_difference(evaluator: Evaluator, sample: _Sample, base: _Sample) -> Ball:
    times = evaluator.arithmetic.times
    first = times(evaluator.value(sample.left, sample.point), evaluator.value(base.right, base.point))
    second = times(evaluator.value(base.left, base.point), evaluator.value(sample.right, sample.point))
    return evaluator.arithmetic.minus(first, second)
