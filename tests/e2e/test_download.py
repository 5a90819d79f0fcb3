"""`python -m grpo.download` against a Hub on this machine, with the real client."""

from __future__ import annotations

import contextlib
import errno
import io
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from pyarrow import parquet

from grpo.config import DataConfig
from grpo.data import hub as hub_module
from grpo.data.dataset import load_data
from grpo.data.remote_file import PartialFile
from grpo.download import run
from grpo.downloads import dataset as dataset_module
from tests.e2e.hub_server import Hub, Repo, serve, wait_for

ROOT = Path(__file__).resolve().parents[2]
MATH = ("dataset", "nlile/hendrycks-MATH-benchmark")
QWEN = ("model", "Qwen/Qwen2.5-Math-1.5B")
FIRST, SECOND = "1" * 40, "2" * 40
TRAIN_FILE, TEST_FILE = "data/train-00000-of-00001.parquet", "data/test-00000-of-00001.parquet"
TOKEN = "hf_aVerySecretToken"
WEIGHTS = os.urandom(3_000_000)


def problem(number: int, answer: str) -> dict[str, Any]:
    return {
        "problem": f"What is problem {number}?",
        "answer": answer,
        "solution": f"Think. $\\boxed{{{answer}}}$" + "x" * 100,
        "level": 1 + number % 5,
        "subject": "Algebra",
        "unique_id": f"{number}.json",
    }


TRAIN = [problem(n, str(n)) for n in range(40)] + [
    problem(40, r"\frac{1}{2}"),
    problem(41, r"\foo{3"),
    problem(42, " "),
]
TEST = [problem(100 + n, str(n)) for n in range(10)]  # plain numbers need no worker process
MEANT = [*TEST, problem(111, "x = 3"), problem(110, "+-*")]


def as_parquet(rows: list[dict[str, Any]]) -> bytes:
    stream = io.BytesIO()
    parquet.write_table(pa.Table.from_pylist(rows), stream)
    return stream.getvalue()


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    with serve() as server:
        math = {"README.md": b"# MATH", TRAIN_FILE: as_parquet(TRAIN), TEST_FILE: as_parquet(TEST)}
        server.repos[MATH] = Repo({FIRST: math})
        server.repos[QWEN] = Repo({FIRST: {
            "config.json": b'{"model_type": "qwen2"}', "model.safetensors": WEIGHTS,
            "pytorch_model.bin": WEIGHTS[:9000], "sub/merges.txt": b"a b\n", "sub/copy.txt": b"a b\n", "empty.txt": b"",
        }})  # fmt: skip
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.delenv("HF_TOKEN", raising=False)
        monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "no_token"))
        monkeypatch.setattr(hub_module, "_WAIT_S", 0.001)
        yield server


