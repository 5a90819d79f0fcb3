"""Two ranks train as one does, are killed, go on as one or two, and stop together. Gloo on the CPU."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from grpo.run.metrics import is_timing, read_jsonl
from tests.e2e import processes
from tests.ranks import environment, free_port, needs_ranks

pytestmark = needs_ranks
ROOT = Path(__file__).resolve().parents[2]
# Adam divides by the gradient's size: with an eps above their errors, gradients near 0 give equal steps.
STEADY = ("train.adam_eps=1e-3", "loss=dapo", "train.epochs_per_rollout_batch=2", "train.train_batch_size=8")
SHARDED = (
    "hardware=multi_gpu",
    *("hardware.policy_device=cpu", "hardware.engine_device=cpu", "hardware.compute_dtype=float32"),
    *("hardware.num_threads=1", "hardware.micro_batch_tokens=400", "hardware.rank_timeout_s=60"),
)

Overrides = Callable[..., list[str]]
Train = Callable[[list[str]], tuple[int, str, str]]
Leftovers = Callable[[Path], list[Path]]


class TwoRanks:
    """`grpo.train` twice, as torchrun would start it; nobody ends one for the other's sake."""

    def __init__(self, overrides: Sequence[str], logs: Path, port: int) -> None:
        """Starts them; rank r prints to logs/rank<r>."""
        self.logs = [logs / f"rank{rank}" for rank in range(2)]
        self.processes: list[ForkServerProcess] = [
            processes.start(overrides, log, environment(rank, 2, port)) for rank, log in enumerate(self.logs)
        ]

    def join(self, timeout_s: float = 120) -> list[int | None]:
        """The exit statuses; whoever is not done by then is killed, and has none."""
        end = time.monotonic() + timeout_s
        for process in self.processes:
            process.join(max(0.0, end - time.monotonic()))
        statuses = [process.exitcode for process in self.processes]
        for process in self.processes:
            process.kill()
        return statuses

    def said(self, rank: int) -> str:
        """What a rank printed so far."""
        return self.logs[rank].read_text() if self.logs[rank].exists() else ""


@pytest.fixture
def two_ranks(tmp_path: Path, tiny: Overrides) -> Callable[..., TwoRanks]:
    """A run of two ranks in a folder."""
    return lambda folder, *more: TwoRanks(tiny(folder, *STEADY, *SHARDED, *more), tmp_path, free_port())


@pytest.fixture(scope="module")
def one_rank(tmp_path_factory: pytest.TempPathFactory, tiny: Overrides) -> Path:
    """The folder of a run of one rank that nobody disturbs."""
    folder = tmp_path_factory.mktemp("one")
    assert processes.run(tiny(folder / "run", *STEADY), folder / "log") == 0, (folder / "log").read_text()
    return folder / "run"


