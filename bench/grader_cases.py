"""What `bench.grader` grades: labelled pairs, hostile ones among them, and the golds of data files."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

CANARY = "@@CANARY@@"  # stands in a case for a file that nothing may ever make

# The rows of the first table, and the tiers that each sums up; a tier of another name is a row of its own.
GROUPS: dict[str, tuple[str, ...]] = {
    "core": ("core",),
    "rewritings, near misses": ("rewrite", "style", "identity", "negative"),
    "algebra answer tests": ("algebra", "stack"),
    "conventions": ("convention",),
    "needs the question": ("context",),
    "hostile": ("hostile", "either", "collision", "response"),
}


@dataclass(frozen=True, slots=True)
class Case:
    """A labelled pair.

    Attributes:
        gold: the right answer.
        text: an answer, or a whole response.
        is_response: which of the two.
        equivalent: the label; None where either verdict will do, as long as there is one.
        format_ok: whether a response is well-formed; None if that is not labelled.
        group: see `GROUPS`.
    """

    gold: str
    text: str
    is_response: bool
    equivalent: bool | None
    format_ok: bool | None
    group: str


def load_cases(folder: Path, canary: Path) -> list[Case]:
    """The cases of every JSON Lines file in a folder.

    Raises:
        ValueError: there are none; one sentence.
    """
    files = sorted(folder.glob("*.jsonl"))
    cases = [_case(row, canary) for path in files for row in _rows(path) if "equivalent" in row]
    if not cases:
        raise ValueError(
            f"--cases {folder} holds no labelled pairs; name a folder of JSON Lines files with lines like "
            '{"gold": "1/2", "prediction": "0.5", "equivalent": true, "tier": "core"}'
        )
    return cases


def load_golds(path: Path) -> list[str]:
    """The field `answer` of every line; of a worked solution as GSM8K has it, what stands after `####`."""
    try:
        return [str(row["answer"]).rpartition("####")[2].strip() for row in _rows(path)]
    except KeyError:
        raise ValueError(
            f"--data {path}: a line lacks the field 'answer'; name a file like MATH's or GSM8K's"
        ) from None


def real_pairs(cases: Sequence[Case], golds: Sequence[Sequence[str]], num_golds: int) -> list[tuple[str, str]]:
    """(gold, answer) as a run meets them: every case that is not hostile, and golds against other golds of their file.

    Of each file `num_golds` are spread evenly over it; each has the next one that differs as its answer.
    """
    pairs = [(case.gold, case.text) for case in cases if case.group in tuple(GROUPS)[:3]]
    for own in golds:
        step = max(1, len(own) // num_golds)
        chosen = own[::step][:num_golds]
        others = (
            next((other for other in chosen[place + 1 :] if other != one), "") for place, one in enumerate(chosen)
        )
        pairs += [(one, other) for one, other in zip(chosen, others, strict=True) if other]
    return pairs


def _case(row: dict[str, Any], canary: Path) -> Case:
    is_response = "response" in row
    tier = str(row.get("tier", "core"))
    return Case(
        gold=_text(row["gold"], canary),
        text=_text(row["response" if is_response else "prediction"], canary),
        is_response=is_response,
        equivalent=None if tier == "either" else bool(row["equivalent"]),
        format_ok=row.get("format_ok"),
        group=next((name for name, tiers in GROUPS.items() if tier in tiers), tier),
    )


def _text(value: str | list[Any], canary: Path) -> str:
    """A text, or one that is spelt as pieces and [piece, times]."""
    pieces = [value] if isinstance(value, str) else value
    joined = "".join(piece if isinstance(piece, str) else piece[0] * piece[1] for piece in pieces)
    return joined.replace(CANARY, str(canary))


def _rows(path: Path) -> Iterator[dict[str, Any]]:
    with open(path, encoding="utf-8") as file:
        yield from (json.loads(line) for line in file if line.strip())
