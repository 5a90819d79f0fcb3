"""Results are kept as they come, whole or absent, and never mixed with those of other settings."""

import json
from pathlib import Path
from typing import Any

import pytest

from grpo.run.evals.results import Item, Place, ResultFolder
from grpo.types import Problem

SETTINGS = {"weights": "abc", "sampling": {"temperature": 0.0}, "stop": ["</answer>"]}
ITEMS = [
    Item("math", 0, Problem("p0", "q0", "0", "1", "sums"), "ask q0"),
    Item("gsm", 0, Problem("p0", "q1", "1"), "ask q1"),
]


def row(sample: int, text: str = "x") -> dict[str, Any]:
    return {"sample": sample, "text": text}


ROWS = [(Place(name, 0, sample), row(sample, f"{name}{sample}")) for name in ("math", "gsm") for sample in (0, 1)]


def test_results_come_in_any_order_and_are_shown_in_that_of_the_problems(tmp_path: Path) -> None:
    folder = ResultFolder(tmp_path / "new", SETTINGS)
    assert not folder.is_finished
    for one in (ROWS[3], ROWS[0], ROWS[1], ROWS[2]):
        folder.append([one])
    assert not folder.results.exists()
    folder.finish(ITEMS, 2)
    assert folder.is_finished
    assert folder.rows() == [
        {
            "dataset": item.dataset,
            "problem": "p0",
            "level": item.problem.level,
            "subject": item.problem.subject,
            "question": item.problem.question,
            "prompt": item.prompt,
            "gold": item.problem.answer,
            "completions": [row(0, f"{item.dataset}0"), row(1, f"{item.dataset}1")],
        }
        for item in ITEMS
    ]
    assert {path.name for path in folder.path.iterdir()} == {"settings.json", "provenance.json", "results.jsonl"}


def test_an_evaluation_goes_on_behind_a_torn_line(tmp_path: Path) -> None:
    folder = ResultFolder(tmp_path, SETTINGS)
    folder.append(ROWS[:2])
    with open(tmp_path / "partial.jsonl", "a") as file:
        file.write('{"dataset": "gsm", "pla')
    again = ResultFolder(tmp_path, SETTINGS)
    assert again.partial() == dict(ROWS[:2])
    again.append(ROWS[2:])
    assert again.partial() == dict(ROWS)
    again.finish(ITEMS, 2)


def test_a_torn_line_alone_is_nothing(tmp_path: Path) -> None:
    (tmp_path / "partial.jsonl").write_text('{"dataset": "gsm", "pla')
    folder = ResultFolder(tmp_path, SETTINGS)
    folder.append(ROWS)
    assert folder.partial() == dict(ROWS)


def test_a_whole_last_line_without_its_end_counts(tmp_path: Path) -> None:
    folder = ResultFolder(tmp_path, SETTINGS)
    folder.append(ROWS[:2])
    path = tmp_path / "partial.jsonl"
    path.write_bytes(path.read_bytes().removesuffix(b"\n"))
    again = ResultFolder(tmp_path, SETTINGS)
    again.append(ROWS[2:])
    assert again.partial() == dict(ROWS)


@pytest.mark.parametrize("finished", [False, True])
def test_other_settings_are_refused_with_what_differs(tmp_path: Path, finished: bool) -> None:
    folder = ResultFolder(tmp_path, SETTINGS)
    folder.append(ROWS)
    if finished:
        folder.finish(ITEMS, 2)
    other = {**SETTINGS, "sampling": {"temperature": 1.0}, "prompt": "p" * 100}
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(ValueError, match=r"another evaluation \(prompt=\"\(absent\)\" there, ") as error:
        ResultFolder(tmp_path, other)
    assert "sampling.temperature=0.0 there, 1.0 here); use its settings to go on, or another output_dir" in str(
        error.value
    )
    assert len(str(error.value)) < 400
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    ResultFolder(tmp_path, SETTINGS)


def test_settings_that_nothing_came_of_bind_nobody(tmp_path: Path) -> None:
    folder = ResultFolder(tmp_path, SETTINGS)
    assert list(tmp_path.iterdir()) == []
    folder.append(ROWS)
    (tmp_path / "partial.jsonl").unlink()
    ResultFolder(tmp_path, {"weights": "other"}).append(ROWS)
    assert json.loads((tmp_path / "settings.json").read_text()) == {"weights": "other"}


def test_a_kill_between_results_and_the_partial_file_leaves_a_finished_evaluation(tmp_path: Path) -> None:
    folder = ResultFolder(tmp_path, SETTINGS)
    folder.append(ROWS)
    partial = (tmp_path / "partial.jsonl").read_bytes()
    folder.finish(ITEMS, 2)
    (tmp_path / "partial.jsonl").write_bytes(partial)
    assert ResultFolder(tmp_path, SETTINGS).is_finished
    assert not (tmp_path / "partial.jsonl").exists()


def test_a_broken_line_in_the_middle_is_named(tmp_path: Path) -> None:
    folder = ResultFolder(tmp_path, SETTINGS)
    folder.append(ROWS)
    path = tmp_path / "partial.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    path.write_text(lines[0] + "oops\n" + lines[1])
    with pytest.raises(ValueError, match="line 2 is not a JSON object"):
        ResultFolder(tmp_path, SETTINGS)
    path.write_text(lines[0] + '{"dataset": "math"}\n')
    with pytest.raises(ValueError, match="has a line without 'place'; remove the file"):
        ResultFolder(tmp_path, SETTINGS).partial()
