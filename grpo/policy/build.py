"""From a run config to a policy."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch

from grpo.config import KlEstimator, RunConfig
from grpo.distributed import ONE_RANK, Ranks
from grpo.policy.forward import ForwardSettings
from grpo.policy.load import empty_model, load_model, torch_dtype
from grpo.policy.update import Policy
from grpo.rl.log_probs import TokenDistribution

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def load_policy_model(cfg: RunConfig, ranks: Ranks = ONE_RANK) -> PreTrainedModel:
    """The model of `model.path`, its weights the masters, on the policy's device.

    With several ranks it is in rank 0's memory, read once, and empty on the others: `Policy` shards it.
    """
    return _load(cfg, torch_dtype(cfg.model.master_dtype), ranks)


def _load(cfg: RunConfig, dtype: torch.dtype, ranks: Ranks) -> PreTrainedModel:
    if ranks.size == 1:
        return load_model(cfg.model, dtype=dtype, device=torch.device(cfg.hardware.policy_device))
    loaded: list[PreTrainedModel] = []

    def load() -> tuple[Any, Any]:
        loaded.append(load_model(cfg.model, dtype=dtype, device=torch.device("cpu")))
        return loaded[0].config, loaded[0].generation_config

    config, generation_config = ranks.from_first(load)
    return loaded[0] if loaded else empty_model(config, generation_config, dtype=dtype)


def build_policy(
    cfg: RunConfig,
    model: PreTrainedModel,
    end_ids: Sequence[int],
    ranks: Ranks = ONE_RANK,
    warn: Callable[[str], None] = lambda _: None,
) -> tuple[Policy, torch.dtype]:
    """The policy, and the dtype it computes in: the narrower of master weights and `hardware.compute_dtype`.

    Args:
        cfg: of the run; its devices are this rank's.
        model: of `load_policy_model`.
        end_ids: tokens that end a completion.
        ranks: who trains together.
        warn: told what a user should know of the policy while the run goes on.
    """
    master, compute = torch_dtype(cfg.model.master_dtype), torch_dtype(cfg.hardware.compute_dtype)
    compute = torch.bfloat16 if torch.bfloat16 in (master, compute) else compute
    sampling = cfg.sampling
    forward = ForwardSettings(
        distribution=TokenDistribution(sampling.temperature, sampling.top_k, sampling.top_p, tuple(end_ids)),
        min_tokens=sampling.min_tokens,
        compute_dtype=compute,
        head_chunk_tokens=cfg.hardware.head_chunk_tokens,
        compiled=cfg.hardware.compiled_kernels,
    )
    policy = Policy(
        model,
        train=cfg.train,
        loss=cfg.loss,
        hardware=cfg.hardware,
        forward=forward,
        max_tokens=sampling.max_tokens,
        seed=cfg.seed,
        reference=_load_reference(cfg, ranks),
        ranks=ranks,
        warn=warn,
    )
    return policy, compute


def _load_reference(cfg: RunConfig, ranks: Ranks) -> PreTrainedModel | None:
    """The run's initial weights, frozen, in the compute dtype; only where the loss asks for them."""
    if cfg.loss.kl_estimator is KlEstimator.none:
        return None
    return _load(cfg, torch_dtype(cfg.hardware.compute_dtype), ranks).requires_grad_(False)
