"""Which problems a run has, and which of them a step trains on.

n problems in the training set, P problems in a step.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from grpo.config import DataConfig, DataSource
from grpo.data.jsonl import load_problems
from grpo.types import Problem

# Streams of random numbers that never meet: the word of Philox's counter that keeps them apart.
_EPOCHS, _FURTHER_ROUNDS = 0, 1


@dataclass(frozen=True)
class LoadedData:
    """The problems of a run. No question of `test` is in `train`.

    Attributes:
        train, test: in the order of their source.
        num_shared: training problems that were removed because their question is a test question.
        notes: sentences that the user should see.
    """

    train: tuple[Problem, ...]
    test: tuple[Problem, ...]
    num_shared: int = 0
    notes: tuple[str, ...] = ()


def load_data(cfg: DataConfig) -> LoadedData:
    """The problems that the config names.

    Raises:
        ValueError: files that do not hold problems; one sentence.
    """
    if cfg.source is DataSource.jsonl:
        return _load_jsonl(cfg)
    from grpo.data.arithmetic import test_problems, train_problems

    train, test = train_problems(cfg), test_problems(cfg)
    assert len(_without_shared(train, test)) == len(train), "generated training and test problems overlap"
    return LoadedData(tuple(train), tuple(test))


def _load_jsonl(cfg: DataConfig) -> LoadedData:
    """Both files whole: what is shared, and so what is trained on, must not depend on how many problems are used."""
    assert cfg.train_path is not None
    assert cfg.test_path is not None
    everything, test = load_problems(cfg.train_path, cfg), load_problems(cfg.test_path, cfg)
    train = _without_shared(everything, test)
    num_shared = len(everything) - len(train)
    if not train:
        raise ValueError(
            f"data.train_path={cfg.train_path} holds only questions of data.test_path={cfg.test_path}, which are kept "
            "out of training; name another file for one of them"
        )
    notes = _too_few("train", cfg.num_train, len(train)) + _too_few("test", cfg.num_test, len(test))
    if num_shared:
        notes = (
            f"{num_shared} of {len(everything)} training problems ask a question of the test problems in "
            f"{cfg.test_path}; they were removed from training",
            *notes,
        )
    return LoadedData(tuple(train[: cfg.num_train]), tuple(test[: cfg.num_test]), num_shared, notes)


def _without_shared(train: Sequence[Problem], test: Sequence[Problem]) -> list[Problem]:
    """The training problems whose question, but for white space, is none of the test's."""
    held_out = {_normalized(problem.question) for problem in test}
    return [problem for problem in train if _normalized(problem.question) not in held_out]


def _normalized(question: str) -> str:
    return " ".join(question.split())


def _too_few(side: str, wanted: int | None, available: int) -> tuple[str, ...]:
    if wanted is None or wanted <= available:
        return ()
    return (f"data.num_{side}={wanted}, but only {available} available; all of them are used",)


def step_problems(
    problems: Sequence[Problem], *, num_problems: int, seed: int, step: int, sampling_round: int = 0
) -> list[Problem]:
    """The problems of one step: a pure function of its arguments, so that resuming needs no saved state.

    Step s takes the positions (s - 1) P to s P - 1 of an endless list, one shuffle of all n problems after another.
    Every problem therefore occurs once an epoch. A step that an epoch ends in would meet some problems twice; these
    are put off to the end of the new epoch's first P positions, so that, for P <= n, no step holds a problem twice.

    Args:
        problems: all n training problems.
        num_problems: P.
        seed: of the run.
        step: from 1.
        sampling_round: above 0, further problems for dynamic sampling: a shuffle of its own for each (seed, step,
            round), which may repeat problems that the step or its other rounds had.

    Returns:
        P problems.
    """
    assert problems
    assert num_problems >= 1
    assert step >= 1
    n = len(problems)
    if sampling_round > 0:
        order = _permutation(n, seed, _FURTHER_ROUNDS, step, sampling_round)
        return [problems[order[place % n]] for place in range(num_problems)]
    chosen: list[Problem] = []
    for position in range((step - 1) * num_problems, step * num_problems):
        epoch, place = divmod(position, n)
        chosen.append(problems[_epoch_order(n, num_problems, seed, epoch)[place]])
    return chosen


@lru_cache(maxsize=8)
def _epoch_order(n: int, num_problems: int, seed: int, epoch: int) -> tuple[int, ...]:
    """The order of an epoch, in which the step that it shares with the epoch before repeats nothing."""
    order = _permutation(n, seed, _EPOCHS, epoch)
    if num_problems > n:
        return order
    # An epoch that starts with a step depends on none before it. From 2P problems on, what is put off stays clear of
    # the epoch's last step, so that one epoch back is enough.
    steps_align = num_problems // math.gcd(n, num_problems)
    first = epoch - epoch % steps_align
    if n >= 2 * num_problems:
        first = max(first, epoch - 1)
    order = _permutation(n, seed, _EPOCHS, first)
    for later in range(first + 1, epoch + 1):
        num_begun = later * n % num_problems  # problems of the shared step that the epoch before provides
        begun = set(order[n - num_begun :])
        order = _put_off(_permutation(n, seed, _EPOCHS, later), begun, num_problems)
    return order


def _put_off(order: tuple[int, ...], begun: set[int], num_problems: int) -> tuple[int, ...]:
    """Within the first P positions, the problems that the shared step already has come last."""
    head = sorted(order[:num_problems], key=begun.__contains__)
    return (*head, *order[num_problems:])


def _permutation(n: int, seed: int, stream: int, first: int, second: int = 0) -> tuple[int, ...]:
    """A shuffle of 0 ... n - 1, keyed by the other arguments.

    It sorts Philox's raw words: numpy promises these for all versions, and not what Generator.permutation makes of
    them.
    """
    words = np.random.Philox(key=seed, counter=[0, stream, first, second]).random_raw(n)
    return tuple(np.argsort(words, kind="stable").tolist())
