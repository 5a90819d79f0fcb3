"""Rollouts that a checkpoint keeps: the next step's, where they are drawn ahead. A line a group, nothing rounded."""

from __future__ import annotations

import json
from dataclasses import asdict
from enum import Enum
from pathlib import Path
from typing import Any

from grpo.types import Completion, Drawn, FinishReason, Grade, Outcome, Problem, RolloutGroup


def save_rollouts(path: Path, drawn: Drawn) -> None:
    """Writes their groups."""
    with path.open("w", encoding="utf-8") as file:
        for discarded, groups in ((False, drawn.groups), (True, drawn.discarded)):
            for group in groups:
                file.write(json.dumps({**asdict(group), "discarded": discarded}, default=_value) + "\n")


def load_rollouts(path: Path, step: int) -> Drawn:
    """Reads what `save_rollouts` wrote of a step, bit by bit."""
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    kept, discarded = ([_group(row) for row in rows if row["discarded"] is which] for which in (False, True))
    return Drawn(step, kept, discarded)


def _value(item: object) -> Any:
    assert isinstance(item, Enum)
    return item.value


def _group(row: dict[str, Any]) -> RolloutGroup:
    return RolloutGroup(
        problem=Problem(**row["problem"]),
        prompt_ids=tuple(row["prompt_ids"]),
        completions=tuple(map(_completion, row["completions"])),
        grades=tuple(Grade(**{**grade, "outcome": Outcome(grade["outcome"])}) for grade in row["grades"]),
    )


def _completion(row: dict[str, Any]) -> Completion:
    values = {
        **row,
        "token_ids": tuple(row["token_ids"]),
        "sampler_log_probs": tuple(row["sampler_log_probs"]),
        "finish_reason": FinishReason(row["finish_reason"]),
    }
    return Completion(**values)
