"""Two processes of one machine that pass weights: the trainer, rank 0, and vLLM's child, rank 1.

The group is beside torch.distributed's default one: vLLM makes that in the child, and ranks of a sharded policy in the
trainer.
"""

from __future__ import annotations

import shutil
from datetime import timedelta
from pathlib import Path
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor

_TIMEOUT = timedelta(minutes=15)  # neither side waits that long alone: the trainer looks after the child meanwhile


class WeightGroup:
    """One end of the group."""

    def __init__(self, meeting: str, *, rank: int, backend: str, device: torch.device):
        """Returns once the other end has come.

        Args:
            meeting: a file for the two to find each other by; its folder exists, and is for this alone.
            rank: 0 sends, 1 receives.
            backend: "nccl" for two GPUs, "gloo" else.
            device: of this process's tensors where the backend is "nccl".
        """
        self.device = device if backend == "nccl" else torch.device("cpu")
        self._folder = Path(meeting).parent
        store = cast(Any, dist).FileStore(meeting, 2)
        store.set_timeout(_TIMEOUT)
        self._group = self._join(store, rank, backend)
        self._broadcast(torch.zeros(1, dtype=torch.uint8, device=self.device))  # NCCL meets at first use, and slowly

    def _join(self, store: Any, rank: int, backend: str) -> Any:
        if backend == "gloo":
            return dist.ProcessGroupGloo(store, rank, 2, _TIMEOUT)
        options = dist.ProcessGroupNCCL.Options()
        options._timeout = _TIMEOUT
        return dist.ProcessGroupNCCL(store, rank, 2, options)

    def send(self, flat: Tensor) -> None:
        """Sends bytes, from rank 0."""
        self._broadcast(flat.to(self.device))

    def receive(self, flat: Tensor) -> None:
        """Fills `flat` with what was sent."""
        self._broadcast(flat)

    def leave(self) -> None:
        """Ends what is under way, for an end whose other end is gone, and removes the folder where they met.

        Not before: as long as there is a group, NCCL's watchdog looks into the file, and waits for one that is gone.
        """
        if hasattr(self, "_group"):
            self._group.abort()
            del self._group
        shutil.rmtree(self._folder, ignore_errors=True)

    def _broadcast(self, flat: Tensor) -> None:
        """Returns when it is done; NCCL's `wait` alone would not wait for the GPU."""
        if self.device.type == "cpu":
            self._group.broadcast(flat, 0).wait()
            return
        with torch.cuda.device(self.device):  # the trainer calls from a thread, which begins with the first GPU
            self._group.broadcast(flat, 0).wait()
            torch.cuda.current_stream().synchronize()
