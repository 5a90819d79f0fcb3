"""The torch engine or transformers' `generate`: `python -m bench.peers.gpu_rollout`, a job on standard input.

Both sample every completion to the same length from the same bfloat16 weights, which are random.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from bench.peers.gpu_device import answer, peak_bytes, random_model, reset_peak, seconds_of
from bench.rollout_cases import SEED, Size, build_tokenizer, make_prompts
from grpo.config import compose_run_config
from grpo.policy.build import build_policy
from grpo.rollout import canary
from grpo.rollout.build import build_engine
from grpo.types import SampleKey, Sampling

WARM_UP_TOKENS = 4


@dataclass(frozen=True, slots=True)
class RolloutJob:
    """What is sampled.

    Attributes:
        way: a key of `WAYS`.
        device: of torch.
        size: the model's dimensions, of `bench.rollout_cases.Size`.
        num_rows: completions in each batch.
        group_size: completions that share a prompt.
        prompt_tokens: of the longest prompts; the shortest have three quarters.
        new_tokens: of every completion.
        rounds: of which the fastest counts.
    """

    way: str
    device: str
    size: dict[str, Any]
    num_rows: list[int]
    group_size: int
    prompt_tokens: int
    new_tokens: int
    rounds: int


@dataclass(frozen=True, slots=True)
class Rollout:
    """What one batch took.

    Attributes:
        seconds: of the fastest call.
        peak: bytes of tensors at most, weights included; None on a CPU.
        mismatch: mean and largest difference between log-probs of engine and policy, nats; None for `generate`.
    """

    seconds: float
    peak: int | None
    mismatch: list[float] | None


# Samples so many completions of so many tokens each.
Sampler = Callable[[int, int], None]
# Makes a sampler of a model, and something that says how far its log-probs are from the policy's.
Way = Callable[[RolloutJob, Any], tuple[Sampler, Callable[[], list[float] | None]]]


def our_way(job: RolloutJob, model: Any) -> tuple[Sampler, Callable[[], list[float] | None]]:
    """The engine as a run builds it."""
    where = [f"hardware.{name}_device={job.device}" for name in ("policy", "engine")]
    limit = [f"sampling.max_tokens={job.new_tokens}", f"sampling.min_tokens={min(4, job.new_tokens)}"]
    cfg = compose_run_config(
        ["hardware=single_gpu", "hardware.engine=torch", "model.master_dtype=bfloat16", *where, *limit]
    )
    tokenizer = build_tokenizer(job.size["vocabulary"])
    engine = build_engine(cfg.hardware, model, tokenizer, end_ids=(), compute_dtype=torch.bfloat16)

    def sample(num_rows: int, new_tokens: int) -> None:
        prompts = prompts_of(job, num_rows)
        keys = [[SampleKey(SEED, 1, place, one) for one in range(job.group_size)] for place in range(len(prompts))]
        groups = engine.generate(prompts, keys, Sampling(max_tokens=new_tokens))
        assert {len(one.token_ids) for group in groups for one in group} == {new_tokens}

    def mismatch() -> list[float]:
        policy, _ = build_policy(cfg, model, ())
        seen = canary.measure(engine, policy.log_probs, prompts_of(job, job.num_rows[0]), cfg.training_sampling(()), 0)
        return [seen.mean, seen.max]

    return sample, mismatch


def generate_way(job: RolloutJob, model: Any) -> tuple[Sampler, Callable[[], None]]:
    """One batch of all rows, padded on the left; every prompt as often as it has completions, and no log-probs."""
    model.eval()
    model.generation_config.eos_token_id = None

    def sample(num_rows: int, new_tokens: int) -> None:
        rows = [prompt for prompt in prompts_of(job, num_rows) for _ in range(job.group_size)]
        longest = max(map(len, rows))
        input_ids = torch.tensor([[0] * (longest - len(row)) + row for row in rows], device=job.device)
        output = model.generate(
            input_ids,
            attention_mask=(input_ids != 0).long(),
            do_sample=True,
            temperature=1.0,
            top_k=0,
            top_p=1.0,
            max_new_tokens=new_tokens,
            use_cache=True,
            pad_token_id=0,
        )
        assert output.shape == (num_rows, longest + new_tokens)

    return sample, lambda: None


WAYS: dict[str, Way] = {"ours": our_way, "generate": generate_way}


def prompts_of(job: RolloutJob, num_rows: int) -> list[list[int]]:
    """One for each group, without the token 0."""
    shortest = job.prompt_tokens * 3 // 4
    return make_prompts(num_rows // job.group_size, shortest, job.prompt_tokens, job.size["vocabulary"])


def measure(job: RolloutJob) -> list[Rollout]:
    """Every batch, after a short call with as many rows."""
    device = torch.device(job.device)
    model = random_model(Size(**job.size), job.prompt_tokens + job.new_tokens, torch.bfloat16, device)
    sample, mismatch = WAYS[job.way](job, model)
    taken: list[tuple[float, int | None]] = []
    for num_rows in job.num_rows:
        sample(num_rows, WARM_UP_TOKENS)
        reset_peak(device)
        times = [seconds_of(lambda n=num_rows: sample(n, job.new_tokens), device) for _ in range(job.rounds)]
        taken.append((min(times), peak_bytes(device)[0]))
    difference = mismatch()
    return [Rollout(seconds, peak, difference) for seconds, peak in taken]


if __name__ == "__main__":
    answer(RolloutJob, measure)
