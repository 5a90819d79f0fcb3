"""One optimiser step, measured in a process of its own: `python -m bench.peers.update_step`, a job on standard input.

Both ways of taking it have the same model, batch, loss, clipping and AdamW. Before the measured step a small one makes
the optimiser's states; a learning rate of next to nothing keeps it from moving the weights.
"""

from __future__ import annotations

import gc
import json
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import psutil
import torch
from torch.nn.utils.rnn import pad_sequence

from bench.rollout_cases import SEED, TINY, Size, build_model
from grpo.config import AggregationName, HardwareConfig, LossConfig, ObjectiveName, OptimizerName, Packing, TrainConfig
from grpo.policy.forward import ForwardSettings
from grpo.policy.optimizer import build_optimizer
from grpo.policy.update import Policy
from grpo.rl.log_probs import TokenDistribution
from grpo.types import TrainBatch

_LEARNING_RATE = 1e-30  # below the last digit of every weight
_STATUS, _CLEAR_REFS = Path("/proc/self/status"), Path("/proc/self/clear_refs")


@dataclass(frozen=True, slots=True)
class Job:
    """What is measured.

    Attributes:
        way: a key of `WAYS`.
        size: the model's dimensions, of `bench.rollout_cases.Size`.
        threads: of torch.
        prompt_tokens: of every prompt.
        response_tokens: of each of the B completions.
        group_size: completions that share a prompt.
        hardware: of `grpo.config.HardwareConfig`, beyond its defaults.
        dtype: of the master weights.
        optimizer: of `grpo.config.OptimizerName`.
        num_steps: measured ones; the fastest counts.
        gradients: file for the first step's gradients, or None.
    """

    way: str
    size: dict[str, Any]
    threads: int
    prompt_tokens: int
    response_tokens: list[int]
    group_size: int = 1
    hardware: dict[str, Any] = field(default_factory=dict)
    dtype: str = "float32"
    optimizer: str = "adamw"
    num_steps: int = 1
    gradients: str | None = None


@dataclass(frozen=True, slots=True)
class Measured:
    """What came out; bytes but for `seconds` and `num_parameters`.

    Attributes:
        seconds: of the fastest step, clipping and AdamW included.
        peak: resident at most during the steps, less `before`, weights and states.
        before: resident when a step of a tiny model has loaded all libraries, and nothing else is made.
        weights, gradients, states: of the tensors.
    """

    seconds: float
    num_parameters: int
    peak: int
    before: int
    weights: int
    gradients: int
    states: int


Step = Callable[[TrainBatch], None]


def full_logits_step(job: Job, model: Any) -> tuple[Step, torch.optim.Optimizer]:
    """As written by hand: logits of all positions, log-softmax, gather; nothing is sliced or copied on the way."""
    optimizer = build_optimizer(model, train_config(job))

    def step(batch: TrainBatch) -> None:
        token_ids = pad_sequence(list(batch.token_ids), batch_first=True)
        targets = token_ids.roll(-1, dims=1)
        lengths = torch.tensor([len(ids) for ids in batch.token_ids])
        places = torch.arange(token_ids.shape[1]) + 1
        mask = (places >= torch.tensor(batch.prompt_lengths).unsqueeze(1)) & (places < lengths.unsqueeze(1))
        log_probs = model(token_ids, use_cache=False).logits.log_softmax(dim=-1)
        chosen = log_probs.gather(2, targets.unsqueeze(2)).squeeze(2)
        del log_probs
        losses = -batch.advantages.unsqueeze(1) * chosen
        (losses.masked_fill(~mask, 0.0).sum() / mask.sum()).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), train_config(job).max_grad_norm)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step, optimizer


def our_step(job: Job, model: Any) -> tuple[Step, torch.optim.Optimizer]:
    """`Policy.update` with one optimiser step."""
    options = {**job.hardware, "packing": Packing(job.hardware.get("packing", HardwareConfig.packing.value))}
    hardware = HardwareConfig(name="cpu", policy_device="cpu", engine_device="cpu", **options)
    loss = LossConfig(name="bench", objective=ObjectiveName.reinforce, aggregation=AggregationName.token_mean)
    compute_dtype = getattr(torch, job.dtype)
    policy = Policy(
        model,
        train=train_config(job),
        loss=loss,
        hardware=hardware,
        forward=ForwardSettings(TokenDistribution(), 0, compute_dtype, hardware.head_chunk_tokens),
        max_tokens=max(job.response_tokens),
        seed=SEED,
    )
    return lambda batch: check_not_skipped(policy.update(batch, 1)), policy.optimizer


def check_not_skipped(metrics: dict[str, float]) -> None:
    """A step that was skipped would have no AdamW in it."""
    assert metrics["policy/skipped_updates"] == 0


