"""A run at a glance, one panel a question that is asked of every GRPO run: curves.png, and the panels of a report."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from grpo.run.files import write_atomic

_COLORS = ("#2563eb", "#f59e0b", "#10b981", "#dc2626", "#7c3aed", "#64748b")
_SMOOTHED_FROM = 30  # rows; shorter curves are drawn as they are


@dataclass(frozen=True, slots=True)
class Panel:
    """Curves that share axes.

    Attributes:
        lines: a metric and its name in the legend each.
        right: the same, on a second axis at the right.
        band: two metrics to fill between.
        share: the left axis goes from 0 to 1.
        stacked: the lines are parts of a whole.
        log: the left axis is logarithmic, where all values are positive.
    """

    title: str
    lines: tuple[tuple[str, str], ...]
    right: tuple[tuple[str, str], ...] = ()
    band: tuple[str, str] | None = None
    share: bool = False
    stacked: bool = False
    log: bool = False


_PHASES = ("rollout", "grade", "update", "evaluate", "save")
PANELS = (
    Panel("Reward", (("reward/mean", "reward"), ("reward/format", "format"), ("reward/answer", "answer"))),
    Panel(
        "Held-out accuracy, 95% interval",
        (("eval/accuracy", "accuracy"),),
        band=("eval/accuracy_low", "eval/accuracy_high"),
    ),
    Panel(
        "Completion length, tokens",
        (("completion/length_mean", "mean"), ("completion/length_max", "longest")),
        right=(("completion/truncated_share", "truncated"),),
    ),
    Panel("Entropy, nats per token", (("policy/entropy", "entropy"),)),
    Panel(
        "Ratio to the old policy",
        (("policy/ratio_mean", "mean ratio"), ("policy/ratio_max", "largest")),
        right=(("policy/clip_fraction", "clipped"), ("policy/kl", "KL")),
    ),
    Panel("Gradient norm", (("policy/grad_norm", "before clipping"),), log=True),
    Panel(
        "Engine and trainer log-probs differ by, nats",
        (("mismatch/mean", "mean"), ("mismatch/max", "largest")),
        log=True,
    ),
    Panel("Groups with a signal", (("signal/share", "share"),), share=True),
    Panel("Seconds by phase", tuple((f"time/{name}_s", name) for name in _PHASES), stacked=True),
)


def draw_curves(
    metrics_rows: Sequence[Mapping[str, Any]], path: Path, title: str, panels: Sequence[Panel] = PANELS
) -> None:
    """Draws the curves of a run as a PNG file, three in a row.

    Args:
        metrics_rows: of metrics.jsonl; metrics that a row lacks, or that are null, are left out.
        path: replaced atomically.
        title: above the panels.
        panels: what to draw.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    num_rows = math.ceil(len(panels) / 3)
    figure = Figure(figsize=(15, 10 / 3 * num_rows), dpi=100, layout="constrained")
    FigureCanvasAgg(figure)
    # Dollar signs of a title would be read as mathematics.
    figure.suptitle(title.replace("$", r"\$"), fontsize=14, fontweight="bold")
    grid = list(figure.subplots(num_rows, 3, squeeze=False).flat)
    for axes, panel in zip(grid, panels, strict=False):
        draw_panel(axes, panel, metrics_rows)
    for axes in grid[len(panels) :]:
        axes.remove()
    image = io.BytesIO()
    figure.savefig(image, format="png")
    write_atomic(path, image.getvalue())


