"""Generated arithmetic: right answers, right working, and held-out problems that nothing is trained on."""

import re
from itertools import islice

import numpy as np
import pytest

from grpo.config import compose_run_config
from grpo.data import arithmetic
from grpo.data.arithmetic import LEVELS, demonstration, exercises, train_problems
from grpo.reward.extraction import read_tagged

DATA = {level: compose_run_config(["data=arithmetic", f"data.level={level}"]).data for level in LEVELS}


def some(level, *, held_out=False, seed=3, number=300):
    return list(islice(exercises(level, seed, held_out=held_out), number))


@pytest.mark.parametrize("level", LEVELS)
def test_answers_are_what_python_computes(level):
    for exercise in some(level):
        assert exercise.answer == eval(exercise.expression)
        assert exercise.question == f"What is {exercise.expression}?"


@pytest.mark.parametrize("level", LEVELS)
def test_every_step_of_the_working_is_true(level):
    for exercise in some(level):
        steps = re.findall(r"([\d+*-]+)=(\d+)", exercise.working)
        assert steps
        assert all(eval(left) == int(right) for left, right in steps), exercise.working


def test_working_by_hand():
    assert arithmetic._addition(47, 85).working == "7+5=12 4+8+1=13"
    assert arithmetic._subtraction(47, 85).working == "15-7=8 8-5=3"
    assert arithmetic._product(358, 7).working == "8*7=56 5*7+5=40 3*7+4=25"
    assert arithmetic._mixed(7, 5, 3, 4).working == "7+5=12 7+5=12 2*3=6 1*3=3 12*3=36"


@pytest.mark.parametrize("level", LEVELS)
def test_held_out_problems_never_occur_in_training_or_demonstrations(level):
    test = {problem.question for problem in arithmetic.test_problems(DATA[level])}
    train = {problem.question for problem in train_problems(DATA[level])}
    assert len(test) == 512
    assert len(train) == 4096
    assert not test & train
    demonstrated = {e.question for seed in range(3) for e in some(level, seed=seed, number=2000)}
    assert not test & demonstrated


def test_a_sum_and_its_mirror_are_on_the_same_side():
    keys = {frozenset(e.expression.split(" + ")) for e in some(1, number=3000)}
    held_out = {frozenset(e.expression.split(" + ")) for e in some(1, held_out=True, number=3000)}
    assert not keys & held_out


def test_problems_depend_on_the_seed_alone():
    other = compose_run_config(["data=arithmetic", "data.seed=1"]).data
    assert train_problems(DATA[2]) == train_problems(DATA[2])
    assert train_problems(DATA[2]) != train_problems(other)


def test_more_problems_than_there_are_is_a_sentence():
    many = compose_run_config(["data=arithmetic", "data.level=1", "data.num_test=5000"]).data
    with pytest.raises(ValueError, match=r"data.num_test=5000 is more than the \d+ problems of data.level=1; use less"):
        arithmetic.test_problems(many)


@pytest.mark.parametrize(("format_rate", "arithmetic_rate"), [(0.0, 0.0), (0.3, 0.5), (1.0, 1.0)])
def test_demonstrations_are_wrong_as_often_as_asked(format_rate, arithmetic_rate):
    rng, total = np.random.default_rng(0), 2000
    well_formed = right = 0
    for exercise in some(1, number=total):
        text = demonstration(exercise, rng, format_error_rate=format_rate, arithmetic_error_rate=arithmetic_rate)
        answer = read_tagged(text).answer
        well_formed += answer is not None
        right += answer == str(exercise.answer)
    assert well_formed / total == pytest.approx(1 - format_rate, abs=0.03)
    assert right / total == pytest.approx((1 - format_rate) * (1 - arithmetic_rate), abs=0.03)
