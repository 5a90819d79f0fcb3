"""The console shows a run anywhere, and shows a model's text as text."""

import io
import re
import time
from pathlib import Path

import pytest

from grpo.config import ConsoleMode
from grpo.run.console import PlainConsole, build_console, step_line
from grpo.run.live_console import LiveConsole
from grpo.run.summary import Comparison, RunSummary, print_summary, verdict
from grpo.run.text import Pace, duration, excerpt, printable, sparkline

HOSTILE = "so [/red] it [bold]is\x1b[2J\x1b]0;title\x07 \x1b[31m4\x1b[0m\r\x00\u202e\ud800 [/] \\[x]"
SHOWN = "so [/red] it [bold]is 4 [/] \\[x]"
STEP = {
    "step": 12,
    "reward/mean": 0.4125,
    "reward/format": 0.875,
    "reward/answer": 0.5,
    "signal/share": 0.75,
    "completion/length_mean": 311.6,
    "policy/loss": -0.00123,
    "policy/grad_norm": 0.3141,
    "rollout/tokens_per_s": 4120.4,
    "time/step_s": 12.34,
}
EVALUATION = {
    "step": 20, "eval/accuracy": 0.412, "eval/accuracy_low": 0.37, "eval/accuracy_high": 0.455,
    "eval/format_rate": 0.88, "eval/length_mean": 301.2, "eval/truncated_share": 0.031,
}  # fmt: skip


class Terminal(io.StringIO):
    encoding = "utf-8"

    def isatty(self) -> bool:
        return True


def without_escapes(text: str) -> str:
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text)


def test_printable_strips_escapes_and_control_characters() -> None:
    assert printable(HOSTILE) == SHOWN
    assert printable("a\tb\nπ²") == "a   b\nπ²"
    assert printable("\x1b") == ""
    assert printable("a\x9b31mb") == "a31mb"


def test_excerpt_keeps_both_ends_and_counts_the_rest() -> None:
    text = "\n".join(f"line {i}" for i in range(20))
    assert excerpt(text, 5, 1000).split("\n") == ["line 0", "line 1", "[... 16 lines ...]", "line 18", "line 19"]
    assert excerpt("a" * 50 + "b" * 50, 5, 10) == "aaaaa [... 90 characters ...] bbbbb"
    assert excerpt("a\n\n b\n", 5, 10) == "a\n b"


@pytest.mark.parametrize(
    ("seconds", "text"), [(None, "-"), (12.4, "12s"), (59.7, "1m 00s"), (200, "3m 20s"), (3720, "1h 02m")]
)
def test_duration(seconds: float | None, text: str) -> None:
    assert duration(seconds) == text


def test_sparkline() -> None:
    assert sparkline([9, 0, 3.5, 7], 3) == "▁▅█"  # the 9 is out of sight; 3.5 of 7 is bar 3.5 of 7, rounded to 4
    assert sparkline([1, 1], 5) == "▁▁"
    assert sparkline([], 5) == sparkline([1.0], 0) == ""


def test_plain_line_of_a_step() -> None:
    pace = Pace(200)
    pace.tick(STEP)
    # 188 steps remain at 12.34 s: 2,320 s = 38 min 40 s.
    assert step_line(STEP, pace) == (
        "step  12/200  reward 0.412  format 0.875  answer 0.500  signal 75%  length 312  loss -0.0012  grad 0.314"
        "  tokens/s 4120  s/step 12.3  remaining 38m 40s"
    )
    assert step_line(STEP | {"grade/errors": 3}, pace).endswith("  grader errors 3")
    assert "reward -  " in step_line({"step": 12, "policy/grad_norm": None}, pace)


def test_pace_counts_what_passes_between_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([100.0, 110.0, 140.0])
    monkeypatch.setattr("grpo.run.text.monotonic", lambda: next(clock))
    pace = Pace(10)
    assert pace.remaining_s is None
    for step in (4, 5, 6):  # resumed after step 3
        pace.tick({"step": step, "time/step_s": 1.0})
    assert pace.step_s == 20.0
    assert pace.remaining_s == 80.0


def test_plain_is_one_line_a_step() -> None:
    stream = io.StringIO()
    console = build_console(ConsoleMode.auto, 200, stream)
    assert isinstance(console, PlainConsole)
    console.say("before")
    console.start()
    console.phase("rollout")
    console.step(STEP, HOSTILE)
    console.warn(HOSTILE)
    console.evaluation(EVALUATION)
    console.finish()
    lines = stream.getvalue().split("\n")
    assert [lines[0], lines[2], lines[4:]] == ["before", f"warning: {SHOWN}", [""]]
    assert lines[1].startswith("step  12/200  reward 0.412")
    assert lines[3] == (
        "evaluation after step 20  accuracy 41.2% [37.0, 45.5]  format 88.0%  length 301  truncated 3.1%"
    )


