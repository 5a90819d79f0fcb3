"""metrics.jsonl: whole lines, valid JSON, the same after a resume."""

import json
import math
from pathlib import Path

import pytest
import torch

from grpo.run.metrics import JsonlLog, is_timing, read_jsonl


def test_append_writes_valid_json_that_reads_back_exactly(tmp_path: Path) -> None:
    log = JsonlLog(tmp_path / "metrics.jsonl")
    row = {"step": 1, "policy/loss": 0.1 + 0.2, "tiny": 5e-324, "text": "π\u2028\ud800\n", "list": [1.5, None]}
    log.append(row)
    log.append({"step": 2, "nan": math.nan, "inf": -math.inf, "tensor": torch.tensor(0.5), "in": {"x": [math.inf]}})
    lines = (tmp_path / "metrics.jsonl").read_bytes().split(b"\n")
    assert len(lines) == 3
    assert lines[2] == b""
    assert json.loads(lines[0], parse_constant=pytest.fail) == row
    assert json.loads(lines[1], parse_constant=pytest.fail) == {
        "step": 2, "nan": None, "inf": None, "tensor": 0.5, "in": {"x": [None]}
    }  # fmt: skip
    assert b"0.30000000000000004" in lines[0]


@pytest.mark.parametrize("torn", [b'{"st', b'{"step": 3, "a"', b'{"step": 3}\x00'])
def test_a_torn_last_line_is_not_read_and_not_kept(tmp_path: Path, torn: bytes) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step": 1}\n{"step": 2}\n' + torn)
    assert read_jsonl(path) == [{"step": 1}, {"step": 2}]
    JsonlLog(path).keep_until(5)
    assert path.read_bytes() == b'{"step": 1}\n{"step": 2}\n'


def test_a_whole_last_line_keeps_its_place_without_its_newline(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step": 1}\n{"step": 2}')
    log = JsonlLog(path)
    log.keep_until(2)
    log.append({"step": 3})
    assert [row["step"] for row in read_jsonl(path)] == [1, 2, 3]


def test_keep_until_keeps_bytes_and_drops_later_steps(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step":0,  "a": 1.50}\n{"step": 1}\n{"step": 2}\n{"step": 3}\n{"step')
    log = JsonlLog(path)
    log.keep_until(1)
    assert path.read_bytes() == b'{"step":0,  "a": 1.50}\n{"step": 1}\n'
    log.keep_until(-1)
    assert path.read_bytes() == b""
    JsonlLog(tmp_path / "absent").keep_until(1)
    assert not (tmp_path / "absent").exists()


def test_a_broken_line_in_the_middle_is_named(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step": 1}\n{"st\n{"step": 2}\n')
    with pytest.raises(ValueError, match=r"metrics.jsonl: line 2 is not a JSON object"):
        read_jsonl(path)


@pytest.mark.parametrize("key", ["time/step_s", "rollout/tokens_per_s", "update/tokens_per_s", "memory/peak_gib"])
def test_timings(key: str) -> None:
    assert is_timing(key)


@pytest.mark.parametrize("key", ["step", "reward/mean", "policy/loss", "completion/length_mean", "eval/accuracy"])
def test_not_timings(key: str) -> None:
    assert not is_timing(key)
