"""What one token costs: per-token losses [B, T], not aggregated and not masked; that belongs to `aggregation`.

Axes: B sequences, T response tokens, padded. log π is `policy_log_probs`, the only input that carries a gradient;
r = π / π_old is a ratio of probabilities, A an advantage, sg(·) stops the gradient. All log-probs are nats.

Padding may hold anything. A value that is not finite stays visible as NaN or inf in the loss of that token, so that a
real one is noticed, but passes no gradient on: a backward pass would multiply it by 0 and turn it into NaN.
"""

from __future__ import annotations

import torch
from torch import Tensor


def reinforce(policy_log_probs: Tensor, advantages: Tensor) -> Tensor:
    """Policy gradient without a ratio.

    L_t = -A log π_t

    Source: REINFORCE, Williams 1992 (Machine Learning 8).

    Args:
        policy_log_probs: [B, T] float32, nats; carries the gradient.
        advantages: [B, 1], broadcast over T.

    Returns:
        [B, T] loss. Its value means nothing, its gradient is the policy gradient.

    Raises:
        ValueError: advantages are not [B, 1]; names both shapes.
    """
    _require_shapes(policy_log_probs, advantages=advantages)
    return -advantages.detach() * policy_log_probs


def clipped_token(
    policy_log_probs: Tensor, old_log_probs: Tensor, advantages: Tensor, *, clip_low: float, clip_high: float
) -> Tensor:
    """Clipped surrogate with one ratio per token.

    L_t = -min(r_t A, clip(r_t, 1 - clip_low, 1 + clip_high) A),   r_t = exp(log π_t - log π_old,t)

    Source: PPO, arXiv 1707.06347, eq. 7; in GRPO, arXiv 2402.03300, eq. 3; separate bounds: DAPO, arXiv 2503.14476,
    eq. 10.

    Args:
        policy_log_probs: [B, T] float32, nats; carries the gradient.
        old_log_probs: [B, T] float32, nats; detached.
        advantages: [B, 1], broadcast over T.
        clip_low: how far the ratio may fall below 1.
        clip_high: how far the ratio may rise above 1.

    Returns:
        [B, T] loss.

    Raises:
        ValueError: shapes differ; names both.
    """
    _require_shapes(policy_log_probs, advantages=advantages, old_log_probs=old_log_probs)
    return _clipped_surrogate(_ratio(policy_log_probs, old_log_probs), advantages, clip_low, clip_high)


def clipped_sequence(
    policy_log_probs: Tensor,
    old_log_probs: Tensor,
    advantages: Tensor,
    response_mask: Tensor,
    *,
    clip_low: float,
    clip_high: float,
) -> Tensor:
    """Clipped surrogate with one ratio per sequence: the geometric mean of its tokens' ratios.

    L_t = -min(s A, clip(s, 1 - clip_low, 1 + clip_high) A),   s = exp(1/T Σ_t (log π_t - log π_old,t))

    Every token carries the loss of its sequence, so `aggregation.sequence_mean` gives the paper's objective and its
    gradient; `token_mean` would count a sequence T times.

    Source: GSPO, arXiv 2507.18071, eq. 5 (objective) and eq. 7 (ratio).

    Args:
        policy_log_probs: [B, T] float32, nats; carries the gradient.
        old_log_probs: [B, T] float32, nats; detached.
        advantages: [B, 1].
        response_mask: [B, T] bool; the tokens that the mean is over.
        clip_low: how far the ratio may fall below 1; the paper uses 3e-4.
        clip_high: how far the ratio may rise above 1; the paper uses 4e-4.

    Returns:
        [B, T] loss, constant along T.

    Raises:
        ValueError: shapes differ; names both.
    """
    _require_shapes(policy_log_probs, advantages=advantages, old_log_probs=old_log_probs, response_mask=response_mask)
    ratio = _sequence_ratio(policy_log_probs, old_log_probs, response_mask)
    return _clipped_surrogate(ratio, advantages, clip_low, clip_high).expand_as(policy_log_probs)


def cispo(
    policy_log_probs: Tensor, old_log_probs: Tensor, advantages: Tensor, *, clip_low: float, clip_high: float
) -> Tensor:
    """REINFORCE weighted by a clipped ratio: no token loses its gradient, its weight is bounded instead.

    L_t = -sg(clip(r_t, 1 - clip_low, 1 + clip_high)) A log π_t,   r_t = exp(log π_t - log π_old,t)

    Source: CISPO, MiniMax-M1, arXiv 2506.13585, eq. 4 and 5.

    Args:
        policy_log_probs: [B, T] float32, nats; carries the gradient.
        old_log_probs: [B, T] float32, nats; detached.
        advantages: [B, 1], broadcast over T.
        clip_low: how far the weight may fall below 1.
        clip_high: how far the weight may rise above 1.

    Returns:
        [B, T] loss. Its value means nothing, its gradient is the weighted policy gradient.

    Raises:
        ValueError: shapes differ; names both.
    """
    _require_shapes(policy_log_probs, advantages=advantages, old_log_probs=old_log_probs)
    weights = (policy_log_probs - old_log_probs).detach().exp().clamp(1 - clip_low, 1 + clip_high)
    return -weights * advantages.detach() * _stop_gradient_unless_finite(policy_log_probs, weights)