def lines(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def assert_same_run(found: Path, expected: Path) -> None:
    """Weights agree to 1e-5, metrics to 1e-4, completions entirely."""
    last = "checkpoints/step_000006/model.safetensors"
    weights, others = load_file(expected / last), load_file(found / last)
    assert weights.keys() == others.keys()
    scale = max(float(value.abs().max()) for value in weights.values())
    for name, value in weights.items():
        torch.testing.assert_close(others[name], value, rtol=1e-5, atol=1e-5 * scale, msg=lambda m, n=name: f"{n}: {m}")
    for row, other in zip(lines(expected / "metrics.jsonl"), lines(found / "metrics.jsonl"), strict=True):
        assert {k: v for k, v in other.items() if not is_timing(k)} == pytest.approx(
            {k: v for k, v in row.items() if not is_timing(k)},
            rel=1e-4,  # what sums in another order differ by grows tenfold from step to step
            abs=1e-5,  # a loss is a mean of terms of about 1 that cancel
        )
    for row, other in zip(lines(expected / "completions.jsonl"), lines(found / "completions.jsonl"), strict=True):
        texts, others = ([each["text"] for each in line["completions"]] for line in (row, other))
        assert (row["step"], row["problem"], texts) == (other["step"], other["problem"], others)
    for file in (expected / "evaluations").iterdir():
        assert (found / "evaluations" / file.name).read_bytes() == file.read_bytes()


def test_two_ranks_train_as_one_does_and_one_speaks(
    tmp_path: Path, two_ranks: Callable[..., TwoRanks], one_rank: Path, leftovers: Leftovers
) -> None:
    ranks = two_ranks(tmp_path / "run")
    assert ranks.join() == [0, 0], ranks.said(0) + ranks.said(1)
    assert_same_run(tmp_path / "run", one_rank)
    assert ranks.said(0).count("run folder: ") == 1
    assert "held-out problems" in ranks.said(0)
    assert ranks.said(1) == ""
    assert leftovers(tmp_path / "run") == []


def test_a_rank_that_is_killed_ends_the_other_and_one_rank_goes_on(
    tmp_path: Path, two_ranks: Callable[..., TwoRanks], one_rank: Path, tiny: Overrides
) -> None:
    folder = tmp_path / "run"
    ranks = two_ranks(folder)
    saved = folder / "checkpoints" / "step_000002"
    assert processes.wait_until(saved.exists, ranks.processes[1]), ranks.said(0) + ranks.said(1)
    os.kill(ranks.processes[1].pid or 0, signal.SIGKILL)
    assert ranks.join(45) == [1, -signal.SIGKILL], ranks.said(0)
    assert "grpo: rank 0 lost the others (" in ranks.said(0)
    assert "Traceback" not in ranks.said(0)
    status = processes.run(tiny(None, *STEADY, f"resume={folder}"), tmp_path / "log")
    assert status == 0, (tmp_path / "log").read_text()
    assert f"resumed from {folder}/checkpoints/step_00000" in (tmp_path / "log").read_text()
    assert_same_run(folder, one_rank)


def test_a_rank_that_hangs_ends_the_other_in_time(tmp_path: Path, two_ranks: Callable[..., TwoRanks]) -> None:
    folder = tmp_path / "run"
    ranks = two_ranks(folder, "hardware.rank_timeout_s=20", "train.n_grpo_steps=10000")
    assert processes.wait_until((folder / "metrics.jsonl").exists, ranks.processes[1])
    os.kill(ranks.processes[1].pid or 0, signal.SIGSTOP)
    ranks.processes[0].join(90)
    assert ranks.join(0) == [1, None], ranks.said(0)
    assert "one that hung for hardware.rank_timeout_s=20 may not" in ranks.said(0)


def test_two_ranks_go_on_where_one_was(tmp_path: Path, two_ranks: Callable[..., TwoRanks], one_rank: Path) -> None:
    folder = Path(shutil.copytree(one_rank, tmp_path / "run"))
    ranks = two_ranks(None, f"resume={folder / 'checkpoints' / 'step_000004'}")
    assert ranks.join() == [0, 0], ranks.said(0) + ranks.said(1)
    assert "step_000004: step 4 of 6" in ranks.said(0)
    assert_same_run(folder, one_rank)


def test_a_signal_to_one_rank_stops_both_at_the_same_step(tmp_path: Path, two_ranks: Callable[..., TwoRanks]) -> None:
    folder = tmp_path / "run"
    ranks = two_ranks(folder, "train.n_grpo_steps=10000", "checkpoint.save_steps=0", "evaluation.eval_steps=0")
    metrics = folder / "metrics.jsonl"
    assert processes.wait_until(lambda: metrics.exists() and len(read_jsonl(metrics)) > 2, ranks.processes[1])
    os.kill(ranks.processes[1].pid or 0, signal.SIGTERM)
    assert ranks.join(60) == [128 + signal.SIGTERM] * 2, ranks.said(0) + ranks.said(1)
    stopped = re.search(r"stopped by SIGTERM after step (\d+); to go on: (.*)", ranks.said(0))
    assert stopped is not None, ranks.said(0)
    assert [path.name for path in (folder / "checkpoints").iterdir()] == [f"step_{int(stopped[1]):06d}"]
    assert stopped[2].startswith("torchrun --nproc-per-node 2 -m grpo.train ")
    assert stopped[2].endswith(f"resume={folder}")
    assert ranks.said(1) == ""


def test_an_error_that_all_ranks_agree_on_leaves_nobody_waiting(
    tmp_path: Path, two_ranks: Callable[..., TwoRanks], one_rank: Path
) -> None:
    folder = Path(shutil.copytree(one_rank, tmp_path / "run"))
    ranks = two_ranks(folder, "seed=7")
    assert ranks.join(60) == [1, 1], ranks.said(0) + ranks.said(1)
    sentence = f"{folder} holds another run (seed=42 there, 7 here)"
    assert ranks.said(0).startswith(f"grpo: {sentence}")
    assert ranks.said(1).startswith(f"grpo: rank 1: {sentence}")  # a launcher would have ended it by then


def torchrun(*overrides: str) -> subprocess.CompletedProcess[str]:
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--nproc-per-node",
        "2",
        "--master-port",
        str(free_port()),
    ]
    return subprocess.run(
        [*command, "-m", "grpo.train", *overrides], cwd=ROOT, capture_output=True, text=True, timeout=300, check=False
    )


def test_torchrun_starts_it(tmp_path: Path, tiny: Overrides) -> None:
    overrides = tiny(tmp_path / "run", *SHARDED, "train.n_grpo_steps=1", "evaluation.num_problems=2")
    done = torchrun(*overrides)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("run folder: ") == 1
    assert (tmp_path / "run" / "checkpoints" / "step_000001" / "model.safetensors").exists()
    assert len(list((tmp_path / "run" / "checkpoints" / "step_000001" / "optimizer").iterdir())) == 2


def test_what_is_wrong_for_all_ranks_is_said_once(tmp_path: Path) -> None:
    done = torchrun("hardware=multi_gpu", "train.group_size=7", f"output_dir={tmp_path / 'run'}")
    assert done.returncode == 1
    said = [line for line in done.stderr.splitlines() if line.startswith("grpo: ")]
    assert said == ["grpo: train.rollout_batch_size=256 is not a multiple of train.group_size=7; use 252 or 259"]


def refusal(grpo_train: Train, overrides: list[str]) -> str:
    status, _, err = grpo_train(overrides)
    assert status == 1
    assert err.count("\n") == 1
    return err


def test_starts_that_do_not_fit_the_hardware(
    tmp_path: Path, tiny: Overrides, grpo_train: Train, monkeypatch: pytest.MonkeyPatch
) -> None:
    sentence = refusal(grpo_train, tiny(tmp_path / "run", *SHARDED))
    assert "needs one process a GPU, and this is one without RANK; use `torchrun --nproc-per-node <GPUs" in sentence
    for name, value in environment(0, 2, 1).items():
        monkeypatch.setenv(name, value)
    assert "hardware=cpu is one process, but 2 were started (WORLD_SIZE=2)" in refusal(
        grpo_train, tiny(tmp_path / "run")
    )
    assert not (tmp_path / "run" / "metrics.jsonl").exists()
