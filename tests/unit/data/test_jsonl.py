"""JSON Lines files: what is read, and the sentence for each way a file can be wrong."""

from pathlib import Path

import pytest

from grpo.config import DataConfig
from grpo.data.jsonl import load_problems
from grpo.types import Problem

GOOD = '{"problem": "1+1?", "answer": "2"}'


def config(**changes) -> DataConfig:
    return DataConfig(**{"name": "jsonl", "train_path": "a.jsonl", "test_path": "b.jsonl", **changes})


def written(folder: Path, content: str | bytes) -> Path:
    file = folder / "set.jsonl"
    file.write_bytes(content.encode() if isinstance(content, str) else content)
    return file


def load_one(folder: Path, line: str, **changes) -> Problem:
    (problem,) = load_problems(written(folder, line), config(**changes))
    return problem


def error(path: Path, cfg: DataConfig | None = None) -> str:
    with pytest.raises(ValueError, match=r".") as caught:
        load_problems(path, cfg or config())
    sentence = str(caught.value)
    assert "\n" not in sentence
    assert ";" in sentence, "a remedy follows the rule"
    return sentence


def test_reads_every_field(tmp_path):
    line = (
        r'{"problem": " $\\frac{1}{2}$\n", "answer": "\\frac{1}{2}", "level": 3, '
        r'"subject": "Algebra", "unique_id": "a/1"}'
    )
    assert load_one(tmp_path, line) == Problem("a/1", " $\\frac{1}{2}$\n", "\\frac{1}{2}", "3", "Algebra")


def test_field_names_come_from_the_config(tmp_path):
    line = '{"q": "1+1?", "gold": "2", "hard": "yes", "kind": "sum", "problem": "no", "answer": "no", "level": 9}'
    changes = {"problem_field": "q", "answer_field": "gold", "level_field": "hard", "subject_field": "kind"}
    assert load_one(tmp_path, line, **changes) == Problem("set-1", "1+1?", "2", "yes", "sum")


@pytest.mark.parametrize(
    ("spelling", "text"), [("1e3", "1000"), ("5e-5", "0.00005"), ("-2.50E1", "-25.0"), ("0e9", "0")]
)
def test_an_exponent_is_worked_out(tmp_path, spelling, text):
    assert load_one(tmp_path, f'{{"problem": "1+1?", "answer": {spelling}}}').answer == text


@pytest.mark.parametrize("spelling", ["5", "0.5", "-3", "0.50", "12345678901234567890.123456789012345678"])
def test_numbers_become_text_as_they_are_spelt(tmp_path, spelling):
    assert load_one(tmp_path, f'{{"problem": {spelling}, "answer": {spelling}}}').answer == spelling


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ("", "set-1"),
        (', "id": "x"', "x"),
        (', "id": 7', "7"),
        (', "id": "x", "unique_id": "u"', "u"),
        (', "id": "x", "unique_id": null', "x"),
        (', "unique_id": ""', "set-1"),
    ],
)
def test_id(tmp_path, fields, expected):
    assert load_one(tmp_path, GOOD[:-1] + fields + "}").id == expected


def test_level_and_subject_may_be_absent_or_null(tmp_path):
    problem = load_one(tmp_path, '{"problem": "1+1?", "answer": "2", "level": null}')
    assert (problem.level, problem.subject) == ("", "")


def test_blank_lines_are_skipped_and_counted(tmp_path):
    problems = load_problems(written(tmp_path, f"\n{GOOD}\n  \r\n{GOOD}\r\n\n"), config())
    assert [problem.id for problem in problems] == ["set-2", "set-4"]


def test_only_a_newline_ends_a_line(tmp_path):
    line = '{"problem": "a\u2028b\u0085c", "answer": "2"}'
    assert load_one(tmp_path, line).question == "a\u2028b\u0085c"


def test_byte_order_mark(tmp_path):
    assert load_problems(written(tmp_path, b"\xef\xbb\xbf" + GOOD.encode()), config())[0].question == "1+1?"


@pytest.mark.parametrize(("limit", "count"), [(None, 3), (1, 1), (3, 3), (9, 3)])
def test_limit(tmp_path, limit, count):
    assert len(load_problems(written(tmp_path, f"{GOOD}\n" * 3), config(), limit)) == count


