import subprocess
import sys
import time
from collections.abc import Callable
from fractions import Fraction
from math import isqrt, prod

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from grpo.reward.answers.tree import Call, Constant, Node, Number, Power, Product, Sum, Symbol
from grpo.reward.numbers.identity import UndefinedError, are_equal, exact_value, order, proportionality
from grpo.reward.numbers.residues import PRIMES


class Tree:
    """A tree with Python's operators, so that a test shows the formula; `/` and `-` are built as the parser does."""

    def __init__(self, node: Node) -> None:
        self.node = node

    def __add__(self, other: "Tree | int") -> "Tree":
        return Tree(Sum((self.node, as_node(other))))

    def __radd__(self, other: int) -> "Tree":
        return Tree(Sum((as_node(other), self.node)))

    def __mul__(self, other: "Tree | int") -> "Tree":
        return Tree(Product((self.node, as_node(other))))

    def __rmul__(self, other: int) -> "Tree":
        return Tree(Product((as_node(other), self.node)))

    def __pow__(self, other: "Tree | int") -> "Tree":
        return Tree(Power(self.node, as_node(other)))

    def __rpow__(self, other: int) -> "Tree":
        return Tree(Power(as_node(other), self.node))

    def __neg__(self) -> "Tree":
        return -1 * self

    def __sub__(self, other: "Tree | int") -> "Tree":
        return self + -1 * Tree(as_node(other))

    def __rsub__(self, other: int) -> "Tree":
        return other + -self

    def __truediv__(self, other: "Tree | int") -> "Tree":
        return self * Tree(as_node(other)) ** -1

    def __rtruediv__(self, other: int) -> "Tree":
        return other * self**-1


def as_node(value: "Tree | int | Fraction") -> Node:
    return value.node if isinstance(value, Tree) else Number(Fraction(value))


def number(value: int | str | Fraction) -> Tree:
    return Tree(Number(Fraction(value)))


def call(name: str) -> Callable[..., Tree]:
    return lambda *arguments: Tree(Call(name, tuple(map(as_node, arguments))))


def sqrt(value: "Tree | int") -> Tree:
    return root(value, 2)


def tower(base: int, height: int) -> Tree:
    """`base` to the power of `base`, `height` times."""
    return number(base) ** tower(base, height - 1) if height else number(base)


def repeated(function: Callable[[Tree], Tree], start: Tree, times: int) -> Tree:
    for _ in range(times):
        start = function(start)
    return start


def total(terms: list[Tree]) -> Tree:
    return Tree(Sum(tuple(term.node for term in terms)))


root, log, ln, exp = call("root"), call("log"), call("ln"), call("exp")
sin, cos, tan, sec, cot = call("sin"), call("cos"), call("tan"), call("sec"), call("cot")
arcsin, arccos, arctan, arccot = call("arcsin"), call("arccos"), call("arctan"), call("arccot")
sinh, cosh, tanh = call("sinh"), call("cosh"), call("tanh")
arcsinh, arccosh, arctanh = call("arcsinh"), call("arccosh"), call("arctanh")
absolute, floor, ceil, sign, factorial = call("abs"), call("floor"), call("ceil"), call("sign"), call("factorial")
choose, mod, gcd, lcm, maximum, minimum = (
    call("choose"),
    call("mod"),
    call("gcd"),
    call("lcm"),
    call("max"),
    call("min"),
)
conjugate, re, im, f, g = call("conjugate"), call("re"), call("im"), call("f"), call("g")
a, b, c, d, k, m, n, t, x, y, z = (Tree(Symbol(name)) for name in "abcdkmntxyz")
pi, e, i, infinity, reals = (Tree(Constant(name)) for name in ("pi", "e", "i", "infinity", "reals"))
half, third = number("1/2"), number("1/3")


def verdict(left: "Tree | int", right: "Tree | int") -> bool | None:
    """`are_equal`, which must say the same in both orders."""
    result = are_equal(as_node(left), as_node(right))
    assert are_equal(as_node(right), as_node(left)) is result
    return result


ORDER = prod(prime - 1 for prime in PRIMES)  # x**ORDER is 1 in both fields


def nested_power(base: Tree, exponent: int) -> Tree:
    """`base**exponent` as powers of powers, each with a small prime as the exponent."""
    factor = 2
    while exponent > 1:
        while exponent % factor == 0:
            base, exponent = base**factor, exponent // factor
        factor += 1
    return base


