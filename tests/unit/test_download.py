"""Parts of `python -m grpo.download` that need no server; tests/e2e/test_download.py has the rest."""

from __future__ import annotations

import hashlib
import io
import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from grpo.data.hub import matching
from grpo.data.remote_file import RemoteFile, held
from grpo.data.splits import is_held_out, read_rows, row_failure, split_files, to_record
from grpo.download import run
from grpo.downloads.manifest import Manifest, read_manifest
from grpo.reward.gold_check import check_golds
from grpo.reward.pool import WorkerPool
from grpo.run import progress as progress_module
from grpo.run.progress import Progress, bytes_text


def files(*paths: str) -> list[RemoteFile]:
    return [RemoteFile(path, 1, "0" * 40) for path in paths]


@pytest.mark.parametrize(
    ("paths", "split", "found"),
    [
        (["data/train-00001-of-00002.parquet", "data/train-00000-of-00002.parquet"], "train", [1, 0]),
        (["train.jsonl", "test.jsonl", "README.md"], "test", [1]),
        (["train/0.parquet", "test/0.parquet"], "train", [0]),
        (["data/train_sft-0.parquet", "data/train_prefs-0.parquet"], "train_sft", [0]),
        (["data/train_sft-0.parquet", "data/train-0.parquet"], "train", [1]),  # the split itself comes first
        (["math_train.jsonl", "math_test.jsonl"], "train", [0]),
        (["training.jsonl", "train.parquet", "train.jsonl"], "train", [1]),  # one format, and no part of a word
        (["train.csv", "train.jsonl"], "train", [1]),
    ],
)
def test_the_files_of_a_split(paths: list[str], split: str, found: list[int]) -> None:
    assert [file.path for file in split_files(files(*paths), split, None, "a/b")] == [paths[place] for place in found]


def test_subsets_are_told_apart() -> None:
    remote = files("main/train-0.parquet", "socratic/train-0.parquet", "data/extra/train/0.parquet")
    with pytest.raises(ValueError, match="a/b has the subsets extra, main, socratic; name one: --subset extra"):
        split_files(remote, "train", None, "a/b")
    assert split_files(remote, "train", "extra", "a/b") == remote[2:]
    with pytest.raises(ValueError, match=r"subset 'none' \(subsets: extra, main, socratic\)"):
        split_files(remote, "train", "none", "a/b")


def test_what_is_measured_with_is_not_trained_on() -> None:
    assert [is_held_out(name) for name in ("test", "validation", "dev", "eval_math")] == [True] * 4
    assert [is_held_out(name) for name in ("train", "train_sft", "default")] == [False] * 3


def test_rows_become_records() -> None:
    row = {"problem": "P", "answer": 0.00001, "level": 3, "extra": [1], "solution": None, "subject": "S", "id": True}
    assert to_record(row) == {"problem": "P", "answer": "0.00001", "level": 3, "subject": "S"}
    assert to_record({"question": "Q", "answer": "so 2\n#### 2,000"}) == {
        **{"problem": "Q", "answer": "2,000", "solution": "so 2\n#### 2,000"}
    }
    assert to_record({"question": "other", "problem": "P", "answer": ["a"]}) == {"problem": "P"}
    assert to_record({"problem": "P", "answer": float("nan")}) == {"problem": "P"}


def test_json_lines_keep_their_digits(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_text('\ufeff{"problem": "\u2028", "answer": 0.50}\n\n{"problem": "b", "answer": 1e-3}\n', "utf-8")
    assert [row["answer"] for row in read_rows(path, "train.jsonl")] == ["0.50", "0.001"]


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        ({"problem": "P", "answer": 5}, ""),
        ({"problem": " ", "answer": "5"}, "no_problem"),
        ({"problem": "P"}, "no_answer"),
        ({"problem": "P", "answer": "5", "solution": "\ud83e"}, "half_a_character"),
    ],
)
def test_rows_that_are_no_problems(record: dict[str, Any], reason: str) -> None:
    assert row_failure(record) == reason


@pytest.fixture(scope="module")
def pool() -> Iterator[WorkerPool]:
    workers = WorkerPool(1, 1.0)
    yield workers
    workers.close()


GOLDS = {
    r"\frac{1}{2}": "",
    r"\boxed{x^2 + 1}": "",
    r"(-\infty, 3) \cup [5, 7]": "",
    r"\begin{pmatrix} 1 \\ 2 \end{pmatrix}": "",
    "New York City": "",
    "5 is more than 3": "prose",
    "x=": "gold_unreadable",  # equal texts would be enough for a grader that compares texts first
    r"\frac{1}{0}": "exception",
    "{1": "unclosed_box",
    "1}": "read_otherwise",
    r"\boxed{3} or \boxed{4}": "read_otherwise",
    "5</answer>": "several_answer_ends",
    "x" * 1001: "too_long",
}


def test_every_gold_is_graded_against_itself_by_meaning(pool: WorkerPool) -> None:
    checked: list[int] = []
    assert dict(zip(GOLDS, check_golds(list(GOLDS), pool, checked.append), strict=True)) == GOLDS
    assert sum(checked) == len(GOLDS)


def test_golds_come_back_in_order_whatever_their_number(pool: WorkerPool) -> None:
    golds = [r"\frac{" if number % 7 == 3 else str(number) for number in range(1300)]
    reasons = check_golds(golds, pool, lambda _: None)
    assert [place for place, reason in enumerate(reasons) if reason] == list(range(3, 1300, 7))


