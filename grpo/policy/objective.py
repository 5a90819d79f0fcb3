"""From the names in a LossConfig to the functions of `grpo.rl`.

Axes: b sequences of a micro-batch, T padded response tokens, B sequences of an optimiser step.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from grpo.config import AdvantageName, AggregationName, KlEstimator, LossConfig, ObjectiveName
from grpo.rl import advantages, aggregation, objectives

_KL = {KlEstimator.k1: objectives.kl_k1, KlEstimator.k2: objectives.kl_k2, KlEstimator.k3: objectives.kl_k3}


@dataclass(frozen=True, slots=True)
class TokenLogProbs:
    """Log-probs of one micro-batch, [b, T] nats each, zeros outside the response.

    Attributes:
        policy: under the weights being trained, with gradient.
        old: under the weights before the update.
        sampler: as the engine reported them.
        ref: under the reference model, or None without a KL penalty.
    """

    policy: Tensor
    old: Tensor
    sampler: Tensor
    ref: Tensor | None


def compute_advantages(cfg: LossConfig, rewards: Tensor) -> Tensor:
    """[P, G] advantages of [P, G] rewards."""
    match cfg.advantage:
        case AdvantageName.none:
            return advantages.raw(rewards)
        case AdvantageName.group_mean:
            return advantages.group_mean(rewards)
        case AdvantageName.group_mean_std:
            return advantages.group_mean_std(rewards, eps=cfg.advantage_eps)
        case AdvantageName.leave_one_out:
            return advantages.leave_one_out(rewards)


def token_weights(cfg: LossConfig, response_lengths: Tensor, *, max_tokens: int) -> Tensor:
    """[B] weight of one token of each sequence: the one denominator of an optimiser step."""
    match cfg.aggregation:
        case AggregationName.sequence_mean:
            return aggregation.sequence_mean(response_lengths)
        case AggregationName.token_mean:
            return aggregation.token_mean(response_lengths)
        case AggregationName.constant_length:
            return aggregation.constant_length(response_lengths, max_tokens=max_tokens)


def token_losses(cfg: LossConfig, log_probs: TokenLogProbs, group_advantages: Tensor, mask: Tensor) -> Tensor:
    """[b, T] loss of every token, not yet aggregated: objective, importance weight, KL penalty.

    Args:
        cfg: which of them.
        log_probs: of the micro-batch.
        group_advantages: [b, 1].
        mask: [b, T] response mask.
    """
    losses = _objective(cfg, log_probs, group_advantages, mask)
    if cfg.importance_cap is not None:
        losses = losses * objectives.truncated_importance_weights(
            log_probs.old, log_probs.sampler, cap=cfg.importance_cap
        )
    if log_probs.ref is not None:
        losses = losses + cfg.kl_coef * _KL[cfg.kl_estimator](log_probs.policy, log_probs.ref)
    return losses


def _objective(cfg: LossConfig, log_probs: TokenLogProbs, group_advantages: Tensor, mask: Tensor) -> Tensor:
    policy, old = log_probs.policy, log_probs.old
    low, high = cfg.clip_low, cfg.clip_high
    match cfg.objective:
        case ObjectiveName.reinforce:
            return objectives.reinforce(policy, group_advantages)
        case ObjectiveName.clipped_token:
            return objectives.clipped_token(policy, old, group_advantages, clip_low=low, clip_high=high)
        case ObjectiveName.clipped_sequence:
            return objectives.clipped_sequence(policy, old, group_advantages, mask, clip_low=low, clip_high=high)
        case ObjectiveName.cispo:
            return objectives.cispo(policy, old, group_advantages, clip_low=low, clip_high=high)


def clipped_tokens(cfg: LossConfig, log_probs: TokenLogProbs, group_advantages: Tensor, mask: Tensor) -> Tensor:
    """[b, T] bool: tokens whose ratio the clip range holds back. CISPO: whose weight it bounds."""
    policy, old = log_probs.policy.detach(), log_probs.old
    low, high = cfg.clip_low, cfg.clip_high
    match cfg.objective:
        case ObjectiveName.reinforce:
            return torch.zeros_like(mask)
        case ObjectiveName.clipped_token:
            return objectives.clipped_mask(policy, old, group_advantages, clip_low=low, clip_high=high) & mask
        case ObjectiveName.clipped_sequence:
            return objectives.clipped_sequence_mask(policy, old, group_advantages, mask, clip_low=low, clip_high=high)
        case ObjectiveName.cispo:
            ratio = (policy - old).exp()
            return ((ratio < 1 - low) | (ratio > 1 + high)) & mask
