"""Updates of a model with random weights: `python -m bench.peers.gpu_update`, a job on standard input.

The policy is the one that a run with the same overrides would build. The first update of a batch makes the optimiser's
states and loads kernels; the second is measured.
"""

from __future__ import annotations

import math
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist

from bench.peers.gpu_device import answer, peak_bytes, random_model, reset_peak, seconds_of, synchronize
from bench.rollout_cases import SEED, Size
from grpo.config import RunConfig, compose_run_config
from grpo.policy.build import build_policy
from grpo.policy.load import torch_dtype
from grpo.policy.packing import micro_batch_rows
from grpo.types import TrainBatch

_END = 0  # the end of sequence; in no batch


@dataclass(frozen=True, slots=True)
class UpdateJob:
    """What is measured.

    Attributes:
        overrides: of the run config.
        device: of the policy.
        size: the model's dimensions, of `bench.rollout_cases.Size`.
        prompt_tokens: of every prompt.
        batches: response tokens of each sequence of each batch; all batches have as many sequences.
        group_size: sequences that share a prompt.
    """

    overrides: list[str]
    device: str
    size: dict[str, Any]
    prompt_tokens: int
    batches: list[list[int]]
    group_size: int


@dataclass(frozen=True, slots=True)
class Update:
    """What one update took.

    Attributes:
        seconds: of all of it.
        optimizer_s: of that, of the optimiser's step.
        num_micro_batches: that it was cut into.
        peak, reserved: bytes of tensors at most, and that torch had of the device for them; None on a CPU.
    """

    seconds: float
    optimizer_s: float
    num_micro_batches: int
    peak: int | None
    reserved: int | None


class StepClock:
    """Seconds of an optimiser's last step."""

    def __init__(self, optimizer: torch.optim.Optimizer, device: torch.device) -> None:
        """Hooks onto the optimiser; the device is waited for before and after a step."""
        self.seconds = math.nan
        self._device, self._start = device, math.nan
        optimizer.register_step_pre_hook(lambda *_: self._begin())
        optimizer.register_step_post_hook(lambda *_: self._end())

    def _begin(self) -> None:
        synchronize(self._device)
        self._start = time.perf_counter()

    def _end(self) -> None:
        synchronize(self._device)
        self.seconds = time.perf_counter() - self._start


def run_config(job: UpdateJob) -> RunConfig:
    """That of a run with one optimiser step for the whole batch, in which only groups' advantages are missing."""
    number, longest = len(job.batches[0]), max(map(max, job.batches))
    return compose_run_config(
        [
            "hardware=single_gpu",
            *job.overrides,
            f"hardware.policy_device={job.device}",
            f"train.rollout_batch_size={number}",
            f"train.train_batch_size={number}",
            f"train.group_size={job.group_size}",
            f"sampling.max_tokens={longest}",
            f"sampling.min_tokens={min(4, longest)}",
        ]
    )


def make_batch(job: UpdateJob, responses: Sequence[int]) -> TrainBatch:
    """Random tokens; no advantage is 0, so that every sequence is trained on."""
    generator = torch.Generator().manual_seed(SEED)

    def draw(length: int) -> torch.Tensor:
        return torch.randint(_END + 1, job.size["vocabulary"], (length,), generator=generator)

    prompts = [draw(job.prompt_tokens) for _ in range(-(-len(responses) // job.group_size))]
    return TrainBatch(
        token_ids=tuple(torch.cat([prompts[row // job.group_size], draw(n)]) for row, n in enumerate(responses)),
        prompt_lengths=(job.prompt_tokens,) * len(responses),
        sampler_log_probs=tuple(torch.full((n,), -math.log(job.size["vocabulary"])) for n in responses),
        advantages=torch.tensor([1.0, -1.0]).repeat(len(responses))[: len(responses)],
    )


@contextmanager
def process_group(device: torch.device) -> Iterator[None]:
    """torch.distributed with this process alone: NCCL refuses two ranks on one GPU."""
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    with tempfile.TemporaryDirectory() as folder:
        dist.init_process_group(backend, init_method=f"file://{folder}/store", rank=0, world_size=1)
        try:
            yield
        finally:
            dist.destroy_process_group()


def measure(job: UpdateJob) -> list[Update]:
    """One update of each batch."""
    cfg, device = run_config(job), torch.device(job.device)
    with process_group(device) if cfg.hardware.sharded else nullcontext():
        return _measure(job, cfg, device)


def _measure(job: UpdateJob, cfg: RunConfig, device: torch.device) -> list[Update]:
    context = job.prompt_tokens + max(map(max, job.batches))
    model = random_model(Size(**job.size), context, torch_dtype(cfg.model.master_dtype), device)
    policy, _ = build_policy(cfg, model, (_END,))
    clock = StepClock(policy.optimizer, device)
    updates: list[Update] = []
    for responses in job.batches:
        batch = make_batch(job, responses)

        def update(batch: TrainBatch = batch) -> None:
            assert policy.update(batch, 1)["policy/skipped_updates"] == 0  # it would have no optimiser step in it

        update()
        reset_peak(device)
        seconds = seconds_of(update, device)
        rows, hardware = range(len(batch)), cfg.hardware
        parts = micro_batch_rows(batch, rows, max_tokens=hardware.micro_batch_tokens, packing=hardware.packing)
        updates.append(Update(seconds, clock.seconds, len(parts), *peak_bytes(device)))
    return updates


if __name__ == "__main__":
    answer(UpdateJob, measure)
