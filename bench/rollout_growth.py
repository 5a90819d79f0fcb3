"""How the torch engine's cost grows: the table and the plot of what `bench.peers.rollout_growth` measured."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bench.tables import Section
from grpo.run.files import write_atomic

_AXES = {"batch": "rows", "length": "tokens of a completion", "parameters": "parameters"}


def _kind(point: Mapping[str, Any]) -> str:
    """The panel that a point is drawn in: the same thing grows for two models."""
    return point["panel"].partition(",")[0]


def _grown(point: Mapping[str, Any]) -> int:
    """The value on the horizontal axis."""
    return {"batch": point["batch"], "length": point["tokens"], "parameters": point["parameters"]}[_kind(point)]


def section(result: Mapping[str, Any]) -> Section:
    """The table."""
    rows = [
        (
            point["panel"],
            point["size"],
            str(point["batch"]),
            str(point["tokens"]),
            f"{point['rate']:,.0f}",
            f"{point['limit']:,.0f}",
            f"{point['rate'] / point['limit']:.1%}",
        )
        for point in sorted(
            result["points"], key=lambda one: (list(_AXES).index(_kind(one)), one["panel"], _grown(one))
        )
    ]
    rates = {int(size): rate for size, rate in result["read_rates"].items()}
    reads = ", ".join(f"{rate / 1e9:.0f} GB/s of {size / 2**20:.0f} MiB" for size, rate in sorted(rates.items()))
    return Section(
        "How the cost grows",
        ("what grows", "parameters", "rows", "tokens a row", "tokens/s", "limit", "share"),
        rows,
        (
            f"The machine's limits, measured in the same process: it reads {reads}, over and over, and multiplies "
            f"float32 matrices at {result['flops'] / 1e9:.0f} GFLOP/s.",
            "A step takes no less than reading all weights once and every row's keys and values once, nor than its "
            "multiplications and additions; the limit is rows over the larger of the two. All rows have one prompt.",
        ),
    )


def draw(result: Mapping[str, Any], path: Path) -> None:
    """Three panels, logarithmic axes: measured, and the limit as dashes."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    for axes, (kind, label) in zip(figure.subplots(1, len(_AXES)), _AXES.items(), strict=True):
        own = [point for point in result["points"] if _kind(point) == kind]
        for place, panel in enumerate(sorted({point["panel"] for point in own})):
            _curve(axes, [point for point in own if point["panel"] == panel], f"C{place}")
        axes.set(xscale="log", yscale="log", xlabel=label, ylabel="tokens/s, float32")
        axes.grid(alpha=0.3, which="both")
        axes.legend(fontsize=8)
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=120)
    write_atomic(path, buffer.getvalue())


def _curve(axes: Any, points: Sequence[Mapping[str, Any]], color: str) -> None:
    """One panel's line, named after what stays the same along it, and its limit."""
    ordered = sorted(points, key=_grown)
    first = ordered[0]
    same = {"batch": first["size"], "length": f"{first['size']}, {first['batch']} rows"}
    name = same.get(_kind(first), f"{first['batch']} rows")
    along = [_grown(point) for point in ordered]
    axes.plot(along, [point["rate"] for point in ordered], "o-", color=color, label=name)
    axes.plot(along, [point["limit"] for point in ordered], "--", color=color, label=f"{name}: the machine's limit")
