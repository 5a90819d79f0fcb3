"""Log-probs of response tokens under the policy, without a micro-batch's full logits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from grpo.policy.attention import packed_arguments
from grpo.policy.packing import MicroBatch
from grpo.products import fast_products
from grpo.rl.chunked_head import chunked_log_probs
from grpo.rl.log_probs import TokenDistribution

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
        compiled: whether matrix products may be compiled code of ours.
    """

    distribution: TokenDistribution
    min_tokens: int
    compute_dtype: torch.dtype
    head_chunk_tokens: int
    compiled: bool = False


def response_log_probs(
    model: PreTrainedModel,
    micro_batch: MicroBatch,
    settings: ForwardSettings,
    *,
    expected_grad: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Log-probs of the response tokens, with gradient, and the entropies at them.

    Args:
        model: the policy, or the reference.
        micro_batch: packed only if the model understands it (`attention.use_packed_attention`).
        settings: how.
        expected_grad: [b, T], what the gradient of the log-probs will probably be; a wrong guess costs time only.

    Returns:
        [b, T] each, zeros after a row's end.
    """
    device, layout = micro_batch.input_ids.device, micro_batch.layout
    weight = cast(Any, model).lm_head.weight
    cast_needed = settings.compute_dtype != weight.dtype
    arguments = {} if layout is None else packed_arguments(model, layout)
    # Nothing is read twice; a cache would hold all weights a second time until the end, sharded or not.
    autocast = torch.autocast(device.type, dtype=settings.compute_dtype, enabled=cast_needed, cache_enabled=False)
    products = fast_products(device, settings.compute_dtype, compiled=settings.compiled)
    with products, autocast:
        hidden = model.base_model(input_ids=micro_batch.input_ids, use_cache=False, **arguments).last_hidden_state
        # The end of a shared prompt predicts for several sequences; unlike that of an index, the gradient of an
        # embedding adds duplicates up in a fixed order on every device, and fast.
        predicting = F.embedding(micro_batch.source, hidden.flatten(0, 1))
        log_probs, entropies = chunked_log_probs(
            predicting.to(settings.compute_dtype),
            weight,
            micro_batch.targets,
            settings.distribution,
            banned=_positions(micro_batch) < settings.min_tokens,
            chunk_tokens=settings.head_chunk_tokens,
            expected_grad=None if expected_grad is None else expected_grad[micro_batch.response_mask],
        )
    return micro_batch.scatter(log_probs), micro_batch.scatter(entropies)


def _positions(micro_batch: MicroBatch) -> Tensor:
    """[N] place of every response token in its response."""
    return micro_batch.response_mask.nonzero(as_tuple=True)[1]
