"""The live display of a run: progress, the phase in hand, the last step's numbers, one completion."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TextIO, cast

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from grpo.run.text import LastingStream, Pace, duration, evaluation_line, excerpt, number, printable, sparkline

# Two columns of the table: a name, the metric, its format.
_CELLS = (
    (("reward", "reward/mean", ".3f"), ("entropy", "policy/entropy", ".3f")),
    (("format", "reward/format", ".3f"), ("grad norm", "policy/grad_norm", ".3f")),
    (("answer", "reward/answer", ".3f"), ("loss", "policy/loss", "+.4f")),
    (("signal", "signal/share", ".0%"), ("clipped", "policy/clip_fraction", ".2%")),
    (("length", "completion/length_mean", ".0f"), ("truncated", "completion/truncated_share", ".1%")),
    (("tokens/s", "rollout/tokens_per_s", ",.0f"), ("peak GiB", "memory/peak_gib", ".1f")),
)


class LiveConsole:
    """A display that is drawn again in place; notes scroll above it."""

    def __init__(self, total_steps: int, stream: TextIO) -> None:
        """Draws on `stream`, taken to be a terminal."""
        self._console = Console(file=cast(TextIO, LastingStream(stream)), force_terminal=True, highlight=False)
        self._pace = Pace(total_steps)
        self._spinner = Spinner("dots", style="cyan")
        self._phase = "starting"
        self._metrics: Mapping[str, Any] = {}
        self._evaluation: Mapping[str, Any] = {}
        # Replaced, never changed in place: another thread draws them.
        self._rewards: tuple[float, ...] = ()
        self._sample = ""
        # Last, because it renders at once. Not transient: the last state stays above the summary.
        self._live = Live(get_renderable=self._render, console=self._console, vertical_overflow="ellipsis")

    def start(self) -> None:
        """Shows the display."""
        self._live.start()

    def say(self, text: str) -> None:
        """A line above the display."""
        self._console.print(Text(printable(text)))

    def warn(self, text: str) -> None:
        """A yellow line above the display."""
        self._console.print(Text(f"warning: {printable(text)}", style="yellow"))

    def phase(self, name: str) -> None:
        """Shown beside the spinner."""
        self._phase = printable(name)

    def step(self, metrics: Mapping[str, Any], sample: str | None = None) -> None:
        """Replaces the numbers and the sample."""
        self._pace.tick(metrics)
        self._metrics = dict(metrics)
        self._sample = excerpt(sample or "", num_lines=8, num_characters=700)
        reward = metrics.get("reward/mean")
        if reward is not None:
            self._rewards = (*self._rewards, reward)[-200:]

    def evaluation(self, metrics: Mapping[str, Any]) -> None:
        """Replaces the last evaluation."""
        self._evaluation = dict(metrics)

    def finish(self) -> None:
        """Leaves the last state on the terminal."""
        self._phase = "done" if self._pace.step >= self._pace.total_steps else "stopped"
        self._live.stop()

    def _render(self) -> RenderableType:
        parts: list[RenderableType] = [self._progress()]
        if self._metrics:
            parts.append(self._numbers())
        if self._rewards:
            width = min(100, self._console.width - 9)
            parts.append(Text(f"rewards  {sparkline(self._rewards, width)}", style="green", no_wrap=True))
        if self._evaluation:
            line = f"held-out after step {self._evaluation['step']}  {evaluation_line(self._evaluation)}"
            parts.append(Text(line, style="bold"))
        if self._sample:
            title = f"a completion of step {self._pace.step}"
            parts.append(Panel(Text(self._sample), title=title, title_align="left", border_style="dim"))
        return Group(*parts)

    def _progress(self) -> RenderableType:
        pace = self._pace
        row = Table.grid(padding=(0, 1))
        row.add_row(
            self._spinner,
            Text(f"{self._phase:<9}", style="cyan", no_wrap=True),
            ProgressBar(total=max(1, pace.total_steps), completed=pace.step, width=max(4, self._console.width // 4)),
            Text(f"{pace.step}/{pace.total_steps}", no_wrap=True),
            Text(f"{number({'s': pace.step_s}, 's', '.1f')} s/step", style="dim", no_wrap=True),
            Text(f"{duration(pace.remaining_s)} left", no_wrap=True),
        )
        return row

    def _numbers(self) -> RenderableType:
        table = Table.grid(padding=(0, 2))
        for cells in _CELLS:
            texts = [[Text(name, style="dim"), Text(number(self._metrics, key, form))] for name, key, form in cells]
            table.add_row(*texts[0], *texts[1])
        errors = self._metrics.get("grade/errors")
        if errors:
            table.add_row(Text("grader errors", style="yellow"), Text(f"{errors:.0f}", style="yellow"))
        return table
