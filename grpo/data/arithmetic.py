"""Generated arithmetic: problems that need no download, and worked demonstrations of them.

A problem is held out or not by a hash of its operands, so no training problem and no demonstration can ever be a
held-out one, whatever seeds are in use. `a + b` and `b + a` are on the same side.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from grpo.config import DataConfig
from grpo.types import Problem

_HELD_OUT_SHARE = 8  # one problem in eight is held out
_DEFAULT_NUM_TRAIN = 4096
_NUM_REPEATS = 3000  # exercises in a row that bring nothing new: a level has been seen whole
_DEFAULT_NUM_TEST = 512


@dataclass(frozen=True, slots=True)
class Exercise:
    """A question with its answer and the working that leads to it.

    Attributes:
        key: equal for two exercises that ask the same thing.
        expression: "47 + 85".
        working: "7+5=12 4+8+1=13", the last number before the answer being part of it.
        answer: 132.
    """

    key: str
    expression: str
    working: str
    answer: int

    @property
    def question(self) -> str:
        """As the prompt asks it."""
        return f"What is {self.expression}?"

    @property
    def held_out(self) -> bool:
        """Whether the exercise is never trained on."""
        digest = hashlib.blake2b(self.key.encode(), digest_size=8).digest()
        return int.from_bytes(digest, "big") % _HELD_OUT_SHARE == 0


def _digits(number: int) -> list[int]:
    """Least significant first."""
    return [int(digit) for digit in reversed(str(number))]


def _addition(a: int, b: int) -> Exercise:
    steps, carry = [], 0
    left, right = _digits(a), _digits(b)
    for place in range(max(len(left), len(right))):
        terms = [digits[place] for digits in (left, right) if place < len(digits)] + [carry] * bool(carry)
        steps.append(f"{'+'.join(map(str, terms))}={sum(terms)}")
        carry = sum(terms) // 10
    low, high = sorted((a, b))
    return Exercise(f"{low}+{high}", f"{a} + {b}", " ".join(steps), a + b)


def _subtraction(a: int, b: int) -> Exercise:
    a, b = max(a, b), min(a, b)
    steps, borrow = [], 0
    right = _digits(b)
    for place, digit in enumerate(_digits(a)):
        term = (right[place] if place < len(right) else 0) + borrow
        lent = 10 if digit < term else 0
        steps.append(f"{digit + lent}-{term}={digit + lent - term}")
        borrow = int(lent > 0)
    return Exercise(f"{a}-{b}", f"{a} - {b}", " ".join(steps), a - b)


def _product(a: int, b: int) -> Exercise:
    steps, carry = [], 0
    for digit in _digits(a):
        value = digit * b + carry
        steps.append(f"{digit}*{b}{f'+{carry}' if carry else ''}={value}")
        carry = value // 10
    return Exercise(f"{a}*{b}", f"{a} * {b}", " ".join(steps), a * b)


def _mixed(a: int, b: int, c: int, d: int) -> Exercise:
    total = _addition(a, b)
    product = _product(a + b, c)
    result = product.answer - d
    working = f"{total.working} {a}+{b}={a + b} {product.working} {a + b}*{c}={product.answer}"
    return Exercise(f"({min(a, b)}+{max(a, b)})*{c}-{d}", f"({a} + {b}) * {c} - {d}", working, result)


def _level_1(rng: np.random.Generator) -> Exercise:
    return _addition(*map(int, rng.integers(0, 100, 2)))


def _level_2(rng: np.random.Generator) -> Exercise:
    a, b = map(int, rng.integers(0, 100, 2))
    return _addition(a, b) if rng.random() < 0.5 else _subtraction(a, b)


def _level_3(rng: np.random.Generator) -> Exercise:
    a, b = map(int, rng.integers(100, 1000, 2))
    return _addition(a, b) if rng.random() < 0.5 else _subtraction(a, b)


def _level_4(rng: np.random.Generator) -> Exercise:
    return _product(int(rng.integers(10, 1000)), int(rng.integers(2, 10)))


def _level_5(rng: np.random.Generator) -> Exercise:
    a, b, d = map(int, rng.integers(10, 100, 3))
    return _mixed(a, b, int(rng.integers(2, 10)), d)


LEVELS: dict[int, Callable[[np.random.Generator], Exercise]] = {
    1: _level_1,  # 47 + 85
    2: _level_2,  # ... or 85 - 47
    3: _level_3,  # three digits
    4: _level_4,  # 358 * 7
    5: _level_5,  # (47 + 85) * 7 - 12
}


def exercises(level: int, seed: int, *, held_out: bool) -> Iterator[Exercise]:
    """An endless stream of one side's exercises, the same for the same arguments; they may repeat."""
    rng = np.random.default_rng([seed, level, int(held_out)])
    while True:
        exercise = LEVELS[level](rng)
        if exercise.held_out == held_out:
            yield exercise


def _problems(cfg: DataConfig, number: int, *, held_out: bool) -> list[Problem]:
    """So many different problems of one side.

    Raises:
        ValueError: the level does not have so many.
    """
    found: dict[str, Problem] = {}
    num_repeats = 0
    for exercise in exercises(cfg.level, cfg.seed, held_out=held_out):
        name = f"arithmetic-{cfg.level}-{exercise.key}"
        num_repeats = num_repeats + 1 if exercise.key in found else 0
        found.setdefault(exercise.key, Problem(name, exercise.question, str(exercise.answer), str(cfg.level)))
        if len(found) == number:
            return list(found.values())
        if num_repeats == _NUM_REPEATS:
            break
    wanted = "num_test" if held_out else "num_train"
    raise ValueError(
        f"data.{wanted}={number} is more than the {len(found)} problems of data.level={cfg.level}; use less"
    )


def train_problems(cfg: DataConfig) -> list[Problem]:
    """Different problems to train on."""
    return _problems(cfg, cfg.num_train or _DEFAULT_NUM_TRAIN, held_out=False)


def test_problems(cfg: DataConfig) -> list[Problem]:
    """Different held-out problems."""
    return _problems(cfg, cfg.num_test or _DEFAULT_NUM_TEST, held_out=True)


def _wrong(answer: int, rng: np.random.Generator) -> int:
    """A slip: the answer with one digit, or by one or ten, off."""
    return answer + int(rng.choice([-10, -2, -1, 1, 2, 10]))


def demonstration(
    exercise: Exercise, rng: np.random.Generator, *, format_error_rate: float, arithmetic_error_rate: float
) -> str:
    """A worked response in the r1_zero form, wrong in its tags or its arithmetic now and then.

    It follows a prompt that ends in `<think>`, and ends with the text that a correct response ends with.
    """
    slips = rng.random() < arithmetic_error_rate
    answer = _wrong(exercise.answer, rng) if slips else exercise.answer
    if rng.random() >= format_error_rate:
        return f" {exercise.working} </think> <answer>{answer}</answer>"
    forms = (
        f" {exercise.working} </think> {answer}",
        f" {exercise.working} <answer>{answer}</answer>",
        f" {exercise.working} </think> <answer>{answer}",
        f" {exercise.working} {answer}",
    )
    return forms[int(rng.integers(len(forms)))]
