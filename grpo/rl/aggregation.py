"""How token losses become one number: a weight for each sequence's tokens, then a weighted sum.

Axes: B sequences in an optimiser step, b of them in a micro-batch, T response tokens, padded; T_i is the length of one.

The weights are computed over the WHOLE batch of an optimiser step, before it is cut into micro-batches or spread over
ranks. The loss of a micro-batch is `weighted_sum` with its rows of the weights; these losses add up to the loss of the
batch, however it was cut. Dividing by what a micro-batch itself holds would make a memory knob part of the objective.
"""

from __future__ import annotations

import torch
from torch import Tensor


def sequence_mean(response_lengths: Tensor) -> Tensor:
    """Every sequence counts the same: mean over its tokens, then over the batch.

    w_i = 1 / (B T_i),   0 where T_i = 0

    Source: GRPO, arXiv 2402.03300, eq. 3.

    Args:
        response_lengths: [B] int, T_i, of the whole optimiser step.

    Returns:
        [B] float32, the weight of one token of each sequence.

    Raises:
        ValueError: response_lengths are not [B].
    """
    _require_vector(response_lengths)
    weights = 1.0 / (len(response_lengths) * response_lengths.clamp(min=1)).to(torch.float32)
    return torch.where(response_lengths > 0, weights, 0.0)


def token_mean(response_lengths: Tensor) -> Tensor:
    """Every token counts the same: one mean over all tokens of the batch.

    w_i = 1 / Σ_j T_j,   0 where there is no token at all

    Source: DAPO, arXiv 2503.14476, eq. 12.

    Args:
        response_lengths: [B] int, T_i, of the whole optimiser step.

    Returns:
        [B] float32, the weight of one token of each sequence.

    Raises:
        ValueError: response_lengths are not [B].
    """
    _require_vector(response_lengths)
    num_tokens = response_lengths.sum()
    weight = torch.where(num_tokens > 0, 1.0 / num_tokens.clamp(min=1).to(torch.float32), 0.0)
    return weight.expand(len(response_lengths)).clone()


def constant_length(response_lengths: Tensor, *, max_tokens: int) -> Tensor:
    """Sum over the tokens of a sequence, divided by a constant: no response is favoured for its length.

    w_i = 1 / (B L)

    Source: Dr. GRPO, arXiv 2503.20783, section 3.2; L is the generation budget, as in the paper's code.

    Args:
        response_lengths: [B] int, of the whole optimiser step.
        max_tokens: L, where a completion is cut.

    Returns:
        [B] float32, the weight of one token of each sequence.

    Raises:
        ValueError: response_lengths are not [B], or max_tokens is not positive.
    """
    _require_vector(response_lengths)
    if max_tokens < 1:
        raise ValueError(f"max_tokens={max_tokens} is not positive; use the number of tokens a completion is cut at")
    num_sequences = max(1, len(response_lengths))
    return torch.full_like(response_lengths, 1.0 / (num_sequences * max_tokens), dtype=torch.float32)


def weighted_sum(token_losses: Tensor, token_weights: Tensor, response_mask: Tensor) -> Tensor:
    """The part of the batch's loss that a micro-batch contributes.

    L = Σ_i w_i Σ_{t in response} L_it

    Args:
        token_losses: [b, T] float32; carries the gradient. May hold anything outside the response, NaN included.
        token_weights: [b] float32, the rows of one of the weights above.
        response_mask: [b, T] bool.

    Returns:
        Scalar; without response tokens 0, still with a graph.

    Raises:
        ValueError: shapes differ; names both.
    """
    if token_losses.ndim != 2 or response_mask.shape != token_losses.shape:
        raise ValueError(
            f"response_mask has shape {list(response_mask.shape)} but must be the [b, T] of token_losses, "
            f"{list(token_losses.shape)}"
        )
    if token_weights.shape != token_losses.shape[:1]:
        raise ValueError(
            f"token_weights have shape {list(token_weights.shape)} but must be the [b] of token_losses, "
            f"{list(token_losses.shape)}"
        )
    # Not a product with the mask: NaN · 0 is NaN.
    return (torch.where(response_mask, token_losses, 0.0).sum(dim=1) * token_weights).sum()


def _require_vector(response_lengths: Tensor) -> None:
    if response_lengths.ndim != 1:
        raise ValueError(f"response_lengths have shape {list(response_lengths.shape)} but must be [B]")
