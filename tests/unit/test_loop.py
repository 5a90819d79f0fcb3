"""What the end-to-end tests cannot see of the loop: completions in any order, rounds of dynamic sampling, staleness."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import nullcontext
from typing import Any

import pytest

from grpo.config import compose_run_config
from grpo.distributed import ONE_RANK
from grpo.loop import Run, build_batch, collect_groups, sample_groups
from grpo.types import (
    Completion,
    Drawn,
    FinishReason,
    Grade,
    Outcome,
    Problem,
    RolloutGroup,
    RunError,
    SampleKey,
    Sampling,
)

PROBLEMS = [Problem(f"p{n}", f"question {n}", f"gold {n}") for n in range(3)]


class ScrambledEngine:
    """Says its completions' key, and ends them in the order that it is told."""

    def __init__(self, order: Sequence[int]) -> None:
        self.order = order

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        keys: Sequence[Sequence[SampleKey]],
        sampling: Sampling,
        on_completion: Callable[[int, Completion], None],
    ) -> list[list[Completion]]:
        groups = [[Completion((1,), (0.0,), str(tuple(key)), FinishReason.stop, 0) for key in group] for group in keys]
        flat = [completion for group in groups for completion in group]
        for place in self.order:
            on_completion(place, flat[place])
        return groups


class RepeatingGrader:
    """Grades at once, and says what it was asked."""

    def submit(self, response: str, gold: str, key: SampleKey) -> Future[Grade]:
        grade: Future[Grade] = Future()
        grade.set_result(Grade(1.0, 1.0, 1.0, Outcome.graded, "why", f"{response} {gold} {tuple(key)}"))
        return grade


class NoRecorder:
    def phase(self, name: str) -> nullcontext[None]:
        return nullcontext()


def test_grades_go_with_their_completions_in_whatever_order_these_end() -> None:
    cfg = compose_run_config(
        [
            "experiment=quickstart",
            "seed=5",
            "train.group_size=2",
            "train.rollout_batch_size=6",
            "train.train_batch_size=6",
        ]
    )
    parts: dict[str, Any] = dict.fromkeys(Run.__dataclass_fields__)
    parts |= {"cfg": cfg, "grader": RepeatingGrader(), "recorder": NoRecorder(), "stop": (), "ranks": ONE_RANK}
    parts["prompt_ids"] = {problem: (7, n) for n, problem in enumerate(PROBLEMS)}
    for order in ((0, 1, 2, 3, 4, 5), (5, 4, 3, 2, 1, 0), (3, 0, 5, 1, 4, 2)):
        groups = sample_groups(Run(**{**parts, "engine": ScrambledEngine(order)}), PROBLEMS, 4, first=10)
        assert [group.problem for group in groups] == PROBLEMS
        for n, group in enumerate(groups):
            assert group.prompt_ids == (7, n)
            keys = [(5, 4, 10 + n, sample) for sample in range(2)]
            assert [completion.text for completion in group.completions] == [str(key) for key in keys]
            assert [grade.extracted for grade in group.grades] == [f"{key} gold {n} {key}" for key in keys]


def stale_groups(*versions: int) -> list[RolloutGroup]:
    grade = Grade(1.0, 1.0, 1.0, Outcome.graded, "exact", "1")
    completions = tuple(Completion((1, 2), (-0.5, -0.5), "1", FinishReason.stop, version) for version in versions)
    return [RolloutGroup(PROBLEMS[0], (7,), completions, (grade,) * len(versions))]


def test_the_staleness_of_a_batch_is_that_of_its_oldest_completion() -> None:
    cfg = compose_run_config(["experiment=quickstart", "hardware.max_staleness=2"])
    for versions, oldest, mean in (((4, 4), 0, 0.0), ((3, 4), 1, 0.5), ((2, 2), 2, 2.0)):
        batch, metrics = build_batch(cfg, Drawn(5, stale_groups(*versions)))
        assert batch.staleness == oldest
        assert batch.select([0]).staleness == oldest
        assert metrics["rollout/staleness_mean"] == mean


def test_older_weights_than_allowed_end_the_run() -> None:
    cfg = compose_run_config(["experiment=quickstart"])
    with pytest.raises(RunError, match=r"2 updates behind, more than hardware.max_staleness=1; resume with"):
        build_batch(cfg, Drawn(5, stale_groups(4, 2)))


class ScriptedGrader:
    """Grades the groups one after another as they were written down: rewards, None for a grader error."""

    def __init__(self, groups: Sequence[Sequence[float | None]]) -> None:
        self.rewards = iter([reward for group in groups for reward in group])

    def submit(self, response: str, gold: str, key: SampleKey) -> Future[Grade]:
        reward = next(self.rewards)
        outcome = Outcome.grader_error if reward is None else Outcome.graded
        grade: Future[Grade] = Future()
        grade.set_result(Grade(reward or 0.0, 1.0, reward or 0.0, outcome, "deadline"))
        return grade


