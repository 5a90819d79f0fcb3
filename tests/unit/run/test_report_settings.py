"""What differs from the defaults, and commands that do what they say."""

import json
import shlex
from datetime import date
from pathlib import Path

import pytest
import yaml

from grpo.config import compose_run_config, to_dict
from grpo.run.report.reading import read_run
from grpo.run.report.settings import Difference, commands, differences, lacking, started_with
from tests.unit.run.report_runs import OVERRIDES, make_run


def composed(*overrides: str) -> dict:
    return to_dict(compose_run_config(list(overrides)))


def test_only_what_differs_from_the_chosen_options_is_listed() -> None:
    chosen = ("model=tiny", "hardware=cpu", "data=arithmetic", "loss=dapo")
    assert differences(composed(*chosen)) == []
    assert differences(composed(*chosen, "loss.cliprange=0.3", "train.learning_rate=1e-3", "seed=0")) == [
        Difference("loss.cliprange", "0.3", "0.2"),
        Difference("train.learning_rate", "0.001", "1e-05"),
        Difference("seed", "0", "42"),
    ]
    assert lacking(composed(*chosen)) == []


def test_settings_of_another_version_are_told_apart() -> None:
    config = composed("model=tiny", "hardware=cpu", "data=arithmetic")
    del config["train"]["max_grad_norm"]
    config["train"] |= {"former": [1, None], "when": date(2026, 11, 22)}  # as YAML reads a date
    config["loss"]["name"] = "gone"  # an option that is no more: compared with the default one
    assert Difference("train.former", "[1, null]", "(no such setting)") in differences(config)
    assert Difference("train.when", '"2026-11-22"', "(no such setting)") in differences(config)
    assert Difference("loss.name", "gone", "reinforce_with_baseline") in differences(config)
    assert lacking(config) == ["train.max_grad_norm"]
    assert differences({}) == lacking({}) == []


@pytest.mark.parametrize(
    ("command", "overrides"),
    [
        ("python -m grpo.train seed=1 output_dir=x resume=auto", ["seed=1"]),
        ("/v/bin/python -X dev -m grpo.train --multirun a='b c' launch=local sweep=x hydra.mode=RUN", ["a=b c"]),
        ("python grpo/train.py hydra/launcher=x seed=2", ["seed=2"]),
        ("python -m submitit.core._submit x", None),
        ("python -m grpo.train 'torn", None),
        (None, None),
    ],
)
def test_the_overrides_of_a_command_line(command: str | None, overrides: list[str] | None) -> None:
    assert started_with(command) == overrides


def test_commands_of_an_unfinished_run(tmp_path: Path) -> None:
    told = commands(read_run(make_run(tmp_path / "my run", num_steps=3)))
    own = [*OVERRIDES, "train.n_grpo_steps=6"]
    assert shlex.split(told.repeat or "") == ["python", "-m", "grpo.train", *own]
    assert shlex.split(told.resume or "") == ["python", "-m", "grpo.train", *own, "resume='my run'"]
    assert told.where == str(tmp_path)


def test_what_torchrun_started_is_started_by_torchrun(tmp_path: Path) -> None:
    own = ["hardware=multi_gpu", "hardware.rank_timeout_s=60"]
    command = f"/usr/bin/python -u -m grpo.train {' '.join(own)}"  # as each of its processes was started
    folder = make_run(tmp_path / "run", num_steps=3, overrides=own, command=command)
    provenance = json.loads((folder / "provenance.json").read_text())
    for told, number in (({"num_ranks": 4}, "4"), ({}, "gpu")):
        del provenance["num_ranks"]
        provenance |= told
        (folder / "provenance.json").write_text(json.dumps(provenance))
        words = ["torchrun", "--nproc-per-node", number, "-m", "grpo.train", *own]
        found = commands(read_run(folder))
        assert shlex.split(found.repeat or "") == words
        assert shlex.split(found.resume or "") == [*words, "resume=run"]


def test_a_finished_run_is_not_resumed(tmp_path: Path) -> None:
    assert commands(read_run(make_run(tmp_path / "run"))).resume is None


def test_without_the_command_the_config_gives_it(tmp_path: Path) -> None:
    overrides = [
        "loss=dapo",
        "loss.cliprange=0.3",
        "logging.wandb_project='a, b'",
        "data.stop=['</x>', b]",
        "evaluation.num_problems=null",
    ]
    folder = make_run(tmp_path / "run", num_steps=3, overrides=overrides)
    (folder / "provenance.json").unlink()
    told = commands(read_run(folder))
    assert "provenance" not in told.note or "not known" in told.note
    words = shlex.split(told.repeat or "")
    assert words[:3] == ["python", "-m", "grpo.train"]
    again = composed(*words[3:])
    before = yaml.safe_load((folder / "config.yaml").read_text())
    assert {**again, "output_dir": None} == {**before, "output_dir": None}
    (folder / "config.yaml").unlink()
    nothing = commands(read_run(folder))
    assert nothing.repeat is nothing.resume is None