def test_auto_is_rich_on_a_terminal_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    assert isinstance(build_console(ConsoleMode.auto, 1, Terminal()), LiveConsole)
    assert isinstance(build_console(ConsoleMode.plain, 1, Terminal()), PlainConsole)
    assert isinstance(build_console(ConsoleMode.rich, 1, io.StringIO()), LiveConsole)
    monkeypatch.setenv("TERM", "dumb")
    assert isinstance(build_console(ConsoleMode.auto, 1, Terminal()), PlainConsole)


@pytest.mark.parametrize("width", [1, 2, 7, 20, 40, 100, 250])
@pytest.mark.parametrize("height", [2, 50])
def test_rich_shows_a_model_text_as_text_at_any_width(monkeypatch, width: int, height: int) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    monkeypatch.setenv("LINES", str(height))
    stream = Terminal()
    console = LiveConsole(200, stream)
    console.say(HOSTILE)
    console.start()
    console.phase("[red]rollout\x1b[2J")
    console.evaluation(EVALUATION)
    for step in (12, 13):
        console.step(STEP | {"step": step, "grade/errors": 2}, HOSTILE)
        console.warn(HOSTILE)
    time.sleep(0.3)  # a refresh or two
    console.finish()
    console.finish()
    console.say("after")
    output = stream.getvalue()
    assert "\x1b[2J" not in output
    assert "\x1b]0;" not in output
    assert without_escapes(output).rstrip("\n").replace("\n", "").endswith("after")
    if width >= 100 and height == 50:
        seen = without_escapes(output)
        assert f"warning: {SHOWN}" in seen
        assert f"│ {SHOWN} " in seen
        for shown in ("13/200", "0.412", "grader errors", "accuracy 41.2% [37.0, 45.5]", "rewards  ▁▁", "stopped"):
            assert shown in seen


def test_a_stream_that_lacks_a_character_or_its_reader_does_not_stop_the_run() -> None:
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, encoding="ascii")
    console = PlainConsole(10, stream)
    console.say("π = 3")
    stream.flush()
    assert raw.getvalue() == b"\\u03c0 = 3\n"
    stream.close()
    console.say("nobody reads this")
    rich = Terminal()
    live = LiveConsole(10, rich)
    live.start()
    rich.close()
    live.step(STEP, "text")
    live.say("nobody reads this")
    live.finish()


SUMMARY = RunSummary(
    before={"eval/accuracy": 0.2, "eval/accuracy_low": 0.15, "eval/accuracy_high": 0.26, "eval/format_rate": 0.5},
    after=EVALUATION,
    comparison=Comparison("What is 2 + [/b]2?", "4", HOSTILE, False, "It is 4.", True),
    files=[("curves", Path("/runs/a/curves.png")), ("run", Path("/runs/a"))],
)


@pytest.mark.parametrize("mode", [ConsoleMode.plain, ConsoleMode.rich])
@pytest.mark.parametrize("width", [3, 30, 100])
def test_summary(monkeypatch: pytest.MonkeyPatch, mode: ConsoleMode, width: int) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    stream = Terminal()
    print_summary(SUMMARY, mode, stream)
    output = without_escapes(stream.getvalue())
    assert "\x1b]0;" not in output
    if width == 100 or mode is ConsoleMode.plain:
        assert re.search(r"20\.0% \[15\.0, 26\.0\] +41\.2% \[37\.0, 45\.5\]", output)
        for shown in ("+21.2 points", "before: wrong ✗", "after: right ✓", SHOWN, "It is 4.", "/runs/a/curves.png"):
            assert shown in output
    if width == 100 and mode is ConsoleMode.rich:
        assert re.search(r"before: wrong ✗ .* after: right ✓", output)  # side by side


def test_summary_without_evaluations() -> None:
    stream = io.StringIO()
    print_summary(RunSummary({}, {}, None, []), ConsoleMode.plain, stream)
    assert "accuracy, 95% interval  -" in stream.getvalue()


def test_verdict_says_when_intervals_overlap() -> None:
    low = {"eval/accuracy": 0.4, "eval/accuracy_low": 0.3, "eval/accuracy_high": 0.5}
    high = {"eval/accuracy": 0.6, "eval/accuracy_low": 0.51, "eval/accuracy_high": 0.7}
    touching = high | {"eval/accuracy_low": 0.5}
    assert verdict(low, high) == "+20.0 points"
    assert verdict(high, low) == "-20.0 points"
    assert verdict(low, touching) == "+20.0 points; the intervals overlap"
    assert verdict(low, {}) == ""
