"""What `model.path` and `compare` name: a model folder, a checkpoint, a run, or a model on the Hub."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from omegaconf import OmegaConf

from grpo.config import check_hub_id
from grpo.run.checkpoints import checkpoints_in

_BLOCK, _NUM_BLOCKS = 2**16, 16
_WHOLE = 2**20  # bytes: smaller files are read whole


@dataclass(frozen=True)
class NamedModel:
    """A model as the command line names it.

    Attributes:
        given: the name itself.
        path: where the weights are: a folder, or a Hub id; None for a model that is to be built.
        run_config: of the run that it belongs to, as its config.yaml says; None for a model of no run.
        note: what the name was taken to mean, or "".
        is_path: whether the name is that of a place.
    """

    given: str
    path: str | None
    run_config: dict[str, Any] | None = None
    note: str = ""
    is_path: bool = True

    @property
    def label(self) -> str:
        """The end of the path, as long as it says something."""
        if self.path is None or not self.is_path:
            return self.given
        parts = [part for part in Path(self.path).parts if part not in ("checkpoints", "outputs", "sweeps", "/", "..")]
        return "/".join(parts[-3:] if parts[-1].startswith("step_") else parts[-2:])


def find_model(given: str, setting: str) -> NamedModel:
    """Looks at what is there under a name.

    Args:
        given: of the command line.
        setting: that it was the value of, for errors.

    Raises:
        ValueError: a run without a checkpoint, or a path of nothing; one sentence.
    """
    folder = Path(os.path.expanduser(given))
    if not folder.exists():
        check_hub_id(setting, given, "name a model folder, a checkpoint, a run's folder or a Hub id")
        return NamedModel(given, given)
    if (folder / "config.json").is_file():
        run = folder.parent.parent if folder.parent.name == "checkpoints" else None
        return NamedModel(given, str(folder), _run_config(run))
    found = checkpoints_in(folder)
    if found:
        return NamedModel(given, str(found[-1]), _run_config(folder), f"{given}: its last checkpoint, {found[-1].name}")
    if (folder / "config.yaml").is_file():
        raise ValueError(
            f"{setting}={given} is a run without a checkpoint; let it go on with `python -m grpo.train "
            f"resume={given}` and its own settings, or name another"
        )
    runs = sorted(path.parent.name for path in folder.glob("*/checkpoints"))
    hint = (
        f", but the runs {', '.join(runs[:8])} are in it; name one: {setting}={given}/{runs[0]}"
        if runs
        else ("; name a folder in Hugging Face layout, a checkpoint or a run's folder")
    )
    raise ValueError(f"{setting}={given} has neither config.json nor checkpoints{hint}")


def _run_config(run: Path | None) -> dict[str, Any] | None:
    if run is None or not (run / "config.yaml").is_file():
        return None
    return cast("dict[str, Any]", OmegaConf.to_container(OmegaConf.load(run / "config.yaml")))


def fingerprint(path: str, revision: str | None) -> str:
    """What tells these weights from others.

    Of a folder: a hash of names, sizes and small files, and of 1 MiB out of each large one, in 16 places. Training
    moves weights everywhere, so that this much of them tells; all of a 7B model would take a minute. Of a Hub id: the
    id and the revision.
    """
    folder = Path(path)
    if not folder.is_dir():
        return f"hub:{path}@{revision or 'default'}"
    files = [file for suffix in ("safetensors", "json") for file in folder.glob(f"*.{suffix}")]
    digest = hashlib.sha256()
    for file in sorted(file for file in files if file.name not in ("optimizer.safetensors", "state.json")):
        digest.update(f"{file.name} {file.stat().st_size}\n".encode())
        for block in _blocks(file):
            digest.update(block)
    return digest.hexdigest()[:16]


def _blocks(file: Path) -> Iterator[bytes]:
    size = file.stat().st_size
    with open(file, "rb") as stream:
        if size <= max(_WHOLE, _BLOCK * _NUM_BLOCKS):
            yield stream.read()
            return
        for number in range(_NUM_BLOCKS):
            stream.seek((size - _BLOCK) * number // (_NUM_BLOCKS - 1))
            yield stream.read(_BLOCK)


def slug(label: str) -> str:
    """The label as a folder's name."""
    return re.sub(r"[^\w.-]+", "_", label, flags=re.ASCII).strip("._") or "model"


def unique_labels(models: Iterable[NamedModel]) -> list[str]:
    """Short names that tell the models apart: labels, or what the command line has where these are the same."""
    models = list(models)
    labels = [model.label for model in models]
    return [model.given if labels.count(label) > 1 else label for model, label in zip(models, labels, strict=True)]
