"""The grader's bench: what it reads, counts and survives."""

import json
import os
import signal
import sys
from pathlib import Path

import pytest

from bench import contender, grader
from bench.contender import Contender, Judged
from bench.grader_cases import Case, load_cases, load_golds, real_pairs
from grpo.types import Grade, Outcome

RIGHT = Grade(1.0, 1.0, 1.0, Outcome.graded, "exact")
WRONG = Grade(0.0, 1.0, 0.0, Outcome.graded, "number")
FAILURE = Grade(0.0, 0.0, 0.0, Outcome.format_failure, "no_box")
ERROR = Grade(0.0, 0.0, 0.0, Outcome.grader_error, "deadline")


def write(path: Path, *rows: object) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_cases_are_spelt_out_and_grouped(tmp_path: Path) -> None:
    write(tmp_path / "a.jsonl", {"gold": "1", "prediction": "2", "equivalent": False, "tier": "negative"})
    write(
        tmp_path / "b.jsonl",
        {"gold": "1", "prediction": ["x", ["ab", 2], "@@CANARY@@"], "equivalent": True, "tier": "either"},
        {"gold": "1", "response": "r", "equivalent": True, "tier": "response", "format_ok": False},
        {"gold": "1", "prediction": "3", "equivalent": True, "tier": "new"},
        {"problem": "no case"},
    )
    assert load_cases(tmp_path, Path("/c")) == [
        Case("1", "2", False, False, None, "rewritings, near misses"),
        Case("1", "xabab/c", False, None, None, "hostile"),
        Case("1", "r", True, True, False, "hostile"),
        Case("1", "3", False, True, None, "new"),
    ]


def test_golds_come_from_both_kinds_of_data(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", {"answer": "\\frac{1}{2}"}, {"answer": "2 + 2 = 4\n#### 4"}, {"answer": 5})
    assert load_golds(path) == ["\\frac{1}{2}", "4", "5"]
    with pytest.raises(ValueError, match="lacks the field 'answer'"):
        load_golds(write(tmp_path / "b.jsonl", {"gold": "1"}))


def test_real_pairs_leave_the_hostile_out_and_never_pair_a_gold_with_itself() -> None:
    cases = [Case("1", "2", False, False, None, "core"), Case("1", "9^9", False, False, None, "hostile")]
    pairs = real_pairs(cases, [["1", "1", "2", "3"], []], 10)
    assert pairs == [("1", "2"), ("1", "2"), ("1", "2"), ("2", "3")]


def test_tally() -> None:
    # Right: places 0 and 3; a false positive, a false negative, two errors.
    labels = [True, False, True, False, True, False]
    assert grader.tally(labels, [True, True, False, False, None, None]) == ("33.33%", "1", "1", "2")
    assert grader.tally([], []) == ("-", "0", "0", "0")


@pytest.mark.parametrize(
    ("equivalent", "format_ok", "right"),
    [
        (True, None, [RIGHT]),
        (False, None, [WRONG, FAILURE]),
        (None, None, [RIGHT, WRONG, FAILURE]),  # any verdict will do, but there has to be one
        (False, True, [WRONG]),
        (False, False, [FAILURE]),
    ],
)
def test_is_right(equivalent: bool | None, format_ok: bool | None, right: list[Grade]) -> None:
    case = Case("1", "2", False, equivalent, format_ok, "core")
    assert [grade for grade in (RIGHT, WRONG, FAILURE, ERROR) if grader.is_right(case, grade)] == right


def test_a_contender_that_hangs_is_ended_and_started_again(monkeypatch: pytest.MonkeyPatch) -> None:
    ours = Contender("ours")
    try:
        (first,) = ours.judge([("42", "42", False)])
        assert first.correct is True
        assert first.seconds > 0
        assert ours._process is not None
        lost = ours._process.pid
        os.kill(lost, signal.SIGSTOP)  # what hangs says nothing
        monkeypatch.setattr(contender, "DEADLINE_S", 0.2)
        assert ours.judge([("42", "42", False)]) == [Judged(None, 0.2, hung=True)]
        monkeypatch.setattr(contender, "DEADLINE_S", 20.0)
        results = ours.judge([("42", "43", False), ("x+1", "1+x", False), ("42", "</think> <answer>42</answer>", True)])
        assert [result.correct for result in results] == [False, True, True]
        assert ours._process.pid != lost
    finally:
        ours.close()


def test_the_bench_prints_every_table_and_writes_nothing_unasked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    cases = tmp_path / "cases"
    cases.mkdir()
    rows = [{"gold": str(n), "prediction": f"{n + n % 2}.0", "equivalent": True, "tier": "core"} for n in range(300)]
    hostile = {"gold": "42", "prediction": "open('@@CANARY@@','w')", "equivalent": False, "tier": "hostile"}
    write(cases / "dev.jsonl", *rows, hostile)
    data = write(tmp_path / "data.jsonl", {"answer": "1"}, {"answer": "x+1"})
    arguments = ["--cases", str(cases), "--data", str(data), "--no-peer", "--show", "--workers", "1"]
    monkeypatch.setattr(sys, "argv", ["bench", *arguments])
    before = sorted(tmp_path.rglob("*"))
    grader.main()
    said = capsys.readouterr().out
    for title in ("Answers", "Hostile answers", "Golds against themselves", "Real answers", "One step"):
        assert title in said
    # Half of the 300 answers are off by one.
    assert "50.00%" in said
    assert said.count("core: gold ") == 150
    assert sorted(tmp_path.rglob("*")) == before

    monkeypatch.setattr(sys, "argv", ["bench", *arguments, "--out", str(tmp_path / "page.md")])
    grader.main()
    page = (tmp_path / "page.md").read_text()
    assert "| core | 300 | 99%, 2 FP | 50.00% | 0 | 150 | 0 |" in page
    assert str(tmp_path) not in page


def test_a_folder_without_cases_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.setattr(sys, "argv", ["bench", "--cases", str(tmp_path)])
    with pytest.raises(SystemExit):
        grader.main()
    assert "holds no labelled pairs; name a folder" in capsys.readouterr().err
