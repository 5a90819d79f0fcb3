"""What a person sees of a run while it runs: a live display on a terminal, plain lines elsewhere."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from typing import Any, Protocol, TextIO, cast

from grpo.config import ConsoleMode
from grpo.run.text import LastingStream, Pace, duration, evaluation_line, number, printable


class RunConsole(Protocol):
    """What the loop tells while it works. Texts may come from a model: they are shown, never interpreted."""

    def start(self) -> None:
        """The run begins; `say` and `warn` work before that too."""
        ...

    def say(self, text: str) -> None:
        """A note."""
        ...

    def warn(self, text: str) -> None:
        """A note about something that is likely to be wrong."""
        ...

    def phase(self, name: str) -> None:
        """What the run does from now on, such as "rollout"."""
        ...

    def step(self, metrics: Mapping[str, Any], sample: str | None = None) -> None:
        """A step ended.

        Args:
            metrics: its line of metrics.jsonl; `step` is needed, all else is shown if there.
            sample: one completion of the step, perhaps with its prompt.
        """
        ...

    def evaluation(self, metrics: Mapping[str, Any]) -> None:
        """An evaluation ended.

        Args:
            metrics: `step` and `eval/...`.
        """
        ...

    def finish(self) -> None:
        """The run ended, well or not; may be called again."""
        ...


def build_console(mode: ConsoleMode, total_steps: int, stream: TextIO | None = None) -> RunConsole:
    """The display for a run of `total_steps`; `stream` is standard output."""
    output: TextIO = stream or sys.stdout
    if wants_rich(mode, output):
        from grpo.run.live_console import LiveConsole

        return LiveConsole(total_steps, output)
    return PlainConsole(total_steps, output)


def wants_rich(mode: ConsoleMode, stream: TextIO) -> bool:
    """Whether to draw on `stream`, or to write lines."""
    if mode is not ConsoleMode.auto:
        return mode is ConsoleMode.rich
    encoding = (getattr(stream, "encoding", None) or "").lower()
    return stream.isatty() and encoding.startswith("utf") and os.environ.get("TERM") not in (None, "dumb")


def step_line(metrics: Mapping[str, Any], pace: Pace) -> str:
    """A step in one line."""
    parts = [
        f"step {metrics['step']:>{len(str(pace.total_steps))}}/{pace.total_steps}",
        f"reward {number(metrics, 'reward/mean', '.3f')}",
        f"format {number(metrics, 'reward/format', '.3f')}",
        f"answer {number(metrics, 'reward/answer', '.3f')}",
        f"signal {number(metrics, 'signal/share', '.0%')}",
        f"length {number(metrics, 'completion/length_mean', '.0f')}",
        f"loss {number(metrics, 'policy/loss', '+.4f')}",
        f"grad {number(metrics, 'policy/grad_norm', '.3f')}",
        f"tokens/s {number(metrics, 'rollout/tokens_per_s', '.0f')}",
        f"s/step {number({'s': pace.step_s}, 's', '.1f')}",
        f"remaining {duration(pace.remaining_s)}",
    ]
    troubles = {"grade/errors": "grader errors", "policy/skipped_updates": "skipped updates"}
    parts += [f"{name} {metrics[key]:.0f}" for key, name in troubles.items() if metrics.get(key)]
    return "  ".join(parts)


class PlainConsole:
    """One line a step: for logs, pipes and terminals that cannot draw."""

    def __init__(self, total_steps: int, stream: TextIO) -> None:
        """Writes to `stream`."""
        self._stream = cast(TextIO, LastingStream(stream))
        self._pace = Pace(total_steps)

    def start(self) -> None:
        """Nothing to set up."""

    def say(self, text: str) -> None:
        """A line."""
        print(printable(text), file=self._stream, flush=True)

    def warn(self, text: str) -> None:
        """A line that says that it is a warning."""
        self.say(f"warning: {text}")

    def phase(self, name: str) -> None:
        """Not shown: a step is one line."""

    def step(self, metrics: Mapping[str, Any], sample: str | None = None) -> None:
        """A line; the sample is left to the run's files."""
        self._pace.tick(metrics)
        self.say(step_line(metrics, self._pace))

    def evaluation(self, metrics: Mapping[str, Any]) -> None:
        """A line."""
        self.say(f"evaluation after step {metrics['step']}  {evaluation_line(metrics)}")

    def finish(self) -> None:
        """Nothing to take down."""
