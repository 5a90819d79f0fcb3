from collections.abc import Callable
from fractions import Fraction
from math import inf

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mpmath import libmp

from grpo.reward.answers.tree import FUNCTIONS, Call, Constant, Node, Number, Power, Product, Sum, Symbol
from grpo.reward.numbers.balls import (
    HALF,
    MINUS_ONE,
    ONE,
    ZERO,
    Arithmetic,
    Ball,
    I,
    ImpreciseError,
    OutsideError,
    SingularError,
    exactly,
    magnitude,
    negative,
)
from grpo.reward.numbers.evaluation import FINE, PRIMARY, Evaluator, integer_coordinate
from grpo.reward.numbers.rational import Budget, TooCostlyError, UndefinedError, simplified

LOW, HIGH = 384, 700


def arithmetic(precision: int = LOW, *, is_principal: bool = True) -> Arithmetic:
    return Arithmetic(precision, Budget(1e6), is_principal)


def as_complex(ball: Ball) -> complex:
    return complex(libmp.to_float(ball.real), libmp.to_float(ball.imaginary))


NAMES = [name for name, counts in FUNCTIONS.items() if counts == (1,) and name != "exp"]
numbers = st.one_of(
    st.fractions(min_value=-9, max_value=9, max_denominator=9),
    st.fractions(min_value=-1000, max_value=1000, max_denominator=10**9),
).map(Number)
leaves = st.one_of(
    numbers,
    st.sampled_from(["pi", "e", "i"]).map(Constant),
    st.sampled_from(["x", "y"]).map(Symbol),
)
exponents = st.sampled_from([-1, 2, 5, Fraction(1, 2), Fraction(1, 3), Fraction(-3, 2), Fraction(7, 101), 1000])


def extended(inner: st.SearchStrategy[Node]) -> st.SearchStrategy[Node]:
    return st.one_of(
        st.lists(inner, min_size=2, max_size=3).map(lambda terms: Sum(tuple(terms))),
        st.lists(inner, min_size=2, max_size=3).map(lambda factors: Product(tuple(factors))),
        st.builds(Power, inner, exponents.map(lambda value: Number(Fraction(value)))),
        st.builds(Power, inner, inner),
        st.builds(Call, st.sampled_from(NAMES), st.tuples(inner)),
        st.builds(Call, st.sampled_from(["choose", "mod", "max", "min"]), st.tuples(inner, inner)),
    )


@settings(max_examples=250, deadline=None)
@given(st.recursive(leaves, extended, max_leaves=8), st.sampled_from([*PRIMARY, *FINE]))
def test_the_true_value_is_in_the_ball(tree: Node, point: int) -> None:
    try:
        tree = simplified(tree, Budget(1e5))
        coarse, fine = (Evaluator(bits, Budget(1e5), set(), True).value(tree, point) for bits in (LOW, HIGH))
    except (UndefinedError, TooCostlyError, SingularError, ImpreciseError):
        return
    distance = libmp.mpc_sub(coarse[:2], fine[:2], 2 * HIGH, "n")
    largest = max(map(magnitude, distance))
    # below 2**-340 a part may have been taken for zero
    assert largest <= max(coarse.error, fine.error, -340) + 1


def moved(balls: Arithmetic, center: Ball, real: Fraction, imaginary: Fraction) -> Ball:
    """A number within 2**-40 of `center`, if the two fractions are at most 1/2."""
    steps = [
        balls.times(balls.quotient(*part.as_integer_ratio()), balls.quotient(1, 2**40)) for part in (real, imaginary)
    ]
    return balls.plus(center, steps[0], balls.times(I, steps[1]))


SENSITIVE: dict[str, tuple[Callable[[Arithmetic, Ball], Ball], bool]] = {
    "plus": (lambda balls, ball: balls.plus(ball, SEVEN, ball, ball, ball), True),
    "times": (lambda balls, ball: balls.times(ball, balls.times(ball, exactly(1000))), True),
    "inverse": (lambda balls, ball: balls.inverse(ball), True),
    "square": (lambda balls, ball: balls.integer_power(ball, 2), True),
    "large power": (lambda balls, ball: balls.integer_power(ball, 1000), True),
    "square root": (lambda balls, ball: balls.root(ball, 2), True),
    "ninth root": (lambda balls, ball: balls.root(ball, 9), True),
    "logarithm": (lambda balls, ball: balls.logarithm(ball), True),
    "exponential": (lambda balls, ball: balls.exponential(ball), True),
    "power": (lambda balls, ball: balls.power(ball, ball), True),
    "cosine": (lambda balls, ball: balls.cosine_and_sine(ball)[0], True),
    "sine": (lambda balls, ball: balls.cosine_and_sine(ball)[1], True),
    "arctangent": (lambda balls, ball: balls.arctangent(ball), True),
    "absolute": (lambda balls, ball: balls.absolute(ball), True),
    "gamma": (lambda balls, ball: balls.gamma(ball), False),
}


