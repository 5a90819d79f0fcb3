"""A run's folder: a new one, or one to go on in.

outputs/<date>/<time>/
    config.yaml         the resolved config
    provenance.json     versions, git commit, machine, command
    metrics.jsonl       one line a step
    completions.jsonl   one line a group: prompt, completions, grades, advantages
    evaluations/        step_000000.jsonl, ...: one line a held-out problem
    curves.png          kept up to date
    checkpoints/        step_000050/, ...
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from grpo.config import LrSchedule, RunConfig, to_dict
from grpo.run import provenance
from grpo.run.checkpoints import checkpoints_in, step_of
from grpo.run.files import remove_folder, sweep_leftovers, write_atomic
from grpo.run.flat import differences
from grpo.run.metrics import JsonlLog


def open_run_folder(cfg: RunConfig, folder: Path, warn: Callable[[str], None]) -> Path | None:
    """Makes the folder, or checks that it holds the same run and rewinds it to a checkpoint.

    Args:
        cfg: of this start.
        folder: the run's; `cfg.resume` may name it, or a checkpoint in it.
        warn: told what is dropped.

    Returns:
        The checkpoint to go on from, or None for a start from the beginning.

    Raises:
        ValueError: another run's folder, or nothing to resume.
    """
    _check_resume(cfg, folder)
    folder.mkdir(parents=True, exist_ok=True)
    for place in (folder, folder / "checkpoints", folder / "evaluations"):
        sweep_leftovers(place)
    if _holds_run(folder):
        _check_same_run(cfg, folder)
    write_atomic(folder / "config.yaml", OmegaConf.to_yaml(OmegaConf.create(to_dict(cfg))))
    write_atomic(folder / "provenance.json", json.dumps(provenance.collect(), indent=2))
    checkpoint = _checkpoint_to_resume(cfg, folder)
    _rewind(folder, -1 if checkpoint is None else step_of(checkpoint), warn)
    return checkpoint


def _holds_run(folder: Path) -> bool:
    """Whether a run got anywhere in the folder; a config that nothing came of yet binds nobody."""
    return (folder / "metrics.jsonl").exists() or bool(checkpoints_in(folder))


def _check_resume(cfg: RunConfig, folder: Path) -> None:
    if cfg.resume == "never" and _holds_run(folder):
        raise ValueError(f"resume=never but {folder} holds a run; use another output_dir, or resume=auto to go on")
    if cfg.resume in ("auto", "never"):
        return
    named = Path(cfg.resume)
    is_checkpoint = named.parent.name == "checkpoints"
    own = named.parent.parent if is_checkpoint else named
    if own.resolve() != folder.resolve():
        raise ValueError(f"resume={named} and output_dir={folder} are two folders; leave one of them out")
    if not (folder / "config.yaml").exists():
        raise ValueError(f"resume={named} holds no run; name a run's folder or a checkpoint in it, or use resume=auto")
    found = checkpoints_in(folder)
    if is_checkpoint and named.name not in {path.name for path in found}:
        names = ", ".join(path.name for path in found) or "none"
        raise ValueError(f"resume={named} is not a checkpoint; use one of those in {folder / 'checkpoints'}: {names}")


def _checkpoint_to_resume(cfg: RunConfig, folder: Path) -> Path | None:
    found = checkpoints_in(folder)
    named = [path for path in found if Path(cfg.resume).name == path.name]
    return (named or found or [None])[-1]


def _rewind(folder: Path, step: int, warn: Callable[[str], None]) -> None:
    """Drops what a run did after `step`: it will be done again.

    Checkpoints go first, and the last first, so that this can be killed and what is left still is a run.
    """
    for checkpoint in reversed(checkpoints_in(folder)):
        if step_of(checkpoint) > step:
            warn(f"{checkpoint.name} comes after the checkpoint that is resumed; it is dropped and made again")
            remove_folder(checkpoint)
    for name in ("metrics.jsonl", "completions.jsonl"):
        JsonlLog(folder / name).keep_until(step)
    for file in (folder / "evaluations").glob("step_*.jsonl"):
        if int(file.stem.removeprefix("step_")) > step:
            file.unlink()


def _check_same_run(cfg: RunConfig, folder: Path) -> None:
    saved: Any = OmegaConf.to_container(OmegaConf.load(folder / "config.yaml"))
    more_steps = ("train.n_grpo_steps",) if cfg.train.lr_schedule is LrSchedule.constant else ()
    different = differences(saved, to_dict(cfg), more_steps)
    if different:
        raise ValueError(
            f"{folder} holds another run ({'; '.join(different)}); use its settings to go on, or another output_dir"
        )
