"""Rollouts that are drawn ahead: beside the main thread, for one step, handed out once."""

from __future__ import annotations

import threading

import pytest

from grpo.ahead import Ahead, PhaseClock
from grpo.types import Drawn, RolloutGroup


def test_what_is_begun_runs_beside_the_main_thread_and_is_handed_out_once() -> None:
    go_on, names = threading.Event(), list[str]()

    def draw(step: int, clock: PhaseClock) -> list[RolloutGroup]:
        with clock.phase("rollout"):
            names.append(threading.current_thread().name)
            assert go_on.wait(10)
        with clock.phase("grade"), clock.phase("rollout"):
            pass
        return []

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
    ahead = Ahead(lambda step, clock: [], Drawn(7, []))
    assert ahead.take(8) is None


def test_what_a_checkpoint_kept_is_taken() -> None:
    kept = Drawn(7, [])
    assert Ahead(lambda step, clock: [], kept).take(7) is kept


def test_a_failure_reaches_the_main_thread() -> None:
    def draw(step: int, clock: PhaseClock) -> list[RolloutGroup]:
        raise ValueError(f"step {step} cannot be drawn")

    ahead = Ahead(draw)
    ahead.begin(3)
    with pytest.raises(ValueError, match="step 3 cannot be drawn"):
        ahead.finish()
    assert ahead.take(3) is None
