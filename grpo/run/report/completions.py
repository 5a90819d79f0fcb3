"""Which completions a page shows, and in what form: a sample that is even over the steps and keeps to a size.

completions.jsonl may hold gigabytes. It is read once from front to back, one line in memory at a time; what is kept is
where each group stands. Of a file that has grown only the new part is read.
"""

from __future__ import annotations

import json
import math
import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from grpo.run.report.reading import as_object

MAX_CHARACTERS = 20_000  # of one completion; of longer ones the beginning and the end are shown
_NAMES = ("reward", "format_reward", "answer_reward", "advantage", "log_prob", "num_tokens")


@dataclass(frozen=True, slots=True)
class _Place:
    """Where a group stands, and what says whether it is worth showing before others of its step."""

    line: int
    offset: int
    size: int
    step: int
    rank: int  # 0: with tokens, 1: with a signal, 2: neither


@dataclass(frozen=True, slots=True)
class Sample:
    """What a page shows.

    Attributes:
        groups: as `browser.js` reads them, by step.
        num_shown, num_groups: groups in the sample and in the file.
        num_steps_shown, num_steps: steps with a group in the sample, and in the file.
        num_cut: completions whose middle is left out.
        has_tokens: whether any has its tokens with log-probs.
        has_ratios: whether any has ratios that are not all 1.
        num_broken: lines that hold no group.
    """

    groups: list[dict[str, Any]]
    num_shown: int
    num_groups: int
    num_steps_shown: int
    num_steps: int
    num_cut: int
    has_tokens: bool
    has_ratios: bool
    num_broken: int


@dataclass
class CompletionIndex:
    """Where the groups of a completions.jsonl stand.

    Attributes:
        path: of the file.
    """

    path: Path
    _places: list[_Place] = field(default_factory=list)
    _num_broken: int = 0
    _num_lines: int = 0
    _end: int = 0
    _inode: int = 0

    def update(self, progress: Callable[[int], None] | None = None) -> None:
        """Reads what has been added since the last time.

        Args:
            progress: told after each line how many bytes it has.
        """
        if not self.path.is_file():
            self._forget(0)
            return
        with open(self.path, "rb") as file:
            status = os.fstat(file.fileno())
            if status.st_ino != self._inode or status.st_size < self._end:  # a run that went on from a checkpoint
                self._forget(status.st_ino)
            file.seek(self._end)
            for line in file:
                if not line.endswith(b"\n"):  # torn, or being written
                    break
                self._add(line)
                if progress is not None:
                    progress(len(line))

    def _forget(self, inode: int) -> None:
        self._places, self._num_broken, self._num_lines, self._end, self._inode = [], 0, 0, 0, inode

    def _add(self, line: bytes) -> None:
        self._num_lines += 1
        row = as_object(line)
        if row is not None and isinstance(row.get("step"), int) and _completions(row):
            self._places.append(_Place(self._num_lines, self._end, len(line), row["step"], _rank(row)))
        elif line.strip():
            self._num_broken += 1
        self._end += len(line)

    def sample(self, max_bytes: int) -> Sample:
        """Groups that take this many bytes in a page, at most.

        Every step gives its first group before one gives its second; where not even one of each fits, the steps that
        give one are evenly spread. Within a step groups with tokens come first, then those with a signal.
        """
        groups: list[dict[str, Any]] = []
        used = 0
        if self._places:
            with open(self.path, "rb") as file:
                for place in _in_order(self._places):
                    file.seek(place.offset)
                    group = _page_group(json.loads(file.read(place.size)), place.line)
                    size = len(embedded(group)) + 1
                    if used + size > max_bytes:
                        break
                    groups.append(group)
                    used += size
        groups.sort(key=lambda group: (group["step"], group["line"]))
        entries = [entry for group in groups for entry in group["completions"]]
        return Sample(
            groups=groups,
            num_shown=len(groups),
            num_groups=len(self._places),
            num_steps_shown=len({group["step"] for group in groups}),
            num_steps=len({place.step for place in self._places}),
            num_cut=sum("left_out" in entry for entry in entries),
            has_tokens=any("tokens" in entry for entry in entries),
            has_ratios=any("ratios" in entry for entry in entries),
            num_broken=self._num_broken,
        )


