"""The processes that train one policy together: torchrun or Slurm starts them, one a GPU, each with its own engine.

All of them run the same program on the same numbers. What only one of them knows (its rollouts, a signal, a write that
failed) is told to all before anybody acts on it, so that all take the same way and wait for each other in vain nowhere.
"""

from __future__ import annotations

import os
import socket
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any, TypeVar, cast

from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException

from grpo.config import HardwareConfig
from grpo.types import RunError

T = TypeVar("T")

_VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
# Launchers end the other ranks sooner than that after one has failed; ranks that have not met yet may be seconds apart.
_HEAD_START_S = 10.0


@dataclass(frozen=True, slots=True)
class Ranks:
    """Which of how many processes this is. As it stands by default: one of one, and nothing below communicates.

    Attributes:
        rank: from 0, over all nodes; rank 0 prints and writes.
        size: of all nodes together.
        local_rank: from 0, on this node.
        nodes: of every rank, its node's number from 0.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    nodes: tuple[int, ...] = (0,)

    @property
    def is_first(self) -> bool:
        """Whether this one prints and writes."""
        return self.rank == 0

    def gather(self, value: T) -> list[T]:
        """Everybody's value, by rank, for everybody."""
        if self.size == 1:
            return [value]
        import torch.distributed as dist

        values: list[T | None] = [None] * self.size
        dist.all_gather_object(values, value)
        return cast("list[T]", values)

    def from_first(self, make: Callable[[], T]) -> T:
        """What rank 0 makes, for everybody.

        Raises:
            ValueError, OSError, RunError: rank 0 raised it; everybody does.
        """
        if self.size == 1:
            return make()
        return cast(T, self._outcomes(make if self.is_first else lambda: None)[0])

    def together(self, act: Callable[[], T]) -> list[T]:
        """What everybody's call returned, by rank.

        Raises:
            ValueError, OSError, RunError: somebody's call raised it; everybody raises the lowest rank's.
        """
        return [act()] if self.size == 1 else cast("list[T]", self._outcomes(act))

    def _outcomes(self, act: Callable[[], Any]) -> list[Any]:
        try:
            outcome = (act(), None)
        except (ValueError, OSError, RunError) as error:
            outcome = (None, error)
        outcomes = self.gather(outcome)
        for _, error in outcomes:
            if error is not None:
                raise error
        return [value for value, _ in outcomes]

    def warn(self, text: str) -> None:
        """Says what concerns this rank alone, whose console may be silent."""
        print(f"grpo: rank {self.rank}: {text}", file=sys.stderr, flush=True)

    def share(self, items: Sequence[T]) -> Sequence[T]:
        """This rank's part of what all have: every size-th of it."""
        return items[self.rank :: self.size]

    def collect(self, own: Sequence[T]) -> list[T]:
        """The whole, for everybody, of which everybody has brought what belongs to their `share`."""
        shares = self.gather(own)
        return [shares[place % self.size][place // self.size] for place in range(sum(map(len, shares)))]

    def launcher(self) -> list[str]:
        """The words of a command line that start as many processes as these."""
        num_nodes, num_local = len(set(self.nodes)), max(Counter(self.nodes).values())
        if self.size == 1:
            return ["python"]
        several = ["--nnodes", str(num_nodes), "--rdzv-backend", "c10d", "--rdzv-endpoint", _endpoint()]
        return ["torchrun", *(several if num_nodes > 1 else []), "--nproc-per-node", str(num_local)]


ONE_RANK = Ranks()


def _endpoint() -> str:
    return f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"


def check_start(cfg: HardwareConfig, environment: Mapping[str, str] | None = None) -> None:
    """Compares how this process was started with what the config needs; imports nothing heavy.

    Args:
        cfg: `sharded` asks for torchrun or Slurm.
        environment: of the process.

    Raises:
        ValueError: started in another way than the config needs; says how to.
    """
    environment = os.environ if environment is None else environment
    missing = [name for name in _VARIABLES if name not in environment]
    num_ranks = int(environment.get("WORLD_SIZE", 1))
    if not cfg.sharded:
        if num_ranks > 1:
            raise ValueError(
                f"hardware={cfg.name} is one process, but {num_ranks} were started (WORLD_SIZE={num_ranks}); use "
                f"hardware=multi_gpu, or start it with `python -m grpo.train`"
            )
    elif missing:
        raise ValueError(
            f"hardware={cfg.name} needs one process a GPU, and this is one without {missing[0]}; use `torchrun "
            f"--nproc-per-node <GPUs of this machine> -m grpo.train hardware={cfg.name} ...`, or hardware=single_gpu"
        )


@contextmanager
def join_ranks(cfg: HardwareConfig) -> Iterator[Ranks]:
    """Meets the other processes, if the config wants any, and parts from them when the block ends well.

    Raises:
        ValueError: two ranks would share a GPU.
        RunError: the others are gone.
    """
    num_ranks = int(os.environ.get("WORLD_SIZE", 1))
    if not cfg.sharded or num_ranks == 1:
        yield ONE_RANK
        return
    import torch
    import torch.distributed as dist

    rank, local_rank = int(os.environ["RANK"]), int(os.environ["LOCAL_RANK"])
    device = torch.device(own_device(cfg.policy_device, local_rank))
    if device.type == "cuda":
        torch.cuda.set_device(device)
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    try:
        dist.init_process_group(backend, timeout=timedelta(seconds=cfg.rank_timeout_s))
        ranks = _introduce(Ranks(rank, num_ranks, local_rank), device)
        yield ranks
        dist.barrier()
    except RuntimeError as error:
        if not _is_lost_connection(error):
            raise
        reason = " ".join(str(error).split("] ", 1)[-1].split())[:100]  # without the file and line in gloo's source
        raise RunError(
            f"rank {rank} lost the others ({reason}): a rank that failed says why in its "
            f"own words, one that hung for hardware.rank_timeout_s={cfg.rank_timeout_s:g} may not; the same command "
            "with resume=<run folder> goes on from the last checkpoint"
        ) from error
    dist.destroy_process_group()  # not after an error: it would wait for ranks that wait for this one


def _introduce(ranks: Ranks, device: Any) -> Ranks:
    """Tells everybody everybody's node, and that each has a GPU of its own."""
    import torch

    host = socket.gethostname()
    gpu = str(torch.cuda.get_device_properties(device).uuid) if device.type == "cuda" else None
    seats = ranks.gather((host, gpu))
    check_own_gpus(seats)
    hosts = list(dict.fromkeys(host for host, _ in seats))
    return replace(ranks, nodes=tuple(hosts.index(host) for host, _ in seats))


def check_own_gpus(seats: Sequence[tuple[str, str | None]]) -> None:
    """Compares what every rank sits on: host and GPU, or None without one.

    Raises:
        ValueError: two share a GPU.
    """
    taken = Counter(seat for seat in seats if seat[1] is not None)
    if shared := [seat for seat, number in taken.items() if number > 1]:
        host = shared[0][0]
        num_ranks, num_gpus = sum(seat[0] == host for seat in seats), len({seat for seat in seats if seat[0] == host})
        raise ValueError(
            f"{num_ranks} ranks on {host} share {num_gpus} of its GPUs, and every rank needs one of its own; start "
            f"them with --nproc-per-node {num_gpus}"
        )


def own_device(name: str, local_rank: int) -> str:
    """The device that a config's name means for a rank: `cuda` is its own GPU, all else is what it says.

    Where a launcher shows every rank one GPU only, that one is it.
    """
    if name != "cuda":
        return name
    import torch

    return f"cuda:{local_rank % max(1, torch.cuda.device_count())}"


def own_hardware(cfg: HardwareConfig, ranks: Ranks) -> HardwareConfig:
    """The config with this rank's devices."""
    if not cfg.sharded:
        return cfg
    policy, engine = (own_device(name, ranks.local_rank) for name in (cfg.policy_device, cfg.engine_device))
    return replace(cfg, policy_device=policy, engine_device=engine)


@contextmanager
def one_voice() -> Iterator[None]:
    """Lets rank 0 speak first where all ranks fail alike, upon which the launcher ends the others.

    Raises:
        RunError: this rank, which is not the first, failed by itself; says which it is.
    """
    rank = int(os.environ.get("RANK", 0)) if int(os.environ.get("WORLD_SIZE", 1)) > 1 else 0
    try:
        yield
    except (ValueError, OSError, RunError, HydraException, OmegaConfBaseException) as error:
        if rank == 0:
            raise
        time.sleep(_HEAD_START_S)
        raise RunError(f"rank {rank}: {error}") from error


@contextmanager
def end_of_rank() -> Iterator[None]:
    """Ends the process of one rank of several where its program ends, with the status it asks for.

    What the interpreter does after that can abort a process whose work is done, while C++ threads of torch's still run;
    a launcher takes that for a failure of all ranks.
    """
    try:
        yield
    except SystemExit as end:
        if int(os.environ.get("WORLD_SIZE", 1)) == 1 or not isinstance(end.code, int):
            raise
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(end.code)


def _is_lost_connection(error: RuntimeError) -> bool:
    """Whether a collective broke off. Gloo has no exception of its own."""
    import torch.distributed as dist

    return isinstance(error, dist.DistError) or "gloo" in str(error)
