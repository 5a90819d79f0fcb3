"""The smallest run there is, and what tests ask of a run's folder."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra.core.global_hydra import GlobalHydra
from safetensors.torch import load_file

from grpo.run.metrics import is_timing

# A coin for a reward: every step has signal, and no warm start is needed.
TINY = (
    "experiment=quickstart",
    "reward=random",
    "hardware.num_threads=1",
    "model.build.hidden_size=32",
    "model.build.intermediate_size=64",
    "model.build.num_hidden_layers=2",
    "model.warm_start.steps=0",
    "data.num_train=60",
    "train.n_grpo_steps=6",
    "train.rollout_batch_size=16",
    "train.group_size=4",
    "train.train_batch_size=16",
    "train.learning_rate=1e-2",
    "train.canary_steps=3",
    "sampling.max_tokens=12",
    "evaluation.num_problems=8",
    "evaluation.eval_steps=3",
    "checkpoint.save_steps=2",
    "logging.plot_steps=0",
)


@pytest.fixture(scope="session")
def cache_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the models that runs build are kept."""
    return tmp_path_factory.mktemp("models")


@pytest.fixture(scope="session")
def tiny(cache_dir: Path) -> Callable[..., list[str]]:
    """The overrides of the smallest run in a folder, and further ones."""

    def overrides(folder: Path | None, *more: str) -> list[str]:
        place = [] if folder is None else [f"output_dir={folder}"]
        return [*TINY, f"model.warm_start.cache_dir={cache_dir}", *place, *more]

    return overrides


@pytest.fixture
def grpo_train(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Iterator[Callable[..., tuple[int, str, str]]]:
    """`python -m grpo.train`, in this process: its exit status, standard output and standard error."""
    num_threads = torch.get_num_threads()

    def call(overrides: list[str]) -> tuple[int, str, str]:
        from grpo.train import main

        GlobalHydra.instance().clear()
        monkeypatch.setattr(sys, "argv", ["grpo.train", *overrides])
        monkeypatch.setattr("grpo.train.end_of_rank", nullcontext)  # it would end this process
        capfd.readouterr()
        with pytest.raises(SystemExit) as left:
            main()
        status = left.value.code
        assert isinstance(status, int)
        return status, *capfd.readouterr()

    yield call
    torch.set_num_threads(num_threads)


@pytest.fixture(scope="session")
def record() -> Callable[[Path], dict[str, Any]]:
    """All of a finished run that must not depend on kills: logs without their times, weights, optimiser."""

    def read(folder: Path) -> dict[str, Any]:
        metrics = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        last = sorted((folder / "checkpoints").iterdir())[-1]
        return {
            "metrics": [{key: value for key, value in row.items() if not is_timing(key)} for row in metrics],
            "completions": (folder / "completions.jsonl").read_bytes(),
            "evaluations": {path.name: path.read_bytes() for path in (folder / "evaluations").iterdir()},
            "last": last.name,
            "state": (last / "state.json").read_text(),
            "weights": load_file(last / "model.safetensors"),
            "optimizer": load_file(last / "optimizer.safetensors"),
        }

    return read


@pytest.fixture(scope="session")
def assert_same() -> Callable[[dict[str, Any], dict[str, Any]], None]:
    """Two records are equal, tensors bit by bit."""

    def check(one: dict[str, Any], other: dict[str, Any]) -> None:
        for name in ("weights", "optimizer"):
            tensors, others = one[name], other[name]
            assert tensors.keys() == others.keys()
            assert tensors
            for key, tensor in tensors.items():
                assert tensor.dtype == others[key].dtype
                assert torch.equal(tensor, others[key]), f"{name}: {key} differs"
        for name in one.keys() - {"weights", "optimizer"}:
            assert one[name] == other[name], name

    return check


@pytest.fixture(scope="session")
def leftovers() -> Callable[[Path], list[Path]]:
    """What a killed writer would have left in a run's folder."""

    def find(folder: Path) -> list[Path]:
        return [path for path in folder.rglob("*") if path.name.startswith((".tmp-", ".old-"))]

    return find
