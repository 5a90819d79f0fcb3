"""report.html of a sweep: a table of points, their curves in the same axes, tests between them, and what failed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from grpo.run.plots import style_axes
from grpo.run.report.curves import Curve, OverlaidRun, colors, draw_line, overlaid_curve, to_svg
from grpo.run.report.page import render, status
from grpo.run.report.panels import SWEEP_PANELS, thinned
from grpo.run.report.settings import chosen_options, differences
from grpo.run.report.sweep import MAX_COMPARED, Point, PointPair, Sweep
from grpo.run.text import accuracy, duration

COLUMNS = ("status", "steps", "held-out accuracy, 95%", "best", "time", "tokens")
_MAX_CELLS = 64  # of small multiples
_MAX_POINTS = 150  # of a curve; as many curves as points are in every axes


def sweep_page(sweep: Sweep, pairs: Sequence[PointPair], watch_version: str = "") -> str:
    """The page of a sweep.

    Args:
        sweep: its points.
        pairs: of points, tested.
        watch_version: of the page, if it is served and asks for later ones.
    """
    shades = colors(len(sweep.points))
    runs = overlaid_runs(sweep)
    last_step = max([1, *(point.record.last_step for point in sweep.points)])
    width = max([1, *(thinned(point.record.metrics, _MAX_POINTS)[1] for point in sweep.points)])
    config = next((point.record.config for point in sweep.points if point.record.config), {})
    values: dict[str, Any] = {
        "title": f"Sweep {sweep.folder.resolve().name}",
        "folder": str(sweep.folder),
        "status_kind": _kind(sweep),
        "status": _status_sentence(sweep),
        "verdict": _verdict(sweep),
        "facts": [],
        "missing": _missing(sweep),
        "swept": sweep.swept,
        "columns": COLUMNS,
        "points": [_point(point, shade) for point, shade in zip(sweep.points, shades, strict=True)],
        "table_note": "Accuracy is that of the last evaluation; best is the first evaluation with the highest one.",
        "curves": [
            overlaid_curve(title, key, runs, f"s{place}", last_step) for place, (title, key) in enumerate(SWEEP_PANELS)
        ],
        "curves_note": f"Long runs: each point is the mean of up to {width} steps." if width > 1 else "",
        "multiples": _multiples(sweep, last_step),
        "pairs_note": _pairs_note(pairs),
        "pairs_header": ("first", "second", "first − second, points", "only first right", "only second right", "p"),
        "pairs": pair_rows(sweep.points, pairs),
        "failed": [_failed(point) for point in sweep.points if point.status == "failed"],
        "options": [item for item in sorted(chosen_options(config).items()) if item[0] not in sweep.swept],
        "differences": [tuple(asdict(item).values()) for item in differences(config) if item.key not in sweep.swept],
    }
    return render("sweep.html", values, watch_version)


def overlaid_runs(sweep: Sweep) -> list[OverlaidRun]:
    """The points as curves, each in its own colour."""
    return [
        OverlaidRun(_name(point), thinned(point.record.metrics, _MAX_POINTS)[0], shade)
        for point, shade in zip(sweep.points, colors(len(sweep.points)), strict=True)
    ]


def point_cells(point: Point) -> tuple[str, ...]:
    """A point's row of the table, after its name and what was swept."""
    total, best = point.record.total_steps, point.best
    return (
        point.status,
        f"{point.record.last_step}" + (f"/{total}" if total is not None else ""),
        accuracy(point.accuracy),
        f"{best['eval/accuracy']:.1%} after step {best['step']}" if best else "-",
        duration(point.seconds),
        "-" if point.num_tokens is None else f"{point.num_tokens:,}",
    )


def pair_rows(points: Sequence[Point], pairs: Sequence[PointPair]) -> list[tuple[str, ...]]:
    """A row a pair that was tested, the most certain first."""
    rows = []
    for pair in sorted(pairs, key=lambda pair: (pair.p_adjusted is None, pair.p_adjusted)):
        names = (_name(points[pair.first]), _name(points[pair.second]))
        test = pair.test
        if test is None:
            rows.append((*names, "no problem in common", "", "", ""))
            continue
        change = f"{100 * test.difference:+.1f} [{100 * test.low:+.1f}, {100 * test.high:+.1f}]"
        rows.append((*names, change, str(test.only_first), str(test.only_second), f"{pair.p_adjusted:.2g}"))
    return rows


