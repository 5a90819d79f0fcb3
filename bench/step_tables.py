"""From what the processes of `bench.step` measured to its tables."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from bench.peers.step_job import StepResult
from bench.step_cases import Case
from bench.tables import Section
from grpo.config import LoggingConfig

OVERHEAD_GOAL = 0.03
_OVERHEADS = ("grading", "sync", "data and advantages", "logging", "curves")


@dataclass(frozen=True)
class Compared:
    """The runs of a case, a pair a round; `peer` is empty where TRL could not run.

    Attributes:
        micro_batches: what TRL's pre-runs took, and which one was chosen.
        peer_least_s: of a step of TRL's, where it was too slow to be measured.
    """

    case: Case
    ours: list[StepResult]
    peer: list[StepResult]
    micro_batches: str = ""
    peer_least_s: float = 0.0

    @property
    def both(self) -> list[list[StepResult]]:
        """Those that there are."""
        return [results for results in (self.ours, self.peer) if results]


def step_seconds(result: StepResult, part: str = "step") -> float:
    """The median over the steps after the warm-up."""
    return median(result.parts[part][1:])


def over_rounds(results: Sequence[StepResult], part: str = "step") -> float:
    """The median over rounds of each one's median."""
    return median(step_seconds(result, part) for result in results)


def time_section(compared: Sequence[Compared], missing: str, conditions: str) -> Section:
    """Seconds a step.

    Args:
        compared: the cases.
        missing: why TRL did not run, if so.
        conditions: rounds, threads and the like.
    """
    header = ("case", "parameters", "step", "ours, s", "TRL, s", "TRL / ours (rounds)", "goal", "rollout", "update")
    notes = [
        *(runs.micro_batches for runs in compared if runs.micro_batches),
        f"{conditions} Medians over the steps after a warm-up, then over rounds. Rollout and update: ours / TRL, s; a "
        "rollout ends with decoded texts, and TRL's update begins when rewards and advantages are there.",
        "Same weights, prompts and lengths, which are checked; rewards are a hash of the text, so that every "
        "completion has an advantage. TRL: no KL, no checkpointing of activations, float32 masters.",
    ]
    return Section("Seconds a step", header, [_time_row(runs, missing) for runs in compared], tuple(notes))


def _time_row(runs: Compared, missing: str) -> tuple[str, ...]:
    size = f"{runs.ours[0].num_parameters / 1e6:.2f}M"
    seconds = [over_rounds(results) for results in runs.both]
    theirs, ratio = missing, "-"
    if runs.peer_least_s:
        theirs, ratio = f"> {runs.peer_least_s:.0f}", f"> {runs.peer_least_s / seconds[0]:.0f}"
    if runs.peer:
        ratios = [step_seconds(peer) / step_seconds(ours) for ours, peer in zip(runs.ours, runs.peer, strict=True)]
        theirs, ratio = f"{seconds[1]:.3f}", f"{median(ratios):.2f} ({min(ratios):.2f}..{max(ratios):.2f})"
    parts = [" / ".join(f"{over_rounds(results, part):.3f}" for results in runs.both) for part in ("rollout", "update")]
    return runs.case.name, size, runs.case.work, f"{seconds[0]:.3f}", theirs, ratio, runs.case.goal, *parts


def memory_section(compared: Sequence[Compared]) -> Section:
    """Peak memory of the whole process, and of that what the steps took."""
    rows = []
    for runs in compared:
        peaks = [median(one.peak_gib for one in results) for results in runs.both]
        growth = [median(_steps_gib(one) for one in results) for results in runs.both]
        rows.append((runs.case.name, *_memory_cells(peaks), *_memory_cells(growth)))
    header = ("case", "ours, GiB", "TRL, GiB", "ours / TRL", "steps: ours, GiB", "steps: TRL, GiB", "ours / TRL")
    note = (
        "Peak resident memory of the process; steps: that minus what it held before its first step. Goal at 53M: 0.5."
    )
    return Section("Peak memory", header, rows, (note,))


def _memory_cells(gib: Sequence[float]) -> tuple[str, str, str]:
    if len(gib) < 2:
        return f"{gib[0]:.2f}", "-", "-"
    return f"{gib[0]:.2f}", f"{gib[1]:.2f}", f"{gib[0] / gib[1]:.2f}"


def _steps_gib(result: StepResult) -> float:
    """What the steps added to what was there before the first; nan where the system does not say that."""
    return result.end_gib - (float("nan") if result.start_gib is None else result.start_gib)


def overhead_section(case: Case, results: Sequence[StepResult]) -> Section:
    """Where a step of ours goes."""
    counted = [_with_curves(result) for result in results]
    rows = [
        (part, f"{over_rounds(counted, part):.4f}", f"{median(_shares(counted, (part,))):.2%}")
        for part in ("rollout", "update", *_OVERHEADS)
    ]
    whole = _shares(counted, _OVERHEADS)
    spread = f"{median(whole):.2%} (steps: {min(whole):.2%}..{max(whole):.2%}; goal: {OVERHEAD_GOAL:.0%})"
    rows.append(("neither rollout nor update", "", spread))
    every = LoggingConfig.plot_steps
    note = (
        f"{results[0].num_parameters / 1e6:.1f}M parameters, {case.work}, r1_zero grading with workers: of eight "
        "answers four are right, two wrong, two right as a root, which the workers compare. What submitting an answer "
        f"takes in the middle of a rollout counts as grading. Curves are drawn every {every} steps: 1/{every} of a "
        "drawing is counted."
    )
    return Section("Overheads", ("part of a step", "s", "share"), rows, (note,))


def _with_curves(result: StepResult) -> StepResult:
    """Drew in every step; a run with defaults draws in some, and that share is put into every step."""
    curves = [seconds / LoggingConfig.plot_steps for seconds in result.parts["draw"]]
    steps = [sum(pair) for pair in zip(result.parts["step"], curves, strict=True)]
    return StepResult(parts={**result.parts, "curves": curves, "step": steps})


def _shares(results: Sequence[StepResult], names: Sequence[str]) -> list[float]:
    """What these parts take of every step after the warm-ups."""
    return [
        sum(result.parts[name][step] for name in names) / whole
        for result in results
        for step, whole in list(enumerate(result.parts["step"]))[1:]
    ]
