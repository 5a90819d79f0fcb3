"""A transformer's weights as decoding wants them: projections that read the same input are one matrix.

Where dtype and device are the policy's, nothing is held twice: the joined matrix is the storage, and the policy's own
parameters become views of its rows. They keep their identity, so optimisers and checkpoints see no difference, and what
the optimiser writes is what the engine reads.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Linear:
    """[out, in] weight and [out] bias, or None."""

    weight: Tensor
    bias: Tensor | None


@dataclass(frozen=True, slots=True)
class Layer:
    """One decoder layer.

    Attributes:
        attention_norm, mlp_norm: [H] weights of the norms before the two halves.
        qkv: queries, keys and values of all heads, in this order.
        head_norm: [query heads + K, D] weights of the norms of queries and keys, or None.
        output: of attention.
        gate_up: the two inputs of the gated MLP.
        down: the MLP's output.
    """

    attention_norm: Tensor
    mlp_norm: Tensor
    qkv: Linear
    head_norm: Tensor | None
    output: Linear
    gate_up: Linear
    down: Linear


def load_layer(layer: Any, *, dtype: torch.dtype, norm_dtype: torch.dtype, device: torch.device) -> Layer:
    """A transformers layer of the Qwen2, Qwen3 or Llama family.

    Args:
        layer: its module.
        dtype: of matrices.
        norm_dtype: of the norms' weights.
        device: where they are wanted.
    """
    attention, mlp = layer.self_attn, layer.mlp
    joined = {"dtype": dtype, "device": device}

    def norm(module: Any) -> Tensor:
        return module.weight.detach().to(device=device, dtype=norm_dtype)

    head_norm = None
    if hasattr(attention, "q_norm"):
        size = attention.head_dim
        weights = ((attention.q_norm, attention.q_proj), (attention.k_norm, attention.k_proj))
        head_norm = torch.cat([norm(module).expand(len(linear.weight) // size, size) for module, linear in weights])
    return Layer(
        attention_norm=norm(layer.input_layernorm),
        mlp_norm=norm(layer.post_attention_layernorm),
        qkv=_join((attention.q_proj, attention.k_proj, attention.v_proj), **joined),
        head_norm=head_norm,
        output=_join((attention.o_proj,), **joined),
        gate_up=_join((mlp.gate_proj, mlp.up_proj), **joined),
        down=_join((mlp.down_proj,), **joined),
    )


def _join(modules: Sequence[Any], *, dtype: torch.dtype, device: torch.device) -> Linear:
    has_bias = modules[0].bias is not None
    return Linear(
        weight=_join_rows([module.weight for module in modules], dtype, device),
        bias=_join_rows([module.bias for module in modules], dtype, device) if has_bias else None,
    )


def _join_rows(parameters: Sequence[Any], dtype: torch.dtype, device: torch.device) -> Tensor:
    """The parameters' rows as one tensor, of which they are views afterwards if dtype and device are theirs."""
    first: Tensor = parameters[0].detach()
    if first.dtype != dtype or first.device != device:
        return torch.cat([parameter.detach().to(device=device, dtype=dtype) for parameter in parameters])
    if not _are_adjacent(parameters):
        rows = torch.cat([parameter.detach() for parameter in parameters])
        for parameter, part in zip(parameters, rows.split([len(parameter) for parameter in parameters]), strict=True):
            parameter.data = part
        first = parameters[0].detach()
    shape = (sum(len(parameter) for parameter in parameters), *first.shape[1:])
    return first.as_strided(shape, first.stride())


def _are_adjacent(parameters: Sequence[Any]) -> bool:
    """Whether each begins in memory where the one before it ends."""
    ends = [parameter.data_ptr() + parameter.numel() * parameter.element_size() for parameter in parameters]
    storages = {parameter.untyped_storage().data_ptr() for parameter in parameters}
    is_dense = all(parameter.is_contiguous() for parameter in parameters)
    return is_dense and len(storages) == 1 and ends[:-1] == [parameter.data_ptr() for parameter in parameters[1:]]
