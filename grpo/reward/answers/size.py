"""How large a value may be, without calculating it."""

from __future__ import annotations

import math

from grpo.reward.answers.tree import Call, Node, Number, Power, Product, Sum, children

MAX_BITS = 20_000


def is_huge(node: Node) -> bool:
    """Whether calculating the tree may meet a number of more than `MAX_BITS` bits, such as `9^{9^9}` or `10000!`."""
    return not isinstance(node, Number) and (_bits(node) > MAX_BITS or any(is_huge(child) for child in children(node)))


def _bits(node: Node) -> float:
    """A bound of |log2| of the value; of a variable, which is tried at small values, none is needed."""
    match node:
        case Number(value):
            return float(max(value.numerator.bit_length(), value.denominator.bit_length()))
        case Sum(parts):
            return max(map(_bits, parts)) + len(parts)
        case Product(parts):
            return sum(map(_bits, parts))
        case Power(base, exponent):
            return max(_bits(base), 1.0) * _power_of_two(_bits(exponent))
        case Call("factorial", (argument,)):
            return _power_of_two(_bits(argument)) * max(_bits(argument), 1.0)
        case Call("choose", (total, _)):
            return _power_of_two(_bits(total))
        case Call(_, arguments):
            return max(map(_bits, arguments))
        case _:
            return 2.0


def _power_of_two(bits: float) -> float:
    return 2.0**bits if bits < 1000 else math.inf