def draw_panel(axes: Any, panel: Panel, rows: Sequence[Mapping[str, Any]]) -> None:
    """Draws one panel on a matplotlib axes."""
    style_axes(axes, panel.title, last_step=max([1, *(row["step"] for row in rows)]))
    if panel.band is not None:
        low, high = (series(rows, key) for key in panel.band)
        if low[0] == high[0]:
            axes.fill_between(*low, high[1], color=_COLORS[0], alpha=0.15, linewidth=0)
    drawn = _stack(axes, panel.lines, rows) if panel.stacked else _lines(axes, panel.lines, rows, _COLORS)
    if panel.log and drawn and all(value > 0 for key, _ in panel.lines for value in series(rows, key)[1]):
        axes.set_yscale("log")
    if panel.share:
        axes.set_ylim(-0.02, 1.02)
    if any(series(rows, key)[0] for key, _ in panel.right):
        other = axes.twinx()
        other.spines["top"].set_visible(False)
        other.tick_params(labelsize=9)
        right = [(key, f"{name} (right)") for key, name in panel.right]
        drawn += _lines(other, right, rows, _COLORS[3:], linestyle="--")
        other.set_ylim(bottom=0)
    if drawn:
        # Below the axes, where no curve is; an empty legend would cost its height all the same.
        axes.legend(handles=drawn, fontsize=8, frameon=False, ncols=5, loc="upper center", bbox_to_anchor=(0.5, -0.08))
    else:
        axes.text(0.5, 0.5, "no data", transform=axes.transAxes, ha="center", va="center", color="#94a3b8")


def style_axes(axes: Any, title: str, last_step: int) -> None:
    """The look that all panels share; the same steps everywhere, so that they can be compared by eye."""
    axes.set_title(title, fontsize=11, loc="left")
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25, linewidth=0.6)
    axes.tick_params(labelsize=9)
    axes.set_xlim(-0.5 - 0.01 * last_step, last_step + 0.5 + 0.01 * last_step)
    axes.xaxis.get_major_locator().set_params(integer=True, min_n_ticks=1)


def _lines(
    axes: Any,
    lines: Sequence[tuple[str, str]],
    rows: Sequence[Mapping[str, Any]],
    colors: Sequence[str],
    linestyle: str = "-",
) -> list[Any]:
    """A curve for each metric that has data; long ones pale, with their running mean on top. Returns the handles."""
    handles = []
    for i, ((key, name), color) in enumerate(zip(lines, colors, strict=False)):
        steps, values = series(rows, key)
        if not steps:
            continue
        few = len(steps) < _SMOOTHED_FROM
        # A dot each where there are few: a single value would be invisible.
        style: dict[str, Any] = {"color": color, "linestyle": linestyle, "marker": "o" if few else None}
        if not few:
            axes.plot(steps, values, linewidth=0.8, alpha=0.3, **style)
        # The first of several is wider, to be seen below another one of the same values.
        width = 2.8 if i == 0 and len(lines) > 1 and linestyle == "-" else 1.6
        shown = values if few else running_mean(values)
        handles += axes.plot(steps, shown, linewidth=width, markersize=2 + width, label=name, **style)
    return handles


def _stack(axes: Any, lines: Sequence[tuple[str, str]], rows: Sequence[Mapping[str, Any]]) -> list[Any]:
    """Steps on top of one another, one wide each. Returns the handles."""
    steps = [row["step"] for row in rows]
    edges = [step - 0.5 for step in steps] + [steps[-1] + 0.5] if steps else []
    below = [0.0] * len(steps)
    handles = []
    for (key, name), color in zip(lines, _COLORS, strict=False):
        values = dict(zip(*series(rows, key), strict=True))
        if values:
            above = [low + values.get(step, 0.0) for step, low in zip(steps, below, strict=True)]
            handles.append(axes.stairs(above, edges, baseline=below, fill=True, color=color, label=name))
            below = above
    return handles


def series(rows: Sequence[Mapping[str, Any]], key: str) -> tuple[list[float], list[float]]:
    """Steps and values of the rows that have a finite one."""
    points = [(row["step"], row[key]) for row in rows if row.get(key) is not None and math.isfinite(row[key])]
    return [step for step, _ in points], [float(value) for _, value in points]


def running_mean(values: Sequence[float], width: int = 10) -> list[float]:
    """The mean of the last `width` values, of fewer at the start."""
    return [sum(values[max(0, i + 1 - width) : i + 1]) / min(i + 1, width) for i in range(len(values))]
