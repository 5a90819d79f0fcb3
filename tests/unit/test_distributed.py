"""Ranks that talk to each other, and what they say to a start that cannot work."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch

from grpo import distributed
from grpo.config import HardwareConfig
from grpo.distributed import ONE_RANK, Ranks, check_own_gpus, check_start, one_voice, own_device
from grpo.types import RunError
from tests.ranks import needs_ranks, run_ranks


def hardware(**changes: Any) -> HardwareConfig:
    values: dict[str, Any] = {"policy_device": "cpu", "engine_device": "cpu", "sharded": True}
    return HardwareConfig(name="multi_gpu", **{**values, **changes})


STARTED = {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}


def caught(call: Callable[[], Any]) -> str:
    try:
        return repr(call())
    except (ValueError, OSError, RunError) as error:
        return f"{type(error).__name__}: {error}"


def failing(error: Exception) -> Any:
    raise error


def conversation(ranks: Ranks) -> dict[str, Any]:
    items = list(range(7))
    return {
        "gather": ranks.gather(ranks.rank * 10),
        "share": list(ranks.share(items)),
        "collect": [ranks.collect(ranks.share(items[:num])) for num in (0, 1, 2, 3, 7)],
        "from_first": ranks.from_first(lambda: f"made by {ranks.rank}"),
        "together": ranks.together(lambda: ranks.rank),
        "first_fails": caught(lambda: ranks.from_first(lambda: failing(ValueError(f"on {ranks.rank}")))),
        "one_fails": caught(
            lambda: ranks.together(lambda: failing(OSError(f"on {ranks.rank}")) if ranks.rank == 1 else 0)
        ),
        "launcher": ranks.launcher(),
    }


@needs_ranks
def test_everybody_hears_the_same() -> None:
    for rank, heard in enumerate(run_ranks(3, conversation)):
        assert heard.pop("share") == [[0, 3, 6], [1, 4], [2, 5]][rank]
        assert heard == {
            "gather": [0, 10, 20],
            "collect": [[], [0], [0, 1], [0, 1, 2], [0, 1, 2, 3, 4, 5, 6]],
            "from_first": "made by 0",
            "together": [0, 1, 2],
            "first_fails": "ValueError: on 0",
            "one_fails": "OSError: on 1",
            "launcher": ["torchrun", "--nproc-per-node", "3"],
        }


def test_one_rank_talks_to_itself() -> None:
    assert conversation(ONE_RANK) == {
        "gather": [0],
        "share": [0, 1, 2, 3, 4, 5, 6],
        "collect": [[], [0], [0, 1], [0, 1, 2], [0, 1, 2, 3, 4, 5, 6]],
        "from_first": "made by 0",
        "together": [0],
        "first_fails": "ValueError: on 0",
        "one_fails": "[0]",
        "launcher": ["python"],
    }


def test_what_concerns_one_rank_alone_is_said_by_it(capfd: pytest.CaptureFixture[str]) -> None:
    Ranks(1, 2).warn("its engine was lost")
    assert capfd.readouterr().err == "grpo: rank 1: its engine was lost\n"


def test_nodes_are_named_in_the_command_that_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MASTER_ADDR", "first")
    monkeypatch.setenv("MASTER_PORT", "29500")
    words = Ranks(0, 4, 0, (0, 0, 1, 1)).launcher()
    assert " ".join(words) == ("torchrun --nnodes 2 --rdzv-backend c10d --rdzv-endpoint first:29500 --nproc-per-node 2")


def test_starts_that_fit() -> None:
    check_start(hardware(), STARTED)
    check_start(hardware(sharded=False), {})
    check_start(hardware(sharded=False), {**STARTED, "WORLD_SIZE": "1"})


@pytest.mark.parametrize("gone", STARTED)
def test_sharded_hardware_without_a_launcher_is_refused(gone: str) -> None:
    environment = {key: value for key, value in STARTED.items() if key != gone}
    with pytest.raises(ValueError, match=f"this is one without {gone}; use `torchrun --nproc-per-node <GPUs"):
        check_start(hardware(), environment)


def test_one_process_hardware_under_a_launcher_is_refused() -> None:
    with pytest.raises(
        ValueError, match=r"is one process, but 2 were started \(WORLD_SIZE=2\); use hardware=multi_gpu"
    ):
        check_start(hardware(sharded=False), STARTED)


def test_ranks_that_share_a_gpu_are_refused() -> None:
    check_own_gpus([("a", None), ("a", None)])
    check_own_gpus([("a", "0"), ("a", "1"), ("b", "0")])
    with pytest.raises(ValueError, match=r"3 ranks on b share 2 of its GPUs, .* start them with --nproc-per-node 2"):
        check_own_gpus([("a", "0"), ("b", "0"), ("b", "1"), ("b", "0")])


def test_cuda_is_every_ranks_own_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    assert [own_device("cuda", rank) for rank in range(3)] == ["cuda:0", "cuda:1", "cuda:2"]
    assert own_device("cpu", 2) == "cpu"
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)  # Slurm may show every task its own only
    assert own_device("cuda", 2) == "cuda:0"


def test_the_first_rank_speaks_first(monkeypatch: pytest.MonkeyPatch) -> None:
    waited: list[float] = []
    monkeypatch.setattr(distributed.time, "sleep", waited.append)
    with pytest.raises(ValueError, match=r"^wrong$"), one_voice():
        raise ValueError("wrong")
    for name, value in {**STARTED, "RANK": "0"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match=r"^wrong$"), one_voice():
        raise ValueError("wrong")
    assert not waited
    monkeypatch.setenv("RANK", "1")
    with pytest.raises(RunError, match=r"^rank 1: wrong$"), one_voice():
        raise ValueError("wrong")
    assert waited == [10.0]


def test_what_cannot_be_sharded_is_refused() -> None:
    with pytest.raises(ValueError, match=r"hardware\.policy_device=mps cannot be sharded; use cuda"):
        hardware(policy_device="mps")
    with pytest.raises(ValueError, match=r"hardware\.rank_timeout_s=0.0 is not positive"):
        hardware(rank_timeout_s=0.0)


@pytest.mark.parametrize(("ranks", "ends_at_once"), [("1", False), ("2", True)])
def test_a_rank_of_several_ends_where_its_program_ends(ranks: str, ends_at_once: bool) -> None:
    program = (
        "import atexit, sys\n"
        "from grpo.distributed import end_of_rank\n"
        "atexit.register(print, 'last rites')\n"
        "print('said', end=' ')\n"
        "with end_of_rank():\n"
        "    sys.exit(3)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "WORLD_SIZE": ranks},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, "last rites" in done.stdout) == (3, not ends_at_once)
    assert done.stdout.startswith("said")