@pytest.mark.parametrize(("operation", "takes_complex"), SENSITIVE.values(), ids=SENSITIVE)
@pytest.mark.parametrize("exponent", [-9, -3, 0, 2, 5])
@settings(max_examples=15, deadline=None)
@given(data=st.data())
def test_an_operation_widens_the_error_enough(
    operation: Callable[[Arithmetic, Ball], Ball], takes_complex: bool, exponent: int, data: st.DataObject
) -> None:
    steps = st.sampled_from([Fraction(-1, 2), Fraction(0), Fraction(1, 2)])
    mantissas = st.integers(min_value=64, max_value=127)
    real = libmp.from_man_exp(data.draw(mantissas) * data.draw(st.sampled_from([-1, 1])), exponent - 6)
    imaginary = libmp.from_man_exp(data.draw(mantissas), exponent - 6)
    center = Ball(real, imaginary if takes_complex and data.draw(st.booleans()) else libmp.fzero, -inf)
    step = data.draw(steps), data.draw(steps) if center.imaginary[1] else Fraction(0)
    for error, by in ((-inf, (Fraction(0), Fraction(0))), (-40, step)):
        try:
            ball = operation(arithmetic(), center._replace(error=error))
            true = operation(arithmetic(HIGH), moved(arithmetic(HIGH), center, *by))
        except (SingularError, ImpreciseError, TooCostlyError):
            continue
        distance = libmp.mpc_sub(ball[:2], true[:2], 2 * HIGH, "n")
        assert max(map(magnitude, distance)) <= ball.error


BALLS = arithmetic()
THIRD, PI, SEVEN = BALLS.quotient(1, 3), BALLS.pi(), exactly(7)


@pytest.mark.parametrize(
    ("ball", "value"),
    [
        (BALLS.plus(ONE, I, SEVEN), 8 + 1j),
        (BALLS.minus(ONE, SEVEN), -6),
        (BALLS.times(BALLS.plus(ONE, I), BALLS.plus(ONE, I)), 2j),
        (BALLS.inverse(BALLS.plus(ONE, I)), 0.5 - 0.5j),
        (BALLS.over(SEVEN, exactly(-2)), -3.5),
        (BALLS.integer_power(exactly(-2), 5), -32),
        (BALLS.integer_power(BALLS.plus(ONE, I), 4), -4),
        (BALLS.integer_power(SEVEN, 0), 1),
        (BALLS.root(exactly(-8), 3), -2),
        (BALLS.root(exactly(-4), 2), 2j),
        (BALLS.root(exactly(-4), 4), 1 + 1j),  # sqrt(2) e^{i pi/4}
        (BALLS.root(ZERO, 2), 0),
        (BALLS.power(exactly(4), HALF), 2),
        (BALLS.power(ZERO, HALF), 0),
        (BALLS.logarithm(MINUS_ONE), 3.141592653589793j),
        (BALLS.exponential(BALLS.times(I, PI)), -1),
        (BALLS.cosine_and_sine(PI)[0], -1),
        (BALLS.cosine_and_sine(PI)[1], 0),
        (BALLS.times(exactly(4), BALLS.arctangent(ONE)), 3.141592653589793),
        (BALLS.absolute(BALLS.plus(exactly(3), BALLS.times(exactly(-4), I))), 5),
        (BALLS.floor(negative(THIRD)), -1),
        (BALLS.floor(BALLS.times(THIRD, exactly(3))), 1),  # an integer, though not exactly
        (BALLS.gamma(exactly(5)), 24),
    ],
)
def test_operations(ball: Ball, value: complex) -> None:
    assert as_complex(ball) == pytest.approx(value, rel=1e-15)
    assert ball.error < -300