def command(hub: Hub, tmp_path: Path, *arguments: str, **env: str) -> subprocess.Popen[str]:
    environment = {**os.environ, "HF_HOME": str(tmp_path / "home"), "HF_ENDPOINT": hub.url, **env}
    return subprocess.Popen(
        [sys.executable, "-m", "grpo.download", *arguments],
        cwd=ROOT, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


def largest_unfinished(folder: Path) -> int:
    """Bytes of the largest file under way; one may be renamed between being listed and being looked at."""
    with contextlib.suppress(FileNotFoundError):
        return max((path.stat().st_size for path in folder.rglob("*.incomplete")), default=0)
    return 0


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def snapshot(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def sentence(arguments: list[str]) -> str:
    """What a user reads of a command that cannot work."""
    with pytest.raises(ValueError) as error:  # noqa: PT011
        run(arguments)
    assert "\n" not in str(error.value)
    assert ";" in str(error.value)  # what is wrong; what to do
    return str(error.value)


def test_math_comes_as_data_math_reads_it(hub: Hub, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "math"
    hub.repos[MATH].commits[FIRST][TEST_FILE] = as_parquet(MEANT)
    run(["dataset", "--output-dir", str(folder)])
    assert lines(folder / "train.jsonl") == TRAIN[:41]
    assert lines(folder / "test.jsonl") == MEANT  # held-out problems are never dropped for their gold
    data = load_data(DataConfig("math", train_path=f"{folder}/train.jsonl", test_path=f"{folder}/test.jsonl"))
    assert [problem.answer for problem in data.train] == [str(row["answer"]) for row in TRAIN[:41]]
    assert [(row["row"], row["reason"], row["left_out"]) for row in lines(folder / "train.failed_golds.jsonl")] == [
        (42, "unclosed_box", True),
        (43, "no_answer", True),
    ]
    (failed,) = lines(folder / "test.failed_golds.jsonl")
    assert failed == {"row": 12, "reason": "gold_unreadable", "left_out": False, **MEANT[11]}
    said = capsys.readouterr().out
    assert f"train.jsonl: 41 problems; 2 golds failed, 2 left out: {folder}/train.failed_golds.jsonl" in said
    assert f"test.jsonl: 12 problems; 1 golds failed, 0 left out: {folder}/test.failed_golds.jsonl" in said
    manifest = json.loads((folder / "download.json").read_text())
    assert manifest["id"] == MATH[1]
    assert manifest["commit"] == FIRST
    assert manifest["files"]["train.jsonl"]["num_rows"] == 41
    assert set(manifest["sources"]) == {TRAIN_FILE, TEST_FILE}
    assert {path.name for path in folder.iterdir()} == {*manifest["files"], "download.json"}


def test_what_is_there_is_loaded_again_only_by_force(hub: Hub, tmp_path: Path, capsys: Any) -> None:
    arguments = ["dataset", "--output-dir", str(tmp_path / "math")]
    run(arguments)
    before = snapshot(tmp_path / "math")
    hub.requests.clear()
    run(arguments)
    assert hub.requests == []
    assert "nothing to load" in capsys.readouterr().out
    (tmp_path / "math" / "train.jsonl").unlink()  # lost, and not changed: it comes again, alone
    run(arguments)
    assert [request.path for request in hub.content_requests() if TRAIN_FILE not in request.path] == []
    run([*arguments, "--force"])
    assert any(TEST_FILE in request.path for request in hub.content_requests())
    assert snapshot(tmp_path / "math") == before


def test_what_was_changed_by_hand_is_left_alone(hub: Hub, tmp_path: Path) -> None:
    arguments = ["dataset", "--output-dir", str(tmp_path / "math")]
    run(arguments)
    loaded = snapshot(tmp_path / "math")
    (tmp_path / "math" / "test.jsonl").write_text("mine\n")
    assert "test.jsonl is not what would be loaded (changed by hand" in sentence(arguments)
    assert (tmp_path / "math" / "test.jsonl").read_text() == "mine\n"
    run([*arguments, "--force"])
    assert snapshot(tmp_path / "math") == loaded


def test_files_of_someone_else_are_left_alone_and_equal_ones_taken_over(hub: Hub, tmp_path: Path) -> None:
    folder = tmp_path / "math"
    folder.mkdir()
    (folder / "train.jsonl").write_text("mine\n")
    assert "--force" in sentence(["dataset", "--output-dir", str(folder)])
    assert [path.name for path in folder.iterdir() if path.is_file()] == ["train.jsonl"]
    assert (folder / "train.jsonl").read_text() == "mine\n"
    (folder / "train.jsonl").write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in TRAIN[:41]))
    run(["dataset", "--output-dir", str(folder)])
    assert lines(folder / "test.jsonl") == TEST


def test_a_folder_holds_one_data_set_at_one_revision(hub: Hub, tmp_path: Path) -> None:
    arguments = ["dataset", "--output-dir", str(tmp_path)]
    run([*arguments, "--splits", "train"])
    hub.repos[MATH].commits[SECOND] = {TRAIN_FILE: as_parquet(TRAIN[:3]), TEST_FILE: as_parquet(TEST[:3])}
    run(arguments)  # the second split is of the first one's commit
    assert lines(tmp_path / "test.jsonl") == TEST
    manifest = json.loads((tmp_path / "download.json").read_text())
    assert manifest["commit"] == FIRST
    assert len(manifest["files"]) == 4
    assert "at revision main (commit 1111111)" in sentence([*arguments, "--revision", SECOND])
    assert f"holds {MATH[1]}, not some/other" in sentence([*arguments, "--id", "some/other"])
    run([*arguments, "--revision", SECOND, "--force"])
    assert lines(tmp_path / "test.jsonl") == TEST[:3]


def test_gsm8k_and_json_lines(hub: Hub, tmp_path: Path) -> None:
    rows = [{"question": f"Q{n}?", "answer": f"{n} + 0 = <<{n}+0={n}>>{n}\n#### 1,00{n}"} for n in range(3)]
    body = "".join(json.dumps(row) + "\n" for row in rows).encode()
    hub.repos["dataset", "openai/gsm8k"] = Repo({FIRST: {
        "main/train.jsonl": body, "main/test.jsonl": body, "socratic/train.jsonl": b"{}", "socratic/test.jsonl": b"{}",
    }})  # fmt: skip
    arguments = ["dataset", "--id", "openai/gsm8k", "--output-dir", str(tmp_path)]
    assert "subsets main, socratic; name one: --subset main" in sentence(arguments)
    run([*arguments, "--subset", "main"])
    assert [(row["problem"], row["answer"]) for row in lines(tmp_path / "train.jsonl")] == [
        (f"Q{n}?", f"1,00{n}") for n in range(3)
    ]
    assert lines(tmp_path / "train.jsonl")[0]["solution"] == rows[0]["answer"]


@pytest.mark.parametrize("ranges", [True, False])
def test_a_connection_that_breaks_is_taken_up_where_it_broke(hub: Hub, tmp_path: Path, ranges: bool) -> None:
    hub.ranges = ranges  # a server may send the whole file, whatever it is asked for
    hub.cuts["model.safetensors"] = [1_000_000, 500_000 if ranges else 1_200_000]
    hub.cuts["config.json"] = [5]
    hub.statuses["model.safetensors"] = [503]
    run(["model", "--output-dir", str(tmp_path / "model")])
    assert (tmp_path / "model" / "model.safetensors").read_bytes() == WEIGHTS
    asked = [request.range for request in hub.content_requests() if "cdn" in request.path]
    assert asked[:2] == [None, None]  # 503, then from the start
    assert {request.encoding for request in hub.content_requests()} == {"identity"}  # parts of a whole, not of a .gz
    assert asked[2].startswith("bytes=")
    if ranges:
        assert hub.sent["model.safetensors"] <= len(WEIGHTS) + 1_100_000  # what lay unread in the cut connections


@pytest.mark.parametrize("to_cache", [False, True])
def test_killed_half_way_it_goes_on_there(hub: Hub, tmp_path: Path, to_cache: bool) -> None:
    hub.stop_at["model.safetensors"] = 2_000_000
    arguments = ["model"] if to_cache else ["model", "--output-dir", str(tmp_path / "model")]
    process = command(hub, tmp_path, *arguments)
    wait_for(lambda: largest_unfinished(tmp_path) >= 1_000_000)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    (partial,) = [path for path in tmp_path.rglob("*.incomplete") if path.stat().st_size]
    num_kept = partial.stat().st_size
    assert WEIGHTS.startswith(partial.read_bytes())
    if not to_cache:
        assert [path.name for path in (tmp_path / "model").iterdir()] == [".download"]  # no half of a model
    hub.stop_at.clear()
    hub.requests.clear()
    process = command(hub, tmp_path, *arguments)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    asked = [request.range for request in hub.content_requests() if "cdn" in request.path]
    assert asked == [f"bytes={num_kept}-"]
    (weights,) = tmp_path.rglob("model.safetensors")
    assert weights.read_bytes() == WEIGHTS
    assert list(tmp_path.rglob("*.incomplete")) == []
    assert out.splitlines()[0].startswith(f"{weights.parent}: 5 files of Qwen/Qwen2.5-Math-1.5B, 3 MB")


def test_the_cache_is_the_one_that_the_hubs_client_reads(hub: Hub, tmp_path: Path) -> None:
    from huggingface_hub import snapshot_download

    run(["model"])
    folder = Path(snapshot_download(QWEN[1], local_files_only=True, ignore_patterns="*.bin"))
    assert folder.name == FIRST
    assert snapshot(folder) == {
        name: content for name, content in hub.repos[QWEN].commits[FIRST].items() if name != "pytorch_model.bin"
    }
    hub.requests.clear()
    run(["model"])
    assert hub.content_requests() == []
    (folder / "model.safetensors").resolve().write_bytes(WEIGHTS[:-1] + b"?")  # the client itself would never look
    run(["model"])
    assert (folder / "model.safetensors").read_bytes() == WEIGHTS
    hub.requests.clear()
    run(["model", "--force"])
    assert len(hub.content_requests()) == 4  # three contents, one of them by a redirect; an empty file is not asked for


def test_a_model_in_a_folder(hub: Hub, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["model", "--output-dir", str(tmp_path)]
    run(arguments)
    files = hub.repos[QWEN].commits[FIRST]
    loaded = snapshot(tmp_path)
    manifest = json.loads(loaded.pop("download.json"))
    assert loaded == {name: content for name, content in files.items() if name != "pytorch_model.bin"}
    assert manifest["files"].keys() == loaded.keys()
    said = capsys.readouterr().out
    assert "left out: 1, 9 kB (--include '*' loads all)" in said
    assert f"to use it: model.path={tmp_path}" in said
    hub.requests.clear()
    run(arguments)
    assert hub.requests == []
    (tmp_path / "config.json").write_text("{}")
    assert "config.json is not what would be loaded" in sentence(arguments)
    assert (tmp_path / "config.json").read_text() == "{}"
    run([*arguments, "--force", "--include", "*"])
    assert (tmp_path / "pytorch_model.bin").read_bytes() == files["pytorch_model.bin"]
    assert (tmp_path / "config.json").read_bytes() == files["config.json"]


def test_include_and_exclude(hub: Hub, tmp_path: Path) -> None:
    arguments = ["model", "--output-dir", str(tmp_path)]
    run([*arguments, "--include", "*.txt", "*.json", "--exclude", "sub/*"])
    assert snapshot(tmp_path).keys() == {"empty.txt", "config.json", "download.json"}
    run(arguments)  # the rest joins what is there
    assert snapshot(tmp_path).keys() >= {"empty.txt", "config.json", "model.safetensors", "sub/copy.txt"}
    assert "it has config.json, model.safetensors" in sentence(
        ["model", "--output-dir", str(tmp_path / "x"), "--include", "*.zip"]
    )


def test_former_weights_do_not_stay_beside_new_ones(hub: Hub, tmp_path: Path) -> None:
    arguments = ["model", "--output-dir", str(tmp_path)]
    run(arguments)
    (tmp_path / "notes.txt").write_text("mine")
    hub.repos[QWEN].commits[SECOND] = {"config.json": b"{}", "model-00001-of-00001.safetensors": WEIGHTS[::-1]}
    assert "of another revision" in sentence([*arguments, "--revision", SECOND])
    run([*arguments, "--revision", SECOND, "--force"])
    assert snapshot(tmp_path).keys() == {
        *("config.json", "model-00001-of-00001.safetensors", "download.json", "notes.txt")
    }
    assert "holds Qwen/Qwen2.5-Math-1.5B, not some/other" in sentence([*arguments, "--id", "some/other"])


def test_another_content_than_listed_is_thrown_away(hub: Hub, tmp_path: Path) -> None:
    for path, lie in (("model.safetensors", b"?" + WEIGHTS[1:]), ("config.json", b"?" * 23)):
        hub.lies = {path: lie}
        folder = tmp_path / path
        assert f"{path} of Qwen/Qwen2.5-Math-1.5B came with another checksum" in sentence(
            ["model", "--output-dir", str(folder)]
        )
        assert not any(WEIGHTS[1:] in content or lie in content for content in snapshot(folder).values())
        hub.lies = {}
        run(["model", "--output-dir", str(folder)])
        assert (folder / "model.safetensors").read_bytes() == WEIGHTS


def test_a_broken_part_of_an_earlier_call_costs_only_itself(hub: Hub, tmp_path: Path) -> None:
    for part in (b"?" * 1000, WEIGHTS + b"more", WEIGHTS[:-1] + b"?"):
        folder = tmp_path / str(len(part))
        run(["model", "--output-dir", str(folder), "--include", "*.json"])
        hub.cuts["model.safetensors"] = [100_000, *[0] * 9]
        sentence(["model", "--output-dir", str(folder)])
        hub.cuts.clear()
        (partial,) = folder.rglob("*.incomplete")
        partial.write_bytes(part)
        run(["model", "--output-dir", str(folder)])
        assert (folder / "model.safetensors").read_bytes() == WEIGHTS


def test_killed_between_two_files_it_ends_with_the_same(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(["dataset", "--output-dir", str(tmp_path / "whole")])
    for num_written in range(5):
        folder, left = tmp_path / str(num_written), [num_written]

        def write_some(path: Path, data: bytes, left: list[int] = left) -> None:
            if not left[0]:
                raise KeyboardInterrupt
            left[0] -= 1
            path.write_bytes(data)

        with monkeypatch.context() as patch:
            patch.setattr(dataset_module, "write_atomic", write_some)
            patch.setattr("grpo.downloads.manifest.write_atomic", write_some)
            with pytest.raises(KeyboardInterrupt):
                run(["dataset", "--output-dir", str(folder)])
        run(["dataset", "--output-dir", str(folder)])
        assert snapshot(folder) == snapshot(tmp_path / "whole")


def test_killed_while_a_model_comes_into_its_folder(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(["model", "--output-dir", str(tmp_path / "whole")])
    replace = os.replace
    for num_placed in range(5):
        folder, left = tmp_path / str(num_placed), [num_placed]

        def replace_some(source: Path, target: Path, folder: Path = folder, left: list[int] = left) -> None:
            if folder / ".download" not in target.parents:
                if not left[0]:
                    raise KeyboardInterrupt
                left[0] -= 1
            replace(source, target)

        with monkeypatch.context() as patch:
            patch.setattr(os, "replace", replace_some)
            with pytest.raises(KeyboardInterrupt):
                run(["model", "--output-dir", str(folder)])
        assert len([path for path in snapshot(folder) if not path.startswith(".download/")]) == num_placed
        hub.requests.clear()
        run(["model", "--output-dir", str(folder)])
        assert hub.content_requests() == []  # what had come is not loaded twice
        assert snapshot(folder) == snapshot(tmp_path / "whole")


def test_what_the_hub_refuses_is_a_sentence(hub: Hub, tmp_path: Path) -> None:
    arguments = ["model", "--output-dir", str(tmp_path)]
    assert "there is no model no/such on the Hub, or it is private" in sentence([*arguments, "--id", "no/such"])
    assert "'a/b/c' is no name that the Hub can have" in sentence([*arguments, "--id", "a/b/c"])
    assert "has no revision 'v9'; use a branch" in sentence([*arguments, "--revision", "v9"])
    assert "does not let this token read" in sentence([*arguments, "--token", "hf_unknown"])
    hub.known_tokens = {TOKEN, "hf_other"}
    hub.repos["model", "a/gated"] = Repo({FIRST: {"config.json": b"{}"}}, TOKEN, gated=True)
    hub.repos["model", "a/private"] = Repo({FIRST: {"config.json": b"{}"}}, TOKEN)
    for token in ([], ["--token", "hf_other"]):
        assert f"a/gated is gated; accept its terms at {hub.url}/a/gated" in sentence(
            [*arguments, "--id", "a/gated", *token]
        )
        assert "or it is private" in sentence([*arguments, "--id", "a/private", *token])
    hub.statuses["api"] = [500] * 20
    assert "the Hub answered 500" in sentence(arguments)
    hub.statuses = {"model.safetensors": [404]}
    assert "the Hub answered 404" in sentence(arguments)
    hub.statuses = {}
    hub.repos["model", "a/traverser"] = Repo({FIRST: {"../../evil": b"{}"}})
    assert "'../../evil', which leads elsewhere" in sentence([*arguments, "--id", "a/traverser"])
    assert snapshot(tmp_path).keys() == {
        path for path in snapshot(tmp_path) if path.startswith(".download/")
    }  # nothing came into the folder


def test_data_that_is_none_is_a_sentence(hub: Hub, tmp_path: Path) -> None:
    arguments = ["dataset", "--output-dir", str(tmp_path), "--splits", "train", "--id", "a/b"]
    for path, content, words in (
        ("train.parquet", b"no parquet", "train.parquet is no parquet file"),
        ("train.jsonl", b"{]", "train.jsonl, line 1, is not JSON"),
        ("train.jsonl", b"[1]", "is no JSON object"),
        ("train.jsonl", b'{"text": "no problem"}', "(no_problem 1); name a data set with the fields"),
        ("train.jsonl", b"\n", "(no rows)"),
        ("valid.jsonl", b"{}", "has no file of the split 'train'; it has valid.jsonl"),
        ("train.csv", b"a,b", "it has no .parquet or .jsonl"),
    ):
        hub.repos["dataset", "a/b"] = Repo({FIRST: {path: content}})
        assert words in sentence(arguments)
        assert not (tmp_path / "train.jsonl").exists()


def test_no_network_is_a_sentence(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = ["dataset", "--output-dir", str(tmp_path / "x")]
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    said = sentence(arguments)
    assert "no connection to http://127.0.0.1:9" in said
    assert "check the network" in said
    monkeypatch.setenv("HF_ENDPOINT", f"{hub.url}/datasets/nlile/hendrycks-MATH-benchmark/resolve/main/README.md?")
    hub.repos["dataset", "nlile/hendrycks-MATH-benchmark"].commits[FIRST]["README.md"] = b"<html>"
    assert "does not answer as the Hub does" in sentence(arguments)


def test_offline_is_a_sentence_without_traceback(hub: Hub, tmp_path: Path) -> None:
    process = command(hub, tmp_path, "dataset", "--output-dir", str(tmp_path / "x"), HF_HUB_OFFLINE="1")
    _, err = process.communicate(timeout=60)
    assert process.returncode == 1
    assert err.startswith(f"grpo: {MATH[1]} cannot be loaded, because HF_HUB_OFFLINE")
    assert err.count("\n") == 1


def test_a_full_disk_is_a_sentence(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = ["model", "--output-dir", str(tmp_path)]
    append = PartialFile.append

    def fills_up(partial: PartialFile, chunk: bytes) -> None:
        if partial.num_bytes:
            raise OSError(errno.ENOSPC, "No space left on device")
        append(partial, chunk[:1000])

    with monkeypatch.context() as patch:
        patch.setattr(PartialFile, "append", fills_up)
        assert "no room for Qwen/Qwen2.5-Math-1.5B on the disk" in sentence(arguments)
    (partial,) = tmp_path.rglob("*.incomplete")
    assert partial.stat().st_size == 1000
    with monkeypatch.context() as patch:
        patch.setattr("grpo.downloads.stage.shutil.disk_usage", lambda _: type("Usage", (), {"free": 2_000_000}))
        assert "needs 3 MB more, and 2 MB are free" in sentence(arguments)
    run(arguments)
    assert (tmp_path / "model.safetensors").read_bytes() == WEIGHTS


def test_the_token_goes_to_the_hub_alone(hub: Hub, tmp_path: Path) -> None:
    hub.known_tokens = {TOKEN}
    hub.repos[QWEN].token = TOKEN
    said = ""
    for arguments, env in (
        (["--output-dir", str(tmp_path / "a"), "--token", TOKEN], {}),
        (["--output-dir", str(tmp_path / "b")], {"HF_TOKEN": TOKEN}),
        (["--token", TOKEN], {}),
        (["--id", "no/such", "--token", TOKEN], {"GRPO_FULL_ERROR": "1"}),
        (["--tokn", TOKEN], {}),
    ):
        process = command(hub, tmp_path, "model", *arguments, **env)
        said += "".join(process.communicate(timeout=60))
    assert (tmp_path / "a" / "model.safetensors").read_bytes() == WEIGHTS
    assert snapshot(tmp_path / "b") == snapshot(tmp_path / "a")
    assert said.count("to use it:") == 3
    assert TOKEN not in said
    assert not any(TOKEN.encode() in content for content in snapshot(tmp_path).values())
    sent_to = {"cdn" in request.path for request in hub.requests if request.authorization}
    assert sent_to == {False}
    with pytest.raises(ValueError, match="--token is empty, or holds what no token has") as error:
        run(["model", "--token", f"{TOKEN}\n"])
    assert TOKEN not in str(error.value)


def test_two_at_once_do_not_meet(hub: Hub, tmp_path: Path) -> None:
    hub.stop_at["model.safetensors"] = 2_000_000
    for arguments, words in (
        (["model", "--output-dir", str(tmp_path / "model")], "in use by another run"),
        (["model"], "another process is loading"),
    ):
        process = command(hub, tmp_path, *arguments, HF_HUB_CACHE=str(tmp_path / "cache"))
        wait_for(lambda: largest_unfinished(tmp_path) >= 1_000_000)  # the weights: the others are small
        hub.stop_at.clear()
        assert words in sentence(arguments)
        hub.go_on.set()
        process.communicate(timeout=60)
        assert process.returncode == 0
        hub.go_on.clear()
        hub.stop_at["model.safetensors"] = 2_000_000
    weights = [path for path in tmp_path.rglob("model.safetensors") if path.is_file()]
    assert [path.read_bytes() == WEIGHTS for path in weights] == [True, True]
