"""What the launchers of a sweep have in common: compose all points, refuse what cannot be, run the rest, sum up."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.utils import JobReturn, JobStatus
from hydra.errors import ConfigCompositionException
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf, open_dict

from hydra_plugins.grpo_launchers._plan import (
    freeze,
    plan,
    require_own_folders,
    require_valid,
    task_config,
    this_program,
    typed_again,
    write_frozen,
)
from hydra_plugins.grpo_launchers._points import Point, differing, recall, say
from hydra_plugins.grpo_launchers._record import Record, open_record, require_same_sweep


class SweepLauncher(Launcher):
    """Runs the points of a sweep in processes that are not this one; how is up to `run_points`."""

    def __init__(self, command: Sequence[str] | None = None) -> None:
        self.command = list(command) if command else this_program()

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Keeps what Hydra hands over; the task itself runs in other processes."""
        self.hydra_context = hydra_context
        self.config = config

    def check(self, config: Any) -> None:
        """Raises ValueError if a point's config, a RunConfig, cannot run where this launcher would run it."""

    def run_points(self, points: list[Point], record: Record, total: int) -> int:
        """Runs those that are not done and returns the exit status; `point.status` says how each went."""
        raise NotImplementedError

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Leaves the program if a signal came, or if a point failed and this is the last batch of points."""
        from grpo.run.files import hold_folder, sweep_leftovers

        folder = Path(str(self.config.hydra.sweep.dir))
        planned = plan(self.hydra_context, self.config, job_overrides, initial_job_idx, self.command)
        points = [point for point, _ in planned]
        try:
            require_valid(planned, self.check)
            require_own_folders(points)
        except ConfigCompositionException:
            self._remove_empty(folder)
            raise
        freeze(planned)
        with hold_folder(folder):
            sweep_leftovers(folder)
            # Hydra's own record of a sweep: written in place, and less than sweep.json and the points' folders say.
            (folder / "multirun.yaml").unlink(missing_ok=True)
            record = open_record(folder, str(self.config.get("resume", "auto")) if not initial_job_idx else "auto")
            require_same_sweep(record, points)
            record.add(points)
            total = max(self._num_points(), max(record.points) + 1)
            in_hand = record.in_queue
            for point, composed in planned:
                recall(point)
                if point.number not in in_hand:
                    write_frozen(point, composed)
            record.save()
            self._describe(points, total)
            result = self.run_points(points, record, total)
            self._sum_up(points, record)
        self._leave(result, points, initial_job_idx)
        return [self._job_return(point, composed) for point, composed in planned]

    def _remove_empty(self, folder: Path) -> None:
        """Removes the folder that was made for a sweep that does not start, and Hydra's record in it."""
        from grpo.run.files import remove_empty

        if self.config.get("output_dir") is None and self.config.get("resume", "auto") in ("auto", "never"):
            (folder / "multirun.yaml").unlink(missing_ok=True)
            remove_empty(folder)

    @property
    def searches(self) -> bool:
        """Whether the sweeper makes its next points of the results of the last ones, as Optuna does."""
        return "n_trials" in self.config.hydra.sweeper

    def _num_points(self) -> int:
        """How many points the sweeper will come up with, in all batches; 0 if it does not say."""
        sweeper = self.config.hydra.sweeper
        if self.searches:
            return int(sweeper.n_trials)
        texts = [*(f"{key}={value}" for key, value in (sweeper.get("params") or {}).items())]
        texts += self.config.hydra.overrides.task
        swept = {}
        for override in OverridesParser.create(self.hydra_context.config_loader).parse_overrides(texts):
            own = override.is_sweep_override() and override.is_discrete_sweep()
            swept[override.get_key_element()] = len(list(override.sweep_string_iterator())) if own else 1
        number = 1
        for values in swept.values():
            number *= values
        return number

    def _describe(self, points: Sequence[Point], total: int) -> None:
        """What is about to run: the number of points and what they have in common."""
        apart = {*differing(points), *(text for text in points[0].overrides if text.startswith("output_dir="))}
        common = [text for text in points[0].overrides if len(points) > 1 and text not in apart]
        shared = f", all with {' '.join(common)}" if common else ""
        say(f"sweep: {total} point{'s' * (total != 1)} into {self.config.hydra.sweep.dir}, one process each{shared}")
        if finished := [str(point.number) for point in points if point.done]:
            say(f"finished before, and skipped: point {', '.join(finished)}")

    def _sum_up(self, points: Sequence[Point], record: Record) -> None:
        """The table on the terminal, sweep.csv, and how to go on where something is left."""
        from hydra_plugins.grpo_launchers._summary import summarise

        settings = self.config.get("sweep")
        metrics = list(settings.summary) if settings is not None else []
        console = OmegaConf.select(self.config, "logging.console")
        summarise(points, record, metrics, "auto" if console is None else console.name)
        if self.searches:
            self._say_best(record)
        if not all(point.done for point in points):
            say(f"to go on: {typed_again(self.hydra_context, self.config, self.command)}")

    def _say_best(self, record: Record) -> None:
        """The best point so far of a sweeper that searches."""
        from grpo.run.sweep_summary import last_value

        metric = self.config.sweep.objective
        found = [(last_value(Path(point["folder"]), metric), number) for number, point in record.points.items()]
        values = [(value, number) for value, number in found if value is not None]
        if values:
            upwards = str(self.config.hydra.sweeper.direction).endswith("maximize")
            value, number = (max if upwards else min)(values)
            say(f"best so far: {metric}={value:.6g} of point {number} ({' '.join(record.points[number]['overrides'])})")

    def _leave(self, result: int, points: Sequence[Point], first: int) -> None:
        """Not by an exception: those would be shown with a traceback that says nothing about the point."""
        is_last = first + len(points) >= self._num_points()
        if result > 1 or (is_last and (result == 1 or self._failed_before(first))):
            sys.exit(result or 1)

    def _failed_before(self, first: int) -> bool:
        """Whether a point of an earlier batch failed; those in the queue may yet do well."""
        import json

        folder = Path(str(self.config.hydra.sweep.dir))
        record = open_record(folder, "auto")
        queued = record.in_queue
        for number in range(first):
            if number in queued or number not in record.points:
                continue
            path = Path(record.points[number]["folder"]) / "result.json"
            if not (path.is_file() and json.loads(path.read_text())["status"] == "ok"):
                return True
        return False

    def _job_return(self, point: Point, composed: DictConfig) -> JobReturn:
        with open_dict(composed):
            done = JobReturn(
                overrides=point.overrides,
                cfg=task_config(composed),
                hydra_cfg=OmegaConf.masked_copy(composed, "hydra"),
                working_dir=str(point.folder),
                status=JobStatus.COMPLETED,
            )
        done.return_value = self._objective(point)
        if point.failed and self.searches:
            from grpo.types import RunError

            done.status = JobStatus.FAILED
            done.return_value = RunError(f"point {point.number} failed: {point.status}, log: {point.log_path}")
        return done

    def _objective(self, point: Point) -> float | None:
        """What a sweeper that searches maximises or minimises: the last value of a metric.

        Raises:
            ValueError: there is none, and a search would go on blindly.
        """
        settings = self.config.get("sweep")
        if settings is None or not point.done:
            return None
        from grpo.run.sweep_summary import last_value

        value = last_value(point.folder, settings.objective)
        if value is None and self.searches:
            raise ValueError(
                f"point {point.number} has no value of sweep.objective={settings.objective}; name a metric of "
                f"{point.folder / 'metrics.jsonl'} and start again, finished points are kept"
            )
        return value