EQUAL = {
    # exact constants
    "order of terms": (1 + 2 * sqrt(3), 2 * sqrt(3) + 1),
    "decimal": (number(10) ** number("1/100"), number(10) ** number("0.01")),
    "large integer": (number(10) ** 100 + 1, number(10**100 + 1)),
    "cancelled factorials": (factorial(2006) / factorial(2004), number(2006 * 2005)),
    "powers below the limit": (number(7) ** 123456789, 7 * number(7) ** 123456788),
    "power beyond all limits": (2 * tower(9, 3), tower(9, 3) * 2),
    "log": (log(8, 2), number(3)),
    # radicals, i and logarithms of constants
    "square out of a root": (sqrt(12), 2 * sqrt(3)),
    "rational denominator": (1 / sqrt(3), sqrt(3) / 3),
    "negative half power": (number(3) ** number("-1/2"), 1 / sqrt(3)),
    "denesting": (sqrt(2) + sqrt(3), sqrt(5 + 2 * sqrt(6))),
    "denesting a square": (sqrt(3 + 2 * sqrt(2)), 1 + sqrt(2)),
    "roots of large primes": (sqrt(101) * sqrt(103), sqrt(10403)),
    "Cardano": (root(2 + sqrt(5), 3) + root(2 - sqrt(5), 3), number(1)),
    "cube root of 16": (root(16, 3), 2 * root(2, 3)),
    "fourth root of 4": (root(4, 4), sqrt(2)),
    "root of -1": (sqrt(-1), i),
    "complex square": ((1 + i) ** 2, 2 * i),
    "complex quotient": ((1 + i) / (1 - i), i),
    "Euler": (e ** (i * pi), number(-1)),
    "ln of a power": (ln(8), 3 * ln(2)),
    "ln of a quotient": (ln(third * 2), ln(2) - ln(3)),
    "ln of -1": (ln(-1), i * pi),
    "ln of large primes": (ln(101 * 103), ln(101) + ln(103)),
    "ln of a negative": (ln(-pi), ln(pi) + i * pi),
    "above the branch cut": (ln(-(2**100) * e ** (2 * i * pi)), 100 * ln(2) + i * pi),
    "below the branch cut": (ln(-(2**100) * e ** (-2 * i * pi)), 100 * ln(2) + i * pi),
    "odd root of a negative, of a large index": ((-pi) ** number("3/101"), -(pi ** number("3/101"))),
    "change of base": (log(3, 2), ln(3) / ln(2)),
    "arctan": (arctan(1), pi / 4),
    "heptagon": (cos(pi / 7) - cos(2 * pi / 7) + cos(3 * pi / 7), half),
    "floor": (floor(pi), number(3)),
    "floor of an integer that is not seen to be one": (floor((1 + sqrt(2)) ** 2 - 2 * sqrt(2)), number(3)),
    "ceil": (ceil(-pi), number(-3)),
    "factorial of a half": (factorial(half), sqrt(pi) / 2),
    "maximum": (maximum(sqrt(2), sqrt(3), 1), sqrt(3)),
    "mod": (mod(pi, 3), pi - 3),
    # rational functions
    "long formula in another order": (
        total([tan(j * x) for j in range(1, 100)]),
        total([tan(x * j) for j in range(99, 0, -1)]),
    ),
    "symbol that drops out": (x - x, number(0)),
    "power of zero": (x**0, number(1)),
    "cancelled symbol": (x / x, number(1)),
    "factored": (x**2 - y**2, (x - y) * (x + y)),
    "degree 6000": ((x - 1) ** 6000, (1 - x) ** 6000),
    "partial fractions": (1 / (x * (x + 1)), 1 / x - 1 / (x + 1)),
    "choose two": (choose(n, 2), n * (n - 1) / 2),
    "choose two of a function": (choose(sqrt(x**2), 2), absolute(x) * (absolute(x) - 1) / 2),
    "symbol i": ((x + i) * (x - i), x**2 + 1),
    # functions
    "absolute value": (sqrt(x**2), absolute(x)),
    "square of a root": (sqrt(x) ** 2, x),
    "ln of a product": (ln(a**2 * b), 2 * ln(a) + ln(b)),
    "ln of a square": (ln(x**2), 2 * ln(x)),
    "inverse root": (1 / sqrt(x), sqrt(1 / x)),
    "root of a hidden zero": (root(sin(pi), 3), number(0)),
    "real only far away": (sqrt(x - 15) * sqrt(x - 16), sqrt((x - 15) * (x - 16))),
    "many pieces": (total([sqrt((x - j) ** 2) for j in range(40)]), total([absolute(x - j) for j in range(40)])),
    "cube root": (x**third, root(x, 3)),
    "odd root of a negative": (root(-x, 3), -root(x, 3)),
    "Pythagoras": (sin(x) ** 2 + cos(x) ** 2, number(1)),
    "double angle": (sin(2 * x), 2 * sin(x) * cos(x)),
    "tangent": (tan(x), sin(x) / cos(x)),
    "secant": (sec(x) ** 2, 1 + tan(x) ** 2),
    "cotangent": (cot(x), 1 / tan(x)),
    "Euler's formula": (e ** (i * t), cos(t) + i * sin(t)),
    "arcsin on a half of the unit interval": (2 * arcsin(sqrt(a)), arccos(1 - 2 * a)),
    "arcsin and arccos": (arcsin(x) + arccos(x), pi / 2),
    "arccot": (arccot(x), pi / 2 - arctan(x)),
    "sinh": (sinh(x), (e**x - e**-x) / 2),
    "cosh": (cosh(x) ** 2, 1 + sinh(x) ** 2),
    "tanh": (tanh(x), (e ** (2 * x) - 1) / (e ** (2 * x) + 1)),
    "arcsinh": (arcsinh(x), ln(x + sqrt(x**2 + 1))),
    "arccosh": (arccosh(x), ln(x + sqrt(x**2 - 1))),
    "arctanh": (arctanh(x), ln((1 + x) / (1 - x)) / 2),
    "exponent": (x ** (n + 1), x * x**n),
    "exp": (exp(x), e**x),
    "exp of ln": (e ** ln(x), x),
    "log to a base": (log(x, 2), ln(x) / ln(2)),
    "maximum of two": (maximum(x, y), (x + y + absolute(x - y)) / 2),
    "minimum of two": (minimum(x, y), -maximum(-x, -y)),
    "sign": (x * sign(x), absolute(x)),
    "conjugate": (z * conjugate(z), absolute(z) ** 2),
    "real part": (re(z), (z + conjugate(z)) / 2),
    "imaginary part": (im(z), (z - conjugate(z)) / (2 * i)),
    "never real, without i": (sqrt(-1 - x**2), sqrt(-1) * sqrt(1 + x**2)),
    "never real": (sqrt(-1 - x**2), i * sqrt(1 + x**2)),
    # integers
    "alternating sign": (number(-1) ** n * cos(x) ** n, (-cos(x)) ** n),
    "even power of -1": (number(-1) ** (2 * n), number(1)),
    "cos of multiples of pi": (cos(pi * n), number(-1) ** n),
    "signs with a period of four": (number(-1) ** (n * (n + 1) / 2), number(-1) ** (n * (n - 1) / 2) * cos(pi * n)),
    "sum of exponents": (number(-1) ** n * number(-1) ** m, number(-1) ** (n + m)),
    "factorials": (factorial(d) / (2 * k * factorial(d - k)), choose(d, k) * factorial(k - 1) / 2),
    "quotient of factorials": (factorial(n) / factorial(n - 1), n),
    "symmetric binomial": (choose(n, k), choose(n, n - k)),
    # unknown functions
    "argument": (f(x + x), f(2 * x)),
    "argument by value": (f(sqrt(x**2)), f(absolute(x))),
    "gcd": (gcd(m, n), gcd(n, m)),
    # infinity
    "infinity": (infinity, infinity),
    "multiple of infinity": (2 * infinity + 1, infinity),
    "negative infinity": (-infinity, -2 * infinity + sqrt(2)),
    "odd power of negative infinity": ((-infinity) ** 3, -infinity),
    "even power of negative infinity": ((-infinity) ** 2, infinity),
    "infinite power": (infinity**2, infinity),
    "one over infinity": (1 / infinity, number(0)),
    "arctan of infinity": (arctan(infinity), pi / 2),
    "set": (reals, reals),
}

