"""From a run config to a policy."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from grpo.config import KlEstimator, RunConfig
from grpo.policy.forward import ForwardSettings
from grpo.policy.load import load_model, torch_dtype
from grpo.policy.update import Policy
from grpo.rl.log_probs import TokenDistribution

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def load_policy_model(cfg: RunConfig) -> PreTrainedModel:
    """The model of `model.path`, its weights the masters, on the policy's device."""
    return load_model(
        cfg.model, dtype=torch_dtype(cfg.model.master_dtype), device=torch.device(cfg.hardware.policy_device)
    )


def build_policy(cfg: RunConfig, model: PreTrainedModel, end_ids: Sequence[int]) -> tuple[Policy, torch.dtype]:
    """The policy, and the dtype it computes in: the narrower of master weights and `hardware.compute_dtype`."""
    master, compute = torch_dtype(cfg.model.master_dtype), torch_dtype(cfg.hardware.compute_dtype)
    compute = torch.bfloat16 if torch.bfloat16 in (master, compute) else compute
    sampling = cfg.sampling
    forward = ForwardSettings(
        distribution=TokenDistribution(sampling.temperature, sampling.top_k, sampling.top_p, tuple(end_ids)),
        min_tokens=sampling.min_tokens,
        compute_dtype=compute,
        head_chunk_tokens=cfg.hardware.head_chunk_tokens,
    )
    policy = Policy(
        model,
        train=cfg.train,
        loss=cfg.loss,
        hardware=cfg.hardware,
        forward=forward,
        max_tokens=sampling.max_tokens,
        seed=cfg.seed,
        reference=_load_reference(cfg),
    )
    return policy, compute


def _load_reference(cfg: RunConfig) -> PreTrainedModel | None:
    """The run's initial weights, frozen, in the compute dtype; only where the loss asks for them."""
    if cfg.loss.kl_estimator is KlEstimator.none:
        return None
    dtype = torch_dtype(cfg.hardware.compute_dtype)
    model = load_model(cfg.model, dtype=dtype, device=torch.device(cfg.hardware.policy_device))
    return model.requires_grad_(False)
