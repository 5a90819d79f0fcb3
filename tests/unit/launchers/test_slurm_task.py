"""What a task tells torch.distributed, and what is asked of sbatch; all else needs a Slurm: tests/e2e/test_slurm.py."""

import json
import os
import sys
from pathlib import Path

import pytest

from grpo.config import LaunchConfig
from hydra_plugins.grpo_launchers import _slurm_task
from hydra_plugins.grpo_launchers._slurm_collect import _explain, _Job
from hydra_plugins.grpo_launchers._slurm_submit import PROGRAMS, _outside_of_jobs, parameters, require_slurm
from hydra_plugins.grpo_launchers._slurm_task import PointFailed, Task, read_note, tasks_per_node

# The variables of rank 5 of 6 on three nodes, the second one having only one task.
SLURM = {
    "SLURM_JOB_ID": "77",
    "SLURM_ARRAY_JOB_ID": "70",
    "SLURM_ARRAY_TASK_ID": "3",
    "SLURM_RESTART_COUNT": "2",
    "SLURM_PROCID": "5",
    "SLURM_LOCALID": "2",
    "SLURM_NODEID": "2",
    "SLURM_STEP_NUM_TASKS": "6",
    "SLURM_STEP_TASKS_PER_NODE": "2,1,3",
    "SLURM_STEP_NODELIST": "a[1-2],b7",
    "SLURMD_NODENAME": "b7",
}


@pytest.mark.parametrize(
    ("text", "numbers"), [("4", [4]), ("2(x3)", [2, 2, 2]), ("2(x2),1", [2, 2, 1]), ("1,3(x2),2", [1, 3, 3, 2])]
)
def test_tasks_per_node(text: str, numbers: list[int]) -> None:
    assert tasks_per_node(text) == numbers


def test_a_rank_is_what_torchrun_would_call_it(tmp_path: Path) -> None:
    task = Task.here(tmp_path, SLURM)
    place = {"job_id": "70_3", "restarts": 2, "address": "10.0.0.7", "port": 23456}
    (tmp_path / "slurm").mkdir()
    (tmp_path / "slurm" / "meeting_place.json").write_text(json.dumps(place))
    assert task.environment() == {
        "RANK": "5",
        "WORLD_SIZE": "6",
        "LOCAL_RANK": "2",
        "LOCAL_WORLD_SIZE": "3",
        "MASTER_ADDR": "10.0.0.7",
        "MASTER_PORT": "23456",
    }
    assert task.log_path == tmp_path / "slurm" / "log_rank_5.txt"


def test_a_meeting_place_of_an_earlier_start_is_not_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_slurm_task, "PATIENCE_S", 0.2)
    (tmp_path / "slurm").mkdir()
    place = {"job_id": "70_3", "restarts": 1, "address": "10.0.0.7", "port": 23456}
    (tmp_path / "slurm" / "meeting_place.json").write_text(json.dumps(place))
    with pytest.raises(PointFailed, match="do the nodes share its file system"):
        Task.here(tmp_path, SLURM).environment()


def test_notes_are_of_one_job(tmp_path: Path) -> None:
    task = Task.here(tmp_path, SLURM)
    Task.here(tmp_path, {**SLURM, "SLURM_ARRAY_JOB_ID": "69"}).note("requeued")
    task.note("running")
    first = read_note(tmp_path, 5, "70_3")
    task.note("failed", 3, "for a reason")
    note = read_note(tmp_path, 5, "70_3")
    assert note is not None
    assert first is not None
    assert first["started"] == first["time"] == note["started"] < note["time"]
    assert (note["status"], note["code"], note["reason"], note["host"]) == ("failed", 3, "for a reason", "b7")
    assert read_note(tmp_path, 5, "71_3") is None
    assert read_note(tmp_path, 4, "70_3") is None


