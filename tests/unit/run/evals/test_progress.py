"""How far, how right, how long: lines or a bar."""

from io import StringIO

import pytest

from grpo.config import ConsoleMode
from grpo.run.evals import progress
from grpo.run.evals.progress import LiveProgress, PlainProgress, build_progress


def test_lines_say_what_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    stream = StringIO()
    display = PlainProgress(stream)
    display.start(100, 20, 10)  # 20 are there from before
    for seconds, ended, right in ((4, 5, 5), (12, 15, 0), (13, 5, 5), (30, 35, 20)):
        now[0] = seconds
        display.advance(ended, right)
    display.finish()
    # After 12 s 20 of 80 are done: 60 more take 36 s. After 30 s 60 of 80: 20 more take 10 s.
    assert stream.getvalue().splitlines() == [
        "40 of 100 completions, 37.5% right, 36s left",
        "80 of 100 completions, 50.0% right, 10s left",
    ]


def test_nothing_is_promised_before_the_first_has_ended() -> None:
    assert progress.Count(10, 4, 1).remaining_s is None


def test_a_terminal_gets_a_bar_and_notes_above_it() -> None:
    stream = StringIO()
    display = build_progress(ConsoleMode.rich, stream)
    assert isinstance(display, LiveProgress)
    display.start(100, 20, 10)
    display.advance(30, 10)
    display.warn("[red]careful\x1b[2J")
    display.finish()
    display.finish()
    shown = stream.getvalue()
    assert "50/100 completions" in shown
    assert "40.0% right" in shown
    assert "warning: [red]careful" in shown  # shown, not interpreted
    assert "\x1b[2J" not in shown


def test_elsewhere_there_are_lines() -> None:
    stream = StringIO()
    display = build_progress(ConsoleMode.auto, stream)
    display.say("hello")
    display.warn("careful")
    assert stream.getvalue() == "hello\nwarning: careful\n"
