"""What sets the points of a sweep apart, from their configs or from what started them."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from grpo.run.flat import flat
from grpo.run.report.reading import RunRecord
from grpo.run.report.settings import GROUPS, shown, started_with

LOG_NAME = "log.txt"
_LAST_BYTES = 65536
# Where a point writes, and what it shares; launch, sweep and hydra say how it is started.
_NOT_SWEPT = ("output_dir", "resume", "model.warm_start.cache_dir", "evaluation.base_cache_dir")
_STARTING = ("launch.", "sweep.", "hydra.")


def swept_values(
    records: Sequence[RunRecord], planned: Mapping[str, Any]
) -> tuple[tuple[str, ...], list[dict[str, str]]]:
    """The settings that differ between points, and each point's values of them.

    A group's option stands for those of the group's settings that follow from it. Of a point without a config its
    overrides say what it sets.

    Args:
        records: of the points.
        planned: the points in sweep.json; empty where there is none.
    """
    told = [_overrides(record, planned) for record in records]
    configs = [flat(record.config or _frozen_config(record)) for record in records]
    known = [config for config in configs if config]
    keys = list(dict.fromkeys(key for config in known for key in config))
    keys = [key for key in keys if key not in _NOT_SWEPT and not key.startswith(_STARTING)]
    differing = [key for key in keys if len({shown(config.get(key)) for config in known}) > 1]
    groups = [group for group in GROUPS if f"{group}.name" in differing]
    implied = {key for group in groups for key in differing if _follows(key, group, known)}
    swept = groups + [key for key in differing if key not in implied]
    overridden = dict.fromkeys(key for overrides in told for key in overrides)
    first = known[0] if known else {}
    swept += [
        key for key in overridden if key not in (*swept, *first) and f"{key}.name" not in first and _differs(key, told)
    ]
    values = []
    for config, overrides in zip(configs, told, strict=True):
        own = {key: config.get(f"{key}.name" if key in groups else key, overrides.get(key, "?")) for key in swept}
        values.append({key: shown(value) for key, value in own.items()})
    return tuple(swept), values


def _differs(key: str, told: Sequence[Mapping[str, str]]) -> bool:
    return len({overrides.get(key) for overrides in told}) > 1


def _follows(key: str, group: str, configs: Sequence[Mapping[str, Any]]) -> bool:
    """Whether the group's option alone decides this setting of the group."""
    if not key.startswith(f"{group}."):
        return False
    pairs = {(shown(config.get(f"{group}.name")), shown(config.get(key))) for config in configs}
    return len(pairs) == len({name for name, _ in pairs})


def _frozen_config(record: RunRecord) -> Mapping[str, Any]:
    """The config that the launcher composed for a point; empty where it is not there."""
    path = record.folder / "point.yaml"
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8", errors="replace")) if path.is_file() else {}
    except yaml.YAMLError:
        return {}
    return values if isinstance(values, Mapping) else {}


def _overrides(record: RunRecord, planned: Mapping[str, Any]) -> dict[str, str]:
    """What a point sets: by sweep.json, its command, or the first line of its log."""
    point = planned.get(record.folder.name)
    overrides = point.get("overrides") if isinstance(point, Mapping) else None
    if not isinstance(overrides, list):
        overrides = started_with(record.provenance.get("command"))
    if overrides is None:
        first = next(iter(log_lines(record.folder / LOG_NAME, from_start=True)), "")
        overrides = started_with(first.removeprefix("$ ").partition("  # ")[0]) or []
    return dict(str(word).split("=", 1) for word in overrides if "=" in str(word))


def log_lines(path: Path, *, from_start: bool = False) -> list[str]:
    """The end of a log, or its beginning; nothing if it is not there."""
    if not path.is_file():
        return []
    with open(path, "rb") as file:
        if not from_start:
            file.seek(max(0, os.fstat(file.fileno()).st_size - _LAST_BYTES))
        return file.read(_LAST_BYTES).decode(errors="replace").splitlines()
