"""The check that engine and policy are the same model: log-probs of the same tokens, side by side."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from grpo.types import Engine, RunError, SampleKey, Sampling, TrainBatch

_NUM_TOKENS = 32
_STEP = 2**32 - 1  # of the canary's random numbers: no step of a run
# Mean absolute difference in nats. Float32 differs by the order of sums, about 1e-6; bfloat16 by its 8 bits, about
# 0.01 (0.033 at most in vLLM). Weights of another step, another temperature or a shifted position give far more.
TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 0.05}


@dataclass(frozen=True, slots=True)
class Mismatch:
    """Absolute differences between the engine's and the policy's log-probs, nats."""

    mean: float
    max: float


def measure(
    engine: Engine,
    log_probs: Callable[[TrainBatch], list[Tensor]],
    prompts: Sequence[Sequence[int]],
    sampling: Sampling,
    seed: int,
) -> Mismatch:
    """Samples a few tokens after each prompt and compares what engine and policy say of them.

    Args:
        engine: samples, and reports its log-probs.
        log_probs: the policy's, [T_i] per sequence.
        prompts: a few of the run's own.
        sampling: of the run; completions are cut short.
        seed: of the run.
    """
    num_tokens = min(_NUM_TOKENS, sampling.max_tokens)
    short = Sampling(
        sampling.temperature,
        sampling.top_p,
        sampling.top_k,
        min(sampling.min_tokens, num_tokens),
        num_tokens,
        sampling.stop,
    )
    keys = [[SampleKey(seed, _STEP, place, 0)] for place in range(len(prompts))]
    completions = [group[0] for group in engine.generate(prompts, keys, short)]
    batch = TrainBatch(
        token_ids=tuple(
            torch.tensor([*prompt, *completion.token_ids])
            for prompt, completion in zip(prompts, completions, strict=True)
        ),
        prompt_lengths=tuple(len(prompt) for prompt in prompts),
        sampler_log_probs=tuple(torch.tensor(completion.sampler_log_probs) for completion in completions),
        advantages=torch.zeros(len(prompts)),
    )
    differences = torch.cat(log_probs(batch)) - torch.cat(batch.sampler_log_probs)
    return Mismatch(float(differences.abs().mean()), float(differences.abs().max()))


def check(mismatch: Mismatch, *, compute_dtype: torch.dtype, when: str) -> None:
    """Stops the run where engine and policy have parted.

    Raises:
        RunError: the mean difference is above what the compute dtype explains, or not a number.
    """
    tolerance = TOLERANCE[compute_dtype]
    if math.isfinite(mismatch.mean) and mismatch.mean <= tolerance:
        return
    raise RunError(
        f"{when}, log-probs of engine and policy differ by {mismatch.mean:.2g} nats on average, more than the "
        f"{tolerance:g} that {str(compute_dtype).removeprefix('torch.')} explains: what is sampled is not what is "
        "trained; try hardware.engine=torch hardware.compute_dtype=float32, and report it with the run's config.yaml"
    )
