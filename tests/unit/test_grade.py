"""`python -m grpo.grade`: two strings, files, and what is wrong with them."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from grpo.grade import ERROR, RIGHT, WRONG, run
from grpo.types import Grade

ROOT = Path(__file__).resolve().parents[2]
RIGHT_RESPONSE = "So 42. </think> <answer>42</answer>"
FIELDS = {"line", "reward", "format_reward", "answer_reward", "outcome", "reason", "extracted"}


def command(*arguments: str, **options) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "grpo.grade", *arguments], cwd=ROOT, capture_output=True, text=True, **options
    )


def write_lines(path: Path, *rows: object) -> str:
    path.write_text("".join(f"{row if isinstance(row, str) else json.dumps(row)}\n" for row in rows), encoding="utf-8")
    return str(path)


@pytest.mark.parametrize(
    ("arguments", "status", "said"),
    [
        (["1/2", "0.5"], RIGHT, "right (number)"),
        (["42", "43"], WRONG, "wrong (number)"),
        (["-5", "-5"], RIGHT, "right (exact)"),
        (["-x", "-x"], RIGHT, "right (exact)"),  # no option
        (["42", r"\boxed{42}"], RIGHT, "right (exact)"),
        (["--", "--5", "--5"], RIGHT, "right (exact)"),
        (["42", RIGHT_RESPONSE, "--response"], RIGHT, "right (exact)"),
        (["42", f"{RIGHT_RESPONSE} or 43", "--response"], WRONG, "wrong (text_after_answer)"),
        (["42 or 43", f"{RIGHT_RESPONSE} or 43", "--response", "--mode", "reference"], RIGHT, "right (exact)"),
        (["42", r"it is \boxed{42}", "--response", "--reward", "boxed"], RIGHT, "right (exact)"),
        (["42", RIGHT_RESPONSE, "--response", "--reward", "boxed"], WRONG, "wrong (no_box)"),
        (["x" * 2000, "42"], ERROR, "error (gold_unreadable)"),
    ],
)
def test_two_strings(capsys: pytest.CaptureFixture[str], arguments: list[str], status: int, said: str) -> None:
    assert run(arguments) == status
    assert capsys.readouterr().out.startswith(said)


def test_of_a_response_everything_is_said_and_nothing_sent_to_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    run(["42", "</think> <answer>4\x1b[2J2\x07</answer>", "--response"])
    assert capsys.readouterr().out.splitlines()[1] == "format_reward 1  answer_reward 0  reward 0  extracted '42'"


def test_the_command_exits_with_the_verdict_and_starts_without_torch() -> None:
    for arguments, status in ((("42", "42"), RIGHT), (("42", "43"), WRONG), (("x" * 2000, "42"), ERROR)):
        assert command(*arguments).returncode == status
    program = (
        "import sys; from grpo.grade import run; run(['42', '42'])\n"
        "print([name for name in ('torch', 'transformers', 'sympy', 'math_verify', 'rich') if name in sys.modules])"
    )
    output = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert output.stdout.splitlines()[-1] == "[]"


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ([], "give a gold and an answer"),
        (["42"], "give a gold and an answer"),
        (["42", "42", "--jsonl", "x"], "do not go together"),
        (["42", "42", "--out", "x"], "add --jsonl"),
        (["--jsonl", "no/such/file"], "no/such/file: No such file"),
        (["42", "42", "--response", "--reward", "boxed", "--mode", "reference"], "use reward.mode=strict"),
        (["42", "42", "--workers", "0"], "reward.num_workers=0 is not positive"),
    ],
)
def test_what_a_user_can_mend_is_a_sentence_and_status_2(arguments: list[str], sentence: str) -> None:
    done = command(*arguments)
    assert done.returncode == ERROR
    assert sentence in done.stderr
    assert "Traceback" not in done.stderr


def test_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [
        {"gold": "42", "response": RIGHT_RESPONSE, "id": "first"},
        {"gold": 42, "completion": "it is 42"},
        "",
        {"gold": ["41", 42.0], "answer": "42", "id": 7},
        {"gold": 0.1, "prediction": 0.2},
        {"gold": 1e-05, "answer": 0.00001},
        {"gold": "x" * 2000, "answer": "42"},
        {"gold": "42", "answer": "41", "response": RIGHT_RESPONSE},  # a response tells more than what was read from it
    ]
    out = tmp_path / "grades.jsonl"
    assert run(["--jsonl", write_lines(tmp_path / "answers.jsonl", *rows), "--out", str(out)]) == 0
    grades = [json.loads(line) for line in out.read_text().splitlines()]
    assert [(row["line"], row["reward"], row["format_reward"], row["reason"]) for row in grades] == [
        (1, 1.0, 1.0, "exact"),
        (2, 0.0, 0.0, "no_think_end"),
        (4, 1.0, 1.0, "number"),
        (5, 0.0, 1.0, "number"),
        (6, 1.0, 1.0, "exact"),
        (7, 0.0, 0.0, "gold_unreadable"),
        (8, 1.0, 1.0, "exact"),
    ]
    assert [row["outcome"] for row in grades] == ["graded", "format_failure", *["graded"] * 3, "grader_error", "graded"]
    assert [row.get("id") for row in grades] == ["first", None, 7, None, None, None, None]
    assert all(FIELDS <= set(row) <= FIELDS | {"id"} for row in grades)
    said = capsys.readouterr()
    assert said.out == ""
    assert "7 rows: 4 right (57.1%), 1 wrong, 1 without an answer, 1 grader errors" in said.err
    assert list(tmp_path.glob(".tmp-*")) == []


def test_a_long_file_comes_out_in_its_order(tmp_path: Path) -> None:
    rows = [
        {"gold": str(n // 3), "response" if n % 2 else "answer": f"</think> <answer>{n % 400}</answer>" if n % 2 else n}
        for n in range(1200)
    ]
    out = tmp_path / "grades.jsonl"
    run(["--jsonl", write_lines(tmp_path / "answers.jsonl", *rows), "--out", str(out)])
    grades = [json.loads(line) for line in out.read_text().splitlines()]
    assert [row["line"] for row in grades] == list(range(1, 1201))
    assert [row["extracted"] for row in grades] == [str(n % 400 if n % 2 else n) for n in range(1200)]
    assert [row["reward"] for row in grades] == [float((n % 400 if n % 2 else n) == n // 3) for n in range(1200)]


def test_standard_input_and_output() -> None:
    done = command(
        "--jsonl", "-", input='\ufeff{"gold": "42", "answer": "42"}\n{"gold": "\u2028", "answer": "\\ud83e"}\n'
    )
    assert [json.loads(line)["reward"] for line in done.stdout.splitlines()] == [1.0, 0.0]
    assert done.returncode == 0


def test_a_reader_that_has_had_enough_is_no_error(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "answers.jsonl", *[{"gold": "42", "answer": "42"}] * 5000)
    script = f"set -o pipefail; {sys.executable} -m grpo.grade --jsonl {path} | head -1"
    done = subprocess.run(["bash", "-c", script], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.count("\n") == 1
    assert "grpo:" not in done.stderr
    assert "Broken" not in done.stderr
    assert done.returncode == 0


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ('{"gold": "42", "answer": ', "line 2, is not JSON"),
        ('["42", "42"]', "line 2, is no JSON object"),
        ('{"gold": "42"}', "line 2, lacks the field 'response' or 'completion' or 'prediction' or 'answer'"),
        ('{"answer": "42", "target": "42"}', "line 2, lacks the field 'gold' (its fields: 'answer', 'target')"),
        (
            '{"gold": "42", "answer": null}',
            "line 2, has None in 'answer', which must be text; where there is none, write \"\"",
        ),
        ('{"gold": [], "answer": "42"}', "line 2, has no gold to grade by: gold=[] is no answer"),
        ('{"gold": true, "answer": "42"}', "line 2, has no gold to grade by: gold=True is neither text nor number"),
        ('{"gold": NaN, "answer": "42"}', "NaN is no JSON value"),
        ('{"gold": 1e999, "answer": "42"}', "line 2, has no gold to grade by: gold=inf is no number"),
        ("[" * 100_000, "line 2, is not JSON"),
    ],
)
def test_a_broken_line_stops_it_before_the_work(tmp_path: Path, line: str, sentence: str) -> None:
    path, out = write_lines(tmp_path / "a.jsonl", {"gold": "1", "answer": "1"}, line), tmp_path / "out.jsonl"
    with pytest.raises(ValueError) as error:  # noqa: PT011
        run(["--jsonl", path, "--out", str(out)])
    assert sentence in str(error.value)
    assert "\n" not in str(error.value)
    assert list(tmp_path.iterdir()) == [Path(path)]


def test_a_file_is_read_through_before_the_first_grade(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_lines(tmp_path / "a.jsonl", *[{"gold": "1", "answer": "1"}] * 600, "no JSON")
    with pytest.raises(ValueError, match="line 601, is not JSON"):
        run(["--jsonl", path])
    assert capsys.readouterr().out == ""


def test_grades_of_a_part_are_left_nowhere(tmp_path: Path) -> None:
    lines = '{"gold": "1", "answer": "1"}\n' * 600 + "no JSON"
    done = command("--jsonl", "-", "--out", str(tmp_path / "out.jsonl"), input=lines)
    assert done.returncode == ERROR
    assert "standard input, line 601, is not JSON" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_bytes_that_are_no_text_and_empty_files_are_named(tmp_path: Path) -> None:
    for content, sentence in ((b'{"gold": "\xff"}', "line 1, is not UTF-8"), (b"\n\n", "is empty")):
        (tmp_path / "a.jsonl").write_bytes(content)
        with pytest.raises(ValueError, match=sentence):
            run(["--jsonl", str(tmp_path / "a.jsonl")])


def test_grades_are_not_written_into_a_folder_that_is_none(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "a.jsonl", {"gold": "1", "answer": "1"})
    for out in (tmp_path, tmp_path / "none" / "out.jsonl"):
        with pytest.raises(ValueError, match="name a file in a folder that exists"):
            run(["--jsonl", path, "--out", str(out)])


def test_progress_says_what_is_left(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    from grpo import grade

    clock = iter([0.0, 20.0, 20.0, 25.0, 40.0, 40.0])
    monkeypatch.setattr(grade.time, "monotonic", lambda: next(clock))
    progress = grade._Progress(3000)
    progress.update(1000)  # 20 s for a third
    progress.update(1200)  # too soon for another line
    progress.update(2000)
    assert capsys.readouterr().err.splitlines() == [
        "1,000 of 3,000 graded, 40s left",
        "2,000 of 3,000 graded, 20s left",
    ]


def test_every_field_of_a_grade_is_written() -> None:
    assert FIELDS - {"line"} == set(Grade.__dataclass_fields__)
