"""What a run was told: where its settings differ from the defaults, and the commands that resume or repeat it."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from grpo.config import compose_config, config_path
from grpo.run.flat import flat
from grpo.run.report.reading import RunRecord

GROUPS = ("model", "hardware", "loss", "data", "reward")
_NOWHERE = "(no such setting)"
# What says where a run writes or how it is started, not what it is.
_PLACE = ("resume", "output_dir")
_STARTERS = ("resume", "output_dir", "launch", "sweep")


@dataclass(frozen=True, slots=True)
class Difference:
    """A setting that is not at its default.

    Attributes:
        key: its full name.
        value: of the run.
        default: of the option that the run chose for the key's group.
    """

    key: str
    value: str
    default: str


@dataclass(frozen=True, slots=True)
class Commands:
    """What to type.

    Attributes:
        resume: continues the run; None where it is finished, or is running.
        repeat: makes it again, in a new folder.
        where: the folder to type them in; "" if not known.
        note: where the commands are from, and what they lack.
    """

    resume: str | None
    repeat: str | None
    where: str
    note: str


def chosen_options(config: Mapping[str, Any]) -> dict[str, str]:
    """The option of every group, by its name in the config."""
    named = {group: config[group].get("name") for group in GROUPS if isinstance(config.get(group), Mapping)}
    return {group: name for group, name in named.items() if isinstance(name, str)}


def differences(config: Mapping[str, Any]) -> list[Difference]:
    """Settings that are not as the chosen options have them."""
    if not config:
        return []
    own, default = flat(config), flat(default_config(chosen_options(config)))
    return [
        Difference(key, shown(value), shown(default.get(key, _NOWHERE)))
        for key, value in own.items()
        if key not in _PLACE and value != default.get(key, _NOWHERE)
    ]


def lacking(config: Mapping[str, Any]) -> list[str]:
    """Settings that this version has and the config does not, as those of an older version do."""
    own = flat(config)
    return [key for key in flat(default_config(chosen_options(config))) if key not in own] if config else []


def default_config(options: Mapping[str, str]) -> dict[str, Any]:
    """What `python -m grpo.train` composes with these options; one that does not exist is left at its default."""
    from omegaconf import OmegaConf

    chosen = [f"{group}={name}" for group, name in options.items() if _exists(group, name)]
    composed = OmegaConf.to_container(compose_config(chosen), enum_to_str=True)
    assert isinstance(composed, dict)
    return {str(key): value for key, value in composed.items()}


def _exists(group: str, name: str) -> bool:
    from importlib.resources import files

    path = config_path()
    root = files(path.removeprefix("pkg://")) if path.startswith("pkg://") else Path(path)
    return root.joinpath(group, f"{name}.yaml").is_file()


def shown(value: Any) -> str:
    """A value as YAML and overrides write it."""
    return value if isinstance(value, str) else json.dumps(value, default=str)  # YAML has dates


def commands(record: RunRecord) -> Commands:
    """How to go on with a run, or to make it again."""
    overrides = started_with(record.provenance.get("command"))
    note = "From provenance.json."
    if overrides is None:
        if not record.config:
            return Commands(None, None, "", "Neither provenance.json nor config.yaml says how the run was started.")
        overrides = _from_config(record.config)
        note = "Made from config.yaml, since the command that started the run is not known."
    program = _program(record)
    repeat = shlex.join([*program, *overrides])
    where = record.provenance.get("folder")
    where = where if isinstance(where, str) else ""
    if record.is_finished or record.is_running:
        return Commands(None, repeat, where, note)
    folder = record.folder.resolve()
    if where and folder.is_relative_to(Path(where).resolve()):
        folder = folder.relative_to(Path(where).resolve())
    return Commands(shlex.join([*program, *overrides, f"resume={_quoted(str(folder))}"]), repeat, where, note)


def started_with(command: Any) -> list[str] | None:
    """The overrides of a `python -m grpo.train` command line that say what the run is; None if it is none."""
    if not isinstance(command, str):
        return None
    try:
        words = shlex.split(command)
    except ValueError:
        return None
    places = [place for place, word in enumerate(words) if word == "grpo.train" and words[place - 1] == "-m"]
    places += [place for place, word in enumerate(words) if word.endswith("grpo/train.py")]
    if not places:
        return None
    kept = [word for word in words[places[0] + 1 :] if word not in ("--multirun", "-m")]
    return [word for word in kept if word.split("=")[0] not in _STARTERS and not word.startswith(("hydra.", "hydra/"))]


def _from_config(config: Mapping[str, Any]) -> list[str]:
    options = [f"{group}={name}" for group, name in chosen_options(config).items() if _exists(group, name)]
    own, default = flat(config), flat(default_config(chosen_options(config)))
    changed = [
        f"{key}={_override_value(value)}"
        for key, value in own.items()
        if key in default and value != default[key] and key not in _PLACE
    ]
    return [*options, *changed]


def _override_value(value: Any) -> str:
    if isinstance(value, str):
        return _quoted(value)
    if isinstance(value, list):
        return f"[{','.join(map(_override_value, value))}]"
    return json.dumps(value, default=str)


def _quoted(text: str) -> str:
    from hydra_plugins.grpo_launchers.subprocess_launcher import quoted

    return quoted(text)


def _program(record: RunRecord) -> list[str]:
    """What starts it: a command line of torchrun's is not the one that its processes have."""
    if not record.setting("hardware.sharded"):
        return ["python", "-m", "grpo.train"]
    num_ranks = record.provenance.get("num_ranks", "gpu")  # which is torchrun's word for one a GPU
    return ["torchrun", "--nproc-per-node", str(num_ranks), "-m", "grpo.train"]
