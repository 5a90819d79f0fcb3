"""One sbatch for the points of a sweep, through submitit."""

from __future__ import annotations

import importlib.util
import io
import os
import shlex
import shutil
import site
import subprocess
import sysconfig
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stderr
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra_plugins.grpo_launchers._points import Point, say
from hydra_plugins.grpo_launchers._record import Submission

if TYPE_CHECKING:
    from grpo.config import LaunchConfig

PROGRAMS = ("sbatch", "squeue", "scontrol", "srun")


def require_slurm() -> None:
    """Slurm's programs and submitit are here.

    Raises:
        ValueError: names what is missing.
    """
    missing = [name for name in PROGRAMS if shutil.which(name) is None]
    if missing:
        raise ValueError(
            f"launch=slurm needs Slurm's programs, and {', '.join(missing)} cannot be found here; run it on a login "
            "node of the cluster, or use launch=local"
        )
    if importlib.util.find_spec("submitit") is None:
        raise ValueError("launch=slurm needs submitit; pip install -e '.[slurm]', or use launch=local")


def submit(points: Sequence[Point], settings: LaunchConfig, folder: Path) -> Submission:
    """Submits the points as one array, or one job if there is one.

    Args:
        points: those to run.
        settings: `launch`.
        folder: of the sweep, on a file system that the nodes share.

    Raises:
        ValueError: Slurm refused it, in its own words.
    """
    import submitit
    from submitit.core.utils import FailedJobError, FailedSubmissionError

    from hydra_plugins.grpo_launchers._slurm_job import PointJob

    tasks = [
        PointJob(list(point.command), str(point.folder.resolve()), point.typed, os.getcwd(), settings.max_requeues)
        for point in points
    ]
    for point in points:
        for path in (point.folder / "slurm").glob("rank_*.json"):
            path.unlink()
    executor = submitit.SlurmExecutor(folder=(folder / "slurm").resolve())
    executor.update_parameters(**parameters(settings, folder, len(points)))
    try:
        with _outside_of_jobs(), redirect_stderr(io.StringIO()):  # where submitit prints what is told in a sentence
            jobs = executor.map_array(_run, tasks)
    except (FailedJobError, FailedSubmissionError) as error:
        raise ValueError(f"Slurm refused the sweep: {_words(error)}; {_remedy(str(error), settings)}") from None
    except subprocess.SubprocessError as error:
        raise ValueError(f"sbatch failed: {error}; see whether `sinfo` answers") from None
    numbers = [point.number for point in points]
    submission = Submission(dict(zip(numbers, (job.job_id for job in jobs), strict=True)), settings.num_ranks)
    say(f"submitted {len(points)} points as job {submission.array}; logs: {folder / '<point>' / 'log.txt'}")
    return submission


def _run(job: Any) -> str:
    """What submitit's pickle names; a function, so that nothing of this process goes into it."""
    return job()


def parameters(settings: LaunchConfig, folder: Path, num_points: int) -> dict[str, Any]:
    """The options of sbatch, as submitit takes them."""
    srun_args = ["--kill-on-bad-exit=1"]  # ranks that wait for one that failed would wait until the time limit
    if settings.cpus_per_task is not None:
        srun_args.append(f"--cpus-per-task={settings.cpus_per_task}")  # which srun no longer takes over from sbatch
    named = ("partition", "account", "qos", "gpus_per_node", "cpus_per_task", "mem", "constraint", "exclude")
    given = {name: getattr(settings, name) for name in named if getattr(settings, name) is not None}
    return {
        **given,
        "job_name": f"grpo-{folder.name}",
        "time": settings.time,
        "nodes": settings.nodes,
        "ntasks_per_node": settings.ntasks_per_node,
        "array_parallelism": settings.array_parallelism or num_points,
        "setup": [*python_path(), *settings.setup],
        "srun_args": srun_args,
        "wckey": None,
        # USR1 to the tasks and not to the batch script, which would die of it.
        "additional_parameters": {
            "signal": f"USR1@{settings.signal_lead_s}",
            "requeue": True,
            **settings.additional_parameters,
        },
    }


def python_path() -> list[str]:
    """The line of shell that lets a job import this project where it is not installed: in a bare checkout."""
    import grpo

    here = Path(__file__).resolve().parents[2]
    roots = list(dict.fromkeys([Path(grpo.__file__).resolve().parents[1], here]))
    installed = {Path(path).resolve() for path in (*site.getsitepackages(), sysconfig.get_path("purelib"))}
    wanted = [str(root) for root in roots if root not in installed]
    if not wanted:
        return []
    return [f"export PYTHONPATH={shlex.quote(':'.join(wanted))}${{PYTHONPATH:+:$PYTHONPATH}}"]


def _words(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return "; ".join(line.removeprefix("sbatch: error: ").removeprefix("sbatch: ") for line in lines)


def _remedy(words: str, settings: LaunchConfig) -> str:
    if "account" in words.lower():
        return f"launch.account={settings.account}: `sacctmgr show associations user=$USER` lists yours"
    partitions = command_output("sinfo", "-h", "-o", "%R")
    if partitions is None:
        return "`sinfo` does not answer here either; run it where it does, or use launch=local"
    if "partition" in words.lower():
        names = ", ".join(dict.fromkeys(partitions.split()))
        return f"launch.partition={settings.partition}: the partitions are {names}"
    return "change the launch.* setting that it names; sweep and finished points stay as they are"


def command_output(*command: str) -> str | None:
    """What a command prints; None if it fails."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout


@contextmanager
def _outside_of_jobs() -> Iterator[None]:
    """Without the variables of a job that the sweep is started from: they would be taken for options of the new one."""
    inside = "SLURM_JOB_ID" in os.environ
    own = [name for name in os.environ if inside and name.startswith(("SLURM_", "SUBMITIT_")) and name != "SLURM_CONF"]
    kept = {name: os.environ.pop(name) for name in own}
    try:
        yield
    finally:
        os.environ.update(kept)
