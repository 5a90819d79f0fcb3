"""A folder in any state gives a record, and a sentence for each thing that it lacks."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from grpo.run.files import hold_folder
from grpo.run.report.reading import read_run
from tests.unit.run.report_runs import make_run


def test_a_whole_run_lacks_nothing(tmp_path: Path) -> None:
    record = read_run(make_run(tmp_path / "run"))
    assert record.missing == ()
    assert [row["step"] for row in record.metrics] == list(range(7))
    assert [row["step"] for row in record.evaluated] == [0, 3, 6]
    assert sorted(record.evaluations) == [0, 3, 6]
    assert (record.last_step, record.total_steps, record.is_finished, record.is_running) == (6, 6, True, False)
    assert record.setting("loss.name") == "grpo_clip"
    assert record.setting("loss.name.none") is None


def test_the_last_checkpoint_is_that_of_the_highest_step(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run")
    assert read_run(folder).last_checkpoint is None
    for name in ("step_000050", "step_1000000", "step_000100", ".tmp-step_2000000-1", "step_best"):
        (folder / "checkpoints" / name).mkdir(parents=True)
    assert read_run(folder).last_checkpoint == 1_000_000


def test_a_report_starts_without_what_it_may_not_need(run_python: Callable[..., Any]) -> None:
    program = "import sys, grpo.report; print([m for m in ('torch', 'matplotlib', 'transformers') if m in sys.modules])"
    assert run_python(program).stdout == "[]\n"


def test_a_torn_last_line_is_left_out_and_said(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run")
    with open(folder / "metrics.jsonl", "a") as file:
        file.write('{"step": 7, "reward/mean": 0.')
    record = read_run(folder)
    assert record.last_step == 6
    (sentence,) = record.missing
    assert sentence.startswith("The last line of metrics.jsonl is torn")


def test_lines_that_hold_nothing_are_named(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run")
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    deep = "[" * 100_000
    lines[2:2] = ["not json", "[1, 2]", '{"no": "step"}', '{"step": true}', '{"step": "4"}', deep]
    (folder / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    record = read_run(folder)
    assert [row["step"] for row in record.metrics] == list(range(7))
    assert record.missing == (
        "3 lines of metrics.jsonl hold no JSON object (line 3, 4, 8); left out.",
        "3 lines of metrics.jsonl without a step; left out.",
    )


def test_values_that_are_no_finite_numbers_are_left_out(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run")
    row = {
        "step": 6,
        "reward/mean": None,
        "policy/entropy": float("nan"),
        "note": "text",
        "flag": True,
        "signal/share": 1,
    }
    with open(folder / "metrics.jsonl", "a") as file:
        file.write(json.dumps(row) + "\n")
    last = read_run(folder).metrics[-1]
    assert last == {"step": 6, "signal/share": 1}  # and a step that is there twice counts once


@pytest.mark.parametrize("name", ["config.yaml", "provenance.json", "metrics.jsonl"])
@pytest.mark.parametrize("content", [None, b"", b"{ [ : \x00\xff", b"- 1\n- 2\n"])
def test_each_file_may_be_missing_or_broken(tmp_path: Path, name: str, content: bytes | None) -> None:
    folder = make_run(tmp_path / "run")
    if content is None:
        (folder / name).unlink()
    else:
        (folder / name).write_bytes(content)
    assert any(name in sentence for sentence in read_run(folder).missing) or (name, content) == ("metrics.jsonl", b"")


def test_steps_metrics_and_answers_that_are_missing_are_named(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run")
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    kept = [
        {key: row[key] for key in row if not key.startswith("mismatch/")} for row in rows if row["step"] not in (2, 4)
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in kept))
    (folder / "evaluations" / "step_000003.jsonl").unlink()
    provenance = json.loads((folder / "provenance.json").read_text())
    provenance["versions"]["grpo"] = "0.0.9"
    (folder / "provenance.json").write_text(json.dumps(provenance))
    version, steps, metrics, evaluations = read_run(folder).missing
    assert version.startswith("The run was made by grpo 0.0.9 and this is ")
    assert steps == "metrics.jsonl lacks 2 steps (the first: 2)."
    assert metrics.startswith("No step of metrics.jsonl has mismatch/mean, mismatch/max: ")
    assert evaluations.startswith("The answers of the evaluations after step 3 are not there")


def test_a_run_that_holds_its_folder_is_running(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", num_steps=3)
    with hold_folder(folder):
        assert read_run(folder).is_running
    assert not read_run(folder).is_running
    with hold_folder(folder):  # the question left no lock behind
        pass


def test_an_empty_folder_gives_a_record(tmp_path: Path) -> None:
    record = read_run(tmp_path)
    assert (record.last_step, record.total_steps, record.is_finished) == (0, None, False)
    assert len(record.missing) == 3
