"""Sweeps: each point in a process and a folder of its own, failures at the end, signals passed on once."""

import csv
import importlib.util
import json
import math
import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hydra.errors import ConfigCompositionException
from omegaconf import OmegaConf

from grpo.config import register
from hydra_plugins.grpo_launchers._points import Point
from hydra_plugins.grpo_launchers._record import open_record
from hydra_plugins.grpo_launchers._seats import seats

ROOT = Path(__file__).resolve().parents[2]
APP = Path(__file__).with_name("sweep_app.py")
# The config of every point keeps the rules; hardware and data are those that need nothing.
BASE = ("hardware=cpu", "data=arithmetic", "model=tiny")
ENVIRONMENT = {**os.environ, "PYTHONPATH": f"{ROOT}:{os.environ.get('PYTHONPATH', '')}", "OMP_NUM_THREADS": "1"}


def start(*overrides: str, flags: tuple[str, ...] = ("--multirun",)) -> "subprocess.Popen[str]":
    # A process group of its own, so that a signal to the group is what Ctrl-C is in a terminal.
    return subprocess.Popen(
        [sys.executable, str(APP), *flags, *BASE, *overrides],
        cwd=ROOT,
        env=ENVIRONMENT,
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
    assert "point 1 (logging.wandb_project=fail): exit status 3\n" in end
    assert f"    log: {folder / '1' / 'log.txt'}\n    the reason it failed\n" in end
    assert "3 points: 2 ok, 1 failed" in output.splitlines()
    assert (folder / "1" / "log.txt").read_text().startswith("$ python ")
    assert points[1]["typed"] in (folder / "1" / "log.txt").read_text()
    with (folder / "sweep.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["logging.wandb_project"] for row in rows] == ["ok", "fail", "fine"]
    assert [row["status"] for row in rows] == ["ok", "exit status 3", "ok"]
    assert [row["folder"] for row in rows] == [str(folder / str(number)) for number in range(3)]
    # The same sweep again, by the command that it prints: what is done stays done.
    again = output.splitlines()[-1]
    assert again.startswith("to go on: python ")
    done = (folder / "0" / "seen.json").stat().st_mtime_ns
    process = subprocess.run(
        ["bash", "-c", again.removeprefix("to go on: ").replace("python", sys.executable, 1)],
        cwd=ROOT,
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
    )
    assert process.returncode == 1, process.stderr
    assert "finished before, and skipped: point 0, 2\n" in process.stdout
    assert "3 points: 2 finished before, 1 failed" in process.stdout
    assert (folder / "0" / "seen.json").stat().st_mtime_ns == done
    assert seen(folder / "1")["pid"] != points[1]["pid"]


def test_a_sweep_option_is_a_sweep_and_succeeds(tmp_path: Path) -> None:
    status, output = sweep("sweep=group_size", "train.group_size=4,8", f"output_dir={tmp_path}", flags=())
    assert status == 0, output
    assert [seen(tmp_path / number)["group_size"] for number in "01"] == [4, 8]
    assert not (tmp_path / "multirun.yaml").exists()
    assert output.splitlines()[-1] == "2 points: 2 ok"


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_is_passed_on_once_and_ends_the_sweep(tmp_path: Path, signum: signal.Signals) -> None:
    process = start(f"output_dir={tmp_path}", "logging.wandb_project=slow,ok")
    wait_for(tmp_path / "0" / "ready", process)
    os.killpg(process.pid, signum)
    time.sleep(0.3)
    os.killpg(process.pid, signum)  # an impatient user
    time.sleep(0.3)  # in which the point would get it too
    (tmp_path / "open").touch()
    output, _ = process.communicate(timeout=120)

    assert process.returncode == 128 + signum
    assert json.loads((tmp_path / "0" / "saved.json").read_text()) == [signum]
    assert not (tmp_path / "1" / "log.txt").exists()
    assert "Traceback" not in output
    assert "2 points: 1 stopped, 1 skipped" in output.splitlines()
    if signum == signal.SIGINT:
        status, output = sweep(f"output_dir={tmp_path}", "logging.wandb_project=slow,ok")
        assert (status, output.splitlines()[-1]) == (0, "2 points: 2 ok")
        assert (tmp_path / "0" / "went_on").exists()


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        (
            "train.group_size=4,7",
            "point 1 (train.group_size=7): train.rollout_batch_size=256 is not a multiple of train.group_size=7",
        ),
        ("loss=grpo_clip,grpo_clap", "loss=grpo_clap is no option of loss (did you mean grpo_clip?)"),
        ("train.group_sise=4,8", "train.group_sise is no setting (did you mean train.group_size"),
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


def test_a_folder_of_another_sweep_or_of_a_run_is_refused(tmp_path: Path) -> None:
    status, output = sweep(f"output_dir={tmp_path}", "seed=1")
    assert (status, f"sweep: 1 point into {tmp_path}, one process each\n" in output) == (0, True)
    before = contents(tmp_path)
    status, output = sweep(f"output_dir={tmp_path}", "seed=2", "train.group_size=4,8")
    assert status == 1
    assert (
        f"{tmp_path} holds another sweep (seed=1 there, 2 here (point 0); train.group_size=8 there, 4 here (point 0)); "
        "use its settings to go on, or another output_dir"
    ) in output
    assert contents(tmp_path) == before
    # More points, other logs and more steps make no other sweep of it; but with more steps point 0 is not finished.
    more = ("logging.wandb_project=fine", "seed=1,2")
    assert "1 ok, 1 finished before" in sweep(f"resume={tmp_path}", *more)[1]
    assert "2 points: 2 ok" in sweep(f"resume={tmp_path}", *more, "train.n_grpo_steps=300")[1]
    with pytest.raises(ConfigCompositionException, match=r"resume=never but .* holds a sweep; use another output_dir"):
        open_record(tmp_path, "never")


def test_a_folder_that_holds_no_sweep(tmp_path: Path) -> None:
    assert open_record(tmp_path, "auto").points == {}
    with pytest.raises(ConfigCompositionException, match=r"resume=\S+ holds no sweep; name a sweep's folder"):
        open_record(tmp_path, str(tmp_path))
    (tmp_path / "metrics.jsonl").touch()
    with pytest.raises(ConfigCompositionException, match="holds a run, and no sweep; use another output_dir"):
        open_record(tmp_path, "auto")


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_what_changes_while_a_sweep_runs_does_not_reach_its_points(tmp_path: Path) -> None:
    mine = tmp_path / "conf" / "experiment" / "mine.yaml"
    mine.parent.mkdir(parents=True)
    mine.write_text("# @package _global_\nseed: 5\ndata:\n  problem_field: '\\${literally}'\n")
    flags = ("--multirun", "--config-dir", str(tmp_path / "conf"))
    folder = tmp_path / "sweep"
    process = start("experiment=mine", f"output_dir={folder}", "logging.wandb_project=gate,ok", flags=flags)
    wait_for(folder / "0" / "seen.json", process)
    mine.write_text("# @package _global_\nseed: 6\n")
    (folder / "open").touch()
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 0, output
    assert [seen(folder / number)["seed"] for number in "01"] == [5, 5]
    assert f"--config-dir {tmp_path / 'conf'} hardware=cpu" in seen(folder / "1")["typed"]
    frozen = OmegaConf.load(folder / "1" / "point.yaml")
    assert OmegaConf.select(frozen, "data.problem_field") == "${literally}"


def test_points_side_by_side(tmp_path: Path) -> None:
    """Each of the first two ends only once both run; the third waits for a place."""
    points = "logging.wandb_project=pair1,pair2,kill9"
    status, output = sweep(f"output_dir={tmp_path}", points, "sweep.parallel=2", "logging.console=rich")
    assert status == 1
    assert "3 points: 2 ok, 1 failed" in output
    assert "\x1b[" in output  # the table is drawn
    places = [output.index(f"start  logging.wandb_project={name}") for name in ("pair1", "pair2", "kill9")]
    first_end = output.index(" end    ")
    assert places[0] < places[1] < first_end < places[2]
    assert "point 2 (logging.wandb_project=kill9): killed by SIGKILL" in output


GPU = {"hardware": {"policy_device": "cuda:0", "engine_device": "cuda:0"}}
TWO = {"hardware": {"policy_device": "cuda:0", "engine_device": "cuda:1"}}
CPU = {"hardware": {"policy_device": "cpu", "engine_device": "cpu"}}


@pytest.mark.parametrize(
    ("visible", "config", "parallel", "expected"),
    [
        ("0,1", GPU, 1, [None]),
        ("3,GPU-5e", GPU, 2, ["3", "GPU-5e"]),
        ("0,1,2,3", GPU, 2, ["0,1", "2,3"]),
        ("0,1,2,3,4", TWO, 2, ["0,1", "2,3"]),
        ("7", GPU, 2, [None, None]),
        ("0,1", CPU, 3, [None, None, None]),
        ("0,1", GPU, 3, "need 3, and 2 are here; use sweep.parallel=2"),
        ("0,1,2", TWO, 2, "need 4, and 3 are here; use sweep.parallel=1"),
    ],
)
def test_every_point_at_a_time_has_gpus_of_its_own(
    visible: str, config: Any, parallel: int, expected: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    points = [Point(0, (), Path(), config=config)]
    if isinstance(expected, str):
        with pytest.raises(ValueError, match=expected):
            seats(parallel, points)
        return
    places = seats(parallel, points)
    assert [place.get("CUDA_VISIBLE_DEVICES") for place in places] == expected
    assert all((int(place["OMP_NUM_THREADS"]) >= 1) for place in places if parallel > 1)


def test_a_parent_that_is_killed_leaves_no_point_behind(tmp_path: Path) -> None:
    process = start(f"output_dir={tmp_path}", "logging.wandb_project=slow,ok")
    wait_for(tmp_path / "0" / "ready", process)
    process.kill()
    process.wait()
    orphan = seen(tmp_path / "0")["pid"]
    late = threading.Timer(20, (tmp_path / "open").touch)  # its guard waits for 30 s, in which it has to save
    late.daemon = True
    late.start()
    # At once, while the point of the first start still saves; a slow machine may need longer.
    again = start(f"output_dir={tmp_path}", "logging.wandb_project=slow,ok")
    assert again.stdout is not None
    assert any(line.startswith("sweep: ") for line in again.stdout)
    late.cancel()
    is_in_time = not (tmp_path / "open").exists()
    waiting = "point 0 of an earlier start still runs; waiting for it to save and end\n"
    assert not is_in_time or any(line == waiting for line in again.stdout)
    (tmp_path / "open").touch()
    output, _ = again.communicate(timeout=120)
    assert json.loads((tmp_path / "0" / "saved.json").read_text()) == [signal.SIGTERM]
    with suppress(ProcessLookupError):
        os.kill(orphan, 0)
        pytest.fail("the point still runs")
    assert again.returncode == 0, output


def test_batches_go_on_after_a_failure_and_the_status_tells_of_it(tmp_path: Path) -> None:
    batches = "hydra.sweeper.max_batch_size=1"
    status, output = sweep(f"output_dir={tmp_path}", batches, "logging.wandb_project=fail,ok")
    assert status == 1
    assert seen(tmp_path / "1")
    assert "[2/2] end    " in output
    with (tmp_path / "sweep.csv").open() as file:
        assert [row["status"] for row in csv.DictReader(file)] == ["exit status 3", "ok"]


def test_sweeps_of_the_same_second_have_folders_of_their_own(tmp_path: Path) -> None:
    register()

    def folder(_: int) -> str:
        return str(OmegaConf.create({"dir": f"${{sweep_dir:null,auto,{tmp_path}/12-00-00}}"}).dir)

    with ThreadPoolExecutor(8) as pool:
        folders = list(pool.map(folder, range(20)))
    assert len(set(folders)) == 20
    assert f"{tmp_path}/12-00-00" in folders
    config = OmegaConf.create({"dir": f"${{sweep_dir:null,auto,{tmp_path}/13-00-00}}"})
    assert config.dir == config.dir == f"{tmp_path}/13-00-00"


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (("launch=slurm", "hydra.mode=RUN"), "this is a single run, which would run here; add --multirun"),
        (("hydra/launcher=slurm",), "this is a single run, which would run here; add --multirun"),
        (("launch.name=slurm",), "this is a single run, which would run here; add --multirun"),
        (("launch=slurm", "hydra/launcher=subprocess", "hydra.mode=RUN"), "this is a single run"),
        (("launch=slurm", "hydra/launcher=subprocess"), "grpo_launchers.subprocess_launcher.SubprocessLauncher) would"),
        (("launch=slurm", "hydra/launcher=basic", "seed=1,2"), "basic_launcher.BasicLauncher) would; leave"),
    ],
)
def test_slurm_is_never_this_machine(tmp_path: Path, overrides: tuple[str, ...], sentence: str) -> None:
    status, output = sweep(f"output_dir={tmp_path}", *overrides, flags=())
    assert status == 1
    assert sentence in output
    assert output.startswith("grpo: launch=slurm ")
    assert output.count("\n") == 1
    assert not list(tmp_path.rglob("*.json"))


def test_the_table_and_the_file_have_the_metrics(tmp_path: Path) -> None:
    swept = ("logging.wandb_project=measure", "train.learning_rate=1e-5,2e-5")
    status, output = sweep(f"output_dir={tmp_path}", *swept, "sweep.summary=[eval/accuracy,reward/mean,no/such]")
    assert status == 0, output
    lines = [line.split() for line in output.splitlines()]
    names = ["point", "overrides", "status", "time", "step", "eval/accuracy", "before", "eval/accuracy", "reward/mean"]
    header = lines.index(names)
    assert lines[header + 2][4:] == ["4", "12.5%", "69.9%", "0.5"]
    with (tmp_path / "sweep.csv").open() as file:
        first, second = csv.DictReader(file)
    assert list(first) == [
        *("point", "train.learning_rate", "status", "seconds", "step"),
        *("eval/accuracy before", "eval/accuracy", "reward/mean", "folder"),
    ]
    assert (second["train.learning_rate"], second["step"]) == ("2e-05", "4")
    assert float(second["eval/accuracy"]) == pytest.approx(0.69897)


def test_optuna_searches_and_goes_on_where_it_was(tmp_path: Path) -> None:
    pytest.importorskip("hydra_plugins.hydra_optuna_sweeper")
    search = (f"output_dir={tmp_path}", "sweep=optuna", "logging.wandb_project=measure", "sweep.parallel=2")
    status, output = sweep(*search, "hydra.sweeper.n_trials=4", flags=())
    assert status == 0, output
    rates = [OmegaConf.load(tmp_path / str(number) / "point.yaml").train.learning_rate for number in range(4)]
    assert len(set(rates)) == 4
    best = min(range(4), key=lambda number: abs(math.log10(rates[number]) + 5))
    assert f" of point {best} (" in output
    assert f"best so far: eval/accuracy={1 - abs(math.log10(rates[best]) + 5):.6g}" in output
    (tmp_path / "3" / "result.json").unlink()
    status, output = sweep(*search, "hydra.sweeper.n_trials=6", flags=())
    assert status == 0, output
    assert "finished before, and skipped: point 0, 1\n" in output
    assert "finished before, and skipped: point 2\n" in output
    assert OmegaConf.load(tmp_path / "3" / "point.yaml").train.learning_rate == rates[3]
    assert (tmp_path / "5" / "result.json").exists()


def test_without_optuna_its_sweep_says_what_to_install(tmp_path: Path) -> None:
    if importlib.util.find_spec("hydra_plugins.hydra_optuna_sweeper") is not None:
        pytest.skip("it is installed")
    status, output = sweep(f"output_dir={tmp_path}", "sweep=optuna", flags=())
    assert (status, output.count("\n")) == (1, 1)
    assert output.startswith("grpo: sweep=optuna needs hydra-optuna-sweeper, which is not installed; pip install -e")