WAYS = {"full logits": full_logits_step, "ours": our_step}


def train_config(job: Job) -> TrainConfig:
    """One optimiser step, nothing clipped, nothing decayed."""
    rows = len(job.response_tokens)
    return TrainConfig(
        optimizer=OptimizerName(job.optimizer),
        learning_rate=_LEARNING_RATE,
        rollout_batch_size=rows,
        train_batch_size=rows,
        group_size=job.group_size,
        max_grad_norm=1e9,
    )


def make_batch(job: Job, response_tokens: list[int]) -> TrainBatch:
    """Random tokens; advantages none of which is 0, as their number is even."""
    generator = torch.Generator().manual_seed(SEED)
    vocabulary, rows = job.size["vocabulary"], range(len(response_tokens))
    prompts = [torch.randint(1, vocabulary, (job.prompt_tokens,), generator=generator) for _ in rows]
    responses = [torch.randint(1, vocabulary, (length,), generator=generator) for length in response_tokens]
    return TrainBatch(
        token_ids=tuple(torch.cat([prompts[row // job.group_size], responses[row]]) for row in rows),
        prompt_lengths=(job.prompt_tokens,) * len(response_tokens),
        sampler_log_probs=tuple(torch.zeros(length) for length in response_tokens),
        advantages=torch.linspace(-1, 1, len(response_tokens)),
    )


class PeakMemory:
    """Most bytes resident inside: Linux's own mark, reset on entry; where that may not be, samples every 2 ms."""

    def __enter__(self) -> PeakMemory:
        """Starts."""
        self.peak = resident()
        self._sampler: threading.Thread | None = None
        try:
            _CLEAR_REFS.write_text("5")
        except OSError:
            self._done = threading.Event()
            self._sampler = threading.Thread(target=self._sample, daemon=True)
            self._sampler.start()
        return self

    def _sample(self) -> None:
        while not self._done.wait(0.002):
            self.peak = max(self.peak, resident())

    def __exit__(self, *_: object) -> None:
        """Reads the mark."""
        if self._sampler is None:
            lines = dict(line.split(":", 1) for line in _STATUS.read_text().splitlines())
            self.peak = int(lines["VmHWM"].split()[0]) * 1024
        else:
            self._done.set()
            self._sampler.join()


def resident() -> int:
    """Bytes in memory now."""
    return psutil.Process().memory_info().rss


def tensor_bytes(tensors: Any) -> int:
    """Of all of them."""
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


class GradientReader:
    """Looks at the gradients where the optimiser takes them, and how long that takes."""

    def __init__(self, optimizer: torch.optim.Optimizer, model: Any) -> None:
        """Looks at nothing but sizes until `file` is set."""
        self.num_bytes, self.seconds = 0, 0.0
        self.file: str | None = None
        self._model = model
        optimizer.register_step_pre_hook(lambda *_: self._read())

    def _read(self) -> None:
        start = time.perf_counter()
        gradients = {name: one.grad for name, one in self._model.named_parameters() if one.grad is not None}
        self.num_bytes = tensor_bytes(gradients.values())
        if self.file is not None:
            torch.save(gradients, self.file)
            self.file = None
        self.seconds += time.perf_counter() - start


def prepare(job: Job) -> tuple[Any, Step, torch.optim.Optimizer]:
    """Model, step and optimiser, after a step of four tokens a completion."""
    model: Any = build_model(Size(**job.size), job.prompt_tokens + max(job.response_tokens))
    model.to(getattr(torch, job.dtype))
    step, optimizer = WAYS[job.way](job, model)
    step(make_batch(job, [4] * len(job.response_tokens)))
    return model, step, optimizer


def measure(job: Job) -> Measured:
    """Takes the steps."""
    torch.set_num_threads(job.threads)
    prepare(replace(job, size=asdict(TINY)))
    gc.collect()
    before = resident()
    model, step, optimizer = prepare(job)
    reader = GradientReader(optimizer, model)
    batch = make_batch(job, job.response_tokens)
    reader.file = job.gradients
    seconds: list[float] = []
    with PeakMemory() as memory:
        for _ in range(job.num_steps):
            reader.seconds, start = 0.0, time.perf_counter()
            step(batch)
            seconds.append(time.perf_counter() - start - reader.seconds)
    weights = tensor_bytes(model.parameters())
    states = tensor_bytes(value for state in optimizer.state.values() for value in state.values())
    peak = memory.peak - before - weights - states
    return Measured(min(seconds), model.num_parameters(), peak, before, weights, reader.num_bytes, states)


if __name__ == "__main__":
    print(json.dumps(asdict(measure(Job(**json.load(sys.stdin))))))
