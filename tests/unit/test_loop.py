"""What the end-to-end tests cannot see of the loop: completions may end in any order."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import nullcontext
from typing import Any

import pytest

from grpo.config import compose_run_config
from grpo.distributed import ONE_RANK
from grpo.loop import Run, build_batch, sample_groups
from grpo.types import (
    Completion,
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
        batch, metrics = build_batch(cfg, stale_groups(*versions), 5)
        assert batch.staleness == oldest
        assert batch.select([0]).staleness == oldest
        assert metrics["rollout/staleness_mean"] == mean


def test_older_weights_than_allowed_end_the_run() -> None:
    cfg = compose_run_config(["experiment=quickstart"])
    with pytest.raises(RunError, match=r"2 updates behind, more than hardware.max_staleness=1; resume with"):
        build_batch(cfg, stale_groups(4, 2), 5)