DIFFERENT = {
    "another radical": (1 + 2 * sqrt(3), 3 + 2 * sqrt(2)),
    "conjugate radical": ((1 + sqrt(5)) / 2, (1 - sqrt(5)) / 2),
    "40 digits": (sqrt(2) + sqrt(3), number("3.1462643699419723423291350657155704455124")),
    "300 digits": (sqrt(2), number(Fraction(isqrt(2 * 10**600), 10**300))),
    "40 digits of pi": (pi, number("3.1415926535897932384626433832795028841971")),
    "one more than a power of ten": (number(10) ** 100, number(10) ** 100 + 1),
    "and in a formula": (sqrt(2) * number(10) ** 100, sqrt(2) * number(10) ** 100 + 1),
    "one less than a power of e": (e**16 - 1, e**16),
    "almost an integer": (e ** (pi * sqrt(163)), number(640320**3 + 744)),
    "100th root": (number(10) ** number("1/100"), number(10) ** number("0.1")),
    "small numbers": (1 / number(2) ** 99, 1 / number(2) ** 98),
    "smaller numbers": (1 / factorial(2004), 1 / factorial(2006)),
    "small numbers with a root": (sqrt(2) / number(10) ** 99, sqrt(2) / number(10) ** 98),
    "almost one": (number(2) ** (1 / number(2) ** 1000), number(1)),
    "almost one, twice": (cos(number(1) / 10**60), number(1)),
    "large powers": (number(3) ** 2025, number(2) ** 2025),
    "larger powers": (number(7) ** 123456789, number(7) ** 123456788),
    "one more than a large power": (number(10) ** (10**10), number(10) ** (10**10) + 1),
    "large against small": (number(2) ** (number(2) ** 100), number(3)),
    "binomial": (choose(10**8, 5 * 10**7), number(6)),
    "factorial": (factorial(10**9), number(5)),
    "exponential": (e ** (pi * number(10) ** 9), number(1)),
    "power of e": (e ** (number(10) ** 30), number(1)),
    "prime of the field": (number(396327133002234617215058259126328868433001) * x, 0 * x),
    "both primes of the fields": (
        number(396327133002234617215058259126328868433001) * number(52520838218678909715875666916217403274601) * x,
        0 * x,
    ),
    "period of the field": (x**396327133002234617215058259126328868433001, x),
    "roots of large primes": (sqrt(101) * sqrt(103), sqrt(10405)),
    "imaginary unit": (i, -i),
    "sign of a root": (sqrt(-4), -2 * i),
    "floor": (floor(pi), number(4)),
    "odd degree": ((x - 1) ** 6001, (1 - x) ** 6001),
    "other symbol": (x, y),
    "case": (x, Tree(Symbol("X"))),
    "root of a square": (sqrt(x**2), x),
    "absolute value of a negative": (absolute(x), -x),
    "absolute value far away": (absolute(x - 20), 20 - x),
    "absolute value far below zero": (absolute(x + 20), x + 20),
    "absolute value between 1 and 2": (absolute((x - 1) * (x - 2)), (x - 1) * (x - 2)),
    "root of a square between 1 and 2": (sqrt(((x - 1) * (x - 2)) ** 2), (x - 1) * (x - 2)),
    "arcsin of sin": (arcsin(sin(x)), x),
    "arccosh of cosh": (arccosh(cosh(x)), x),
    "arctan of tan": (arctan(tan(x)), x),
    "absolute value in two symbols": (absolute(x - y), x - y),
    "imaginary multiple": (i * sqrt(x**2), i * x),
    "double angle": (sin(2 * x), 2 * sin(x)),
    "turned angle": (sin(x), sin(x + pi)),
    "exponent": (x ** (n + 1), x**n),
    "odd power of -1": (number(-1) ** n, number(1)),
    "shifted power of -1": (number(-1) ** (n + m), number(1)),
    "period of four, without i": (number(-1) ** (n * (n + 1) / 2), number(-1) ** n),
    "another period of four": (number(-1) ** (k * (k + 1) / 2), number(1)),
    "period of four": (i**n, number(-1) ** n),
    "floor of a symbol": (floor(x), x),
    "floor against ceil": (floor(x), ceil(x)),
    "factorial of a symbol": (factorial(n), n * factorial(n)),
    "binomials": (choose(n, k), choose(n, k + 1)),
    "unknown functions": (f(x), g(x)),
    "arguments of an unknown function": (f(x), f(y)),
    "argument that almost agrees": (f(x + number(10) ** -30), f(x)),
    "order of arguments": (f(x, y), f(y, x)),
    "conjugate": (conjugate(z), z),
    "infinities": (infinity, -infinity),
    "infinity and a number": (infinity, number(10) ** 100),
    "sets": (reals, Tree(Constant("integers"))),
    "set and number": (reals, number(5)),
}


