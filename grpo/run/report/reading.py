"""A run's folder as it is found: torn, incomplete or of an older version, and what is therefore missing."""

from __future__ import annotations

import fcntl
import json
import math
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from grpo import __version__
from grpo.run.report.panels import RUN_PANELS

Row = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class RunRecord:
    """What a run's folder says.

    Attributes:
        folder: of the run.
        config: config.yaml; empty if it cannot be read.
        provenance: provenance.json; empty if it cannot be read.
        metrics: rows of metrics.jsonl by step; values that are no finite number are left out.
        evaluations: the file of each evaluation, by step.
        last_checkpoint: its step; None if there is none.
        is_running: whether a process of this machine holds the folder.
        missing: what the folder lacks, one sentence each.
    """

    folder: Path
    config: Mapping[str, Any]
    provenance: Mapping[str, Any]
    metrics: tuple[Row, ...]
    evaluations: Mapping[int, Path]
    last_checkpoint: int | None
    is_running: bool
    missing: tuple[str, ...]

    @property
    def last_step(self) -> int:
        """Of the last row; 0 if nothing was trained."""
        return max((row["step"] for row in self.metrics), default=0)

    @property
    def total_steps(self) -> int | None:
        """The steps that the run was to make; None if the config does not say."""
        steps = self.setting("train.n_grpo_steps")
        return steps if isinstance(steps, int) else None

    @property
    def is_finished(self) -> bool:
        """Whether the last step is in metrics.jsonl."""
        return bool(self.metrics) and self.total_steps is not None and self.last_step >= self.total_steps

    @property
    def evaluated(self) -> list[Row]:
        """The rows with an evaluation."""
        return [row for row in self.metrics if "eval/accuracy" in row]

    def setting(self, key: str) -> Any:
        """A value of config.yaml by its full name; None if it is not there."""
        value: Any = self.config
        for part in key.split("."):
            value = value.get(part) if isinstance(value, Mapping) else None
        return value


def holds_run(folder: Path) -> bool:
    """Whether a run left anything here."""
    return any((folder / name).is_file() for name in ("metrics.jsonl", "config.yaml", "completions.jsonl"))


def read_run(folder: Path) -> RunRecord:
    """Reads a run's folder, whatever state it is in."""
    missing: list[str] = []
    config = _mapping(folder / "config.yaml", yaml.safe_load, "settings and what differs from the defaults", missing)
    provenance = _mapping(folder / "provenance.json", json.loads, "versions, machine and command", missing)
    metrics = _metrics(folder / "metrics.jsonl", missing)
    record = RunRecord(
        folder=folder,
        config=config,
        provenance=provenance,
        metrics=metrics,
        evaluations=_by_step((folder / "evaluations").glob("step_*.jsonl")),
        last_checkpoint=max(_by_step((folder / "checkpoints").glob("step_*")), default=None),
        is_running=is_held(folder),
        missing=(),
    )
    missing += [*_missing_version(record), *_missing_steps(record), *_missing_metrics(record)]
    missing += _missing_evaluations(record)
    return replace(record, missing=tuple(missing))


def _by_step(paths: Iterable[Path]) -> dict[int, Path]:
    """Files or folders by the step in their names; hidden ones, which are not whole, are not among them."""
    steps = {path.stem.removeprefix("step_"): path for path in paths}
    return {int(step): path for step, path in sorted(steps.items()) if step.isdecimal()}


def is_held(folder: Path) -> bool:
    """Whether a process of this machine holds the folder, as `grpo.run.files.hold_folder` does."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:  # a file system without locks: nobody can tell
        return False
    finally:
        os.close(descriptor)
    return False


def read_rows(path: Path, missing: list[str]) -> list[dict[str, Any]]:
    """The JSON objects of a file, one a line; of lines that are none `missing` is told."""
    lines = path.read_bytes().split(b"\n")
    torn = bool(lines[-1])
    rows: list[dict[str, Any]] = []
    broken: list[int] = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        row = as_object(line)
        if row is not None:
            rows.append(row)
        elif torn and number == len(lines):
            missing.append(
                f"The last line of {path.name} is torn, as by a kill in the middle of writing it; it is left out."
            )
        else:
            broken.append(number)
    if broken:
        first = ", ".join(map(str, broken[:5])) + (", ..." if len(broken) > 5 else "")
        missing.append(f"{_count(len(broken), 'line')} of {path.name} hold no JSON object (line {first}); left out.")
    return rows


def as_object(line: bytes) -> dict[str, Any] | None:
    """The JSON object that a line holds; None if it holds none."""
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return row if isinstance(row, dict) else None


def _mapping(path: Path, parse: Callable[[str], Any], what: str, missing: list[str]) -> dict[str, Any]:
    """The file's contents, or nothing and a sentence."""
    if not path.is_file():
        missing.append(f"{path.name} is not there: {what} are not known.")
        return {}
    try:
        values = parse(path.read_text(encoding="utf-8", errors="replace"))
    except (ValueError, RecursionError, yaml.YAMLError):
        values = None
    if not isinstance(values, dict):
        missing.append(f"{path.name} cannot be read: {what} are not known.")
        return {}
    return values


def _metrics(path: Path, missing: list[str]) -> tuple[Row, ...]:
    if not path.is_file():
        missing.append("metrics.jsonl is not there: no step has ended yet, or the file was lost. All curves are empty.")
        return ()
    by_step: dict[int, Row] = {}
    num_odd = 0
    for row in read_rows(path, missing):
        step = row.get("step")
        if isinstance(step, bool) or not isinstance(step, int) or step < 0:
            num_odd += 1
            continue
        by_step[step] = {key: value for key, value in row.items() if _is_finite(value)}
    if num_odd:
        missing.append(f"{_count(num_odd, 'line')} of metrics.jsonl without a step; left out.")
    return tuple(by_step[step] for step in sorted(by_step))


def _is_finite(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _missing_version(record: RunRecord) -> list[str]:
    versions = record.provenance.get("versions")
    made_by = versions.get("grpo") if isinstance(versions, Mapping) else None
    if made_by is None or made_by == __version__:
        return []
    return [f"The run was made by grpo {made_by} and this is {__version__}: names may differ."]


def _missing_steps(record: RunRecord) -> list[str]:
    steps = [row["step"] for row in record.metrics if row["step"] > 0]
    absent = sorted(set(range(1, record.last_step + 1)) - set(steps)) if steps else []
    if not absent:
        return []
    return [f"metrics.jsonl lacks {_count(len(absent), 'step')} (the first: {absent[0]})."]


def _missing_metrics(record: RunRecord) -> list[str]:
    """Metrics that the panels ask for and no row has."""
    if record.last_step == 0:
        return []
    there = {key for row in record.metrics for key in row}
    absent = [key for panel in RUN_PANELS for key in panel.needed if key not in there]
    if not absent:
        return []
    return [f"No step of metrics.jsonl has {', '.join(absent)}: an older version, or nothing was trained on yet."]


def _missing_evaluations(record: RunRecord) -> list[str]:
    absent = [row["step"] for row in record.evaluated if row["step"] not in record.evaluations]
    if not absent:
        return []
    steps = ", ".join(map(str, absent[:8])) + (", ..." if len(absent) > 8 else "")
    return [f"The answers of the evaluations after step {steps} are not there: no paired test with these."]


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"
