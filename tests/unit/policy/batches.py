"""Small models and ragged batches for the tests of `grpo.policy`."""

from __future__ import annotations

import torch

from grpo.config import BuildConfig, HardwareConfig, LossConfig, TrainConfig
from grpo.distributed import ONE_RANK
from grpo.policy.forward import ForwardSettings
from grpo.policy.load import build_model
from grpo.policy.replicas import Replicas
from grpo.policy.sharding import whole_tensor
from grpo.policy.small_tokenizer import build_small_tokenizer
from grpo.policy.update import Policy
from grpo.rl.log_probs import TokenDistribution
from grpo.types import TrainBatch

VOCAB = 263
MAX_TOKENS = 12


def tiny_model(seed=0, **shape):
    """About 20,000 parameters."""
    shape = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, **shape}
    return build_model(BuildConfig(**shape), build_small_tokenizer(["User: "]), seed=seed)


def ragged_batch(num=12, seed=0, advantages=None):
    """Sequences of different prompt and response lengths, sampler log-probs near -5, mixed advantages."""
    generator = torch.Generator().manual_seed(seed)

    def draw(low, high, size):
        return torch.randint(low, high, size, generator=generator)

    prompts = draw(2, 9, (num,)).tolist()
    lengths = draw(1, MAX_TOKENS + 1, (num,)).tolist()
    return TrainBatch(
        token_ids=tuple(draw(1, VOCAB, (p + t,)) for p, t in zip(prompts, lengths, strict=True)),
        prompt_lengths=tuple(prompts),
        sampler_log_probs=tuple(-5 + 0.3 * torch.randn(t, generator=generator) for t in lengths),
        advantages=torch.randn(num, generator=generator) if advantages is None else advantages,
    )


def grouped_batch(num_groups=3, group_size=4, seed=0, advantages=None):
    """Groups that share a prompt, their rows mixed up; the first two prompts differ in one token only."""
    generator = torch.Generator().manual_seed(seed)
    num = num_groups * group_size

    def draw(low, high, size):
        return torch.randint(low, high, size, generator=generator)

    prompts = [draw(1, VOCAB, (length,)) for length in [7, 7, *draw(2, 9, (num_groups,)).tolist()][:num_groups]]
    if num_groups > 1:
        prompts[1] = torch.cat([prompts[0][:3], prompts[0][3:4] % (VOCAB - 1) + 1, prompts[0][4:]])
    lengths = draw(1, MAX_TOKENS + 1, (num,)).tolist()
    owners = [place % num_groups for place in range(num)]
    return TrainBatch(
        token_ids=tuple(
            torch.cat([prompts[owner], draw(1, VOCAB, (length,))])
            for owner, length in zip(owners, lengths, strict=True)
        ),
        prompt_lengths=tuple(len(prompts[owner]) for owner in owners),
        sampler_log_probs=tuple(-5 + 0.3 * torch.randn(length, generator=generator) for length in lengths),
        advantages=torch.randn(num, generator=generator) if advantages is None else advantages,
    )


def with_advantages(batch, advantages):
    """The batch with other advantages."""
    return TrainBatch(batch.token_ids, batch.prompt_lengths, batch.sampler_log_probs, advantages)


def make_policy(
    model, *, loss=None, hardware=None, reference=None, seed=0, replicas=1, ranks=ONE_RANK, warn=print, **train
):
    """A policy whose every knob is named by the test."""
    train = {"rollout_batch_size": 12, "train_batch_size": 12, "group_size": 4, "max_grad_norm": 1e9, **train}
    hardware = {"name": "cpu", "policy_device": "cpu", "engine_device": "cpu", **(hardware or {})}
    hardware = HardwareConfig(**hardware)
    policy = Policy(
        model,
        train=TrainConfig(**train),
        loss=loss or LossConfig(name="reinforce_with_baseline"),
        hardware=hardware,
        forward=ForwardSettings(TokenDistribution(0.8, banned_ids=(0,)), 2, torch.float32, hardware.head_chunk_tokens),
        max_tokens=MAX_TOKENS,
        seed=seed,
        reference=reference,
        ranks=ranks,
        warn=warn,
    )
    if ranks.size == 1:
        policy._workers = Replicas(model, replicas)  # not as many as this machine has cores
    return policy


def gradients_of_update(policy, batch, step=1):
    """The gradient that the first optimiser step of an update sees, by parameter; the weights are not changed."""
    seen = {}

    def note(*_args, **_kwargs):
        if not seen:
            seen.update({name: whole_tensor(p.grad).clone() for name, p in policy.model.named_parameters()})

    policy.optimizer.step = note
    policy.update(batch, step)
    return seen