@pytest.mark.parametrize(("left", "right"), EQUAL.values(), ids=EQUAL)
def test_equal(left: Tree, right: Tree) -> None:
    assert verdict(left, right) is True


@pytest.mark.parametrize(("left", "right"), DIFFERENT.values(), ids=DIFFERENT)
def test_different(left: Tree, right: Tree) -> None:
    assert verdict(left, right) is False


@pytest.mark.parametrize(
    ("left", "right"),
    [
        pytest.param(tower(9, 3), number(3), id="its exponent is too large"),
        pytest.param(
            sqrt(2) ** 40000 * sqrt(3) + ln(sqrt(3)), sqrt(2) ** 40000 * sqrt(3) + ln(3) / 2, id="E is too large"
        ),
        pytest.param(x * infinity, infinity, id="the sign of x is unknown"),
        pytest.param(e ** (pi * number(10) ** 30), number(1), id="the exponent is too large"),
        pytest.param(x ** (1 + ORDER), x, id="the degree is a multiple of the order of the fields"),
        pytest.param(nested_power(x, ORDER), number(1), id="the same in steps"),
        pytest.param(number(2) ** 800 * factorial(pi), number(2) ** 800 * pi * factorial(pi - 1), id="the precision"),
        pytest.param(sin(number(10) ** 5000), sqrt(2) / 3, id="the angle is too large"),
    ],
)
def test_undecided(left: Tree, right: Tree) -> None:
    assert verdict(left, right) is None


