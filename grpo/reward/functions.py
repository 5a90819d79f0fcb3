r"""Reward functions: what a response earns. `build_grader` puts one of them on top of extraction and equivalence."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace

import numpy as np

from grpo.config import RewardConfig, RewardMode, RewardName
from grpo.reward.equivalence import Verdict, decide
from grpo.reward.extraction import Extraction, read_boxed, read_reference, read_tagged
from grpo.reward.golds import Gold, alternatives, best_verdict
from grpo.reward.pool import WorkerPool
from grpo.reward.verdicts import VerdictCache
from grpo.types import Grade, Grader, Outcome, PendingGrade, SampleKey

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
    if cfg.mode is RewardMode.reference:
        read = read_reference
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
        self._cache = VerdictCache(pool)

    def submit(self, response: str, gold: Gold, key: SampleKey) -> PendingGrade:
        """Reads the answer, decides what is plain, and leaves the rest to the workers.

        Raises:
            ValueError: the gold is no answer; see `alternatives`.
        """
        texts, extraction = alternatives(gold), self._read(response)
        answer = extraction.answer
        verdicts = [] if answer is None else [self._verdict(answer, text, key.step) for text in texts]
        return _PendingTextGrade(extraction, verdicts, self._reward, key)

    def grade(self, responses: Sequence[str], golds: Sequence[Gold], keys: Sequence[SampleKey]) -> list[Grade]:
        """One grade per response, in order.

        Raises:
            ValueError: a gold is no answer; see `alternatives`.
            RuntimeError: the worker processes cannot be started; no response can cause that.
        """
        pending = [self.submit(*triple) for triple in zip(responses, golds, keys, strict=True)]
        return [grade.result() for grade in pending]

    def close(self) -> None:
        """Ends the worker processes."""
        self.pool.close()
        self._cache.clear()

    def _verdict(self, answer: str, gold: str, step: int) -> Verdict | Future[Verdict]:
        return decide(answer, gold) or self._cache.submit(answer, gold, step)


@dataclass(frozen=True, slots=True)
class _PendingTextGrade:
    """A response whose answer has been read; some verdicts, one for each alternative of the gold, may be to come."""

    extraction: Extraction
    verdicts: Sequence[Verdict | Future[Verdict]]
    reward: Reward
    key: SampleKey

    def result(self) -> Grade:
        """Waits for the grade.

        Raises:
            RuntimeError: the worker processes cannot be started; no response can cause that.
        """
        verdicts = [one.result() if isinstance(one, Future) else one for one in self.verdicts]
        grade = _grade(self.extraction, verdicts)
        if grade.outcome is Outcome.grader_error:
            return grade
        return replace(grade, reward=self.reward(grade, self.key))


def _grade(extraction: Extraction, verdicts: Sequence[Verdict]) -> Grade:
    """The grade without its reward, from the verdict on each alternative of the gold."""
    if extraction.answer is None:
        outcome = Outcome.graded if extraction.is_formatted else Outcome.format_failure
        return Grade(0.0, float(extraction.is_formatted), 0.0, outcome, extraction.failure)
    verdict = best_verdict(verdicts)
    if verdict.is_error:
        return Grade(0.0, 0.0, 0.0, Outcome.grader_error, verdict.reason, extraction.answer)
    return Grade(0.0, 1.0, float(verdict.correct), Outcome.graded, verdict.reason, extraction.answer)