def test_checksums_are_those_of_git_and_of_sha256(tmp_path: Path) -> None:
    path, content = tmp_path / "file", b"some content\n"
    path.write_bytes(content)
    git = subprocess.run(["git", "hash-object", str(path)], capture_output=True, text=True, check=True).stdout.strip()
    for oid in (git, hashlib.sha256(content).hexdigest()):
        seen: list[int] = []
        assert RemoteFile("file", len(content), oid).is_intact(path, seen.append)
        assert sum(seen) == len(content)
        assert not RemoteFile("file", len(content) + 1, oid).is_intact(path)
        assert not RemoteFile("file", len(content), "0" * len(oid)).is_intact(path)
    assert not RemoteFile("file", 1, git).is_intact(tmp_path / "none")


def test_a_partial_file_is_held_by_one(tmp_path: Path) -> None:
    path = tmp_path / "x.incomplete"
    with held(path) as stream:
        stream.write(b"part")
        with pytest.raises(ValueError, match="another process is loading"), held(path):
            pass
    assert path.read_bytes() == b"part"
    with held(tmp_path / "empty.incomplete"):
        pass
    assert [child.name for child in tmp_path.iterdir()] == ["x.incomplete"]


def test_patterns_are_those_of_a_shell() -> None:
    remote = files("config.json", "model.safetensors", "sub/config.json")
    assert matching(remote, None, []) == remote
    assert matching(remote, ["*.json"], ["sub/*"]) == remote[:1]
    assert matching(remote, ["*"], ["*.json"]) == remote[1:2]


def test_a_manifest_that_is_none_is_named(tmp_path: Path) -> None:
    assert read_manifest(tmp_path) is None
    manifest = Manifest("a/b", None, "1" * 40, {"subset": None}, {"x": {"sha256": "0" * 64, "size": 3}}, {})
    manifest.write(tmp_path)
    assert read_manifest(tmp_path) == manifest
    assert manifest.answers("a/b", "1" * 40, {"subset": None})
    assert not manifest.answers("a/b", "2" * 40, {"subset": None})
    assert not manifest.answers("a/b", None, {"subset": "main"})
    for content in ("{", '{"other": 1}', "[]"):
        (tmp_path / "download.json").write_text(content)
        with pytest.raises(ValueError, match="is not what a download leaves"):
            read_manifest(tmp_path)


@pytest.mark.parametrize("is_terminal", [True, False])
def test_progress_says_what_is_left(monkeypatch: pytest.MonkeyPatch, is_terminal: bool) -> None:
    stream = io.StringIO()
    stream.isatty = lambda: is_terminal  # type: ignore[method-assign]
    clock = iter([0.0, 0.1, 20.0, 40.0])
    monkeypatch.setattr(progress_module.sys, "stderr", stream)
    monkeypatch.setattr(progress_module, "monotonic", lambda: next(clock))
    progress = Progress("a/b", 3_000_000_000, bytes_text, num_reused=1_000_000_000)
    progress.add(1_000_000_000)  # what was there before; too soon for a line
    progress.add(200_000_000)
    progress.add(800_000_000)
    progress.finish()
    shown = [" 40%  1.2 GB of 3 GB, 10 MB/s, 3m 00s left", " 67%  2 GB of 3 GB, 25 MB/s, 40s left"]
    if is_terminal:
        assert stream.getvalue() == "".join(
            [
                f"\ra/b  {'━' * 10}{'─' * 14} {shown[0]}"[:80] + "\x1b[K",
                f"\ra/b  {'━' * 16}{'─' * 8} {shown[1]}"[:80] + "\x1b[K",
                "\r\x1b[K",
            ]
        )
    else:
        assert stream.getvalue().splitlines() == [f"a/b: {line.strip()}" for line in shown]


def test_bytes_are_read_at_a_glance() -> None:
    assert [bytes_text(n) for n in (0, 999, 1000, 3_087_467_144, 2_500_000_000_000)] == [
        *("0 bytes", "999 bytes", "1 kB", "3.09 GB", "2.5e+03 GB")
    ]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["model", "--tokn", "hf_Secret"], "unrecognized arguments: --tokn hf_..."),
        (["dataset", "--splits", "../up"], "'../up' is no name of a split"),
        (["weights"], "invalid choice: 'weights'"),
        ([], "required: what"),
    ],
)
def test_a_wrong_command_line_is_a_sentence(
    capsys: pytest.CaptureFixture[str], arguments: list[str], words: str
) -> None:
    with pytest.raises(SystemExit) as ended:
        run(arguments)
    assert ended.value.code == 2
    said = capsys.readouterr().err
    assert words in said
    assert "Secret" not in said


def test_the_defaults_are_those_of_the_project() -> None:
    from grpo.config import compose_run_config
    from grpo.download import DATASET, MODEL, _parse

    args = _parse(["dataset"])
    cfg = compose_run_config([])
    assert [str(args.output_dir / f"{split}.jsonl") for split in args.splits] == [
        *(cfg.data.train_path, cfg.data.test_path)
    ]
    assert args.id == DATASET == "nlile/hendrycks-MATH-benchmark"
    assert _parse(["model"]).id == MODEL == cfg.model.path
    assert json.dumps(sorted(vars(args))) == json.dumps(
        ["force", "id", "output_dir", "revision", "splits", "subset", "token", "what"]
    )
