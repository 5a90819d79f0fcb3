"""`hydra/launcher=subprocess`, the default: the points of a sweep, one after another, each in a process of its own.

Hydra's own launcher runs them all in one process, where a CUDA context, threads and random number generators pass from
point to point and one failing point ends the sweep. Here every point starts as the same program typed by hand would;
what it prints goes to log.txt in its folder, failures are gathered and shown at the end, and the parent's exit status
is 0 only if every point's was.

Hydra imports this module whenever it starts, so it imports little.
"""

import copy
import re
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra.core.config_store import ConfigStore
from hydra.core.utils import JobReturn, JobStatus
from hydra.errors import ConfigCompositionException
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from hydra_plugins.grpo_launchers._points import Point, describe, run_points, table, varying


@dataclass
class SubprocessLauncherConf:
    """Settings of hydra.launcher.

    Attributes:
        command: what a point is started with, before its overrides; null is the program that is running.
    """

    _target_: str = "hydra_plugins.grpo_launchers.subprocess_launcher.SubprocessLauncher"
    command: list[str] | None = None


ConfigStore.instance().store(group="hydra/launcher", name="subprocess", node=SubprocessLauncherConf, provider="grpo")


class SubprocessLauncher(Launcher):
    """Runs each point of a sweep in a process of its own."""

    def __init__(self, command: Sequence[str] | None = None) -> None:
        self.command = list(command) if command else this_program()

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Keeps what Hydra hands over; the task itself runs in other processes."""
        self.hydra_context = hydra_context
        self.config = config

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Composes every point, runs them all, and leaves the program if one failed or a signal came."""
        sweep_dir = Path(str(self.config.hydra.sweep.dir))
        planned = [
            self._plan(number, list(overrides), sweep_dir)
            for number, overrides in enumerate(job_overrides, start=initial_job_idx)
        ]
        points = [point for point, _ in planned]
        _require_valid(planned)
        _require_own_folders(points)
        describe(points)
        result = run_points(points)
        print(table(points), flush=True)
        if result != 0:
            # Not an exception: those would be shown with a traceback that says nothing about the point.
            sys.exit(result)
        return [_job_return(point, config) for point, config in planned]

    def _plan(self, number: int, overrides: list[str], sweep_dir: Path) -> tuple[Point, DictConfig]:
        """What to run for a point, and the config that it will compose."""
        config = self.hydra_context.config_loader.load_sweep_config(self.config, overrides)
        with open_dict(config):
            config.hydra.job.id = str(number)
            config.hydra.job.num = number
        own = config.get("output_dir")
        folder = sweep_dir / str(config.hydra.sweep.subdir) if own == self.config.get("output_dir") else Path(own)
        hydra_overrides = [text for text in self.config.hydra.overrides.hydra if not text.startswith("hydra.mode=")]
        task_overrides = [text for text in overrides if not text.startswith("output_dir=")]
        place = [f"{key}={quoted(str(folder))}" for key in ("output_dir", "hydra.run.dir")]
        command = [*self.command, *self._config_source(), *task_overrides, *hydra_overrides, "hydra.mode=RUN", *place]
        return Point(number=number, overrides=tuple(overrides), folder=folder, command=tuple(command)), config

    def _config_source(self) -> list[str]:
        """The flags that name another config than the program's own."""
        from grpo.config import config_path

        flags: list[str] = []
        for source in self.hydra_context.config_loader.get_search_path().get_path():
            if source.provider == "main" and source.path != config_path():
                flags += ["--config-path", str(source.path)]
            elif source.provider == "command-line":
                flags += ["--config-dir", str(source.path).removeprefix("file://")]
        name = self.config.hydra.job.config_name
        return flags if name == "config" else [*flags, "--config-name", str(name)]


def this_program() -> list[str]:
    """The command that started this process, without its arguments."""
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    if spec is None:
        return [sys.executable, sys.argv[0]]
    return [sys.executable, "-m", spec.name.removesuffix(".__main__")]


def quoted(text: str) -> str:
    r"""A string as Hydra's override grammar reads it back.

    >>> print(quoted("outputs/0"), quoted("it's, say, a=b"))
    outputs/0 'it\'s, say, a=b'
    """
    if re.fullmatch(r"[\w./-]+", text, flags=re.ASCII):
        return text
    escaped = text.replace("\\'", "\\\\'").replace("'", "\\'")
    return f"'{escaped}'"


def _require_valid(planned: Sequence[tuple[Point, DictConfig]]) -> None:
    """Every point keeps the rules of grpo/config.py and fits this machine, before the first one starts."""
    from grpo.config import to_run_config
    from grpo.rollout.build import check_hardware

    broken: dict[str, list[str]] = {}
    points = [point for point, _ in planned]
    for point, config in planned:
        task_config = copy.deepcopy(config)
        with open_dict(task_config):
            del task_config["hydra"]
        try:
            check_hardware(to_run_config(task_config).hardware)
        except (ValueError, OmegaConfBaseException) as error:
            broken.setdefault(str(error), []).append(f"point {point.number} ({varying(point, points)})")
    if broken:
        number = sum(map(len, broken.values()))
        heading = f"nothing was started: {number} of the sweep's {len(planned)} points cannot run"
        reasons = [f"{', '.join(names)}: {reason}" for reason, names in broken.items()]
        raise ConfigCompositionException("\n  ".join([heading, *reasons]))


def _require_own_folders(points: Sequence[Point]) -> None:
    """No two points write to one folder."""
    folder, times = Counter(point.folder.resolve() for point in points).most_common(1)[0]
    if times > 1:
        raise ConfigCompositionException(
            f"nothing was started: {times} points would write to {folder}; leave output_dir to the sweep, and let "
            "hydra.sweep.subdir hold ${hydra.job.num}"
        )


def _job_return(point: Point, config: DictConfig) -> JobReturn:
    task_config: Any = copy.deepcopy(config)
    with open_dict(task_config):
        del task_config["hydra"]
    done = JobReturn(
        overrides=point.overrides,
        cfg=task_config,
        hydra_cfg=OmegaConf.masked_copy(config, "hydra"),
        working_dir=str(point.folder),
        status=JobStatus.COMPLETED,
    )
    done.return_value = None
    return done
