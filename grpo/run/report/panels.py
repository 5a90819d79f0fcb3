"""What a report shows of a run: the panels of curves.png and a few more, and one number of each in a table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from grpo.run.plots import PANELS, Panel

_MAX_POINTS = 300  # of a curve in a page; longer runs are drawn as means of neighbouring steps


@dataclass(frozen=True, slots=True)
class ReportPanel:
    """A panel, and what it needs.

    Attributes:
        panel: what is drawn.
        needed: metrics that every run has by its end.
    """

    panel: Panel
    needed: tuple[str, ...]


def _own(title_start: str) -> Panel:
    """A panel of curves.png by the beginning of its title."""
    (panel,) = (panel for panel in PANELS if panel.title.startswith(title_start))
    return panel


_TRUNCATED = Panel(
    "Truncated completions",
    (("completion/truncated_share", "training"), ("eval/truncated_share", "held out")),
    share=True,
)
_CLIPPED = Panel("Clipped tokens", (("policy/clip_fraction", "share of trained tokens"),))
_SPEED = Panel("Tokens per second", (("rollout/tokens_per_s", "sampling"), ("update/tokens_per_s", "update")))
_LENGTH = Panel("Completion length, tokens", (("completion/length_mean", "mean"), ("completion/length_max", "longest")))
_RATIO = Panel(
    "Ratio to the old policy",
    (("policy/ratio_mean", "mean ratio"), ("policy/ratio_max", "largest")),
    right=(("policy/kl", "KL"),),
)
RUN_PANELS = (
    ReportPanel(_own("Reward"), ("reward/mean", "reward/format", "reward/answer")),
    ReportPanel(_own("Held-out accuracy"), ("eval/accuracy", "eval/accuracy_low", "eval/accuracy_high")),
    ReportPanel(_own("Entropy"), ("policy/entropy",)),
    ReportPanel(_LENGTH, ("completion/length_mean", "completion/length_max")),
    ReportPanel(_TRUNCATED, ("completion/truncated_share", "eval/truncated_share")),
    ReportPanel(_own("Groups with a signal"), ("signal/share",)),
    ReportPanel(_CLIPPED, ("policy/clip_fraction",)),
    ReportPanel(_RATIO, ("policy/ratio_mean", "policy/ratio_max")),
    ReportPanel(_own("Gradient norm"), ("policy/grad_norm",)),
    ReportPanel(_own("Engine and trainer"), ("mismatch/mean", "mismatch/max")),
    ReportPanel(_own("Seconds by phase"), ("time/rollout_s", "time/update_s")),
    ReportPanel(_SPEED, ("rollout/tokens_per_s", "update/tokens_per_s")),
)
# What points of a sweep are compared by, a curve each.
SWEEP_PANELS = (
    ("Held-out accuracy", "eval/accuracy"),
    ("Reward", "reward/mean"),
    ("Entropy, nats per token", "policy/entropy"),
    ("Completion length, tokens", "completion/length_mean"),
    ("Truncated completions", "completion/truncated_share"),
    ("Groups with a signal", "signal/share"),
    ("Clipped tokens", "policy/clip_fraction"),
    ("Engine and trainer log-probs differ by, nats", "mismatch/mean"),
    ("Seconds a step", "time/step_s"),
)
# A row of the table each: name, metric, format.
TABLE = (
    ("reward", "reward/mean", ".3f"),
    ("reward, format", "reward/format", ".3f"),
    ("reward, answer", "reward/answer", ".3f"),
    ("held-out accuracy", "eval/accuracy", ".1%"),
    ("held-out format", "eval/format_rate", ".1%"),
    ("entropy, nats", "policy/entropy", ".3f"),
    ("length, tokens", "completion/length_mean", ",.0f"),
    ("truncated", "completion/truncated_share", ".1%"),
    ("groups with a signal", "signal/share", ".1%"),
    ("clipped tokens", "policy/clip_fraction", ".2%"),
    ("gradient norm", "policy/grad_norm", ".3g"),
    ("mismatch, nats", "mismatch/mean", ".2g"),
    ("seconds a step", "time/step_s", ".3g"),
    ("sampling, tokens/s", "rollout/tokens_per_s", ",.0f"),
    ("update, tokens/s", "update/tokens_per_s", ",.0f"),
    ("grader errors", "grade/errors", ".0f"),
    ("skipped updates", "policy/skipped_updates", ".0f"),
)


def thinned(rows: Sequence[Mapping[str, Any]], max_points: int = _MAX_POINTS) -> tuple[list[Mapping[str, Any]], int]:
    """The rows, or means of neighbours where there are many; evaluations keep their steps.

    Args:
        rows: of metrics.jsonl, by step.
        max_points: rows to return at most, evaluations not counted.

    Returns:
        The rows, and how many steps one of them stands for.
    """
    width = -(-len(rows) // max_points) if rows else 1
    if width == 1:
        return list(rows), 1
    shown: list[Mapping[str, Any]] = []
    for start in range(0, len(rows), width):
        part = rows[start : start + width]
        keys = {key for row in part for key in row if not key.startswith("eval/")} - {"step"}
        means = {key: _mean([row[key] for row in part if key in row]) for key in sorted(keys)}
        shown.append({"step": part[-1]["step"], **means})
        shown += [
            {"step": row["step"], **{key: value for key, value in row.items() if key.startswith("eval/")}}
            for row in part
            if "eval/accuracy" in row
        ]
    return sorted(shown, key=lambda row: row["step"]), width


def tokens_sampled(row: Mapping[str, Any]) -> float:
    """Tokens that a step's rollouts have; 0 if the row does not say.

    Sampling that is hidden behind the update before has its seconds under `overlap/`.
    """
    seconds = row.get("overlap/rollout_s", row.get("time/rollout_s", 0.0))
    return row.get("rollout/tokens_per_s", 0.0) * seconds


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
