"""Nested settings by their full names."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any


def flat(values: Mapping[str, Any], free: Collection[str] = (), prefix: str = "") -> dict[str, Any]:
    """`{"train": {"seed": 1}}` as `{"train.seed": 1}`.

    Args:
        values: settings, in groups or not.
        free: full names of settings and groups that are left out.
        prefix: of the names.
    """
    found: dict[str, Any] = {}
    for key, value in values.items():
        name = f"{prefix}{key}"
        if name not in free:
            found |= flat(value, free, f"{name}.") if isinstance(value, Mapping) else {name: value}
    return found