def clipped_mask(
    policy_log_probs: Tensor, old_log_probs: Tensor, advantages: Tensor, *, clip_low: float, clip_high: float
) -> Tensor:
    """Tokens on which the clip of `clipped_token` is active and takes their gradient.

    (A > 0 and r_t > 1 + clip_high) or (A < 0 and r_t < 1 - clip_low)

    Source: PPO, arXiv 1707.06347, figure 1.

    Args:
        policy_log_probs: [B, T] float32, nats; detached.
        old_log_probs: [B, T] float32, nats.
        advantages: [B, 1], broadcast over T.
        clip_low: how far the ratio may fall below 1.
        clip_high: how far the ratio may rise above 1.

    Returns:
        [B, T] bool, to be counted under the response mask.

    Raises:
        ValueError: shapes differ; names both.
    """
    _require_shapes(policy_log_probs, advantages=advantages, old_log_probs=old_log_probs)
    return _clip_is_active(_ratio(policy_log_probs.detach(), old_log_probs), advantages, clip_low, clip_high)


def clipped_sequence_mask(
    policy_log_probs: Tensor,
    old_log_probs: Tensor,
    advantages: Tensor,
    response_mask: Tensor,
    *,
    clip_low: float,
    clip_high: float,
) -> Tensor:
    """Tokens of the sequences on which the clip of `clipped_sequence` is active and takes their gradient.

    (A > 0 and s > 1 + clip_high) or (A < 0 and s < 1 - clip_low)

    Source: GSPO, arXiv 2507.18071, eq. 5.

    Args:
        policy_log_probs: [B, T] float32, nats; detached.
        old_log_probs: [B, T] float32, nats.
        advantages: [B, 1].
        response_mask: [B, T] bool.
        clip_low: how far the ratio may fall below 1.
        clip_high: how far the ratio may rise above 1.

    Returns:
        [B, T] bool, False outside the response.

    Raises:
        ValueError: shapes differ; names both.
    """
    _require_shapes(policy_log_probs, advantages=advantages, old_log_probs=old_log_probs, response_mask=response_mask)
    ratio = _sequence_ratio(policy_log_probs.detach(), old_log_probs, response_mask)
    return _clip_is_active(ratio, advantages, clip_low, clip_high) & response_mask


def kl_k1(policy_log_probs: Tensor, ref_log_probs: Tensor) -> Tensor:
    """The plain estimator of KL(π ‖ π_ref): unbiased, of either sign, high variance. Watch it, do not minimise it.

    k1_t = log π_t - log π_ref,t

    As a loss on samples of π its gradient is ∇log π_t, which is 0 in expectation: it adds noise and nothing else.

    Source: Schulman 2020, joschu.net/blog/kl-approx.html.

    Args:
        policy_log_probs: [B, T] float32, nats; carries the gradient.
        ref_log_probs: [B, T] float32, nats; detached.

    Returns:
        [B, T] estimates, nats.

    Raises:
        ValueError: shapes differ; names both.
    """
    _require_shapes(policy_log_probs, ref_log_probs=ref_log_probs)
    return policy_log_probs - ref_log_probs.detach()


def kl_k2(policy_log_probs: Tensor, ref_log_probs: Tensor) -> Tensor:
    """The squared estimator of KL(π ‖ π_ref): slightly biased, never negative, low variance.

    k2_t = (log π_t - log π_ref,t)² / 2

    As a loss on samples of π its gradient is (log π_t - log π_ref,t) ∇log π_t, in expectation ∇KL(π ‖ π_ref): the
    estimator to minimise for the divergence that is meant.

    Source: Schulman 2020, joschu.net/blog/kl-approx.html.

    Args:
        policy_log_probs: [B, T] float32, nats; carries the gradient.
        ref_log_probs: [B, T] float32, nats; detached.

    Returns:
        [B, T] estimates, nats.

    Raises:
        ValueError: shapes differ; names both.
    """
    _require_shapes(policy_log_probs, ref_log_probs=ref_log_probs)
    log_ratio = policy_log_probs - ref_log_probs.detach()
    return _stop_gradient_unless_finite(log_ratio, log_ratio).square() / 2


