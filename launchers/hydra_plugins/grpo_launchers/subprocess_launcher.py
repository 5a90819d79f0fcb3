"""`hydra/launcher=subprocess`, the default: the points of a sweep on this machine, each in a process of its own.

Hydra's own launcher runs them all in one process, where a CUDA context, threads and random number generators pass from
point to point and one failing point ends the sweep. Here every point starts as the same program typed by hand would;
what it prints goes to log.txt in its folder, failures are gathered and shown at the end, and the parent's exit status
is 0 only if every point's was.

Hydra imports this module whenever it starts, so it imports little.
"""

from dataclasses import dataclass
from typing import Any

from hydra.core.config_store import ConfigStore

from hydra_plugins.grpo_launchers._launcher import SweepLauncher
from hydra_plugins.grpo_launchers._plan import quoted, this_program
from hydra_plugins.grpo_launchers._points import Point
from hydra_plugins.grpo_launchers._record import Record

__all__ = ["SubprocessLauncher", "quoted", "this_program"]


@dataclass
class SubprocessLauncherConf:
    """Settings of hydra.launcher.

    Attributes:
        command: what a point is started with, before the flags that name its config; null is the program that is
            running.
    """

    _target_: str = "hydra_plugins.grpo_launchers.subprocess_launcher.SubprocessLauncher"
    command: list[str] | None = None


ConfigStore.instance().store(group="hydra/launcher", name="subprocess", node=SubprocessLauncherConf, provider="grpo")


class SubprocessLauncher(SweepLauncher):
    """Runs each point of a sweep in a process of its own, `sweep.parallel` at a time."""

    def check(self, config: Any) -> None:
        """The machine has what the point needs."""
        hardware = config.hardware
        if (hardware.policy_device, hardware.engine_device, hardware.engine.name) == ("cpu", "cpu", "torch"):
            return  # which every machine has, and torch takes seconds to import
        from grpo.rollout.build import check_hardware

        check_hardware(hardware)

    def run_points(self, points: list[Point], record: Record, total: int) -> int:
        """Runs the points that are not done."""
        from hydra_plugins.grpo_launchers._local import run_points
        from hydra_plugins.grpo_launchers._seats import seats, wait_for_others

        if jobs := record.in_queue.values():
            raise ValueError(
                f"{record.folder} has points that were submitted to Slurm (job {', '.join(jobs)}); collect them first, "
                "with launch=slurm"
            )
        settings = self.config.get("sweep")
        places = seats(settings.parallel if settings is not None else 1, points)
        wait_for_others(points)
        return run_points(points, places, total=total)