def test_path_may_be_text_and_start_at_home(tmp_path, monkeypatch):
    written(tmp_path, GOOD)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert len(load_problems("~/set.jsonl", config())) == 1


@pytest.mark.parametrize(
    ("line", "parts"),
    [
        ("{'problem'", ["is not JSON", "column 2", "{'problem'", "correct it or remove it"]),
        ('{"problem": "x', ["is not JSON", "Unterminated"]),
        ('{"problem": NaN, "answer": "2"}', ["is not JSON", "NaN"]),
        ("[" * 100_000, ["is not JSON"]),
        ('["1+1?", "2"]', ["no JSON object", '["1+1?", "2"]']),
        ("5", ["no JSON object", "5"]),
        ("{}", ["lacks the field 'problem'", "its fields: none", "data.problem_field="]),
        ('{"question": "1+1?", "answer": "2"}', ["'question', 'answer'", "data.problem_field=question,"]),
        ('{"problem": "1+1?", "target": "2"}', ["lacks the field 'answer'", "data.answer_field=target,"]),
        ('{"problem": "1+1?", "x": "2"}', ["lacks the field 'answer'", "'problem', 'x'", "data.answer_field=..."]),
        ('{"problem": "", "answer": "2"}', ["empty 'problem'"]),
        ('{"problem": " \\n", "answer": "2"}', ["empty 'problem'"]),
        ('{"problem": "1+1?", "answer": ""}', ["empty 'answer'"]),
        ('{"problem": "1+1?", "answer": ["2", "two"]}', ["in 'answer'", "text or a number", "keep one of them"]),
        ('{"problem": "1+1?", "answer": 1e99999999}', ["is not JSON", "1e99999999 is beyond"]),
        ('{"problem": "1+1?", "answer": null}', ["null in 'answer'", "text or a number"]),
        ('{"problem": "1+1?", "answer": true}', ["true in 'answer'"]),
        ('{"problem": ["1+1?"], "answer": "2"}', ["""["1+1?"] in 'problem'"""]),
        ('{"problem": "1+1?", "answer": "2", "level": {"a": 1}}', ["in 'level'"]),
        ('{"problem": "\\ud800", "answer": "2"}', ["surrogate", "'problem'"]),
    ],
)
def test_bad_line(tmp_path, line, parts):
    file = written(tmp_path, f"{GOOD}\n\n{line}\n{GOOD}\n")
    sentence = error(file)
    assert sentence.startswith(f"{file}, line 3,")
    for part in parts:
        assert part in sentence
    assert len(sentence) < 400 + len(str(file))


def test_not_utf8(tmp_path):
    assert "line 2, is not UTF-8 (byte 0xe9)" in error(written(tmp_path, GOOD.encode() + b'\n{"problem": "caf\xe9"}'))
    assert "line 1, is not UTF-8" in error(written(tmp_path, GOOD.encode("utf-16")))


@pytest.mark.parametrize("content", ["", "\n \n"])
def test_empty_file(tmp_path, content):
    assert "set.jsonl is empty" in error(written(tmp_path, content))


def test_folder(tmp_path):
    assert "cannot be read" in error(tmp_path)


def test_missing_file_names_the_setting(tmp_path):
    absent = tmp_path / "absent.jsonl"
    assert error(absent).startswith(f"data.train_path={absent} does not exist; name a file")
    assert error(absent, config(test_path=str(absent))).startswith(f"data.test_path={absent} does not exist")


@pytest.mark.parametrize("name", ["math", "gsm8k"])
def test_missing_file_of_an_option_says_what_it_wants(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = f"data/{name}/train.jsonl"
    sentence = error(Path(path), config(name=name, train_path=path))
    for part in (path, str(tmp_path), f"data={name} wants", "'problem', 'answer'", "data.train_path=..."):
        assert part in sentence


@pytest.mark.parametrize(
    ("name", "remedy"),
    [
        ("math", "load it with `python -m grpo.download dataset`, or"),
        ("gsm8k", "load it with `python -m grpo.download dataset --id openai/gsm8k"),
        ("mine", "put the file there, or"),
    ],
)
def test_a_missing_file_of_a_known_set_can_be_downloaded(name: str, remedy: str) -> None:
    folder = Path("data", name)
    cfg = config(name=name, train_path=str(folder / "train.jsonl"), test_path=str(folder / "none.jsonl"))
    assert remedy in error(folder / "none.jsonl", cfg)