def _name(point: Point) -> str:
    return f"{point.name}: {point.label}"


def _pairs_note(pairs: Sequence[PointPair]) -> str:
    if not pairs:
        return "Fewer than two points have the answers of an evaluation: nothing can be tested."
    tested = [pair.test.num_problems for pair in pairs if pair.test is not None]
    problems = f"{min(tested)}" + (f" to {max(tested)}" if max(tested) > min(tested) else "") if tested else "no"
    return (
        f"Paired, on {problems} held-out problems that both points answered after their last evaluation. Difference "
        "with its 95% interval (paired bootstrap over problems); p of McNemar's exact test, adjusted by Holm's "
        f"procedure for {len(tested)} tests. Of more than {MAX_COMPARED} points the best are compared. The tests say "
        "how sure the difference between these weights is, not what another seed would have given."
    )


def _kind(sweep: Sweep) -> str:
    states = {point.status for point in sweep.points}
    return (
        "running"
        if "running" in states or sweep.num_not_started
        else "finished"
        if states == {"finished"}
        else "stopped"
    )


def _status_sentence(sweep: Sweep) -> str:
    states = [point.status for point in sweep.points]
    parts = [f"{states.count(name)} {name}" for name in dict.fromkeys(states)]
    parts += [f"{sweep.num_not_started} not started"] if sweep.num_not_started else []
    return f"{len(states) + sweep.num_not_started} points: {', '.join(parts)}"


def _verdict(sweep: Sweep) -> str:
    done = [point for point in sweep.points if point.accuracy]
    if not done:
        return ""
    best = max(done, key=lambda point: point.accuracy["eval/accuracy"])
    return f"Highest last held-out accuracy: {accuracy(best.accuracy)}, point {_name(best)}."


def _missing(sweep: Sweep) -> list[str]:
    """What points lack, points that lack the same together; a point that failed lacks nothing that is news."""
    by_sentence: dict[str, list[str]] = {}
    for point in sweep.points:
        for sentence in point.record.missing if point.status != "failed" else ():
            by_sentence.setdefault(sentence, []).append(point.name)
    return [f"Point {', '.join(names)}: {sentence}" for sentence, names in by_sentence.items()]


def _point(point: Point, color: str) -> dict[str, Any]:
    return {
        "name": point.name,
        "label": point.label,
        "color": color,
        "values": list(point.values.values()),
        "cells": point_cells(point),
    }


def _failed(point: Point) -> dict[str, str]:
    return {
        "name": point.name,
        "label": point.label,
        "sentence": f"{status(point.record)[1]}{f'; {point.reason}' if point.reason else ''}",
        "log": "\n".join(point.last_lines),
    }


def _multiples(sweep: Sweep, last_step: int) -> Mapping[str, Any] | None:
    """A small drawing for every pair of values of the two widest swept settings; None without two of them."""
    if sweep.axes is None:
        return None
    down, across = sweep.axes
    names = [sorted({point.values[key] for point in sweep.points}, key=_by_size) for key in (down, across)]
    if len(names[0]) * len(names[1]) > _MAX_CELLS:
        return None
    cells = [
        _cell(
            f"{down}={row}, {across}={column}",
            [point for point in sweep.points if (point.values[down], point.values[across]) == (row, column)],
            f"m{len(names[1]) * i + j}",
            last_step,
        )
        for i, row in enumerate(names[0])
        for j, column in enumerate(names[1])
    ]
    note = "Blue: held-out accuracy with its 95% interval; orange: reward in training. The same axes everywhere."
    return {"down": down, "across": across, "note": note, "num_columns": len(names[1]), "cells": cells}


def _cell(title: str, points: Sequence[Point], name: str, last_step: int) -> Curve:
    def draw(axes: Any) -> None:
        style_axes(axes, "", last_step)
        axes.set_ylim(-0.02, 1.02)
        for point in points:
            rows, _ = thinned(point.record.metrics, _MAX_POINTS)
            draw_line(axes, rows, "reward/mean", "#f59e0b")
            draw_line(axes, rows, "eval/accuracy", "#2563eb")

    shown = [f"held-out accuracy {accuracy(point.accuracy)}" for point in points]
    return Curve(title, to_svg(draw, name, (2.6, 1.9)), ", ".join(shown) or "no such point")


def _by_size(value: str) -> tuple[int, float, str]:
    """Numbers by size, before words."""
    try:
        return 0, float(value), ""
    except ValueError:
        return 1, 0.0, value
