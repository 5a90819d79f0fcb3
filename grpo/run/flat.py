"""Nested settings by their full names, and which of them a run's numbers depend on."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

# What may differ between a run and its continuation, and between two starts of a sweep: settings and whole groups.
_FREE = (
    *("resume", "output_dir", "logging", "checkpoint", "hardware", "launch", "sweep"),
    *("model.warm_start.cache_dir", "evaluation.base_cache_dir"),
)
# Of these groups, what may not: it says which weights the rollouts are from.
_BOUND = ("hardware.overlap",)


def flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """`{"train": {"seed": 1}}` as `{"train.seed": 1}`.

    Args:
        values: settings, in groups or not.
        prefix: of the names.
    """
    found: dict[str, Any] = {}
    for key, value in values.items():
        name = f"{prefix}{key}"
        found |= flat(value, f"{name}.") if isinstance(value, Mapping) else {name: value}
    return found


def bound(values: Mapping[str, Any], also_free: Collection[str] = ()) -> dict[str, Any]:
    """The settings that numbers depend on, by their full names.

    Args:
        values: a whole config.
        also_free: full names of further settings and groups that are left out.
    """
    free = (*_FREE, *also_free)
    return {
        name: value
        for name, value in flat(values).items()
        if name in _BOUND or not any(name == one or name.startswith(f"{one}.") for one in free)
    }


def differences(before: Mapping[str, Any], now: Mapping[str, Any], also_free: Collection[str] = ()) -> list[str]:
    """What keeps one config from going on where another was, by the settings' names; empty if nothing does.

    Args:
        before: the config of what is there.
        now: the config of this start.
        also_free: see `bound`.
    """
    there, here = bound(before, also_free), bound(now, also_free)
    return [
        f"{key}={there.get(key, '(absent)')} there, {here.get(key, '(absent)')} here"
        for key in sorted(there.keys() | here.keys())
        if there.get(key) != here.get(key)
    ]
