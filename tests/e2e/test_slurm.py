"""Sweeps on a real Slurm: two nodes, brought up by `slurm_cluster` on this machine."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import venv
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from grpo.run.metrics import read_jsonl
from hydra_plugins.grpo_launchers._local import StopRequest
from hydra_plugins.grpo_launchers._points import Point
from hydra_plugins.grpo_launchers._record import Record, Submission
from hydra_plugins.grpo_launchers._slurm_collect import collect
from hydra_plugins.grpo_launchers.slurm_launcher import _note_or_cancel
from tests.e2e import processes
from tests.e2e.disk import small_disk
from tests.e2e.slurm_cluster import Cluster, missing_programs, running_cluster

pytestmark = pytest.mark.slurm

ROOT = Path(__file__).resolve().parents[2]
APP = ROOT / "tests" / "compose" / "sweep_app.py"
BASE = ("launch=slurm", "hardware=cpu", "data=arithmetic", "model=tiny")
NEEDED = pytest.importorskip if os.environ.get("REQUIRE_SLURM") != "1" else __import__

Overrides = Callable[..., list[str]]
AssertSame = Callable[[dict[str, Any], dict[str, Any]], None]
Reader = Callable[[Path], dict[str, Any]]


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """A cluster for all tests of this file; skips, or fails if REQUIRE_SLURM=1, where Slurm is not installed."""
    missing = missing_programs()
    if missing and os.environ.get("REQUIRE_SLURM") != "1":
        pytest.skip(f"not installed: {', '.join(missing)}")
    assert not missing, f"REQUIRE_SLURM=1, but not installed: {', '.join(missing)}"
    NEEDED("submitit")
    with running_cluster() as up:
        yield up


class Sweep:
    """A sweep in a process of its own, as a person starts it."""

    def __init__(self, cluster: Cluster, folder: Path, *overrides: str, program: tuple[str, ...] = (str(APP),)) -> None:
        self.cluster, self.folder = cluster, folder
        path = f"{ROOT}:{os.environ.get('PYTHONPATH', '')}"
        environment = {**os.environ, **cluster.environment, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
        self.process = subprocess.Popen(
            [sys.executable, *program, *overrides, f"output_dir={folder}"],
            cwd=ROOT,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        cluster.programs.append(self.process)

    def end(self) -> tuple[int, str]:
        output, _ = self.process.communicate(timeout=300)
        return self.process.returncode, output

    def wait_for(self, name: str) -> Path:
        path = self.folder / name
        self.cluster.wait(lambda: path.exists() or self.process.poll() is not None, name, 120)
        assert path.exists(), self.end()[1]
        return path

    def job(self, point: int) -> str:
        jobs = submissions(self.folder)[-1]["jobs"]
        return jobs[str(point)]


def submissions(folder: Path) -> list[dict[str, Any]]:
    return json.loads((folder / "sweep.json").read_text())["submissions"]


def test_four_points_two_good_one_failing_one_signalled_and_requeued(
    cluster: Cluster, tmp_path: Path, tiny: Overrides, record: Reader, assert_same: AssertSame
) -> None:
    """The signalled one saves, is requeued, goes on, and ends with the weights of a run that nobody disturbed."""
    steps = ("train.n_grpo_steps=30", "checkpoint.save_steps=0", "train.canary_steps=0")
    steps = (*steps, "evaluation.eval_steps=0", "evaluation.max_tokens=12")
    points = "sampling.max_tokens=12,13,9000,40"
    sweep = Sweep(
        cluster, tmp_path / "sweep", *tiny(None, *steps), "launch=slurm", points, program=("-m", "grpo.train")
    )
    alone = tiny(tmp_path / "alone", *steps, "sampling.max_tokens=40")
    with ThreadPoolExecutor(1) as pool:
        undisturbed = pool.submit(processes.run, alone, tmp_path / "log", timeout_s=300)
        metrics = sweep.folder / "3" / "metrics.jsonl"
        cluster.wait(lambda: metrics.exists() and metrics.read_text().count("\n") > 2, "steps of point 3", 300)
        cluster.run("scancel", "--signal=USR1", sweep.job(3))
        cluster.restart_now(sweep.job(3))
        status, output = sweep.end()
        assert undisturbed.result() == 0

    assert status == 1, output
    assert "Traceback" not in output
    assert "4 points: 3 ok, 1 failed" in output
    assert f"point 2 (sampling.max_tokens=9000): FAILED, job {sweep.job(2)}\n" in output
    assert "    rank 0 on n" in output
    assert f"    log: {sweep.folder / '2' / 'log.txt'}\n" in output
    assert "    grpo: " in output
    assert "more than the model's context of 8192" in output
    log = (sweep.folder / "3" / "log.txt").read_text()
    assert log.count("$ python -m grpo.train ") == 2
    assert "SIGTERM: this step is finished and saved" in log
    assert "resumed from " in log
    assert_same(record(sweep.folder / "3"), record(tmp_path / "alone"))
    # One of the three made the evaluation before training.
    shared = [(sweep.folder / p / "log.txt").read_text().count("is another point's, kept in") for p in "013"]
    assert sum(shared) == 2


def test_ranks_on_two_nodes_meet_and_the_first_to_fail_is_told(cluster: Cluster, tmp_path: Path) -> None:
    two_nodes = ("launch.nodes=2", "hardware=multi_node", "data=arithmetic", "model=tiny")
    two_nodes = ("--multirun", "hydra/launcher=slurm", *two_nodes)
    devices = ("hardware.policy_device=cpu", "hardware.engine_device=cpu")
    sweep = Sweep(cluster, tmp_path / "s", *two_nodes, *devices, "logging.wandb_project=ranks,ranks_fail")
    status, output = sweep.end()
    assert status == 1, output
    assert "2 points: 1 ok, 1 failed" in output
    sums = [json.loads((sweep.folder / "0" / f"sum_{rank}.json").read_text()) for rank in (0, 1)]
    assert [one["total"] for one in sums] == [3.0, 3.0]
    assert [one["RANK"] for one in sums] == ["0", "1"]
    assert [one["SLURMD_NODENAME"] for one in sums] == ["n1", "n2"]
    for one in sums:
        assert (one["WORLD_SIZE"], one["LOCAL_RANK"], one["LOCAL_WORLD_SIZE"]) == ("2", "0", "1")
        assert (one["MASTER_ADDR"], one["MASTER_PORT"]) == ("127.0.0.1", sums[0]["MASTER_PORT"])
    assert f"rank 1 on n2: exit status 5\n    log: {sweep.folder / '1' / 'slurm' / 'log_rank_1.txt'}\n" in output
    assert "    rank 1 has its reasons\n" in output


def test_ranks_on_two_nodes_save_are_requeued_and_go_on(cluster: Cluster, tmp_path: Path) -> None:
    two_nodes = (*BASE, "launch.nodes=2", "hardware.sharded=true", "logging.wandb_project=wait")
    sweep = Sweep(cluster, tmp_path / "s", *two_nodes)
    cluster.wait(lambda: len(list(sweep.folder.glob("0/ready*"))) == 2, "two ranks", 120)
    cluster.run("scancel", "--signal=USR1", sweep.job(0))
    cluster.restart_now(sweep.job(0))
    status, output = sweep.end()
    assert status == 0, output
    for rank in ("", "_1"):
        assert json.loads((sweep.folder / "0" / f"saved{rank}.json").read_text()) == [signal.SIGTERM]
        assert (sweep.folder / "0" / f"went_on{rank}").exists()
    notes = [json.loads((sweep.folder / "0" / "slurm" / f"rank_{rank}.json").read_text()) for rank in (0, 1)]
    assert [note["restarts"] for note in notes] == [1, 1]


@pytest.mark.slow
def test_two_nodes_train_one_policy(cluster: Cluster, tmp_path: Path, tiny: Overrides) -> None:
    """A sharded run over gloo, with the numbers of one process."""
    cpu = ("hardware.policy_device=cpu", "hardware.engine_device=cpu", "hardware.compute_dtype=float32")
    slurm = ("launch=slurm", "launch.nodes=2", "hardware=multi_node", *cpu, "hardware.num_threads=1")
    sweep = Sweep(cluster, tmp_path / "sweep", *tiny(None), *slurm, program=("-m", "grpo.train"))
    assert processes.run(tiny(tmp_path / "alone"), tmp_path / "log") == 0
    status, output = sweep.end()
    assert status == 0, output
    two, one = (read_jsonl(folder / "metrics.jsonl") for folder in (sweep.folder / "0", tmp_path / "alone"))
    assert [row["step"] for row in two] == [row["step"] for row in one] == list(range(7))
    for key in ("reward/mean", "policy/loss", "policy/grad_norm"):
        assert [row[key] for row in two[1:]] == pytest.approx([row[key] for row in one[1:]], rel=1e-4, abs=1e-6)


def test_a_full_disk_in_the_middle_costs_the_points_that_needed_it(cluster: Cluster, tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk") as disk:
        folder = disk / "sweep"
        overrides = (*BASE, "launch.array_parallelism=1")
        status, output = Sweep(cluster, folder, *overrides, "logging.wandb_project=ok,fill,fine").end()
        assert status == 1, output
        assert "Traceback" not in output
        assert "3 points: 1 ok, 2 failed" in output
        assert "sweep.csv could not be written (No space left on device)" in output
        (folder / "ballast").unlink()
        status, output = Sweep(cluster, folder, *overrides, "logging.wandb_project=ok,ok,fine").end()
        assert status == 0, output
        assert "finished before, and skipped: point 0" in output
        assert (folder / "2" / "seen.json").exists()


def test_a_cancelled_array_keeps_what_is_finished_and_the_next_start_takes_the_rest(
    cluster: Cluster, tmp_path: Path
) -> None:
    overrides = (*BASE, "launch.gpus_per_node=1", "launch.array_parallelism=1", "logging.wandb_project=ok,wait,fine")
    detached = (*overrides, "launch.detach=true")
    folder = tmp_path / "sweep"
    first = Sweep(cluster, folder, *detached)
    status, output = first.end()
    array = first.job(0).split("_")[0]
    assert status == 0, output
    assert f"job {array} stays in the queue: the command below collects it, `scancel {array}` ends it\n" in output
    assert "3 points: 3 in the queue" in output
    cluster.wait((folder / "1" / "ready").exists, "point 1", 300)
    cluster.wait_for_state(first.job(0), "COMPLETED")
    cluster.run("scancel", array)
    cluster.wait_for_state(first.job(1), "CANCELLED")

    status, output = Sweep(cluster, folder, *detached).end()
    assert status == 1
    assert f"point 1 (logging.wandb_project=wait): CANCELLED, job {first.job(1)}\n" in output
    assert "it has saved, and the next start goes on from there\n" in output
    assert f"point 2 (logging.wandb_project=fine): CANCELLED, job {first.job(2)}\n    it never started" in output
    assert "3 points: 1 ok, 2 failed" in output
    assert set(json.loads((folder / "1" / "saved.json").read_text())) == {signal.SIGTERM}
    assert json.loads((folder / "0" / "seen.json").read_text())["gpus"] == "0"

    again = Sweep(cluster, folder, *overrides)
    status, output = again.end()
    assert status == 0, output
    assert "3 points: 2 ok, 1 finished before" in output
    assert list(submissions(folder)[1]["jobs"]) == ["1", "2"]
    assert (folder / "1" / "went_on").exists()
    assert (folder / "2" / "seen.json").exists()


def test_batches_that_are_left_in_the_queue_are_collected_each_by_its_own_start(
    cluster: Cluster, tmp_path: Path
) -> None:
    batches = (*BASE, "hydra.sweeper.max_batch_size=1", "logging.wandb_project=ok,wait", "launch.detach=true")
    first = Sweep(cluster, tmp_path / "s", *batches)
    status, output = first.end()
    assert status == 0, output
    jobs = [job for submission in submissions(first.folder) for job in submission["jobs"].values()]
    cluster.wait((first.folder / "1" / "ready").exists, "point 1", 120)
    cluster.wait_for_state(jobs[0], "COMPLETED")
    status, output = Sweep(cluster, first.folder, *batches).end()
    assert status == 0, output
    assert "1 points: 1 ok" in output
    assert "1 points: 1 in the queue" in output
    assert len(submissions(first.folder)) == 2
    cluster.run("scancel", jobs[1])


def test_a_job_that_slurm_has_forgotten_is_what_it_noted_itself(
    cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Slurm drops jobs a while after their end, and who detached may come later than that."""
    for name, value in cluster.environment.items():
        monkeypatch.setenv(name, value)
    points = [Point(number, (f"seed={number}",), tmp_path / str(number)) for number in range(2)]
    for point in points:
        (point.folder / "slurm").mkdir(parents=True)
    note = {"job_id": "987654_0", "restarts": 0, "status": "ok", "code": 0, "reason": "", "time": 1.0, "host": "n1"}
    note = {**note, "log": "log.txt", "started": 0.25}
    (points[0].folder / "slurm" / "rank_0.json").write_text(json.dumps(note))
    submission = Submission({0: "987654_0", 1: "987654_1"})
    assert collect(submission, points, tmp_path, StopRequest(), wait=True)
    assert [point.status for point in points] == ["ok", "gone from the queue, job 987654_1"]
    assert [point.seconds for point in points] == [0.75, 0.0]
    assert points[1].details[0] == "it never started the program"