UNDEFINED = {
    "division by zero": number(1) / 0,
    "zero divided by zero": number(0) / 0,
    "zero to the power zero": number(0) ** 0,
    "hidden division by zero": 1 / (x - x),
    "division by the root of a hidden zero": 1 / sqrt(x - x),
    "division by a zero with roots": 1 / (sqrt(2) * sqrt(8) - 4),
    "division by a zero with sines": 1 / (sin(pi / 5) ** 2 + cos(pi / 5) ** 2 - 1),
    "product with a division by zero": 0 * (number(1) / 0),
    "logarithm of zero": ln(0),
    "logarithm to the base one": log(2, 1),
    "hidden zero to the power zero": sin(pi) ** 0,
    "logarithm of a hidden zero": ln(sin(pi)),
    "tangent of a right angle": tan(pi / 2),
    "factorial of a negative integer": factorial(-1),
    "remainder": mod(5, 0),
    "zeroth root": root(x, 0),
    "infinity - infinity": infinity - infinity,
    "zero times infinity": 0 * infinity,
    "infinity divided by infinity": infinity / infinity,
    "infinity to the power zero": infinity**0,
}


@pytest.mark.parametrize("tree", UNDEFINED.values(), ids=UNDEFINED)
@pytest.mark.parametrize("other", [number(1), x, sqrt(2)], ids=["1", "x", "sqrt 2"])
def test_an_undefined_value_is_an_error_on_either_side(tree: Tree, other: Tree) -> None:
    for pair in ((tree, other), (other, tree), (tree, tree)):
        with pytest.raises(UndefinedError):
            are_equal(*(side.node for side in pair))


@pytest.mark.parametrize("costly", [tower(base, 3) for base in (6, 7, 8, 9)])
@pytest.mark.parametrize("undefined", [tan(pi / 2), ln(sin(pi))])
def test_an_undefined_and_a_costly_tree_have_one_verdict_in_both_orders(costly: Tree, undefined: Tree) -> None:
    def outcome(left: Tree, right: Tree) -> str:
        try:
            return str(are_equal(left.node, right.node))
        except UndefinedError:
            return "undefined"

    assert outcome(costly, undefined) == outcome(undefined, costly)


