"""What the next start of a sweep knows of the jobs that an earlier one submitted."""

from pathlib import Path
from typing import Any

import pytest
from hydra.errors import ConfigCompositionException
from omegaconf import OmegaConf

from grpo.config import LaunchConfig
from hydra_plugins.grpo_launchers._points import Point
from hydra_plugins.grpo_launchers._record import Record, Submission, open_record, require_same_sweep
from hydra_plugins.grpo_launchers._summary import summarise
from hydra_plugins.grpo_launchers.slurm_launcher import SlurmLauncher
from hydra_plugins.grpo_launchers.subprocess_launcher import SubprocessLauncher


def points_in(folder: Path, number: int, **train: Any) -> list[Point]:
    """The points of a sweep over the seed; a row of metrics and a frozen config are in the folder of each."""
    config = {"seed": 0, "train": {"lr_schedule": "constant", "n_grpo_steps": 5, **train}}
    return [Point(n, (f"seed={n}",), folder / str(n), config={**config, "seed": n}) for n in range(number)]


def record_of(folder: Path, points: list[Point], *submissions: Submission) -> Record:
    (folder / "slurm").mkdir()
    record = Record(folder)
    record.add(points)
    for point in points:
        point.folder.mkdir()
        frozen = {"defaults": ["_self_"], **point.config, "hydra": {"mode": "RUN"}}
        OmegaConf.save(OmegaConf.create(frozen), point.folder / "point.yaml")
    for submission in submissions:
        record.add_submission(submission)
    return open_record(folder, "auto")


def test_a_start_collects_its_own_points_and_leaves_the_others_in_the_queue(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Such as one batch of many, or a start with fewer points: the others are not to be submitted a second time."""
    points = points_in(tmp_path, 4)
    first, second = Submission({0: "7_0", 1: "7_1", 2: "7_2"}, num_ranks=2), Submission({3: "8"})
    record = record_of(tmp_path, points, first, second)
    assert record.in_queue == {0: "7_0", 1: "7_1", 2: "7_2", 3: "8"}
    own = record.pending([1, 3])
    assert own is not None
    assert own == Submission({1: "7_1"}, num_ranks=2)
    record.mark_collected(own)
    later = open_record(tmp_path, "auto")
    assert later.in_queue == {0: "7_0", 2: "7_2", 3: "8"}
    assert later.pending([1]) is None
    assert later.pending([1, 3]) == second
    summarise(points[3:], later, (), "plain")
    table = capsys.readouterr().out.splitlines()
    assert table[2].startswith("0      seed=0     in the queue: job 7_0")
    assert table[3].startswith("1      seed=1     skipped")


def test_a_job_that_was_submitted_again_is_the_one_that_counts(tmp_path: Path) -> None:
    record = record_of(tmp_path, points_in(tmp_path, 1), Submission({0: "7"}))
    record.mark_collected(Submission({0: "7"}))
    record.add_submission(Submission({0: "9"}))
    assert open_record(tmp_path, "auto").pending([0]) == Submission({0: "9"})


def test_more_steps_are_for_points_that_are_not_in_the_queue(tmp_path: Path) -> None:
    """A job has the number of steps that it was submitted with: its result would be taken for that of more."""
    record = record_of(tmp_path, points_in(tmp_path, 2), Submission({1: "7"}))
    longer = points_in(tmp_path, 2, n_grpo_steps=9)
    with pytest.raises(ConfigCompositionException, match=r"train.n_grpo_steps=5 there, 9 here \(point 1\)\); use its"):
        require_same_sweep(record, longer)
    record.mark_collected(Submission({1: "7"}))
    require_same_sweep(record, longer)


def test_another_hardware_is_the_same_sweep_and_rollouts_from_other_weights_are_not(tmp_path: Path) -> None:
    points = points_in(tmp_path, 2)
    for point in points:
        point.config["hardware"] = {"name": "cpu", "overlap": False}
    record = record_of(tmp_path, points, Submission({1: "7"}))
    for point in points:
        point.config["hardware"] = {"name": "mps", "overlap": False}
    require_same_sweep(record, points)
    points[1].config["hardware"] = {"name": "cpu", "overlap": True}
    with pytest.raises(
        ConfigCompositionException, match=r"hardware.overlap=False there, True here \(point 1\)\); use its"
    ):
        require_same_sweep(record, points)


def test_points_in_the_queue_are_not_run_here(tmp_path: Path) -> None:
    points = points_in(tmp_path, 2)
    record = record_of(tmp_path, points, Submission({0: "7_0", 1: "7_1"}))
    with pytest.raises(ValueError, match=r"submitted to Slurm \(job 7_0, 7_1\); collect them first, with launch=slurm"):
        SubprocessLauncher().run_points(points, record, 2)


def searching(launcher: Any, **launch: Any) -> Any:
    """A launcher as a sweeper that searches has it: Optuna need not be installed."""
    sweep = {"objective": "eval/accuracy"}
    hydra = {"sweeper": {"n_trials": 3}}
    launcher.config = OmegaConf.create({"launch": LaunchConfig(**launch), "sweep": sweep, "hydra": hydra})
    return launcher


def test_a_search_waits_for_its_results(tmp_path: Path) -> None:
    launcher = searching(SlurmLauncher(), name="slurm", detach=True)
    with pytest.raises(ValueError, match=r"makes its next points of them; leave launch\.detach out"):
        launcher.run_points(points_in(tmp_path, 1), Record(tmp_path), 3)


def test_a_search_without_its_objective_ends(tmp_path: Path) -> None:
    launcher = searching(SubprocessLauncher())
    (point,) = points_in(tmp_path, 1)
    assert launcher._objective(point) is None  # it failed, and Optuna is told so
    point.status = "ok"
    point.folder.mkdir()
    (point.folder / "metrics.jsonl").write_text('{"step": 1, "eval/acuracy": 0.5}\n')
    with pytest.raises(ValueError, match=r"point 0 has no value of sweep.objective=eval/accuracy; name a metric of "):
        launcher._objective(point)
