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
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from grpo.config import LrSchedule, RunConfig, to_dict
from grpo.run import provenance
from grpo.run.checkpoints import checkpoints_in, step_of
from grpo.run.files import sweep_leftovers, write_atomic
from grpo.run.metrics import JsonlLog

# What may differ between a run and its continuation: nothing that the weights or metrics depend on.
_FREE = ("resume", "output_dir", "logging", "checkpoint", "hardware", "model.warm_start.cache_dir")


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
    folder.mkdir(parents=True, exist_ok=True)
    sweep_leftovers(folder)
    sweep_leftovers(folder / "checkpoints")
    _check_resume(cfg, folder)
    config_file = folder / "config.yaml"
    if config_file.exists():
        _check_same_run(cfg, folder)
    write_atomic(config_file, OmegaConf.to_yaml(OmegaConf.create(to_dict(cfg))))
    write_atomic(folder / "provenance.json", json.dumps(provenance.collect(), indent=2))
    checkpoint = _checkpoint_to_resume(cfg, folder)
    _rewind(folder, -1 if checkpoint is None else step_of(checkpoint), warn)
    return checkpoint


def _check_resume(cfg: RunConfig, folder: Path) -> None:
    holds_run = (folder / "config.yaml").exists()
    if cfg.resume == "never" and holds_run:
        raise ValueError(f"resume=never but {folder} holds a run; use another output_dir, or resume=auto to go on")
    if cfg.resume not in ("auto", "never") and not checkpoints_in(folder):
        raise ValueError(
            f"resume={cfg.resume} holds no checkpoint; name a run's folder or a checkpoint in it, or use resume=auto"
        )


def _checkpoint_to_resume(cfg: RunConfig, folder: Path) -> Path | None:
    named = Path(cfg.resume)
    if named.parent.name == "checkpoints":
        if not named.is_dir():
            raise ValueError(f"resume={named} does not exist; {folder} has {_names(checkpoints_in(folder))}")
        return named
    found = checkpoints_in(folder)
    return found[-1] if found else None


def _names(checkpoints: list[Path]) -> str:
    return ", ".join(path.name for path in checkpoints)


def _rewind(folder: Path, step: int, warn: Callable[[str], None]) -> None:
    """Drops what a run did after `step`: it will be done again."""
    for name in ("metrics.jsonl", "completions.jsonl"):
        JsonlLog(folder / name).keep_until(step)
    for file in (folder / "evaluations").glob("step_*.jsonl"):
        if int(file.stem.removeprefix("step_")) > step:
            file.unlink()
    for checkpoint in checkpoints_in(folder):
        if step_of(checkpoint) > step:
            warn(f"{checkpoint.name} comes after the checkpoint that is resumed; it is dropped and made again")
            shutil.rmtree(checkpoint)


def _check_same_run(cfg: RunConfig, folder: Path) -> None:
    saved = OmegaConf.to_container(OmegaConf.load(folder / "config.yaml"))
    free = _FREE if cfg.train.lr_schedule is not LrSchedule.constant else (*_FREE, "train.n_grpo_steps")
    before, now = (dict(_flat(values, free)) for values in (saved, to_dict(cfg)))
    different = [
        f"{key}={before.get(key, '(absent)')} there, {now.get(key, '(absent)')} here"
        for key in sorted(before.keys() | now.keys())
        if before.get(key) != now.get(key)
    ]
    if different:
        raise ValueError(
            f"{folder} holds another run ({'; '.join(different)}); use its settings to go on, or another output_dir"
        )


def _flat(values: Any, free: tuple[str, ...], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        name = f"{prefix}{key}"
        if name in free:
            continue
        if isinstance(value, Mapping):
            yield from _flat(value, free, f"{name}.")
        else:
            yield name, value
