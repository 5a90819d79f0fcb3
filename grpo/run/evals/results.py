"""The folder of one model's evaluation: results are kept as they come, and shown under their name when all are there.

outputs/evaluations/<model>-<hash of the settings>/
    settings.json      everything that the results depend on
    provenance.json    versions, git commit, machine, command
    partial.jsonl      one line a completion, in the order in which they ended; gone once results.jsonl is there
    results.jsonl      one line a problem, in the order of the problems
    metrics.json       the numbers of analysis.txt
    analysis.txt       see grpo/run/evals/analysis_text.py
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from grpo.run import provenance
from grpo.run.files import append_lines, sweep_leftovers, write_atomic
from grpo.run.flat import flat
from grpo.run.metrics import read_jsonl
from grpo.types import Problem

Row = dict[str, Any]


class Place(NamedTuple):
    """Names one completion of an evaluation."""

    dataset: str
    problem: int  # the problem's place in its dataset
    sample: int


@dataclass(frozen=True, slots=True)
class Item:
    """One problem of an evaluation.

    Attributes:
        dataset: name of the problems that it is one of.
        place: in these.
        problem: question and gold.
        prompt: what the model is shown.
    """

    dataset: str
    place: int
    problem: Problem
    prompt: str


class ResultFolder:
    """Where the results of one evaluation are, whole or in part. For the one holder of the folder."""

    def __init__(self, path: Path, settings: Mapping[str, Any]) -> None:
        """Makes the folder, or takes up what is there.

        Raises:
            ValueError: it holds the results of other settings, or a line that nobody here wrote.
        """
        self.path, self.results = path, path / "results.jsonl"
        self._partial, self._settings = path / "partial.jsonl", path / "settings.json"
        self._content = json.dumps(settings, indent=2)
        path.mkdir(parents=True, exist_ok=True)
        sweep_leftovers(path)
        kept = read_jsonl(self._partial) if self._partial.exists() else []
        if kept or self.results.exists():
            self._check(settings)
        if self.results.exists() or not kept:
            self._partial.unlink(missing_ok=True)
        elif not self._partial.read_bytes().endswith(b"\n"):  # half-written by a process that was killed
            write_atomic(self._partial, "".join(json.dumps(row) + "\n" for row in kept))

    @property
    def is_finished(self) -> bool:
        """Whether all results are there."""
        return self.results.exists()

    def partial(self) -> dict[Place, Row]:
        """The completions of an evaluation that is not finished."""
        rows = read_jsonl(self._partial) if self._partial.exists() else []
        try:
            return {Place(row.pop("dataset"), row.pop("place"), row["sample"]): row for row in rows}
        except KeyError as error:
            raise ValueError(f"{self._partial} has a line without {error}; remove the file to begin again") from None

    def append(self, rows: Sequence[tuple[Place, Row]]) -> None:
        """Keeps completions, in one write.

        Raises:
            OSError: no room; what was there before stays.
        """
        if not self._partial.exists():  # with the first result, so that a start that fails leaves nothing
            write_atomic(self._settings, self._content)
            write_atomic(self.path / "provenance.json", json.dumps(provenance.collect(), indent=2))
        lines = [{"dataset": place.dataset, "place": place.problem, **row} for place, row in rows]
        append_lines(self._partial, [json.dumps(line) for line in lines])

    def finish(self, items: Sequence[Item], num_samples: int) -> None:
        """Puts the completions of all problems, which must be there, under their final name."""
        done = self.partial()
        rows = [
            _problem_row(item, [done[Place(item.dataset, item.place, sample)] for sample in range(num_samples)])
            for item in items
        ]
        write_atomic(self.results, "".join(json.dumps(row) + "\n" for row in rows))
        self._partial.unlink()

    def rows(self) -> list[Row]:
        """A row a problem, of a finished evaluation."""
        return read_jsonl(self.results)

    def _check(self, settings: Mapping[str, Any]) -> None:
        saved = json.loads(self._settings.read_text()) if self._settings.exists() else {}
        before, now = flat(saved), flat(json.loads(json.dumps(settings)))
        different = [
            f"{key}={_short(before.get(key, '(absent)'))} there, {_short(now.get(key, '(absent)'))} here"
            for key in sorted(before.keys() | now.keys())
            if before.get(key) != now.get(key)
        ]
        if different:
            raise ValueError(
                f"{self.path} holds another evaluation ({'; '.join(different)}); use its settings to go on, or another "
                "output_dir"
            )


def _problem_row(item: Item, completions: Sequence[Row]) -> Row:
    problem = item.problem
    return {
        "dataset": item.dataset,
        "problem": problem.id,
        "level": problem.level,
        "subject": problem.subject,
        "question": problem.question,
        "prompt": item.prompt,
        "gold": problem.answer,
        "completions": list(completions),
    }


def _short(value: object) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