RIGHT, WRONG, MIXED, FAILED = (1.0, 1.0), (0.0, 0.0), (0.0, 1.0), (None, None)


def drawn_from(*groups: Sequence[float | None], overrides: Sequence[str] = ()) -> tuple[Any, Drawn]:
    """A step of three groups of two, as dynamic sampling makes it of groups that are graded so."""
    sizes = ("train.group_size=2", "train.rollout_batch_size=6", "train.train_batch_size=6")
    cfg = compose_run_config(["experiment=quickstart", "loss.dynamic_sampling=true", *sizes, *overrides])
    parts: dict[str, Any] = dict.fromkeys(Run.__dataclass_fields__)
    parts |= {"cfg": cfg, "grader": ScriptedGrader(groups), "recorder": NoRecorder(), "stop": (), "ranks": ONE_RANK}
    parts |= {"train": PROBLEMS, "prompt_ids": dict.fromkeys(PROBLEMS, (7,)), "engine": EagerEngine()}
    return cfg, collect_groups(Run(**parts), 1)


class EagerEngine(ScrambledEngine):
    """Ends completions in their order."""

    def __init__(self) -> None:
        super().__init__(())

    def generate(self, prompts: Any, keys: Any, sampling: Any, on_completion: Any) -> list[list[Completion]]:
        self.order = range(sum(map(len, keys)))
        return super().generate(prompts, keys, sampling, on_completion)


def rewards_of(groups: Sequence[RolloutGroup]) -> list[tuple[float, ...]]:
    return [tuple(group.rewards) for group in groups]


def test_dynamic_sampling_draws_as_many_again_as_had_no_signal() -> None:
    _, drawn = drawn_from(RIGHT, MIXED, WRONG, MIXED, WRONG, MIXED)
    assert rewards_of(drawn.groups) == [MIXED, MIXED, MIXED]
    assert rewards_of(drawn.discarded) == [RIGHT, WRONG, WRONG]
    keys = [completion.text for group in drawn.groups for completion in group.completions]
    assert keys == [
        str((42, 1, place, sample)) for place in (1, 3, 6) for sample in (0, 1)
    ]  # a round has keys of its own


def test_what_rounds_could_not_fill_is_filled_with_groups_without_signal() -> None:
    _, drawn = drawn_from(RIGHT, MIXED, WRONG, WRONG, RIGHT, overrides=["loss.max_sampling_rounds=2"])
    assert rewards_of(drawn.groups) == [MIXED, RIGHT, WRONG]
    assert rewards_of(drawn.discarded) == [WRONG, RIGHT]
    _, drawn = drawn_from(RIGHT, MIXED, WRONG, overrides=["loss.dynamic_sampling=false"])
    assert rewards_of(drawn.groups) == [RIGHT, MIXED, WRONG]
    assert drawn.discarded == []


def test_grader_errors_are_counted_where_their_groups_are_drawn_again() -> None:
    cfg, drawn = drawn_from(FAILED, MIXED, MIXED, MIXED, overrides=["reward.max_error_share=0.25"])
    _, metrics = build_batch(cfg, drawn)
    assert metrics["grade/errors"] == 2
    assert (metrics["signal/share"], metrics["signal/groups_without"]) == (0.75, 1)
    assert metrics["reward/mean"] == 3 / 8
    cfg, drawn = drawn_from(FAILED, MIXED, MIXED, MIXED, overrides=["reward.max_error_share=0.24"])
    with pytest.raises(RunError, match="2 of 8 answers could not be graded"):
        build_batch(cfg, drawn)


def test_the_overlong_penalty_is_part_of_the_advantage_and_not_of_the_reward() -> None:
    cfg = compose_run_config(
        ["experiment=quickstart", "loss=dr_grpo", "loss.overlong_buffer=0.5", "sampling.max_tokens=8"]
    )
    grade = Grade(1.0, 1.0, 1.0, Outcome.graded, "exact", "1")
    completions = tuple(Completion((1,) * n, (-0.5,) * n, "1", FinishReason.stop, 0) for n in (4, 6))
    batch, metrics = build_batch(cfg, Drawn(1, [RolloutGroup(PROBLEMS[0], (7,), completions, (grade, grade))]))
    # Of 8 tokens the last 4 cost: 6 are half way, a penalty of -0.5, and the group's mean is 0.75.
    assert batch.advantages.tolist() == pytest.approx([0.25, -0.25])
    assert (metrics["reward/mean"], metrics["signal/share"]) == (1.0, 1.0)
