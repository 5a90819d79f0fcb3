"""The torch engine on a job, as a run builds it: `python -m bench.peers.rollout_ours JOB RESULT`.

The option `mismatch_rows` asks for the difference to the trainer's log-probs on so many completions; `group_size` says
that so many prompts in a row are the same and are samples of one group.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

import grpo  # first: it sets how OpenMP's threads wait, before torch starts them

# isort: split
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from bench.peers.rollout_job import Job, Measured, answer, peak_bytes, timed
from grpo.config import RunConfig, compose_run_config
from grpo.policy.build import build_policy, load_policy_model
from grpo.policy.load import torch_dtype
from grpo.rollout import torch_engine
from grpo.rollout.batch import Batch
from grpo.rollout.build import build_engine
from grpo.rollout.decoder import Decoder
from grpo.types import Completion, Engine, SampleKey, Sampling, TrainBatch

_END = 0  # the token that ends rows where lengths vary
_LIKELY = 1e4  # a logit beside which the others have probability 0


@contextmanager
def forced_lengths(lengths: Sequence[int]) -> Iterator[None]:
    """Ends every row at a length of its own, by making the end certain there and impossible before."""
    wanted = torch.tensor([*lengths, 0])  # the last is that of free rows, whose place is -1

    class Forced(Batch):
        def _sample(self, rows: Any) -> None:
            is_last = rows.counts + 1 == wanted[rows.places]
            rows.logits[:, _END] = torch.where(is_last, _LIKELY, -torch.inf).to(rows.logits.dtype)
            super()._sample(rows)

    with patch.object(torch_engine, "Batch", Forced):
        yield


@dataclass
class PrefillMeter:
    """Tokens of prompts that went through the layers, and the seconds that took."""

    tokens: int = 0
    seconds: float = 0.0

    @contextmanager
    def attached(self) -> Iterator[None]:
        """Counts calls of the decoder with more than one new token a row: these are prompts."""
        forward = Decoder.forward

        def counted(decoder: Decoder, tokens: Tensor, *args: Any, **kwargs: Any) -> Tensor:
            start = time.perf_counter()
            hidden = forward(decoder, tokens, *args, **kwargs)
            if tokens.shape[1] > 1:
                self.tokens += tokens.numel()
                self.seconds += time.perf_counter() - start
            return hidden

        with patch.object(Decoder, "forward", counted):
            yield


def run_config(job: Job, dtype: str) -> RunConfig:
    """That of a run on a CPU with this compute dtype."""
    where = [f"model.path={job.model}", "model.master_dtype=float32", "hardware=cpu", "sampling.min_tokens=0"]
    return compose_run_config([*where, f"hardware.compute_dtype={dtype}", f"sampling.max_tokens={job.cap}"])


def load(job: Job) -> tuple[Any, Engine]:
    """Model with float32 masters, and engine, as `python -m grpo.train` has them."""
    torch.set_num_threads(job.threads)
    cfg = run_config(job, job.dtype)
    model = load_policy_model(cfg)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(job.model)
    end_ids = () if job.is_fixed else (_END,)
    dtype = torch_dtype(cfg.hardware.compute_dtype)
    return model, build_engine(cfg.hardware, model, tokenizer, end_ids=end_ids, compute_dtype=dtype)


def sample_groups(engine: Engine, job: Job, *, is_fixed: bool) -> list[Completion]:
    """One call of the engine, its completions in the order of the job's prompts; `is_fixed` as `load` had it."""
    size = job.options.get("group_size", 1)
    prompts = job.prompts[::size]
    keys = [[SampleKey(job.seed, 1, place, sample) for sample in range(size)] for place in range(len(prompts))]
    sampling = Sampling(max_tokens=job.cap)
    if is_fixed:
        groups = engine.generate(prompts, keys, sampling)
    else:
        with forced_lengths(job.lengths):
            groups = engine.generate(prompts, keys, sampling)
    return [completion for group in groups for completion in group]


def mismatch(model: Any, job: Job, completions: Sequence[Completion], dtype: str) -> list[float]:
    """Mean and largest absolute difference, in nats, between sampled log-probs and the trainer's in this dtype."""
    policy, _ = build_policy(run_config(job, dtype), model, ())
    prompts = job.prompts[: len(completions)]
    batch = TrainBatch(
        token_ids=tuple(
            torch.tensor([*prompt, *one.token_ids]) for prompt, one in zip(prompts, completions, strict=True)
        ),
        prompt_lengths=tuple(map(len, prompts)),
        sampler_log_probs=tuple(torch.tensor(one.sampler_log_probs) for one in completions),
        advantages=torch.zeros(len(completions)),
    )
    differences = (torch.cat(policy.log_probs(batch)) - torch.cat(batch.sampler_log_probs)).abs()
    return [float(differences.mean()), float(differences.max())]


def measure(job: Job) -> Measured:
    """One call with all prompts; then, where asked for, what the trainer says of its tokens."""
    model, engine = load(job)
    completions: list[Completion] = []
    meters: list[PrefillMeter] = []

    def sample(part: Job) -> list[int]:
        meters.append(PrefillMeter())
        with meters[-1].attached() if job.options.get("prefill") else nullcontext():
            completions[:] = sample_groups(engine, part, is_fixed=job.is_fixed)
        return [len(one.token_ids) for one in completions]

    seconds = timed(sample, job)
    peak = peak_bytes()  # before the trainer's part
    extra: dict[str, Any] = {"prefill_tokens": meters[-1].tokens, "prefill_s": meters[-1].seconds}
    if rows := job.options.get("mismatch_rows", 0):
        for dtype in dict.fromkeys((job.dtype, "float32")):
            extra[f"mismatch_{dtype}"] = mismatch(model, job, completions[:rows], dtype)
    return Measured(seconds, peak, f"grpo {grpo.__version__}", extra)


if __name__ == "__main__":
    answer(measure)
