"""A child that keeps the protocol of `grpo.rollout.vllm_child` without vLLM, and misbehaves when a file tells it to.

Files in the folder GRPO_FAKE: `die`, `hang`, `block` and `compute` hold the moment at which it happens, a number of
completions or "load", "build", "sleep"; once: the file is taken away first. `pids` gets every child's process number.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Generator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from grpo.rollout.vllm_child import COMMANDS, main
from grpo.rollout.vllm_group import WeightGroup
from grpo.rollout.vllm_types import Draw, Finished, Wanted
from grpo.rollout.vllm_weights import bucket_numel, unpack

FOLDER = Path(os.environ.get("GRPO_FAKE", "."))


def compute() -> None:
    """For seconds, without a step."""
    end = time.process_time() + 7
    while time.process_time() < end:
        pass


ACTS: dict[str, Callable[[], None]] = {
    "die": lambda: os._exit(7),
    "hang": lambda: os.kill(os.getpid(), signal.SIGSTOP),
    "block": lambda: time.sleep(30),  # the other threads go on
    "compute": compute,
}


def misbehave(moment: str) -> None:
    for name, act in ACTS.items():
        order = FOLDER / name
        if order.is_file() and order.read_text() == moment:
            order.unlink()
            print(f"told to {name} at {moment}", flush=True)
            act()


class FakeCore:
    is_cpu = True

    def __init__(self) -> None:
        self.progress = 0
        self.weights: dict[str, Tensor] = {}

    def join(self, info: dict[str, Any]) -> None:
        self._group = WeightGroup(info["meeting"], rank=1, backend=info["backend"], device=torch.device("cpu"))

    def update(self, info: dict[str, Any]) -> None:
        ask: Callable[[], Any] = info["ask"]
        self.weights = {}
        while (bucket := ask()) is not None:
            flat = torch.empty(bucket_numel(bucket) * info["dtype"].itemsize, dtype=torch.uint8)
            misbehave("load")
            self._group.receive(flat)
            self.weights |= {name: tensor.clone() for name, tensor in unpack(flat, bucket, info["dtype"])}
        if (FOLDER / "refuse").is_file():
            raise ValueError("told to refuse")

    def generate(self, wanted: Sequence[Wanted], draw: Draw) -> Generator[Finished, None, None]:
        total = sum(float(tensor.double().sum()) for tensor in self.weights.values())
        for count, one in enumerate(wanted):
            misbehave(str(count))
            time.sleep(0.01)
            yield Finished(one.place, [one.seed % 251, len(one.prompt)], [total, -1.0], stopped=False)

    def sleep(self) -> None:
        misbehave("sleep")


def build(link: Any, settings: Any) -> None:
    with (FOLDER / "pids").open("a") as file:
        file.write(f"{os.getpid()}\n")
    misbehave("build")
    if settings.dtype == "bfloat16":
        raise RuntimeError("told to\nrefuse bfloat16")
    link.core = FakeCore()


if __name__ == "__main__":
    main({**COMMANDS, "build": build})
