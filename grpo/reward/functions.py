r"""Reward functions: what a response earns. `build_grader` puts one of them on top of extraction and equivalence."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

import numpy as np

from grpo.config import RewardConfig, RewardName
from grpo.reward.equivalence import Verdict, decide
from grpo.reward.extraction import Extraction, read_boxed, read_tagged, unwrap_box
from grpo.reward.pool import WorkerPool
from grpo.types import Grade, Grader, Outcome, SampleKey

Reader = Callable[[str], Extraction]
Reward = Callable[[Grade, SampleKey], float]

_COIN_STREAM = 1 << 255  # Philox counters from here on belong to the coin, so that it repeats no sampler's numbers


def answer_reward(grade: Grade, key: SampleKey) -> float:
    """1 for a right answer where it should stand, else 0."""
    return grade.answer_reward


def format_reward(grade: Grade, key: SampleKey) -> float:
    """1 for an answer where it should stand, right or wrong, else 0."""
    return grade.format_reward


def coin_reward(grade: Grade, key: SampleKey) -> float:
    """A fair coin that depends on the completion's key and on nothing else: 0 or 1."""
    assert all(0 <= part < 2**32 for part in key), key
    packed = key.seed << 96 | key.step << 64 | key.problem << 32 | key.sample
    return float(int(np.random.Philox(key=packed, counter=_COIN_STREAM).random_raw()) >> 63)


_REWARDS: dict[RewardName, tuple[Reader, Reward]] = {
    RewardName.r1_zero: (read_tagged, answer_reward),
    RewardName.boxed: (read_boxed, answer_reward),
    RewardName.random: (read_tagged, coin_reward),
    RewardName.format_only: (read_tagged, format_reward),
}


def build_grader(cfg: RewardConfig) -> Grader:
    """The grader that a config names. No process starts before an answer needs one."""
    read, reward = _REWARDS[cfg.name]
    return TextGrader(read, reward, WorkerPool(cfg.num_workers, cfg.deadline_s))


class TextGrader:
    """Reads each response's answer, compares it with the gold, and turns the verdict into rewards.

    Attributes:
        pool: the processes that see what plain comparison leaves undecided.
    """

    def __init__(self, read: Reader, reward: Reward, pool: WorkerPool) -> None:
        """Takes over `pool`, and ends its workers in `close`.

        Args:
            read: finds the answer of a response.
            reward: turns a grade that has everything but its reward into the reward.
            pool: see the class.
        """
        self._read = read
        self._reward = reward
        self.pool = pool

    def grade(self, responses: Sequence[str], golds: Sequence[str], keys: Sequence[SampleKey]) -> list[Grade]:
        """One grade per response, in order.

        Raises:
            RuntimeError: the worker processes cannot be started; no response can cause that.
        """
        plain_golds = [unwrap_box(gold).strip() for gold in golds]
        extractions = [self._read(response) for response in responses]
        verdicts = self._verdicts(
            (extraction.answer, gold)
            for extraction, gold in zip(extractions, plain_golds, strict=True)
            if extraction.answer is not None
        )
        return [
            self._rewarded(_grade(extraction, verdicts.get((extraction.answer or "", gold))), key)
            for extraction, gold, key in zip(extractions, plain_golds, keys, strict=True)
        ]

    def close(self) -> None:
        """Ends the worker processes."""
        self.pool.close()

    def _verdicts(self, pairs: Iterable[tuple[str, str]]) -> dict[tuple[str, str], Verdict]:
        """The verdict on each different (answer, gold): equal ones are graded once."""
        decided = {pair: decide(*pair) for pair in dict.fromkeys(pairs)}
        undecided = [pair for pair, verdict in decided.items() if verdict is None]
        judged = dict(zip(undecided, self.pool.judge(undecided), strict=True))
        return {pair: verdict or judged[pair] for pair, verdict in decided.items()}

    def _rewarded(self, grade: Grade, key: SampleKey) -> Grade:
        if grade.outcome is Outcome.grader_error:
            return grade
        return replace(grade, reward=self._reward(grade, key))


def _grade(extraction: Extraction, verdict: Verdict | None) -> Grade:
    """The grade without its reward."""
    if extraction.answer is None:
        return Grade(0.0, 0.0, 0.0, Outcome.format_failure, extraction.failure)
    assert verdict is not None, extraction
    if verdict.is_error:
        return Grade(0.0, 0.0, 0.0, Outcome.grader_error, verdict.reason, extraction.answer)
    return Grade(0.0, 1.0, float(verdict.correct), Outcome.graded, verdict.reason, extraction.answer)
