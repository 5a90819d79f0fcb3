"""`launch=slurm`: the points of a sweep as one job array, each resumed wherever it was cut off.

A thin launcher of the project's own, on submitit. Configs are composed and frozen when the sweep is submitted. A point
is the same program as elsewhere, started once per task by `_slurm_job`; how it went is read from files that the tasks
write beside their logs, and from squeue.

Hydra imports this module whenever it starts, so it imports little; and in a way that dataclasses do not bear together
with `from __future__ import annotations`.
"""

import subprocess
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

from hydra.core.config_store import ConfigStore
from omegaconf import OmegaConf

from hydra_plugins.grpo_launchers._launcher import SweepLauncher
from hydra_plugins.grpo_launchers._points import STOPPED, Point, say
from hydra_plugins.grpo_launchers._record import Record, Submission

if TYPE_CHECKING:
    from grpo.config import LaunchConfig, RunConfig


@dataclass
class SlurmLauncherConf:
    """Settings of hydra.launcher; those of the jobs are `launch`: see `LaunchConfig` in grpo/config.py.

    Attributes:
        command: what a point is started with, before the flags that name its config; null is the program that is
            running.
    """

    _target_: str = "hydra_plugins.grpo_launchers.slurm_launcher.SlurmLauncher"
    command: list[str] | None = None


ConfigStore.instance().store(group="hydra/launcher", name="slurm", node=SlurmLauncherConf, provider="grpo")


class SlurmLauncher(SweepLauncher):
    """Submits the points that are not done as one array, waits for it, and says how each went."""

    @property
    def settings(self) -> "LaunchConfig":
        """`launch`, which is the sweep's and not a point's."""
        return cast("LaunchConfig", OmegaConf.to_object(self.config.launch))

    def check(self, config: "RunConfig") -> None:
        """The processes that Slurm starts are those that the point wants, and its settings are the sweep's."""
        own, whole = vars(config.launch), vars(self.settings)
        if different := [key for key in own if own[key] != whole[key]]:
            key = different[0]
            raise ValueError(
                f"launch.{key}={own[key]} is for this point only, but all points of one array have the same; start a "
                f"sweep for each launch.{key}"
            )
        hardware, number = config.hardware, self.settings.num_ranks
        if number > 1 and not hardware.sharded:
            raise ValueError(
                f"hardware={hardware.name} is one process, but launch.nodes={self.settings.nodes} times "
                f"launch.ntasks_per_node={self.settings.ntasks_per_node} starts {number} of it; use "
                "hardware=multi_node, or 1 and 1"
            )

    def run_points(self, points: list[Point], record: Record, total: int) -> int:
        """Collects what an earlier start submitted, then submits what is left and collects that."""
        from hydra_plugins.grpo_launchers._local import StopRequest
        from hydra_plugins.grpo_launchers._slurm_collect import collect
        from hydra_plugins.grpo_launchers._slurm_submit import require_slurm, submit

        settings = self.settings
        if settings.detach and self.searches:
            raise ValueError(
                "launch.detach=true returns before there are results, and this sweeper makes its next points of them; "
                "leave launch.detach out"
            )
        require_slurm()
        told: set[int] = set()
        with StopRequest("was noted; the jobs stay in the queue, and this program ends").listening() as stop:
            while stop.signum is None:
                submission = record.pending([point.number for point in points])
                if submission is None:
                    todo = [point for point in points if not point.done and point.number not in told]
                    if not todo:
                        break
                    submission = submit(todo, settings, record.folder)
                    _note_or_cancel(record, submission)
                told |= submission.jobs.keys()
                if not collect(submission, points, record.folder, stop, wait=not settings.detach):
                    array = submission.array
                    say(f"job {array} stays in the queue: the command below collects it, `scancel {array}` ends it")
                    break
                record.mark_collected(submission)
        if stop.signum is not None:
            return 128 + stop.signum
        return int(any(point.failed or point.status == STOPPED for point in points))


def _note_or_cancel(record: Record, submission: Submission) -> None:
    """Jobs that no record names would run beside those of the next start."""
    try:
        record.add_submission(submission)
    except OSError:
        record.mark_collected(submission)
        subprocess.run(["scancel", submission.array], check=False, timeout=60)
        raise
