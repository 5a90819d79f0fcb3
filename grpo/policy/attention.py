"""Attention over sequences that stand one after another in a packed row, without padding and with prompts shared.

Everything but attention treats tokens alone, so a micro-batch goes through the model as one row of its N distinct
tokens. Attention reads and writes them by sequence: gather to [b, S], plain causal attention, gather back. Padding is
on the right, where no real token can see it, so no mask is needed.

Axes: N packed tokens, b sequences, S positions of the longest, h heads, D head size, C = h * D.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import torch
from torch import Tensor

from grpo.products import attention

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_NAME = "grpo_packed"
_MODEL_TYPES = ("qwen2", "qwen3", "llama")


class SharedPrompt(NamedTuple):
    """A prompt that is packed once and read by several sequences, which follow one another.

    Attributes:
        start, length: its tokens in the packed row.
        first, end: the sequences from `first` to before `end` read it, each at its positions from 0.
    """

    start: int
    length: int
    first: int
    end: int


@dataclass(frozen=True, slots=True)
class PackedLayout:
    """Where the tokens of b sequences stand in a packed row of N tokens.

    Attributes:
        positions: [1, N] int64, of every packed token in its sequence.
        places: [b, S] int64, the packed token at every position of every sequence; after its end any token.
        readers: [N] int64, in the flattened [b * S]: the first place that reads each packed token.
        segments: [s, 4] int64: start and length, in the packed row, of tokens that follow one another in a sequence,
            and those of the shared prompt that comes before them.
        shared: the prompts that several sequences read.
    """

    positions: Tensor
    places: Tensor
    readers: Tensor
    segments: Tensor
    shared: tuple[SharedPrompt, ...]

    def to(self, device: torch.device) -> PackedLayout:
        """The same layout on a device."""
        moved = {name: getattr(self, name).to(device) for name in ("positions", "places", "readers", "segments")}
        return replace(self, **moved)


class _ToSequences(torch.autograd.Function):
    """[N, C] packed values as [b, S, C].

    Backward, a token of a prompt in `shared` gets the sum over its sequences, every other the gradient of its first
    reader. Slices are summed in a fixed order; index_add would order by chance on a GPU. Padding has no gradient.
    """

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any, packed: Tensor, layout: PackedLayout, shared: tuple[SharedPrompt, ...]
    ) -> Tensor:
        ctx.layout, ctx.shared = layout, shared
        return packed.index_select(0, layout.places.flatten()).unflatten(0, layout.places.shape)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        grad = grads[0]
        packed = grad.flatten(0, 1).index_select(0, ctx.layout.readers)
        for prompt in ctx.shared:
            tokens = slice(prompt.start, prompt.start + prompt.length)
            packed[tokens] = grad[prompt.first : prompt.end, : prompt.length].sum(dim=0)
        return packed, None, None


class _ToPacked(torch.autograd.Function):
    """[b, S, C] values of sequences as [N, C], a shared prompt's from the first sequence that reads it."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, layout: PackedLayout) -> Tensor:  # type: ignore[override]
        ctx.layout = layout
        return values.flatten(0, 1).index_select(0, layout.readers)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        shape = ctx.layout.places.shape
        grad = grads[0].new_zeros(shape.numel(), grads[0].shape[1])
        return grad.index_copy_(0, ctx.layout.readers, grads[0]).unflatten(0, shape), None


def _by_sequence(states: Tensor, layout: PackedLayout, shared: tuple[SharedPrompt, ...]) -> Tensor:
    """[1, h, N, D] as [b, h, S, D]."""
    heads, size = states.shape[1], states.shape[3]
    packed = states[0].transpose(0, 1).flatten(1)
    rows = cast(Tensor, cast(Any, _ToSequences).apply(packed, layout, shared))
    return rows.unflatten(2, (heads, size)).transpose(1, 2)


def packed_attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float | None = None,
    dropout: float = 0.0,
    packed_layout: PackedLayout | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    """Causal attention within sequences; without a layout, attention as transformers does it by default.

    A function as transformers' AttentionInterface wants it: query [1, h, N, D] and key, value [1, K, N, D] with K
    key-value heads, rotated; returns [1, N, h, D] and no weights. With a layout no mask is looked at.
    """
    if packed_layout is None:
        from transformers import AttentionInterface

        sdpa = AttentionInterface()["sdpa"]
        return sdpa(module, query, key, value, attention_mask, scaling=scaling, dropout=dropout, **others)
    # A shared prompt's output is read from its first sequence only, so only there its queries have a gradient.
    # The dtype is the one that autocast would choose a line later, for more tokens.
    attended = attention(
        _by_sequence(query.to(value.dtype), packed_layout, ()),
        _by_sequence(key.to(value.dtype), packed_layout, packed_layout.shared),
        _by_sequence(value, packed_layout, packed_layout.shared),
        dropout_p=dropout,
        is_causal=True,
        scale=scaling,
        enable_gqa=True,
    )
    packed = cast(Tensor, cast(Any, _ToPacked).apply(attended.transpose(1, 2).flatten(2), packed_layout))
    return packed.unflatten(1, (query.shape[1], -1)).unsqueeze(0), None


def use_packed_attention(model: PreTrainedModel) -> None:
    """Makes a model understand `packed_arguments`; whatever else it is called with works as before.

    Raises:
        ValueError: a model whose attention is more than causal attention over the whole sequence, or not known to be.
    """
    from transformers import AttentionInterface, AttentionMaskInterface

    config: Any = model.config
    layer_types = set(getattr(config, "layer_types", None) or ["full_attention"])
    if config.model_type not in _MODEL_TYPES or layer_types != {"full_attention"}:
        raise ValueError(
            f"hardware.packing knows full attention in {', '.join(_MODEL_TYPES)}, not {', '.join(sorted(layer_types))} "
            f"in {config.model_type}; use hardware.packing=padded"
        )
    AttentionInterface.register(_NAME, packed_attention)
    AttentionMaskInterface.register(_NAME, AttentionMaskInterface()["sdpa"])
    model.set_attn_implementation(_NAME)


def packed_arguments(model: PreTrainedModel, layout: PackedLayout) -> dict[str, Any]:
    """What a model's forward pass takes besides [1, N] token ids."""
    assert model.config._attn_implementation == _NAME, "the model would let packed sequences see each other"
    # transformers hands on a mask of four axes as it is; without one it would make [N, N] of the positions.
    no_mask = layout.places.new_empty(1, 1, 0, 0)
    return {"position_ids": layout.positions, "attention_mask": no_mask, "packed_layout": layout}