def embedded(value: Any) -> str:
    """JSON that can stand in a <script> of a page: it cannot end the script, whatever a model wrote."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    # Half a surrogate pair has no UTF-8; "<" could begin "</script>" or "<!--".
    return text.encode("utf-8", "backslashreplace").decode().replace("<", "\\u003c")


def _in_order(places: list[_Place]) -> Iterator[_Place]:
    """The order in which groups are taken until the page is full."""
    by_step: dict[int, list[_Place]] = {}
    for place in sorted(places, key=lambda place: (place.rank, place.line)):
        by_step.setdefault(place.step, []).append(place)
    ordered = sorted(by_step)
    steps = [ordered[index] for index in _spread(len(ordered))]
    for turn in range(max(Counter(place.step for place in places).values())):
        yield from (by_step[step][turn] for step in steps if turn < len(by_step[step]))


def _spread(number: int) -> list[int]:
    """0 to number - 1, such that every beginning of the list is spread evenly: the ends, then halves, quarters, ...

    >>> _spread(9)
    [0, 8, 4, 2, 6, 1, 3, 5, 7]
    """
    last, found, parts = number - 1, [0], 1
    while len(found) < number:
        found += [round(last * place / parts) for place in range(1, parts + 1, 1 if parts == 1 else 2)]
        found = list(dict.fromkeys(found))
        parts *= 2
    return found[:number]


def _completions(row: Mapping[str, Any]) -> list[dict[str, Any]]:
    entries = row.get("completions")
    return [entry for entry in entries if isinstance(entry, dict)] if isinstance(entries, list) else []


def _rank(row: Mapping[str, Any]) -> int:
    entries = _completions(row)
    if any(isinstance(entry.get("tokens"), list) for entry in entries):
        return 0
    return 1 if len({repr(entry.get("reward")) for entry in entries}) > 1 else 2


def _page_group(row: Mapping[str, Any], line: int) -> dict[str, Any]:
    """A line of completions.jsonl as the page holds it."""
    return {
        "line": line,
        "step": row["step"],
        **{name: str(row.get(name, "")) for name in ("problem", "question", "gold")},
        "completions": [_page_entry(entry) for entry in _completions(row)],
    }


def _page_entry(entry: Mapping[str, Any]) -> dict[str, Any]:
    page: dict[str, Any] = {name: round(entry[name], 4) for name in _NAMES if _is_number(entry.get(name))}
    page |= {
        "outcome": _outcome(entry),
        "reason": str(entry.get("reason", "")),
        "read": str(entry.get("extracted", "")),
    }
    if entry.get("finish_reason") == "length":
        page["truncated"] = 1
    return page | (_tokens(entry) or _text(entry))


def _outcome(entry: Mapping[str, Any]) -> str:
    """What became of a completion, in the words of the page."""
    names = {"format_failure": "format failure", "grader_error": "grader error"}
    outcome = names.get(str(entry.get("outcome")))
    return outcome or ("right" if entry.get("answer_reward", entry.get("reward")) else "wrong")


def _tokens(entry: Mapping[str, Any]) -> dict[str, Any] | None:
    """Tokens with hundredths of nats, and thousandths of the ratio where one is not 1; None without them."""
    tokens, log_probs, ratios = (entry.get(name) for name in ("tokens", "token_log_probs", "token_ratios"))
    if not isinstance(tokens, list) or not all(isinstance(token, str) for token in tokens):
        return None
    if not isinstance(log_probs, list) or not _is_numbers(log_probs, len(tokens)):
        return None
    if sum(map(len, tokens)) > MAX_CHARACTERS:
        return None
    page: dict[str, Any] = {"tokens": tokens, "log_probs": [round(100 * value) for value in log_probs]}
    if (
        isinstance(ratios, list)
        and _is_numbers(ratios, len(tokens))
        and any(round(1000 * value) != 1000 for value in ratios)
    ):
        page["ratios"] = [round(1000 * value) for value in ratios]
    return page


def _text(entry: Mapping[str, Any]) -> dict[str, Any]:
    text = str(entry.get("text", ""))
    if len(text) <= MAX_CHARACTERS:
        return {"text": text}
    half = MAX_CHARACTERS // 2
    return {"text": f"{text[:half]}\n[...]\n{text[-half:]}", "left_out": len(text) - 2 * half}


def _is_numbers(values: list[Any], number: int) -> bool:
    return len(values) == number and all(map(_is_number, values))


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
