"""What a run was made with: enough to make it again."""

from __future__ import annotations

import os
import platform
import shlex
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from grpo import __version__

_PACKAGES = ("torch", "transformers", "hydra-core", "omegaconf", "vllm", "math-verify", "sympy")
_ROOT = Path(__file__).resolve().parents[2]


def collect() -> dict[str, Any]:
    """Versions, machine, commit and command line, as JSON can hold them; imports no heavy package.

    Returns:
        `versions` by name (None: not installed), `platform`, `host`, `num_cpus`, `devices` (GPU names, else the
        processor's), `visible_devices` (of CUDA; None: all), `num_ranks` (processes that train together), `git` (see
        `git_state`), `command`, `folder`.
    """
    return {
        "versions": {"grpo": __version__, "python": platform.python_version()} | {p: _version(p) for p in _PACKAGES},
        "platform": platform.platform(),
        "host": platform.node(),
        "num_cpus": os.cpu_count(),
        "devices": _devices(),
        "visible_devices": os.environ.get("CUDA_VISIBLE_DEVICES"),
        "num_ranks": int(os.environ.get("WORLD_SIZE", 1)),
        "git": git_state(_ROOT),
        # What a person would type: the point of a sweep is started with a config that its launcher has frozen.
        "command": os.environ.get("GRPO_TYPED_COMMAND") or shlex.join(sys.orig_argv),
        "folder": os.getcwd(),
    }


def git_state(root: Path) -> dict[str, Any] | None:
    """The commit of the checkout at `root`.

    Args:
        root: the checkout's top folder; a folder inside some other checkout, such as an installed package in a
            project's virtual environment, is not one.

    Returns:
        `commit` (None: nothing is committed yet) and `dirty`: whether files differ from it or are unknown to it;
        None if there is no checkout or no git.
    """
    top = _output("git", "-C", str(root), "rev-parse", "--show-toplevel")
    if top is None or Path(top).resolve() != root.resolve():
        return None
    changes = _output("git", "-C", str(root), "status", "--porcelain")
    return {
        "commit": _output("git", "-C", str(root), "rev-parse", "--verify", "--quiet", "HEAD"),
        "dirty": None if changes is None else changes != "",
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _devices() -> list[str]:
    """Asks the driver, not torch, which would open every GPU."""
    gpus = _output("nvidia-smi", "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader")
    return gpus.splitlines() if gpus else [_processor()]


def _processor() -> str:
    if sys.platform == "darwin":
        return _output("sysctl", "-n", "machdep.cpu.brand_string") or platform.machine()
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def _output(*command: str) -> str | None:
    """What a command prints; None if it does not exist, fails, or takes longer than 10 seconds."""
    environment = os.environ | {"GIT_OPTIONAL_LOCKS": "0", "LC_ALL": "C"}
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, errors="replace", timeout=10, check=True, env=environment
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
