"""sweep.json: the points of a sweep and what was submitted, so that the next start knows whether it is the same one."""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hydra.errors import ConfigCompositionException
from omegaconf import OmegaConf

from hydra_plugins.grpo_launchers._points import FROZEN, Point

NAME = "sweep.json"
_MAX_DIFFERENCES = 5


@dataclass
class Submission:
    """What one call of sbatch was given.

    Attributes:
        jobs: by the point's number, the job's id as Slurm writes it: 12, or 12_3 in an array.
        num_ranks: processes of each point.
    """

    jobs: dict[int, str]
    num_ranks: int = 1

    @property
    def array(self) -> str:
        """The job id that all have in common."""
        return next(iter(self.jobs.values())).split("_")[0]


@dataclass
class Record:
    """A sweep's folder as earlier starts left it.

    Attributes:
        folder: of the sweep.
        points: by number, the point's folder and overrides.
        submissions: to Slurm, oldest first.
    """

    folder: Path
    points: dict[int, dict[str, Any]] = field(default_factory=dict)
    submissions: list[Submission] = field(default_factory=list)

    @property
    def in_queue(self) -> dict[int, str]:
        """The jobs that nobody has collected yet, by the point's number."""
        jobs = [pair for item in self.submissions for pair in item.jobs.items()]
        return {number: job for number, job in jobs if self._marker(job).exists()}

    def pending(self, numbers: Collection[int]) -> Submission | None:
        """The oldest submission that has uncollected jobs of these points, with those jobs only."""
        queued = self.in_queue
        for item in self.submissions:
            jobs = {n: job for n, job in item.jobs.items() if n in numbers and queued.get(n) == job}
            if jobs:
                return Submission(jobs, item.num_ranks)
        return None

    def add_submission(self, submission: Submission) -> None:
        """Notes what was submitted.

        Raises:
            OSError: no room.
        """
        self.submissions.append(submission)
        for job in submission.jobs.values():
            self._marker(job).touch()
        self.save()

    def mark_collected(self, submission: Submission) -> None:
        """Notes that its outcome has been told: by deleting files, which a full disk cannot prevent."""
        for job in submission.jobs.values():
            self._marker(job).unlink(missing_ok=True)

    def _marker(self, job: str) -> Path:
        return self.folder / "slurm" / f"{job}.pending"

    def save(self) -> None:
        """Writes the record.

        Raises:
            OSError: no room.
        """
        from grpo.run.files import write_atomic

        values = {
            "points": {str(number): point for number, point in sorted(self.points.items())},
            "submissions": [
                {"jobs": {str(number): job for number, job in item.jobs.items()}, "num_ranks": item.num_ranks}
                for item in self.submissions
            ],
        }
        write_atomic(self.folder / NAME, json.dumps(values, indent=1))

    def add(self, points: Sequence[Point]) -> None:
        """Notes the points of this start."""
        for point in points:
            self.points[point.number] = {"folder": str(point.folder), "overrides": list(point.overrides)}


def open_record(folder: Path, resume: str) -> Record:
    """Reads the record, or begins one.

    Args:
        folder: of the sweep.
        resume: the setting: never wants a new folder, a path wants one that holds a sweep.

    Raises:
        ConfigCompositionException: the folder is not what `resume` says, or holds a run.
    """
    path = folder / NAME
    if not path.is_file():
        if resume not in ("auto", "never"):
            raise ConfigCompositionException(
                f"resume={resume} holds no sweep; name a sweep's folder, or use output_dir={resume} for a new one"
            )
        if (folder / "metrics.jsonl").exists() or (folder / "checkpoints").exists():
            raise ConfigCompositionException(f"{folder} holds a run, and no sweep; use another output_dir")
        return Record(folder)
    if resume == "never":
        raise ConfigCompositionException(
            f"resume=never but {folder} holds a sweep; use another output_dir, or resume=auto to go on"
        )
    values = json.loads(path.read_text(encoding="utf-8"))
    points = {int(number): point for number, point in values["points"].items()}
    submissions = [
        Submission({int(number): job for number, job in item["jobs"].items()}, item["num_ranks"])
        for item in values["submissions"]
    ]
    return Record(folder, points, submissions)


def require_same_sweep(record: Record, points: Sequence[Point]) -> None:
    """What earlier starts ran under these numbers were these points; points may be added.

    Raises:
        ConfigCompositionException: it is another sweep's folder; says what differs.
    """
    from grpo.run.flat import differences

    different: dict[str, list[str]] = {}
    queued = record.in_queue
    for point in points:
        path = point.folder / f"{FROZEN}.yaml"
        if point.number not in record.points or not path.is_file():
            continue
        saved: Any = OmegaConf.load(path)
        del saved["hydra"]  # has interpolations that only a run can resolve
        before: Any = OmegaConf.to_container(saved, resolve=True)
        constant = point.config.get("train", {}).get("lr_schedule") == "constant"
        # More steps are a continuation; but a job in the queue has the number that it was submitted with.
        more_steps = constant and point.number not in queued
        for text in differences(before, point.config, ("defaults", *(["train.n_grpo_steps"] if more_steps else []))):
            different.setdefault(text, []).append(str(point.number))
    if different:
        more = len(different) - _MAX_DIFFERENCES
        told = [f"{text} (point {', '.join(numbers)})" for text, numbers in different.items()]
        shown = "; ".join(told[:_MAX_DIFFERENCES]) + (f"; and {more} more" if more > 0 else "")
        raise ConfigCompositionException(
            f"nothing was started: {record.folder} holds another sweep ({shown}); use its settings to go on, or "
            "another output_dir"
        )
