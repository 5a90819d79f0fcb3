"""Ranks for tests: processes of a gloo group, which start at once, for they are forked."""

from __future__ import annotations

import os
import pickle
import traceback
from collections.abc import Callable, Sequence
from datetime import timedelta
from multiprocessing.connection import Connection
from typing import Any

import pytest
import torch

from grpo.distributed import Ranks
from hydra_plugins.grpo_launchers._slurm_task import _free_port as free_port
from tests.fork_server import SERVER

needs_ranks = pytest.mark.skipif(not torch.distributed.is_available(), reason="this torch has no torch.distributed")


def environment(rank: int, num_ranks: int, port: int) -> dict[str, str]:
    """What torchrun would set."""
    return {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(num_ranks),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }


def run_ranks(num_ranks: int, work: Callable[..., Any], *args: Any, timeout_s: float = 120) -> list[Any]:
    """What work(ranks, *args) returns on each of so many ranks.

    Args:
        num_ranks: how many processes.
        work: a function of a module, as pickle has it.
        args: of all ranks alike.
        timeout_s: for all of it; whoever is not done is killed.
    """
    port = free_port()
    started: list[tuple[Any, Connection]] = []
    for rank in range(num_ranks):
        here, there = SERVER.Pipe(duplex=False)
        process = SERVER.Process(target=_rank, args=(there, environment(rank, num_ranks, port), work, args))
        process.start()
        there.close()
        started.append((process, here))
    try:
        results = [_result(rank, end, timeout_s) for rank, (_, end) in enumerate(started)]
    finally:
        for process, _ in started:
            process.join(5)
            process.kill()
    return results


def _result(rank: int, end: Connection, timeout_s: float) -> Any:
    assert end.poll(timeout_s), f"rank {rank} says nothing for {timeout_s} s"
    try:
        value, error = pickle.loads(end.recv_bytes())
    except EOFError:
        raise AssertionError(f"rank {rank} died") from None
    assert error is None, f"rank {rank}: {error}"
    return value


def _rank(end: Connection, variables: dict[str, str], work: Callable[..., Any], args: Sequence[Any]) -> None:
    os.environ.update(variables)
    torch.set_num_threads(1)
    rank, num_ranks = int(variables["RANK"]), int(variables["WORLD_SIZE"])
    try:
        torch.distributed.init_process_group("gloo", timeout=timedelta(seconds=60))
        value = work(Ranks(rank, num_ranks, rank, (0,) * num_ranks), *args)
        end.send_bytes(pickle.dumps((value, None)))  # not `send`, which would share tensors' memory
        torch.distributed.destroy_process_group()
    except BaseException:
        end.send_bytes(pickle.dumps((None, traceback.format_exc())))
        raise
