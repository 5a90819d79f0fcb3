"""When curves are drawn: not before training, and for a small share of a run's time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from grpo.config import ConsoleMode, LoggingConfig
from grpo.run import recorder
from grpo.run.console import build_console


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """What `time.perf_counter` says; drawing takes 2 seconds of it."""
    now = [100.0]

    def draw_curves(*_: Any) -> None:
        now[0] += 2.0

    monkeypatch.setattr(recorder.time, "perf_counter", lambda: now[0])
    monkeypatch.setattr(recorder, "draw_curves", draw_curves)
    return now


def steps_that_draw(folder: Path, clock: list[float], *, step_s: float, plot_steps: int, num_steps: int) -> list[int]:
    """The steps after which curves.png was drawn, of a run whose steps take so long."""
    told = recorder.Recorder(
        folder, build_console(ConsoleMode.plain, num_steps), LoggingConfig(plot_steps=plot_steps), {}
    )
    drawn = []
    for step in range(num_steps + 1):
        clock[0] += step_s
        before = clock[0]
        told.step({"step": step})
        if clock[0] > before:
            drawn.append(step)
    return drawn


def test_curves_are_drawn_every_so_many_steps_but_not_before_training(tmp_path: Path, clock: list[float]) -> None:
    assert steps_that_draw(tmp_path, clock, step_s=1000.0, plot_steps=10, num_steps=35) == [10, 20, 30]


def test_drawing_takes_a_fiftieth_of_the_time_at_most(tmp_path: Path, clock: list[float]) -> None:
    # A drawing of 2 s allows the next one 2 / 0.02 = 100 s after its end: 50 steps of 2 s, from step 10 to 60 to 110.
    assert steps_that_draw(tmp_path, clock, step_s=2.0, plot_steps=10, num_steps=119) == [10, 60, 110]


def test_zero_draws_at_the_end_only(tmp_path: Path, clock: list[float]) -> None:
    assert steps_that_draw(tmp_path, clock, step_s=1000.0, plot_steps=0, num_steps=20) == []
