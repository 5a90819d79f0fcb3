"""Sweeps: each point in a process and a folder of its own, failures at the end, signals passed on once."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
APP = Path(__file__).with_name("sweep_app.py")
# The config of every point keeps the rules; hardware and data are those that need nothing.
BASE = ("hardware=cpu", "data=arithmetic", "model=tiny")


def start(*overrides: str, flags: tuple[str, ...] = ("--multirun",)) -> "subprocess.Popen[str]":
    # A process group of its own, so that a signal to the group is what Ctrl-C is in a terminal.
    return subprocess.Popen(
        [sys.executable, str(APP), *flags, *BASE, *overrides],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def sweep(*overrides: str, flags: tuple[str, ...] = ("--multirun",)) -> tuple[int, str]:
    process = start(*overrides, flags=flags)
    output, _ = process.communicate(timeout=300)
    return process.returncode, output


def seen(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "seen.json").read_text())


def wait_for(path: Path, process: "subprocess.Popen[str]") -> None:
    deadline = time.monotonic() + 120
    while not path.exists():
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline, f"{path} did not appear"
        time.sleep(0.02)


def test_points_run_apart_and_failures_come_last(tmp_path: Path) -> None:
    folder = tmp_path / "it's a, sweep=1"  # all that Hydra's override grammar could trip over
    escaped = str(folder).replace("'", "\\'")
    status, output = sweep(f"output_dir='{escaped}'", "logging.wandb_project=ok,fail,fine", "seed=7")

    assert status == 1
    points = [seen(folder / str(number)) for number in range(3)]
    assert len({point["pid"] for point in points}) == 3
    assert [point["seed"] for point in points] == [7, 7, 7]
    assert "Traceback" not in output
    assert "all with hardware=cpu data=arithmetic model=tiny" in output
    for place, name in enumerate(("ok", "fail", "fine"), start=1):
        assert f"[{place}/3] start  logging.wandb_project={name}" in output
    end = output[output.index("point  overrides") :]
    assert f"point 1 (logging.wandb_project=fail): exit status 3, log: {folder / '1' / 'log.txt'}" in end
    assert "    the reason it failed" in end
    assert output.splitlines()[-1] == "3 points: 2 ok, 1 failed"
    assert (folder / "1" / "log.txt").read_text().startswith("$ ")


def test_a_sweep_option_is_a_sweep_and_succeeds(tmp_path: Path) -> None:
    status, output = sweep("sweep=group_size", "train.group_size=4,8", f"output_dir={tmp_path}", flags=())
    assert status == 0, output
    assert [seen(tmp_path / number)["group_size"] for number in "01"] == [4, 8]
    assert output.splitlines()[-1] == "2 points: 2 ok"


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_is_passed_on_once_and_ends_the_sweep(tmp_path: Path, signum: signal.Signals) -> None:
    process = start(f"output_dir={tmp_path}", "logging.wandb_project=wait,ok")
    wait_for(tmp_path / "0" / "ready", process)
    os.killpg(process.pid, signum)
    time.sleep(0.3)
    os.killpg(process.pid, signum)  # an impatient user
    output, _ = process.communicate(timeout=60)

    assert process.returncode == 128 + signum
    assert json.loads((tmp_path / "0" / "saved.json").read_text()) == [signum]
    assert not (tmp_path / "1").exists()
    assert "Traceback" not in output
    assert output.splitlines()[-1] == "2 points: 1 stopped, 1 skipped"


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        (
            "train.group_size=4,7",
            "point 1 (train.group_size=7): train.rollout_batch_size=256 is not a multiple of train.group_size=7",
        ),
        ("loss=grpo_clip,grpo_clap", "Could not find 'loss/grpo_clap'"),
        ("train.group_sise=4,8", "Key 'group_sise' not in 'TrainConfig'"),
    ],
)
def test_a_wrong_point_is_found_before_anything_starts(tmp_path: Path, override: str, sentence: str) -> None:
    status, output = sweep(f"output_dir={tmp_path}", override)
    assert status == 1
    assert sentence in output
    assert "Traceback" not in output
    assert not list(tmp_path.glob("*/log.txt"))


def test_two_points_never_share_a_folder(tmp_path: Path) -> None:
    status, output = sweep(f"hydra.sweep.dir={tmp_path}", "hydra.sweep.subdir=same", "seed=1,2")
    assert status == 1
    assert f"2 points would write to {tmp_path / 'same'}" in output
    assert not (tmp_path / "same").exists()