def test_jobs_that_cannot_be_noted_are_cancelled(
    cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next start would not know of them, and run the points a second time beside them."""
    for name, value in cluster.environment.items():
        monkeypatch.setenv(name, value)
    job = cluster.run("sbatch", "--parsable", "-o", "/dev/null", "--wrap", "sleep 60").strip()
    record = Record(tmp_path)  # without a folder for what it notes: a full disk, for one
    with pytest.raises(FileNotFoundError):
        _note_or_cancel(record, Submission({0: job}))
    cluster.wait_for_state(job, "CANCELLED")
    assert record.in_queue == {}


def test_a_preempted_point_saves_and_goes_on(cluster: Cluster, tmp_path: Path) -> None:
    """By Slurm's own preemption: SIGTERM, a time of grace, and a requeue that is Slurm's."""
    sweep = Sweep(cluster, tmp_path / "s", *BASE, "launch.cpus_per_task=4", "logging.wandb_project=wait")
    sweep.wait_for("0/ready")
    urgent = ("-p", "urgent", "-N2", "--exclusive", "-o", "/dev/null", "--wrap", "sleep 1")
    submitted = cluster.run("sbatch", *urgent)
    cluster.wait(lambda: (sweep.folder / "0" / "saved.json").exists(), "the point to save", 60)
    cluster.wait_for_state(submitted.split()[-1], "COMPLETED")
    cluster.restart_now(sweep.job(0))
    status, output = sweep.end()
    assert status == 0, output
    # Maybe twice, which a run takes for one: once from Slurm, once through srun.
    assert set(json.loads((sweep.folder / "0" / "saved.json").read_text())) == {signal.SIGTERM}
    assert (sweep.folder / "0" / "went_on").exists()


@pytest.mark.slow
def test_a_time_limit_costs_a_requeue_and_no_result(cluster: Cluster, tmp_path: Path) -> None:
    limit = ("launch.time=1", "launch.signal_lead_s=20")
    sweep = Sweep(cluster, tmp_path / "s", *BASE, *limit, "logging.wandb_project=wait")
    sweep.wait_for("0/ready")
    cluster.wait(lambda: (sweep.folder / "0" / "saved.json").exists(), "Slurm's signal", 150)
    cluster.restart_now(sweep.job(0))
    status, output = sweep.end()
    assert status == 0, output
    assert (sweep.folder / "0" / "went_on").exists()
    assert submissions(sweep.folder)[0]["jobs"] == {"0": sweep.job(0)}


def test_ctrl_c_leaves_the_jobs_in_the_queue_and_max_requeues_ends_them(cluster: Cluster, tmp_path: Path) -> None:
    overrides = (*BASE, "launch.max_requeues=0", "logging.wandb_project=wait")
    sweep = Sweep(cluster, tmp_path / "s", *overrides)
    sweep.wait_for("0/ready")
    sweep.process.send_signal(signal.SIGINT)
    status, output = sweep.end()
    assert status == 128 + signal.SIGINT
    assert "1 points: 1 in the queue" in output
    assert cluster.state(sweep.job(0)) == "RUNNING"
    cluster.run("scancel", "--signal=USR1", sweep.job(0))
    status, output = Sweep(cluster, sweep.folder, *overrides).end()
    assert status == 1
    assert "requeued 0 times already (launch.max_requeues)" in output
    assert json.loads((sweep.folder / "0" / "saved.json").read_text()) == [signal.SIGTERM]


BAD = {
    ("launch.partition=nowhere", "seed=1"): (
        "Slurm refused the sweep: invalid partition specified: nowhere; Batch job submission failed: Invalid partition "
        "name specified; launch.partition=nowhere: the partitions are main, urgent\n"
    ),
    (
        "launch.time=soon",
        "seed=1",
    ): "Slurm refused the sweep: Invalid --time specification; change the launch.* setting",
    ("train.group_sise=4,8",): "train.group_sise is no setting (did you mean train.group_size",
    ("launch.nodes=2", "seed=1"): "hardware=cpu is one process, but launch.nodes=2 times launch.ntasks_per_node=1",
    ("launch.time=1,2",): "launch.time=2 is for this point only",
    ("launch.nodes=0", "seed=1"): "launch.nodes=0 is not positive; use a number above 0",
    ("hydra.sweep.subdir=same", "seed=1,2"): "2 points would write to ",
}


@pytest.mark.parametrize("overrides", BAD, ids=" ".join)
def test_bad_input_is_a_sentence_and_submits_nothing(
    cluster: Cluster, tmp_path: Path, overrides: tuple[str, ...]
) -> None:
    before = cluster.run("squeue", "-h", "-t", "all", "-o", "%i").split()
    status, output = Sweep(cluster, tmp_path / "s", *BASE, *overrides).end()
    assert status == 1
    assert BAD[overrides] in output
    assert "Traceback" not in output
    assert output.splitlines()[-1].startswith("grpo: ")
    assert set(cluster.run("squeue", "-h", "-t", "all", "-o", "%i").split()) <= set(before)


def test_an_account_that_slurm_does_not_know_is_quoted(tmp_path: Path) -> None:
    """With a stand-in for sbatch: accounts are refused by slurmdbd, which wants a database."""
    sbatch = tmp_path / "bin" / "sbatch"
    sbatch.parent.mkdir()
    words = "sbatch: error: Batch job submission failed: Invalid account or account/partition combination specified"
    sbatch.write_text(f"#!/bin/sh\necho '{words}' >&2\nexit 1\n")
    for name in ("squeue", "scontrol", "srun"):
        (sbatch.parent / name).write_text("#!/bin/sh\nexit 1\n")
    for path in sbatch.parent.iterdir():
        path.chmod(0o755)
    NEEDED("submitit")
    stand_in = Cluster(tmp_path, {"PATH": f"{sbatch.parent}:{os.environ['PATH']}"})
    status, output = Sweep(stand_in, tmp_path / "s", *BASE, "launch.account=nobody", "seed=1").end()
    assert status == 1
    assert (
        "grpo: Slurm refused the sweep: Batch job submission failed: Invalid account or account/partition combination "
        "specified; launch.account=nobody: `sacctmgr show associations user=$USER` lists yours\n"
    ) in output


def test_a_machine_without_slurm_says_so(tmp_path: Path) -> None:
    here = Cluster(tmp_path, {"PATH": str(tmp_path)})
    status, output = Sweep(here, tmp_path / "s", *BASE, "seed=1").end()
    assert status == 1
    assert "launch=slurm needs Slurm's programs, and sbatch, squeue, scontrol, srun cannot be found here; " in output


@pytest.mark.usefixtures("cluster")  # for Slurm's programs
def test_programs_that_find_no_controller_are_no_fault_of_a_setting(tmp_path: Path) -> None:
    (tmp_path / "slurm.conf").touch()  # of no cluster; a file that is absent is waited for
    lost = Cluster(tmp_path, {"SLURM_CONF": str(tmp_path / "slurm.conf")})
    status, output = Sweep(lost, tmp_path / "s", *BASE, "seed=1").end()
    assert status == 1
    assert "Traceback" not in output
    assert output.splitlines()[-1].startswith("grpo: Slurm refused the sweep: ")
    assert output.endswith("; `sinfo` does not answer here either; run it where it does, or use launch=local\n")


def environment_of(cluster: Cluster, python: Path, folder: Path) -> dict[str, str]:
    """Of a virtual environment that has the project's dependencies, and not the project."""
    dependencies = Path(pytest.__file__).resolve().parents[1]
    (site,) = python.parents[1].glob("lib/python*/site-packages")
    # Their own .pth files, with which an editable installation of the project would come, are not followed from here.
    (site / "dependencies.pth").write_text(f"{dependencies}\n")
    names = ("PYTHONPATH", "VIRTUAL_ENV")
    return {**{k: v for k, v in os.environ.items() if k not in names}, **cluster.environment, "OMP_NUM_THREADS": "1"}


@pytest.mark.parametrize("kind", ["checkout", "editable", "wheel"])
def test_from_a_checkout_an_editable_install_and_a_wheel(
    cluster: Cluster, tmp_path: Path, kind: str, wheel: Callable[[], Path]
) -> None:
    venv.create(tmp_path / "venv", symlinks=True)
    python = tmp_path / "venv" / "bin" / "python"
    environment = environment_of(cluster, python, tmp_path)
    (site,) = (tmp_path / "venv").glob("lib/python*/site-packages")
    source = tmp_path / "source"
    where = tmp_path
    if kind == "wheel":
        shutil.unpack_archive(wheel(), site, "zip")
        source = site
    else:
        for name in ("grpo", "conf", "launchers"):
            shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
        if kind == "editable":  # what hatchling writes: the folders that hold the packages
            (site / "_grpo.pth").write_text(f"{source}\n{source / 'launchers'}\n")
        else:
            where = source
    shutil.copy(APP, where / "an_app.py")
    program = ("-m", "an_app")
    overrides = (*BASE, "logging.wandb_project=ok", f"output_dir={tmp_path / 'sweep'}")
    done = subprocess.run(
        [python, *program, *overrides], cwd=where, env=environment, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stdout + done.stderr + cluster.logs()
    seen = json.loads((tmp_path / "sweep" / "0" / "seen.json").read_text())
    assert seen["grpo"] == str(source / "grpo" / "__init__.py")
    launchers = site if kind == "wheel" else source / "launchers"
    assert seen["launchers"] == [str(launchers / "hydra_plugins" / "grpo_launchers")]


@pytest.fixture
def wheel(tmp_path: Path) -> Callable[[], Path]:
    """Builds the wheel."""

    def build() -> Path:
        command = [sys.executable, "-m", "build", "--no-isolation", "--wheel", "--outdir", str(tmp_path), str(ROOT)]
        subprocess.run(command, check=True, capture_output=True)
        (built,) = tmp_path.glob("*.whl")
        return built

    return build
