"""What a task tells torch.distributed, and what is asked of sbatch; all else needs a Slurm: tests/e2e/test_slurm.py."""

import json
from pathlib import Path

import pytest

from grpo.config import LaunchConfig
from hydra_plugins.grpo_launchers._slurm_collect import _explain, _Job
from hydra_plugins.grpo_launchers._slurm_submit import parameters
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
    monkeypatch.setattr("hydra_plugins.grpo_launchers._slurm_task.PATIENCE_S", 0.2)
    (tmp_path / "slurm").mkdir()
    place = {"job_id": "70_3", "restarts": 1, "address": "10.0.0.7", "port": 23456}
    (tmp_path / "slurm" / "meeting_place.json").write_text(json.dumps(place))
    with pytest.raises(PointFailed, match="do the nodes share its file system"):
        Task.here(tmp_path, SLURM).environment()


def test_notes_are_of_one_job(tmp_path: Path) -> None:
    task = Task.here(tmp_path, SLURM)
    task.note("failed", 3, "for a reason")
    note = read_note(tmp_path, 5, "70_3")
    assert note is not None
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