def test_the_first_rank_to_fail_is_named_not_those_that_fell_with_it(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text("\n".join(f"line {number}" for number in range(9)))
    note = {"status": "failed", "reason": "", "log": str(log)}
    notes = {
        0: {**note, "time": 9.5, "code": -6, "host": "a"},
        1: {**note, "time": 9.1, "code": 3, "host": "b"},
        2: {**note, "time": 9.0, "code": 143, "host": "c", "status": "stopped"},
    }
    status, details = _explain(_Job("70_3", "FAILED"), notes, tmp_path)
    assert status == "FAILED, job 70_3"
    assert details[:2] == ("rank 1 on b was the first to fail: exit status 3", f"log: {log}")
    assert details[2:] == tuple(f"line {number}" for number in range(4, 9))


@pytest.mark.parametrize(("state", "rank"), [("FAILED", 1), ("OUT_OF_MEMORY", 1), ("CANCELLED", 0)])
def test_a_rank_that_was_killed_without_a_word_is_the_reason_of_a_failure(
    tmp_path: Path, state: str, rank: int
) -> None:
    """Slurm stops the others because of it; of a cancelled job those that have saved say more."""
    note = {"reason": "", "code": None, "log": str(tmp_path / "log"), "host": "a"}
    notes = {
        0: {**note, "time": 9.0, "code": 143, "status": "stopped"},
        1: {**note, "time": 3.0, "status": "running"},
    }
    _, details = _explain(_Job("70_3", state), notes, tmp_path)
    assert details[0].startswith(f"rank {rank} on a: ")


@pytest.mark.parametrize("job", ["12", None])
def test_a_sweep_that_is_started_from_a_job_does_not_take_over_its_options(
    job: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sbatch reads them from the environment; outside of a job, a person has set them for it to read."""
    for name in ("SLURM_JOB_ID", "SLURM_MEM_PER_NODE", "SUBMITIT_EXECUTOR", "SLURM_CONF"):
        monkeypatch.setenv(name, "12")
    if job is None:
        monkeypatch.delenv("SLURM_JOB_ID")
    before = dict(os.environ)
    with _outside_of_jobs():
        kept = {name for name in os.environ if name.startswith(("SLURM_", "SUBMITIT_"))}
    assert kept == ({"SLURM_CONF"} if job else {"SLURM_CONF", "SLURM_MEM_PER_NODE", "SUBMITIT_EXECUTOR"})
    assert dict(os.environ) == before


def test_without_submitit_it_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("submitit")
    for name in PROGRAMS:
        (tmp_path / name).touch(mode=0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    require_slurm()
    monkeypatch.setitem(sys.modules, "submitit", None)
    with pytest.raises(ValueError, match=r"needs submitit; pip install -e '\.\[slurm\]', or use launch=local"):
        require_slurm()


def test_every_setting_reaches_sbatch() -> None:
    slurm = pytest.importorskip("submitit.slurm.slurm")
    settings = LaunchConfig(
        name="slurm",
        partition="gpu",
        account="lab",
        qos="high",
        time="1-02",
        nodes=2,
        ntasks_per_node=4,
        gpus_per_node=4,
        cpus_per_task=8,
        mem="64G",
        array_parallelism=3,
        constraint="a100",
        exclude="n7",
        setup=["module load cuda"],
        signal_lead_s=90,
        additional_parameters={"mail-type": "END"},
    )
    text = slurm._make_sbatch_string("program", "/logs", map_count=5, **parameters(settings, Path("sweeps/lr"), 5))
    options = {line.removeprefix("#SBATCH --") for line in text.splitlines() if line.startswith("#SBATCH")}
    assert options >= {
        *("partition=gpu", "account=lab", "qos=high", "time=1-02", "nodes=2", "ntasks-per-node=4", "gpus-per-node=4"),
        *("cpus-per-task=8", "mem=64G", "array=0-4%3", "constraint=a100", "exclude=n7", "signal=USR1@90"),
        *("requeue", "mail-type=END", "job-name=grpo-lr"),
    }
    assert not any(option.startswith("wckey") for option in options)
    assert text.index("\nmodule load cuda\n") < text.index("\nsrun ")
    assert "--kill-on-bad-exit=1 --cpus-per-task=8 program" in text


def test_what_is_not_set_is_left_to_the_cluster() -> None:
    slurm = pytest.importorskip("submitit.slurm.slurm")
    text = slurm._make_sbatch_string("program", "/logs", **parameters(LaunchConfig(name="slurm"), Path("s"), 1))
    named = {line.removeprefix("#SBATCH --").split("=")[0] for line in text.splitlines() if line.startswith("#SBATCH")}
    assert named == {"job-name", "nodes", "ntasks-per-node", "output", "error", "open-mode", "requeue", "signal"}