@pytest.mark.parametrize(
    ("tree", "value"),
    [
        (number("1/2") + number("1/3"), Fraction(5, 6)),
        (number("2/3") * 6 / 8, Fraction(1, 2)),
        (number(2) ** -3, Fraction(1, 8)),
        (number("4/9") ** number("-3/2"), Fraction(27, 8)),
        (number(-8) ** number("2/3"), Fraction(4)),
        (root(-8, 3), Fraction(-2)),
        (root(-8, 2), None),
        (root(2, 2), None),
        (root(3**4001, 4001), Fraction(3)),
        (root(3**4001 + 1, 4001), None),
        (root(8, -3), Fraction(1, 2)),
        (number(1) ** (10**30), Fraction(1)),
        (number(-1) ** (10**30 + 1), Fraction(-1)),
        (number(2) ** 10**30, None),
        (number(2) ** 20_000, Fraction(2**20_000)),
        (number(2) ** 20_001, None),  # over the limit
        (absolute(-3), Fraction(3)),
        (floor(number("-7/2")), Fraction(-4)),
        (ceil(number("-7/2")), Fraction(-3)),
        (sign(number(-7)), Fraction(-1)),
        (factorial(5), Fraction(120)),
        (factorial(10**9), None),
        (factorial(half), None),
        (choose(5, 2), Fraction(10)),
        (choose(5, 6), Fraction(0)),
        (choose(5, -1), Fraction(0)),
        (choose(-2, 3), Fraction(-4)),  # -2 * -3 * -4 / 6
        (choose(half, 2), Fraction(-1, 8)),  # 1/2 * -1/2 / 2
        (choose(10**30, 2), Fraction(10**30 * (10**30 - 1) // 2)),
        (choose(10**8, 5 * 10**7), None),
        (gcd(12, 18, 8), Fraction(2)),
        (lcm(4, 6), Fraction(12)),
        (gcd(half, 3), None),
        (maximum(1, half, 3), Fraction(3)),
        (minimum(1, half, 3), Fraction(1, 2)),
        (mod(-7, 3), Fraction(2)),
        (log(8, 2), Fraction(3)),
        (log(4, 8), Fraction(2, 3)),
        (log(number("1/8"), 2), Fraction(-3)),
        (log(2**6000, 2), Fraction(6000)),
        (log(2**6000 + 1, 2), None),
        (log(number("1.001") ** 7, number("1.001")), Fraction(7)),
        (log(-8, 2), None),
        (ln(1), Fraction(0)),
        (exp(0), Fraction(1)),
        (pi**0, Fraction(1)),
        (cos(0) + sin(0), Fraction(1)),
        (re(5) + im(5) + conjugate(5), Fraction(10)),
        (x, None),
        (pi, None),
        (sqrt(2) ** 2 + f(3), None),
    ],
)
def test_exact_value(tree: Tree, value: Fraction | None) -> None:
    assert exact_value(tree.node) == value


def test_exact_value_of_what_has_none() -> None:
    with pytest.raises(UndefinedError):
        exact_value((number(1) / 0).node)


@pytest.mark.parametrize(
    ("left", "right", "factor"),
    [
        (x + y - 1, 2 * x + 2 * y - 2, 1),
        (x - y, y - x, -1),
        (x**2 - 4, third * (2 - x) * (2 + x), -1),
        (i * x, x, 2),
        ((1 + i) * x, (1 - i) * x, 2),
        (x, x**2, 0),
        (x + 1, x - 1, 0),
        (x, y, 0),
        (x, x + 0 * y, 0),  # other symbols
        (x - x, 0 * x, 1),
        (x - x, x, 0),
        (number(5), number(3), 1),
        (number(5), number(-3), -1),
        (number(5), number(0), 0),
        (number(0), number(0), 1),
        (sqrt(2) * x, x, 1),
        ((1 - sqrt(2)) * x, x, -1),
        ((e - 3) * x, pi * x, -1),
        (sin(2 * x), sin(x) * cos(x), 1),
        (sin(2 * x), -sin(x) * cos(x), -1),
        (sin(x), cos(x), 0),
        (sin(x), sin(x) + number(10) ** -30, 0),
        (sin(pi) * x, x - x, 1),
        (sqrt(x**2), x, 0),  # another multiple at each sign
        (sqrt(x**2), -3 * absolute(x), -1),
        (ln(x**2) - 2, ln(x) - 1, 1),
        (sqrt(x) - y, 2 * y - sqrt(4 * x), -1),
        ((-2) * number(-1) ** n, cos(pi * n), -1),
        ((x - 1) ** 6000, -((1 - x) ** 6000), -1),
        (conjugate(z), z, 0),
        (x**396327133002234617215058259126328868433000, x - x + 1, None),  # the order of the field
        (infinity * x, x, None),
    ],
)
def test_proportionality(left: Tree, right: Tree, factor: int | None) -> None:
    assert proportionality(left.node, right.node) == factor
    assert proportionality(right.node, left.node) == factor


def test_proportionality_of_what_has_no_value() -> None:
    with pytest.raises(UndefinedError):
        proportionality((x / (x - x)).node, x.node)
    with pytest.raises(UndefinedError):
        proportionality((x * tan(pi / 2)).node, x.node)


@pytest.mark.parametrize(
    ("left", "right", "sign_of_difference"),
    [
        (number("1/3"), number("0.3333"), 1),
        (number(7), number(7), 0),
        (sqrt(2), number("1.41421356237309504880168872420969807856967187537695"), -1),
        (sqrt(2), number("1.41421356237309504880168872420969807856967187537694"), 1),
        (sqrt(8), 2 * sqrt(2), 0),
        (e**pi, pi**e, 1),
        (-e, -pi, 1),
        (number(7) ** 123456789, number(7) ** 123456788, 1),
        (1 / number(7) ** 123456789, number(0), 1),
        (sin(pi), number(0), 0),
        (e ** (i * pi), number(-1), 0),
        (infinity, number(10) ** 100, 1),
        (-infinity, number(-(10**100)), -1),
        (-infinity, infinity, -1),
        (infinity, 2 * infinity, 0),
        (i, number(0), None),
        (1 + i, i, None),  # the difference is real
        (x, number(0), None),
        (tower(9, 3), number(3), None),
    ],
)
def test_order(left: Tree, right: Tree, sign_of_difference: int | None) -> None:
    assert order(left.node, right.node) == sign_of_difference
    assert order(right.node, left.node) == (None if sign_of_difference is None else -sign_of_difference)


def test_order_of_what_has_no_value() -> None:
    for undefined in (number(1) / 0, ln(0), tan(pi / 2), infinity - infinity):
        with pytest.raises(UndefinedError):
            order(undefined.node, number(1).node)


HOSTILE = {
    "tower": tower(9, 90),
    "inverse tower": 1 / tower(9, 4),
    "large power of a large power": repeated(lambda v: (v - 1) ** 4_000_000_000, x, 20),
    "many large powers": total([(x - j) ** 6000 for j in range(200)]),
    "factorials": factorial(factorial(factorial(number(50)))),
    "binomials": repeated(lambda v: choose(v, 60), x, 10),
    "binomials of a number": repeated(lambda v: choose(v, 3), number(100), 90),
    "factorials of a symbol": total([factorial(j * x) for j in range(1, 100)]),
    "denominators": total([1 / number(10**6 + 2 * j + 1) for j in range(1000)]),
    "long fractions": total([number(Fraction(1, 3 ** (4000 + j) + 2)) for j in range(600)]),
    "roots": total([sqrt(10**6 + 3 * j) for j in range(600)]),
    "sines": total([sin(j * x) for j in range(600)]),
    "symbols": total([sqrt(Tree(Symbol(f"q{j}")) ** 2) for j in range(200)]),
    "integer symbols": repeated(lambda v: number(-1) ** Tree(Symbol("q")) * v, x, 90),
    "exponentials": repeated(exp, x, 90),
    "logarithms": repeated(ln, tower(9, 2), 60),
    "powers of i": repeated(lambda v: i**v, i, 80),
    "unknown functions": repeated(f, x, 90),
    "unknown function of a large number": f(number(10) ** 6000),
    "large index": root(2, 10**40 + 1),
    "large radicand": root(number(2) ** (3**100), 3**99),
    "huge and tiny parts": arctan(1 / sinh(number(10) ** 9) + i * number(2) ** (10**9)),
    "parts of very different sizes": arctan(e ** (-(10**9) * (1 + i))),
    "precision": (pi * number(2) ** 3800 + e) ** (number(1) / 7),
    "long digits": number(10**6000) * root(2, 3),
    "gcds": total([gcd(3**3000 * j, 2**4000 + j) for j in range(300)]),
    "angle": sin(number(10) ** 1190),
}


@pytest.mark.parametrize("tree", HOSTILE.values(), ids=HOSTILE)
def test_hostile_trees_take_little_time(tree: Tree) -> None:
    others = [number(1).node, x.node, (tree + sqrt(7)).node, (sqrt(7) + tree).node]
    are_equal(sqrt(2).node, ln(sqrt(3)).node)  # imports mpmath
    for other in others:
        for function in (are_equal, proportionality, order):
            start = time.process_time()
            function(tree.node, other)
            assert time.process_time() - start < 1  # in fact below 0.05 s


def test_shared_subtrees_do_not_cost_exponential_time() -> None:
    tree = repeated(lambda v: v**v, x, 60)
    start = time.process_time()
    for function in (are_equal, proportionality):
        assert function(tree.node, x.node) is None
    assert time.process_time() - start < 2


def test_the_points_are_the_same_in_every_process() -> None:
    program = (
        "from grpo.reward.numbers.evaluation import Evaluator\n"
        "from grpo.reward.numbers.rational import Budget\n"
        "from grpo.reward.numbers.residues import PRIMES, residue_pairs\n"
        "from grpo.reward.answers.tree import Call, Symbol\n"
        "tree = Call('f', (Symbol('theta_1'),))\n"
        "print(residue_pairs(tree, tree, [(1, PRIMES[0])], Budget(1000)))\n"
        "print([Evaluator(384, Budget(1000), set(), True).value(tree, point) for point in range(20)])"
    )
    outputs = {
        subprocess.run(
            [sys.executable, "-c", program], env={"PYTHONHASHSEED": seed}, capture_output=True, check=True
        ).stdout
        for seed in ("1", "2")
    }
    assert len(outputs) == 1


def test_rational_answers_do_without_mpmath() -> None:
    program = (
        "import sys\n"
        "from fractions import Fraction\n"
        "from grpo.reward.numbers.identity import are_equal\n"
        "from grpo.reward.answers.tree import HALF, Number, Power, Sum, Symbol\n"
        "root = Power(Number(Fraction(2)), HALF)\n"
        "assert are_equal(Sum((Symbol('x'), root)), Sum((root, Symbol('x'))))\n"
        "assert not are_equal(root, HALF)\n"
        "print('mpmath' in sys.modules)"
    )
    output = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    assert output.strip() == "False"


# Properties

fractions = st.fractions(min_value=-50, max_value=50, max_denominator=12)
quick = settings(max_examples=30, deadline=None)


def leaves() -> st.SearchStrategy[Tree]:
    return st.one_of(
        st.sampled_from([x, y, pi, e, sqrt(2), sqrt(3)]),
        fractions.map(number),
        st.integers(min_value=1, max_value=9).map(number),
    )


def trees(max_leaves: int) -> st.SearchStrategy[Tree]:
    return st.recursive(
        leaves(),
        lambda inner: st.one_of(
            st.tuples(inner, inner).map(lambda pair: pair[0] + pair[1]),
            st.tuples(inner, inner).map(lambda pair: pair[0] * pair[1]),
            st.tuples(inner, st.sampled_from([2, 3])).map(lambda pair: pair[0] ** pair[1]),
            inner.map(sin),
            inner.map(absolute),
            inner.map(lambda tree: sqrt(tree**2 + 1)),
            inner.map(lambda tree: e ** sin(tree)),
        ),
        max_leaves=max_leaves,
    )


@quick
@given(trees(6))
def test_a_tree_equals_itself(tree: Tree) -> None:
    assert verdict(tree, tree) is True


@quick
@given(trees(4), trees(4))
def test_the_order_of_the_two_does_not_matter(left: Tree, right: Tree) -> None:
    verdict(left, right)
    assert proportionality(left.node, right.node) == proportionality(right.node, left.node)


@quick
@given(trees(3), trees(3), trees(3))
def test_expansions_hold(left: Tree, middle: Tree, right: Tree) -> None:
    assert verdict((left + middle) * right, left * right + right * middle) is True
    assert verdict((left - middle) ** 2, left**2 + middle**2 - 2 * left * middle) is True
    assert verdict(sin(left + right), sin(left) * cos(right) + cos(left) * sin(right)) is not False


@quick
@given(trees(4), st.integers(min_value=1, max_value=60))
def test_a_small_difference_is_seen(tree: Tree, digits: int) -> None:
    assert verdict(tree, tree + number(Fraction(1, 10**digits))) is False


@quick
@given(fractions, fractions, st.integers(min_value=2, max_value=40))
def test_different_fractions_are_never_equal(left: Fraction, right: Fraction, power: int) -> None:
    expected = left == right
    assert verdict(number(left), number(right)) is expected
    assert verdict(number(left) - number(right), number(0)) is expected
    assert verdict(number(left) * sqrt(2), number(right) * sqrt(2)) is expected
    assert verdict(number(left) * x + pi, pi + x * number(right)) is expected
    assert verdict(number(left) ** (2 * power + 1), number(right) ** (2 * power + 1)) is expected
    assert verdict(cos(1) * number(left), number(right) * cos(1)) is expected


@quick
@given(st.integers(min_value=0, max_value=10**60), st.integers(min_value=-3, max_value=3), st.integers(0, 5))
def test_neighbouring_integers_are_never_equal(value: int, step: int, power: int) -> None:
    built = number(value // 7) * 7 + number(value % 7)
    assert verdict(built, number(value + step)) is (step == 0)
    assert verdict(sqrt(built), sqrt(value + step)) is (None if value + step < 0 else step == 0) or value + step < 0
    assert verdict(built * x**power, number(value + step) * x**power) is (step == 0)
    assert verdict(sin(built), sin(number(value + step))) is (step == 0)


@quick
@given(trees(3), fractions.filter(bool))
def test_multiples_are_proportional(tree: Tree, factor: Fraction) -> None:
    if are_equal(tree.node, number(0).node) is False:
        assert proportionality(tree.node, (number(factor) * tree).node) == (1 if factor > 0 else -1)
        assert proportionality((tree * i).node, (number(factor) * tree).node) == 2


@quick
@given(fractions, fractions)
def test_order_is_that_of_the_fractions(left: Fraction, right: Fraction) -> None:
    expected = (left > right) - (left < right)
    assert order(as_node(left), as_node(right)) == expected
    assert order((number(left) + pi).node, (pi + number(right)).node) == expected
    assert order((number(left) * sin(1)).node, (number(right) * sin(1)).node) == expected
