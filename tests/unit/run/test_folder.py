import json
from dataclasses import replace
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from grpo.config import RunConfig, compose_run_config, to_dict
from grpo.run.folder import open_run_folder
from grpo.run.metrics import JsonlLog, read_jsonl

CONFIG = compose_run_config(["experiment=quickstart", "train.lr_schedule=constant"])


def went_on(folder: Path, steps: int, saved: tuple[int, ...]) -> None:
    """What a run of so many steps leaves, as far as this module reads it."""
    open_run_folder(CONFIG, folder, print)
    for step in range(steps + 1):
        JsonlLog(folder / "metrics.jsonl").append({"step": step})
        JsonlLog(folder / "completions.jsonl").extend([{"step": step, "problem": problem} for problem in "ab"])
        (folder / "evaluations").mkdir(exist_ok=True)
        (folder / "evaluations" / f"step_{step:06d}.jsonl").write_text("{}\n")
    for step in saved:
        (folder / "checkpoints" / f"step_{step:06d}").mkdir(parents=True)


def steps_in(folder: Path, name: str) -> list[int]:
    return [row["step"] for row in read_jsonl(folder / name)]


def test_a_new_folder_says_what_the_run_is(tmp_path: Path) -> None:
    folder = tmp_path / "a" / "b"
    assert open_run_folder(CONFIG, folder, print) is None
    assert OmegaConf.to_container(OmegaConf.load(folder / "config.yaml")) == to_dict(CONFIG)
    assert "torch" in json.loads((folder / "provenance.json").read_text())["versions"]


def test_the_newest_checkpoint_is_resumed_and_what_came_after_it_dropped(tmp_path: Path) -> None:
    went_on(tmp_path, steps=6, saved=(2, 4))
    assert open_run_folder(CONFIG, tmp_path, print) == tmp_path / "checkpoints" / "step_000004"
    assert steps_in(tmp_path, "metrics.jsonl") == [0, 1, 2, 3, 4]
    assert steps_in(tmp_path, "completions.jsonl") == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]
    assert sorted(path.name for path in (tmp_path / "evaluations").iterdir())[-1] == "step_000004.jsonl"


def test_a_named_checkpoint_drops_the_later_ones_and_says_so(tmp_path: Path) -> None:
    went_on(tmp_path, steps=6, saved=(2, 4, 6))
    said: list[str] = []
    named = tmp_path / "checkpoints" / "step_000002"
    assert open_run_folder(replace(CONFIG, resume=str(named)), tmp_path, said.append) == named
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step_000002"]
    assert steps_in(tmp_path, "metrics.jsonl") == [0, 1, 2]
    assert [line.split()[0] for line in said] == ["step_000006", "step_000004"]


def test_a_rewind_that_is_killed_leaves_a_run(tmp_path: Path) -> None:
    """It drops the newest checkpoint first and the logs last: whatever is left fits together."""
    went_on(tmp_path, steps=6, saved=(2, 4, 6))

    def killed(text: str) -> None:
        if "step_000004" in text:
            raise KeyboardInterrupt

    resume = replace(CONFIG, resume=str(tmp_path / "checkpoints" / "step_000002"))
    with pytest.raises(KeyboardInterrupt):
        open_run_folder(resume, tmp_path, killed)
    assert open_run_folder(CONFIG, tmp_path, print) == tmp_path / "checkpoints" / "step_000004"
    assert steps_in(tmp_path, "metrics.jsonl") == [0, 1, 2, 3, 4]


def test_without_a_checkpoint_a_run_starts_again(tmp_path: Path) -> None:
    went_on(tmp_path, steps=1, saved=())
    assert open_run_folder(CONFIG, tmp_path, print) is None
    assert steps_in(tmp_path, "metrics.jsonl") == []
    assert list((tmp_path / "evaluations").iterdir()) == []


def test_leftovers_of_killed_writers_go_and_nobody_elses_files(tmp_path: Path) -> None:
    went_on(tmp_path, steps=1, saved=(1,))
    ours = [".tmp-metrics.jsonl-12-34", "evaluations/.tmp-step_000001.jsonl-12-34", "checkpoints/.tmp-step_000002-12"]
    theirs = [".tmp-of-mine", ".old-notes", ".gitignore"]
    for name in ours + theirs:
        (tmp_path / name).write_text("half")
    open_run_folder(CONFIG, tmp_path, print)
    assert [name for name in ours if (tmp_path / name).exists()] == []
    assert [name for name in theirs if (tmp_path / name).exists()] == theirs


FREE = {
    "resume": "never",
    "output_dir": "elsewhere",
    "logging": replace(CONFIG.logging, wandb_project="other"),
    "checkpoint": replace(CONFIG.checkpoint, save_steps=1),
    "hardware": replace(CONFIG.hardware, micro_batch_tokens=64),
    "train": replace(CONFIG.train, n_grpo_steps=1000),
}


@pytest.mark.parametrize("name", [name for name in FREE if name != "resume"])
def test_what_changes_no_number_may_change(tmp_path: Path, name: str) -> None:
    went_on(tmp_path, steps=2, saved=(2,))
    assert open_run_folder(replace(CONFIG, **{name: FREE[name]}), tmp_path, print) is not None


def other(*overrides: str) -> RunConfig:
    return compose_run_config(["experiment=quickstart", "train.lr_schedule=constant", *overrides])


REFUSED = {
    "another config": (other("seed=1"), r"holds another run \(seed=42 there, 1 here\); use its settings to go on"),
    "another schedule": (other("train.lr_schedule=linear"), r"train.lr_schedule=constant there, linear here"),
    "rollouts from other weights": (other("hardware.overlap=true"), r"hardware.overlap=False there, True here"),
    "never": (
        replace(CONFIG, resume="never"),
        "resume=never but .* holds a run; use another output_dir, or resume=auto",
    ),
    "a wrong name": (replace(CONFIG, resume="checkpoints/step_000003"), "two folders"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_does_not_fit_is_refused_and_nothing_is_touched(tmp_path: Path, case: str) -> None:
    went_on(tmp_path, steps=3, saved=(2,))
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    cfg, sentence = REFUSED[case]
    with pytest.raises(ValueError, match=sentence):
        open_run_folder(cfg, tmp_path, print)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_a_checkpoint_that_is_not_there_is_refused_with_those_that_are(tmp_path: Path) -> None:
    went_on(tmp_path, steps=4, saved=(2, 4))
    named = tmp_path / "checkpoints" / "step_000003"
    with pytest.raises(ValueError, match=r"step_000003 is not a checkpoint; use one of .*: step_000002, step_000004"):
        open_run_folder(replace(CONFIG, resume=str(named)), tmp_path, print)
    assert steps_in(tmp_path, "metrics.jsonl") == [0, 1, 2, 3, 4]


def test_somebody_elses_metrics_are_not_taken_for_a_run(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text("mine\n")
    with pytest.raises((ValueError, OSError)):
        open_run_folder(CONFIG, tmp_path, print)
    assert (tmp_path / "metrics.jsonl").read_text() == "mine\n"
