"""Log-probs of response tokens under the policy, without a micro-batch's full logits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor

from grpo.policy.packing import MicroBatch
from grpo.rl.log_probs import TokenDistribution, chunked_log_probs

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True, slots=True)
class ForwardSettings:
    """What a forward pass needs besides weights and tokens.

    Attributes:
        distribution: what completions were sampled from.
        min_tokens: response positions below it cannot end the sequence.
        compute_dtype: of matrix products; weights of another dtype are cast on the way.
        head_chunk_tokens: tokens whose logits exist at once.
    """

    distribution: TokenDistribution
    min_tokens: int
    compute_dtype: torch.dtype
    head_chunk_tokens: int


def response_log_probs(
    model: PreTrainedModel, micro_batch: MicroBatch, settings: ForwardSettings
) -> tuple[Tensor, Tensor]:
    """[b, T] log-probs, with gradient, and [b, T] entropies of the response tokens; zeros after a row's end."""
    device = micro_batch.input_ids.device
    weight = cast(Any, model).lm_head.weight
    cast_needed = settings.compute_dtype != weight.dtype
    with torch.autocast(device.type, dtype=settings.compute_dtype, enabled=cast_needed):
        hidden = model.base_model(input_ids=micro_batch.input_ids, use_cache=False).last_hidden_state
        log_probs, entropies = chunked_log_probs(
            hidden[micro_batch.row_index, micro_batch.position_index].to(settings.compute_dtype),
            weight,
            micro_batch.targets,
            settings.distribution,
            banned=_positions(micro_batch) < settings.min_tokens,
            chunk_tokens=settings.head_chunk_tokens,
        )
    return micro_batch.scatter(log_probs), micro_batch.scatter(entropies)


def _positions(micro_batch: MicroBatch) -> Tensor:
    """[N] place of every response token in its response."""
    return micro_batch.response_mask.nonzero(as_tuple=True)[1]
