"""Rollouts that are drawn ahead: beside the main thread, for one step, handed out once."""

from __future__ import annotations

import threading
import time
from functools import partial
from types import SimpleNamespace
from typing import Any, cast

import pytest

from grpo.ahead import Ahead, PhaseClock
from grpo.config import compose_run_config
from grpo.distributed import ONE_RANK
from grpo.loop import Run, build_batch, draw_ahead, update_policy
from grpo.run.rollout_metrics import completion_rows
from grpo.types import Completion, Drawn, FinishReason, Grade, Outcome, Problem


def test_what_is_begun_runs_beside_the_main_thread_and_is_handed_out_once() -> None:
    go_on, names = threading.Event(), list[str]()

    def draw(step: int, clock: PhaseClock) -> Drawn:
        with clock.phase("rollout"):
            names.append(threading.current_thread().name)
            assert go_on.wait(10)
        with clock.phase("grade"), clock.phase("rollout"):
            pass
        return Drawn(step, [])

    ahead = Ahead(draw)
    assert ahead.take(1) is None
    ahead.begin(2)
    go_on.set()  # nobody would, did `begin` wait
    ahead.finish()
    assert names == ["grpo-ahead"]
    drawn = ahead.drawn
    assert drawn is not None
    assert drawn.step == 2
    assert sorted(drawn.seconds) == ["grade", "rollout"]
    assert ahead.take(2) is drawn
    assert ahead.take(2) is None
    ahead.finish()  # nothing was begun


def test_rollouts_of_another_step_are_not_taken() -> None:
    ahead = Ahead(lambda step, clock: Drawn(step, []), Drawn(7, []))
    assert ahead.take(8) is None


def test_what_a_checkpoint_kept_is_taken() -> None:
    kept = Drawn(7, [])
    assert Ahead(lambda step, clock: Drawn(step, []), kept).take(7) is kept


def test_a_failure_reaches_the_main_thread() -> None:
    def draw(step: int, clock: PhaseClock) -> Drawn:
        raise ValueError(f"step {step} cannot be drawn")

    ahead = Ahead(draw)
    ahead.begin(3)
    with pytest.raises(ValueError, match="step 3 cannot be drawn"):
        ahead.finish()
    assert ahead.take(3) is None


class Meeting:
    """A policy and an engine each of which goes on only while the other is at work."""

    def __init__(self) -> None:
        self.updates, self.draws = threading.Event(), threading.Event()
        self.version = 1
        self.synced: list[int] = []
        self.is_drawn = False
        self.whole_model = None

    def update(self, batch: Any, step: int) -> dict[str, float]:
        self.updates.set()
        assert self.draws.wait(10), "nothing is drawn beside the update"
        return {"updated": step}

    def generate(self, prompts: Any, keys: Any, sampling: Any, on_completion: Any) -> list[list[Completion]]:
        self.draws.set()
        assert self.updates.wait(10), "the update waits for the rollouts"
        time.sleep(0.3)  # the update is done before the rollouts are
        drawn = Completion((1,), (-0.5,), "1", FinishReason.stop, self.version)
        for place in range(sum(map(len, keys))):
            on_completion(place, drawn)
        self.is_drawn = True
        return [[drawn] * len(group) for group in keys]

    def sync(self, model: Any, version: int) -> None:
        assert self.is_drawn, "the weights were handed over before the rollouts were drawn"
        self.version = version
        self.synced.append(version)

    def submit(self, *_: Any) -> Any:
        return SimpleNamespace(result=lambda: Grade(1.0, 1.0, 1.0, Outcome.graded, "exact"))


def test_rollouts_are_drawn_during_the_update_and_are_one_version_behind() -> None:
    small = ("train.group_size=2", "train.rollout_batch_size=4", "train.train_batch_size=4", "train.n_grpo_steps=3")
    cfg = compose_run_config(["experiment=quickstart", "hardware.overlap=true", "loss=grpo_clip", *small])
    problems, both = [Problem(str(n), f"{n} + {n}", f"{2 * n}") for n in range(9)], Meeting()
    clock = PhaseClock()
    parts: dict[str, Any] = dict.fromkeys(Run.__dataclass_fields__)
    parts |= {"cfg": cfg, "policy": both, "engine": both, "grader": both, "recorder": clock, "train": problems}
    run = Run(**{**parts, "stop": (), "ranks": ONE_RANK, "prompt_ids": dict.fromkeys(problems, (7,))})
    ahead = Ahead(partial(draw_ahead, run))
    assert update_policy(run, cast(Any, None), 2, ahead) == {"updated": 2}
    assert both.synced == [2]
    drawn = ahead.take(3)
    assert drawn is not None
    assert {"rollout", "grade"} <= drawn.seconds.keys()
    batch, metrics = build_batch(cfg, drawn)
    assert (batch.staleness, metrics["rollout/staleness_mean"]) == (1, 1.0)
    rows = completion_rows(3, drawn.groups, batch)
    assert [entry["staleness"] for row in rows for entry in row["completions"]] == [1] * 4
