"""Sweeps of real runs on one machine: what is shared, what resumes, and what a full disk leaves."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.e2e import processes
from tests.e2e.disk import small_disk

ROOT = Path(__file__).resolve().parents[2]
APP = ROOT / "tests" / "compose" / "sweep_app.py"
ENVIRONMENT = {**os.environ, "PYTHONPATH": f"{ROOT}:{os.environ.get('PYTHONPATH', '')}", "OMP_NUM_THREADS": "1"}

Overrides = Callable[..., list[str]]
Record = Callable[[Path], dict[str, Any]]
AssertSame = Callable[[dict[str, Any], dict[str, Any]], None]


def start(program: list[str], overrides: list[str], log: Path) -> subprocess.Popen[bytes]:
    with log.open("ab") as file:
        return subprocess.Popen(
            [sys.executable, *program, *overrides],
            cwd=ROOT,
            env=ENVIRONMENT,
            stdout=file,
            stderr=subprocess.STDOUT,
        )


def test_an_interrupted_sweep_goes_on_and_the_base_model_is_evaluated_once(
    tmp_path: Path, tiny: Overrides, record: Record, assert_same: AssertSame
) -> None:
    folder, log = tmp_path / "sweep", tmp_path / "log"
    steps = ("train.n_grpo_steps=30", "checkpoint.save_steps=0", "evaluation.eval_steps=0")
    sweep = ["--multirun", *tiny(folder, *steps, "train.learning_rate=1e-2,2e-2")]
    process = start(["-m", "grpo.train"], sweep, log)
    metrics = folder / "0" / "metrics.jsonl"
    deadline = time.monotonic() + 300
    while not (metrics.exists() and metrics.read_text().count("\n") > 2):
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    assert process.wait(300) == 130, log.read_text()
    assert "2 points: 1 stopped, 1 skipped" in log.read_text()
    started = log.stat().st_size
    process = start(["-m", "grpo.train"], sweep, log)
    alone = tiny(tmp_path / "alone", *steps, "train.learning_rate=1e-2")
    assert processes.run(alone, tmp_path / "alone.log", timeout_s=300) == 0
    assert process.wait(300) == 0, log.read_text()
    text = log.read_bytes()[started:].decode()
    assert "2 points: 2 ok" in text
    first, second = ((folder / number / "log.txt").read_text() for number in "01")
    assert "stopped by SIGINT after step " in first
    typed = json.loads((folder / "0" / "provenance.json").read_text())["command"]
    assert typed.startswith("python -m grpo.train experiment=quickstart reward=random ")
    assert typed.endswith(f" output_dir={folder / '0'}")
    assert " train.learning_rate=0.01 " in typed
    assert f"to go on: {typed}\n" in first
    assert "resumed from " in first
    assert "is another point's, kept in" not in first
    assert f"the evaluation before training is another point's, kept in {folder / 'base_evaluations'}" in second
    assert_same(record(folder / "0"), record(tmp_path / "alone"))
    base = [record(place) for place in (folder / "1", tmp_path / "alone")]
    assert base[0]["metrics"][0] == base[1]["metrics"][0]
    assert base[0]["evaluations"]["step_000000.jsonl"] == base[1]["evaluations"]["step_000000.jsonl"]
    assert base[0]["completions"] != base[1]["completions"]
    table = text[text.index("point  overrides") :].splitlines()
    assert "eval/accuracy before" in table[0]
    assert table[1].count("%") == 2


def test_a_full_disk_in_the_middle_costs_the_points_that_needed_it(tmp_path: Path) -> None:
    log = tmp_path / "log"
    with small_disk(tmp_path / "disk") as disk:
        folder = disk / "sweep"
        sweep = ["--multirun", "hardware=cpu", "data=arithmetic", "model=tiny", f"output_dir={folder}"]
        sweep.append("logging.wandb_project=ok,fill,fine")
        assert start([str(APP)], sweep, log).wait(300) == 1
        text = log.read_text()
        assert "Traceback" not in text
        assert "point 2 (logging.wandb_project=fine): could not start: [Errno 28] No space left on device" in text
        assert "sweep.csv could not be written (No space left on device); make room on the disk and start again" in text
        (folder / "ballast").unlink()
        started = log.stat().st_size
        assert start([str(APP)], [*sweep[:-1], "logging.wandb_project=ok,ok,fine"], log).wait(300) == 0
        assert "finished before, and skipped: point 0\n" in log.read_bytes()[started:].decode()
        assert (folder / "2" / "seen.json").exists()