def kl_k3(policy_log_probs: Tensor, ref_log_probs: Tensor) -> Tensor:
    """The control-variate estimator of KL(π ‖ π_ref): unbiased, never negative, low variance. GRPO's penalty.

    k3_t = exp(δ_t) - δ_t - 1,   δ_t = log π_ref,t - log π_t

    As a loss on samples of π its gradient is (1 - exp(δ_t)) ∇log π_t, in expectation ∇KL(π_ref ‖ π): that of the
    divergence the other way round, the same to first order where π is near π_ref.

    Source: Schulman 2020, joschu.net/blog/kl-approx.html; GRPO, arXiv 2402.03300, eq. 4.

    Args:
        policy_log_probs: [B, T] float32, nats; carries the gradient.
        ref_log_probs: [B, T] float32, nats; detached.

    Returns:
        [B, T] estimates, nats.

    Raises:
        ValueError: shapes differ; names both.
    """
    _require_shapes(policy_log_probs, ref_log_probs=ref_log_probs)
    log_ratio = ref_log_probs.detach() - policy_log_probs
    log_ratio = _stop_gradient_unless_finite(log_ratio, log_ratio.exp())
    return log_ratio.expm1() - log_ratio


def truncated_importance_weights(old_log_probs: Tensor, sampler_log_probs: Tensor, *, cap: float) -> Tensor:
    """Weights of token losses that correct for the engine sampling from slightly other probabilities.

    w_t = sg(min(exp(log π_old,t - log π_sampler,t), cap))

    Source: TIS, Yao et al. 2025, "Your Efficient RL Framework Secretly Brings You Off-Policy RL Training",
    fengyao.notion.site/off-policy-rl.

    Args:
        old_log_probs: [B, T] float32, nats, of the trainer before the update; detached.
        sampler_log_probs: [B, T] float32, nats, as the engine reported them; detached.
        cap: the largest weight.

    Returns:
        [B, T] weights in [0, cap], without gradient. Where the two have no ratio (NaN) the weight is 0, because the
        caller multiplies by it and NaN would reach the gradient even from padding.

    Raises:
        ValueError: shapes differ; names both.
    """
    _require_shapes(old_log_probs, sampler_log_probs=sampler_log_probs)
    return (old_log_probs - sampler_log_probs).detach().exp().clamp(max=cap).nan_to_num(nan=0.0)


def _ratio(policy_log_probs: Tensor, old_log_probs: Tensor) -> Tensor:
    log_ratio = policy_log_probs - old_log_probs.detach()
    return _stop_gradient_unless_finite(log_ratio, log_ratio.exp()).exp()


def _sequence_ratio(policy_log_probs: Tensor, old_log_probs: Tensor, response_mask: Tensor) -> Tensor:
    # [B, 1]. A sequence without response has the ratio 1; no token of it counts.
    log_ratio = torch.where(response_mask, policy_log_probs - old_log_probs.detach(), 0.0)
    mean = log_ratio.sum(dim=1, keepdim=True) / response_mask.sum(dim=1, keepdim=True).clamp(min=1)
    return _stop_gradient_unless_finite(mean, mean.exp()).exp()


def _clipped_surrogate(ratio: Tensor, advantages: Tensor, clip_low: float, clip_high: float) -> Tensor:
    advantages = advantages.detach()
    return -torch.minimum(ratio * advantages, ratio.clamp(1 - clip_low, 1 + clip_high) * advantages)


def _clip_is_active(ratio: Tensor, advantages: Tensor, clip_low: float, clip_high: float) -> Tensor:
    return ((advantages > 0) & (ratio > 1 + clip_high)) | ((advantages < 0) & (ratio < 1 - clip_low))


def _stop_gradient_unless_finite(values: Tensor, result: Tensor) -> Tensor:
    # torch.where sends exactly 0 to the branch that is not taken, so 0 · inf and 0 · NaN end here.
    return torch.where(result.detach().isfinite(), values, values.detach())


def _require_shapes(log_probs: Tensor, *, advantages: Tensor | None = None, **others: Tensor) -> None:
    for name, tensor in others.items():
        if tensor.shape != log_probs.shape:
            raise ValueError(f"{name} have shape {list(tensor.shape)} but the log-probs {list(log_probs.shape)}")
    # [B] would broadcast over T wherever B = T, without a word.
    if advantages is not None and (log_probs.ndim != 2 or advantages.shape != (log_probs.shape[0], 1)):
        raise ValueError(
            f"advantages have shape {list(advantages.shape)} but must be [B, 1] beside log-probs of shape "
            f"{list(log_probs.shape)}"
        )
