"""One task of a job: who it is, where its ranks meet, and the notes by which it tells the launcher how it is."""

from __future__ import annotations

import json
import os
import random
import re
import socket
import subprocess
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

POLL_S = 0.1
PATIENCE_S = 300.0  # for files of other ranks, on file systems that are slow to show them


class PointFailed(Exception):
    """Makes the task fail, so that Slurm says FAILED too."""


@dataclass(frozen=True)
class Task:
    """One task of a job, from Slurm's variables.

    Attributes:
        folder: of the point.
        job_id: as squeue shows it.
        restarts: how often the job has been requeued.
        rank, num_ranks, local_rank, num_local: of all nodes, and of this one.
        nodes: Slurm's short form of their names.
        host: this node's name.
    """

    folder: Path
    job_id: str
    restarts: int
    rank: int
    num_ranks: int
    local_rank: int
    num_local: int
    nodes: str
    host: str

    @classmethod
    def here(cls, folder: Path, environment: Mapping[str, str] | None = None) -> Task:
        """This process's task."""
        slurm = os.environ if environment is None else environment
        array, raw = slurm.get("SLURM_ARRAY_JOB_ID"), slurm["SLURM_JOB_ID"]
        num_ranks = int(slurm["SLURM_STEP_NUM_TASKS"])
        own_node = int(slurm.get("SLURM_NODEID", 0))
        return cls(
            folder=folder,
            job_id=f"{array}_{slurm['SLURM_ARRAY_TASK_ID']}" if array else raw,
            restarts=int(slurm.get("SLURM_RESTART_COUNT", 0)),
            rank=int(slurm["SLURM_PROCID"]),
            num_ranks=num_ranks,
            local_rank=int(slurm["SLURM_LOCALID"]),
            num_local=tasks_per_node(slurm.get("SLURM_STEP_TASKS_PER_NODE", str(num_ranks)))[own_node],
            nodes=slurm["SLURM_STEP_NODELIST"],
            host=slurm.get("SLURMD_NODENAME", socket.gethostname()),
        )

    @property
    def log_path(self) -> Path:
        """What the program prints; rank 0's is the point's log, as in a sweep on one machine."""
        return self.folder / ("log.txt" if self.rank == 0 else f"slurm/log_rank_{self.rank}.txt")

    def environment(self) -> dict[str, str]:
        """What torch.distributed reads, as torchrun sets it."""
        address, port = self._meeting_place()
        return {
            "RANK": str(self.rank),
            "WORLD_SIZE": str(self.num_ranks),
            "LOCAL_RANK": str(self.local_rank),
            "LOCAL_WORLD_SIZE": str(self.num_local),
            "MASTER_ADDR": address,
            "MASTER_PORT": str(port),
        }

    def note(self, status: str, code: int | None = None, reason: str = "") -> None:
        """Tells the launcher, and rank 0, how this rank is."""
        now = time.time()
        before = read_note(self.folder, self.rank, self.job_id)
        values = {
            "job_id": self.job_id,
            "restarts": self.restarts,
            "status": status,
            "code": code,
            "reason": reason,
            "started": before["started"] if before else now,  # for the first time
            "time": now,
            "host": self.host,
            "log": str(self.log_path),
        }
        _write(self.folder / "slurm" / f"rank_{self.rank}.json", values)

    def wait_for_others(self) -> None:
        """Until every other rank has saved as well."""
        end = time.monotonic() + PATIENCE_S
        waiting = set(range(self.num_ranks)) - {self.rank}
        while waiting and time.monotonic() < end:
            for rank in sorted(waiting):
                note = read_note(self.folder, rank, self.job_id)
                if note and note["restarts"] == self.restarts and note["status"] != "running":
                    waiting.discard(rank)
            time.sleep(POLL_S)

    def _meeting_place(self) -> tuple[str, int]:
        """Where rank 0 listens: it takes a free port and tells the others through a file."""
        path = self.folder / "slurm" / "meeting_place.json"
        mine = {"job_id": self.job_id, "restarts": self.restarts}
        if self.rank == 0:
            address = _address(self.nodes) if self.num_ranks > 1 else "127.0.0.1"
            place = {**mine, "address": address, "port": _free_port()}
            _write(path, place)
            return address, place["port"]
        end = time.monotonic() + PATIENCE_S
        while time.monotonic() < end:
            place = _read(path)
            if place and {key: place[key] for key in mine} == mine:
                return place["address"], place["port"]
            time.sleep(POLL_S)
        raise PointFailed(f"rank {self.rank} waited {PATIENCE_S:.0f} s for {path}: do the nodes share its file system?")


def read_note(folder: Path, rank: int, job_id: str) -> dict[str, Any] | None:
    """What a rank of this job noted last; None if it has not been there yet."""
    note = _read(folder / "slurm" / f"rank_{rank}.json")
    return note if note and note["job_id"] == job_id else None


def tasks_per_node(text: str) -> list[int]:
    """Slurm's short form, written out.

    >>> tasks_per_node("2(x3),1")
    [2, 2, 2, 1]
    """
    numbers: list[int] = []
    for part in text.split(","):
        number, times = re.fullmatch(r"(\d+)(?:\(x(\d+)\))?", part).groups()  # type: ignore[union-attr]
        numbers += [int(number)] * int(times or 1)
    return numbers


def _address(nodes: str) -> str:
    """The first node's address. Its name need not be one."""
    first = subprocess.run(
        ["scontrol", "show", "hostnames", nodes], capture_output=True, text=True, check=True, timeout=60
    ).stdout.split()[0]
    shown = subprocess.run(
        ["scontrol", "show", "node", first, "-o"], capture_output=True, text=True, check=True, timeout=60
    ).stdout
    match = re.search(r"\bNodeAddr=(\S+)", shown)
    return match[1] if match else first


def _free_port() -> int:
    """Below the ports that connections take for themselves, so that it stays free for a while."""
    for port in random.SystemRandom().sample(range(20000, 32768), 100):
        with socket.socket() as listener:
            try:
                listener.bind(("", port))
            except OSError:
                continue
            return port
    raise PointFailed("100 ports between 20000 and 32767 were taken on this node")


def _write(path: Path, values: Mapping[str, Any]) -> None:
    from grpo.run.files import write_atomic

    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, json.dumps(values))


def _read(path: Path) -> dict[str, Any] | None:
    try:
        os.listdir(path.parent)  # makes a network file system look again
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
