"""Numbers and texts of a run as a terminal can show them; nothing here knows about colours."""

from __future__ import annotations

import re
import unicodedata
from collections import deque
from collections.abc import Mapping, Sequence
from time import monotonic
from typing import Any, TextIO

_ESCAPE_SEQUENCE = re.compile(r"\x1b\[[0-?]*[ -/]*[@-~]|\x1b\][^\x07\x1b]*(?:\x07|\x1b\\)?|\x1b[@-Z\\-_]?")
_BARS = "▁▂▃▄▅▆▇█"


def printable(text: str) -> str:
    """The text without terminal escapes and control or direction characters; newlines stay, tabs become spaces."""
    plain = _ESCAPE_SEQUENCE.sub("", text).expandtabs(4)
    return "".join(c for c in plain if c == "\n" or unicodedata.category(c) not in ("Cc", "Cf", "Cs"))


def excerpt(text: str, num_lines: int, num_characters: int) -> str:
    """The printable text's beginning and end; what is left out of the middle is counted."""
    text = "\n".join(line for line in printable(text).strip().split("\n") if line.strip())
    if len(text) > num_characters:
        half = num_characters // 2
        text = f"{text[:half]} [... {len(text) - 2 * half} characters ...] {text[-half:]}"
    lines = text.split("\n")
    if len(lines) > num_lines:
        head = (num_lines - 1) // 2
        tail = num_lines - 1 - head
        left_out = f"[... {len(lines) - head - tail} lines ...]"
        lines = [*lines[:head], left_out, *lines[len(lines) - tail :]]
    return "\n".join(lines)


def number(metrics: Mapping[str, Any], key: str, form: str, unit: str = "") -> str:
    """A metric in a format such as ".3f", or "-" where the step has none."""
    value = metrics.get(key)
    return "-" if value is None else f"{value:{form}}{unit}"


def duration(seconds: float | None) -> str:
    """Such as 1h 02m, 3m 20s or 12s; "-" if not known."""
    if seconds is None:
        return "-"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours}h {minutes:02}m"
    return f"{minutes}m {rest:02}s" if minutes else f"{rest}s"


def sparkline(values: Sequence[float], width: int) -> str:
    """The last `width` values as bars, between the lowest and the highest of them."""
    shown = values[-width:] if width > 0 else []
    if not shown:
        return ""
    low, high = min(shown), max(shown)
    scale = (len(_BARS) - 1) / (high - low) if high > low else 0.0
    return "".join(_BARS[round((value - low) * scale)] for value in shown)


def accuracy(metrics: Mapping[str, Any]) -> str:
    """Held-out accuracy with its interval, in percent."""
    share, low, high = (metrics.get(f"eval/accuracy{end}") for end in ("", "_low", "_high"))
    if share is None:
        return "-"
    interval = "" if low is None or high is None else f" [{100 * low:.1f}, {100 * high:.1f}]"
    return f"{100 * share:.1f}%{interval}"


def evaluation_line(metrics: Mapping[str, Any]) -> str:
    """An evaluation in one line."""
    return (
        f"accuracy {accuracy(metrics)}  format {number(metrics, 'eval/format_rate', '.1%')}"
        f"  length {number(metrics, 'eval/length_mean', '.0f')}"
        f"  truncated {number(metrics, 'eval/truncated_share', '.1%')}"
    )


class Pace:
    """How long steps take, evaluations and saves between them included, from the last twenty."""

    def __init__(self, total_steps: int) -> None:
        """Knows nothing before the first `tick`."""
        self.total_steps = total_steps
        self.step = 0
        self._ends: deque[float] = deque(maxlen=21)
        self._first_s: float | None = None

    def tick(self, metrics: Mapping[str, Any]) -> None:
        """A step ended just now."""
        self.step = int(metrics["step"])
        self._ends.append(monotonic())
        self._first_s = metrics.get("time/step_s")

    @property
    def step_s(self) -> float | None:
        """Seconds a step; None if not known."""
        if len(self._ends) < 2:
            return self._first_s
        return (self._ends[-1] - self._ends[0]) / (len(self._ends) - 1)

    @property
    def remaining_s(self) -> float | None:
        """Until the last step ends, at this pace; None if not known."""
        return None if self.step_s is None else (self.total_steps - self.step) * self.step_s


class LastingStream:
    """A stream whose reader may vanish, or lack a character, without an error to the writer."""

    def __init__(self, stream: TextIO) -> None:
        """Wraps, and never closes, `stream`."""
        self._stream = stream

    def write(self, text: str) -> int:
        """Writes what can be written; characters that the stream's encoding lacks become escapes."""
        encoding = getattr(self._stream, "encoding", None) or "utf-8"
        try:
            self._stream.write(text.encode(encoding, "backslashreplace").decode(encoding))
        except (OSError, ValueError):  # the terminal is gone, or the stream closed: the run is worth more
            return 0
        return len(text)

    def flush(self) -> None:
        """Flushes, if there is still somebody there."""
        try:
            self._stream.flush()
        except (OSError, ValueError):
            return

    def __getattr__(self, name: str) -> Any:
        """All else is the stream's own."""
        return getattr(self._stream, name)