@pytest.mark.parametrize(
    "operation",
    [
        lambda balls: balls.inverse(ZERO),
        lambda balls: balls.inverse(balls.minus(balls.times(THIRD, exactly(3)), ONE)),
        lambda balls: balls.logarithm(balls.cosine_and_sine(balls.pi())[1]),
        lambda balls: balls.power(ZERO, MINUS_ONE),
        lambda balls: balls.power(ZERO, ZERO),
        lambda balls: balls.gamma(ZERO),
        lambda balls: balls.gamma(MINUS_ONE),
        lambda balls: balls.floor(I),
    ],
)
def test_no_value(operation: Callable[[Arithmetic], Ball]) -> None:
    with pytest.raises(SingularError):
        operation(arithmetic())


@pytest.mark.parametrize(
    "operation",
    [
        lambda balls: balls.root(MINUS_ONE, 2),
        lambda balls: balls.root(MINUS_ONE, 4),
        lambda balls: balls.logarithm(MINUS_ONE),
        lambda balls: balls.power(MINUS_ONE, balls.pi()),
    ],
)
def test_only_a_principal_value(operation: Callable[[Arithmetic], Ball]) -> None:
    operation(arithmetic())
    with pytest.raises(OutsideError):
        operation(arithmetic(is_principal=False))


def test_the_odd_root_of_a_negative_number_is_real() -> None:
    assert as_complex(arithmetic(is_principal=False).root(exactly(-27), 3)) == pytest.approx(-3)


@pytest.mark.parametrize(
    "operation",
    [
        lambda balls: balls.exponential(balls.quotient(10**30, 1)),
        lambda balls: balls.integer_power(SEVEN, 10**30),
        lambda balls: balls.integer_power(SEVEN, 10**13),
        lambda balls: balls.gamma(balls.quotient(10**30, 1)),
        lambda balls: arithmetic(800).gamma(THIRD),
        lambda balls: Arithmetic(LOW, Budget(5), True).logarithm(SEVEN),
    ],
)
def test_too_costly(operation: Callable[[Arithmetic], Ball]) -> None:
    with pytest.raises(TooCostlyError):
        operation(arithmetic())


def test_a_number_that_may_be_zero_is_not_divided_by() -> None:
    balls = arithmetic()
    small = balls.quotient(1, 2**100)
    difference = balls.minus(balls.times(BALLS.pi(), small), balls.times(small, balls.pi()))
    assert not difference.is_zero
    assert not difference.is_apart
    for operation in (balls.inverse, balls.logarithm, lambda ball: balls.root(ball, 2), balls.gamma):
        with pytest.raises(ImpreciseError):
            operation(difference)
    precise = arithmetic(256 + 4 * 100 + 64)
    small = precise.quotient(1, 2**100)
    assert precise.minus(precise.times(precise.pi(), small), precise.times(small, precise.pi())) == ZERO


@pytest.mark.parametrize(
    "operation", [Arithmetic.exponential, Arithmetic.cosine_and_sine, Arithmetic.gamma, Arithmetic.digits]
)
def test_a_value_with_a_large_error_is_not_used(operation: Callable[[Arithmetic, Ball], object]) -> None:
    with pytest.raises(ImpreciseError):
        operation(arithmetic(), exactly(1000)._replace(error=8))


def test_a_sum_is_rounded() -> None:
    balls = arithmetic()
    large, small = (
        Ball(libmp.from_man_exp(1, 300), libmp.fzero, -inf),
        Ball(libmp.from_man_exp(1, -200), libmp.fzero, -inf),
    )
    assert balls.plus(large, small).error >= -200
    assert balls.plus(large, small).error < -70


def test_the_side_of_the_branch_cut_must_be_known() -> None:
    balls = arithmetic()
    turned = balls.exponential(balls.times(I, balls.times(exactly(2), balls.pi())))
    number = balls.times(balls.quotient(-(2**100), 1), Ball(turned.real, libmp.from_man_exp(1, -390), -380.0))
    with pytest.raises(ImpreciseError):
        balls.logarithm(number)


def test_exact_numbers_have_no_error() -> None:
    balls = arithmetic()
    assert balls.quotient(12, 1).error == -inf
    assert balls.quotient(1, 3).error > -inf
    assert balls.spread == 4  # 12 has four bits


def test_integer_coordinates_are_all_of_one_to_twelve() -> None:
    for name in ("n", "k", "theta_1"):
        assert sorted(integer_coordinate(name, point) for point in range(12)) == list(range(1, 13))


def test_symbols_are_once_in_each_cell() -> None:
    for name in ("x", "y"):
        evaluator = Evaluator(LOW, Budget(1e6), set(), True)
        values = [as_complex(evaluator.value(Symbol(name), point)).real for point in FINE]
        assert sorted(int(2 * value + 12) for value in values) == list(range(24))
