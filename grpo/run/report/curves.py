"""Curves as SVG that stands in a page: the page's own text colour and font, and no identifier twice."""

from __future__ import annotations

import io
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from grpo.run.files import write_atomic
from grpo.run.plots import draw_panel, running_mean, series, style_axes
from grpo.run.report.panels import RUN_PANELS, ReportPanel

_INK = "#010203"  # stands for the page's text colour while matplotlib draws
_SIZE = (4.8, 3.0)  # inches of 72 SVG units
_SMOOTHED_FROM = 30
_RC = {
    "svg.fonttype": "none",
    "svg.hashsalt": "grpo",
    "text.color": _INK,
    "axes.edgecolor": _INK,
    "axes.labelcolor": _INK,
    "axes.titlecolor": _INK,
    "xtick.color": _INK,
    "ytick.color": _INK,
    "grid.color": _INK,
    "grid.alpha": 0.15,
}
Row = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Curve:
    """A drawing in a page.

    Attributes:
        title: its heading.
        svg: an <svg> element.
        summary: what it shows, for those who do not see it.
    """

    title: str
    svg: str
    summary: str


@dataclass(frozen=True, slots=True)
class OverlaidRun:
    """One of several runs in the same axes."""

    name: str
    rows: Sequence[Row]
    color: str


def run_curves(rows: Sequence[Row]) -> list[Curve]:
    """All panels of a run."""
    return [_panel_curve(report_panel, rows, f"c{place}") for place, report_panel in enumerate(RUN_PANELS)]


def _panel_curve(report_panel: ReportPanel, rows: Sequence[Row], name: str) -> Curve:
    panel = report_panel.panel
    keys = [key for key, _ in (*panel.lines, *panel.right)]
    # Rows of evaluations between the steps would be bars of height 0.
    own = [row for row in rows if any(key in row for key in keys)] if panel.stacked else rows

    def draw(axes: Any) -> None:
        draw_panel(axes, panel, own)
        axes.set_title("", loc="left")  # the page has it as a heading

    last = [f"{label} {series(rows, key)[1][-1]:.4g}" for key, label in (*panel.lines, *panel.right) if _has(rows, key)]
    return Curve(panel.title, to_svg(draw, name), "at the last step: " + ", ".join(last) if last else "no data")


def _has(rows: Sequence[Row], key: str) -> bool:
    return any(key in row for row in rows)


def overlaid_curve(title: str, key: str, runs: Sequence[OverlaidRun], name: str, last_step: int) -> Curve:
    """One metric of several runs."""

    def draw(axes: Any) -> None:
        style_axes(axes, "", last_step)
        drawn = [draw_line(axes, run.rows, key, run.color) for run in runs]
        if not any(drawn):
            axes.text(0.5, 0.5, "no data", transform=axes.transAxes, ha="center", va="center", color="#94a3b8")

    shown = [f"{run.name} {series(run.rows, key)[1][-1]:.4g}" for run in runs if _has(run.rows, key)]
    return Curve(title, to_svg(draw, name), "at the last step: " + ", ".join(shown) if shown else "no data")


def draw_line(axes: Any, rows: Sequence[Row], key: str, color: str, label: str | None = None) -> bool:
    """A curve, smoothed if it is long, with its interval if it has one; whether there was anything to draw."""
    steps, values = series(rows, key)
    if not steps:
        return False
    low, high = series(rows, f"{key}_low"), series(rows, f"{key}_high")
    if low[0] and low[0] == high[0]:
        axes.fill_between(*low, high[1], color=color, alpha=0.1, linewidth=0)
    few = len(steps) < _SMOOTHED_FROM
    shown = values if few else running_mean(values)
    axes.plot(steps, shown, color=color, linewidth=1.6, marker="o" if few else None, markersize=3, label=label)
    return True


def draw_overlaid(panels: Sequence[tuple[str, str]], runs: Sequence[OverlaidRun], path: Path, title: str) -> None:
    """Draws several runs in the same axes as a PNG file.

    Args:
        panels: title and metric of each.
        runs: what is compared.
        path: replaced atomically.
        title: above the panels.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    num_rows = math.ceil(len(panels) / 3)
    figure = Figure(figsize=(15, 10 / 3 * num_rows + 0.25 * len(runs)), dpi=100, layout="constrained")
    FigureCanvasAgg(figure)
    # Dollar signs of a text would be read as mathematics.
    figure.suptitle(title.replace("$", r"\$"), fontsize=14, fontweight="bold")
    last_step = max([1, *(row["step"] for run in runs for row in run.rows)])
    for axes, (name, key) in zip(figure.subplots(num_rows, 3, squeeze=False).flat, panels, strict=False):
        style_axes(axes, name, last_step)
        for run in runs:
            draw_line(axes, run.rows, key, run.color)
    handles = [Line2D([], [], color=run.color, label=run.name.replace("$", r"\$")) for run in runs]
    figure.legend(handles=handles, loc="outside lower left", frameon=False, fontsize=10)
    image = io.BytesIO()
    figure.savefig(image, format="png")
    write_atomic(path, image.getvalue())


def colors(number: int) -> list[str]:
    """As many colours, told apart with any colour vision as far as that goes."""
    from matplotlib import colormaps
    from matplotlib.colors import to_hex

    if number <= 6:
        return ["#2563eb", "#f59e0b", "#10b981", "#dc2626", "#7c3aed", "#64748b"][:number]
    scale = colormaps["turbo"]
    return [to_hex(scale(0.05 + 0.9 * place / (number - 1))) for place in range(number)]


def to_svg(draw: Callable[[Any], None], name: str, size: tuple[float, float] = _SIZE) -> str:
    """What `draw` puts on a matplotlib axes, as an <svg> element.

    Args:
        draw: given the axes.
        name: a prefix of all identifiers, unique in the page.
        size: inches.
    """
    from matplotlib import rc_context
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    with rc_context(rc=cast(Any, _RC)):
        figure = Figure(figsize=size)
        figure.patch.set_alpha(0.0)
        FigureCanvasSVG(figure)
        axes = figure.subplots()
        draw(axes)
        for each in figure.axes:
            each.set_facecolor("none")
            each.yaxis.get_offset_text().set_fontsize(8)
        # Margins for numbers and a legend, in inches: matplotlib's own layout draws everything twice to find them.
        (width, height), right = size, 0.55 if len(figure.axes) > 1 else 0.08
        bottom = 0.52 if axes.get_legend() else 0.25
        figure.subplots_adjust(0.55 / width, bottom / height, 1 - right / width, 1 - 0.2 / height)
        text = io.StringIO()
        figure.savefig(text, format="svg", metadata={"Date": None})
    return _inline(text.getvalue(), name)


def _inline(document: str, name: str) -> str:
    """The <svg> element of an SVG file."""
    element = document[document.index("<svg") :]
    element = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>", "", element, flags=re.DOTALL)
    element = re.sub(r'<svg [^>]*?viewBox="([^"]*)"[^>]*>', r'<svg viewBox="\1" aria-hidden="true">', element, count=1)
    element = re.sub(r'\bid="', f'id="{name}-', element)
    element = element.replace('xlink:href="#', f'href="#{name}-').replace("url(#", f"url(#{name}-")
    element = element.replace(_INK, "currentColor")
    element = re.sub(r"'DejaVu Sans'.*?sans-serif", "inherit", element)
    # A hundredth of a unit is invisible; numbers between tags are labels.
    element = re.sub(r'"[^"]*"', lambda quoted: re.sub(r"(\.\d\d)\d+", r"\1", quoted[0]), element)
    return re.sub(r">\s+<", "><", element)
