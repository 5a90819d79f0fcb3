"""Which problems a step trains on, and that no test problem is among them."""

import json
from collections import Counter
from itertools import combinations

import pytest

from grpo.config import DataConfig, DataSource
from grpo.data.dataset import load_data, step_problems
from grpo.types import Problem


def make(n: int) -> list[Problem]:
    return [Problem(str(i), f"question {i}", str(i)) for i in range(n)]


def ids(n: int, num_problems: int, step: int, *, seed: int = 42, sampling_round: int = 0) -> list[int]:
    found = step_problems(make(n), num_problems=num_problems, seed=seed, step=step, sampling_round=sampling_round)
    return [int(problem.id) for problem in found]


# n, P: P divides n; it does not; n at 2P, just below it and nearer to P (every step meets an epoch's end); n = P.
SHAPES = [(12, 4), (13, 4), (50, 7), (8, 4), (7, 4), (9, 8), (5, 4), (31, 17), (6, 6), (4, 1), (1, 1)]


@pytest.mark.parametrize(("n", "num_problems"), [*SHAPES, (3, 5), (3, 8), (1, 4)])
@pytest.mark.parametrize("seed", [0, 1])
def test_every_problem_occurs_once_an_epoch(n, num_problems, seed):
    num_steps = 3 * n  # whole epochs for any P: 3nP positions
    positions = [i for step in range(1, num_steps + 1) for i in ids(n, num_problems, step, seed=seed)]
    for start in range(0, len(positions), n):
        assert sorted(positions[start : start + n]) == list(range(n))


@pytest.mark.parametrize(("n", "num_problems"), SHAPES)
@pytest.mark.parametrize("seed", [0, 1, 2**32 - 1])
def test_no_step_holds_a_problem_twice(n, num_problems, seed):
    for step in range(1, 4 * n + 1):
        assert len(set(ids(n, num_problems, step, seed=seed))) == num_problems


@pytest.mark.parametrize(("n", "num_problems"), SHAPES)
def test_a_step_does_not_depend_on_which_were_asked_for_before(n, num_problems):
    steps = list(range(1, 3 * n + 1))
    forwards = {step: ids(n, num_problems, step) for step in steps}
    assert {step: ids(n, num_problems, step) for step in reversed(steps)} == forwards


def test_golden_order():
    # Recorded. It must never change, or a run resumed after an update of numpy or of this file sees other problems.
    assert [ids(10, 4, step) for step in (1, 2, 3, 1000)] == [[7, 1, 6, 4], [3, 5, 9, 0], [2, 8, 6, 5], [6, 5, 8, 1]]
    assert ids(10, 4, 2, sampling_round=1) == [9, 7, 0, 4]


def test_seeds_epochs_and_rounds_differ():
    orders = [ids(100, 100, step, seed=seed) for seed in (0, 1) for step in (1, 2)]
    orders += [ids(100, 100, step, seed=seed, sampling_round=r) for seed in (0, 1) for step in (1, 2) for r in (1, 2)]
    for one, other in combinations([*orders, list(range(100))], 2):
        # Two independent shuffles agree in 1 place on average; in more than 10 with probability below 1e-7.
        assert sum(a == b for a, b in zip(one, other, strict=True)) <= 10


def test_shuffles_are_even():
    # 4,000 epochs of 5 problems: each comes first 800 times on average, standard deviation sqrt(4000 0.2 0.8) = 25.
    first = Counter(ids(5, 5, step)[0] for step in range(1, 4001))
    assert all(abs(first[i] - 800) < 125 for i in range(5))


def test_further_rounds_draw_from_all_problems():
    assert len(set(ids(10, 4, 1, sampling_round=1))) == 4
    assert Counter(ids(3, 7, 1, sampling_round=1)).most_common()[0][1] == 3  # 7 of 3: at most ceil(7/3) each
    seen = {i for r in range(1, 40) for i in ids(10, 4, 1, sampling_round=r)}
    assert seen == set(range(10))


def config(folder, train, test, **changes) -> DataConfig:
    for name, questions in (("train", train), ("test", test)):
        lines = [json.dumps({"problem": question, "answer": "1"}) for question in questions]
        (folder / f"{name}.jsonl").write_text("\n".join(lines))
    paths = {f"{name}_path": str(folder / f"{name}.jsonl") for name in ("train", "test")}
    return DataConfig(name="jsonl", **paths, **changes)


def questions(problems) -> list[str]:
    return [problem.question for problem in problems]


def test_nothing_shared(tmp_path):
    data = load_data(config(tmp_path, ["a", "b"], ["c"]))
    assert (questions(data.train), questions(data.test)) == (["a", "b"], ["c"])
    assert (data.num_shared, data.notes) == (0, ())


def test_shared_questions_leave_training_and_are_counted(tmp_path):
    data = load_data(config(tmp_path, ["a", "x  y\n", "b", "x y"], ["c", "x y"]))
    assert (questions(data.train), questions(data.test)) == (["a", "b"], ["c", "x y"])
    assert data.num_shared == 2
    (note,) = data.notes
    assert "2 of 4 training problems" in note
    assert "test.jsonl" in note


def test_numbers_of_problems_apply_after_the_removal(tmp_path):
    # The second test problem is not used, and still never trained on: a later evaluation may use it.
    data = load_data(config(tmp_path, ["c", "a", "b"], ["d", "c"], num_train=1, num_test=1))
    assert (questions(data.train), questions(data.test)) == (["a"], ["d"])


def test_too_few_problems_are_noted(tmp_path):
    data = load_data(config(tmp_path, ["a"], ["c"], num_train=2, num_test=1))
    assert data.notes == ("data.num_train=2, but only 1 available; all of them are used",)


def test_nothing_left_to_train_on(tmp_path):
    with pytest.raises(
        ValueError, match=r"data\.train_path=.* holds only questions of data\.test_path=.*; name another"
    ):
        load_data(config(tmp_path, ["a"], ["a"]))


def test_arithmetic():
    data = load_data(DataConfig(name="arithmetic", source=DataSource.arithmetic, level=1, num_train=50, num_test=20))
    assert len(data.test) == 20
    assert data.train
    assert not set(questions(data.train)) & set(questions(data.test))
