"""A decoder layer on one core of a CPU: torch's matrix products, and compiled code for all that is between them.

In a model of a million parameters torch's other operations take as long as the products, for each reads and writes what
the one before has just written. `compiled_layer.c` goes over it once, and computes attention where the tokens are
packed, without Python's lock. The backward pass is written out; it keeps less, and computes again what is cheap.
Axes: N packed tokens, H hidden size, I intermediate size, h query heads, K key-value heads, D head size.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from grpo.native import lanes_for, load_library
from grpo.policy.attention import PackedLayout

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_MODEL_TYPES = ("qwen2", "llama")
_ADDRESS, _COUNT, _FLOAT = ctypes.c_void_p, ctypes.c_int64, ctypes.c_float


class _Heads(ctypes.Structure):
    """What compiled_layer.c calls so."""

    _fields_ = (*((name, _COUNT) for name in ("kv_heads", "group", "size", "longest")), ("scale", _FLOAT))


@cache
def _library(lanes: int) -> ctypes.CDLL:
    library = load_library(Path(__file__).with_name("compiled_layer.c"), lanes)
    for name, *arguments in (
        ("grpo_norm", *[_ADDRESS] * 4, _COUNT, _COUNT, _FLOAT),
        ("grpo_norm_backward", *[_ADDRESS] * 6, _COUNT, _COUNT),
        ("grpo_gate", *[_ADDRESS] * 3, _COUNT),
        ("grpo_gate_backward", *[_ADDRESS] * 5, _COUNT),
        ("grpo_rotate", *[_ADDRESS] * 3, *[_COUNT] * 3, _FLOAT),
        ("grpo_attention", _ADDRESS, _COUNT, *[_ADDRESS] * 7),
        ("grpo_attention_backward", _ADDRESS, _COUNT, *[_ADDRESS] * 11),
    ):
        function = getattr(library, name)
        function.argtypes, function.restype = arguments, None
    library.grpo_attention_scratch.argtypes = [_ADDRESS]
    library.grpo_attention_scratch.restype = _COUNT
    return library


def _call(lanes: int, name: str, *arguments: Tensor | float) -> None:
    """Calls a function of compiled_layer.c, with the addresses of tensors."""
    assert all(each.is_contiguous() for each in arguments if isinstance(each, Tensor))
    getattr(_library(lanes), name)(*(each.data_ptr() if isinstance(each, Tensor) else each for each in arguments))


class _Weights(NamedTuple):
    """Of a layer, or the gradients of them."""

    attention_norm: Tensor
    query: Tensor
    query_bias: Tensor | None
    key: Tensor
    key_bias: Tensor | None
    value: Tensor
    value_bias: Tensor | None
    output: Tensor
    mlp_norm: Tensor
    gate: Tensor
    up: Tensor
    down: Tensor


class _Kept(NamedTuple):
    """What the backward pass needs; query and key are rotated, and the scales are those of the norms' rows, [N].

    Attributes:
        sums: [N, h] logarithms of what attention's probabilities were divided by.
        middle: [N, H] the states between attention and MLP.
    """

    states: Tensor
    attention_scales: Tensor
    query: Tensor
    key: Tensor
    value: Tensor
    attended: Tensor
    sums: Tensor
    middle: Tensor
    mlp_scales: Tensor
    gate: Tensor
    up: Tensor


@dataclass(frozen=True, slots=True)
class _Sequences:
    """A micro-batch's, and how a layer reads them.

    Attributes:
        segments: of the layout.
        heads: shapes of attention.
        cos, sin: [N, D] of the angles that queries and keys are rotated by.
        eps: of the norms.
        lanes: of the vectors to compute with, see `load_library`.
    """

    segments: Tensor
    heads: _Heads
    cos: Tensor
    sin: Tensor
    eps: float
    lanes: int

    def call(self, name: str, *arguments: Tensor | float) -> None:
        """Calls a function of compiled_layer.c."""
        _call(self.lanes, name, *arguments)

    def rotate(self, states: Tensor, direction: int) -> None:
        """[N, heads * D] in place, forth by 1 and back by -1."""
        size = self.heads.size
        self.call("grpo_rotate", states, self.cos, self.sin, len(states), states.shape[1] // size, size, direction)

    def attention(self, name: str, *tensors: Tensor) -> None:
        """Calls a function of compiled_layer.c that goes through the segments."""
        heads = ctypes.addressof(self.heads)
        size = _library(self.lanes).grpo_attention_scratch(heads)
        scratch = torch.empty(size, dtype=torch.float32, device="cpu")
        self.call(name, self.segments, len(self.segments), heads, *tensors, scratch)

    def norm(self, states: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
        """[N, H] normed, and [N] what its rows were multiplied by."""
        out, scales = torch.empty_like(states), states.new_empty(len(states))
        self.call("grpo_norm", states, weight, out, scales, *states.shape, self.eps)
        return out, scales

    def norm_backward(
        self, grad: Tensor, states: Tensor, weight: Tensor, scales: Tensor, grad_states: Tensor
    ) -> Tensor:
        """[H] gradient of the weight; that of the states is added to `grad_states`."""
        grad_weight = torch.zeros_like(weight)
        self.call("grpo_norm_backward", grad, states, weight, scales, grad_states, grad_weight, *states.shape)
        return grad_weight


def _linear(states: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return states @ weight.T if bias is None else torch.addmm(bias, states, weight.T)


def _run(sequences: _Sequences, states: Tensor, weights: _Weights) -> tuple[Tensor, _Kept]:
    """[N, H] states after the layer."""
    normed, attention_scales = sequences.norm(states, weights.attention_norm)
    query = _linear(normed, weights.query, weights.query_bias)
    key = _linear(normed, weights.key, weights.key_bias)
    value = _linear(normed, weights.value, weights.value_bias)
    sequences.rotate(query, 1)
    sequences.rotate(key, 1)
    attended, sums = torch.empty_like(query), states.new_empty(len(states), query.shape[1] // sequences.heads.size)
    sequences.attention("grpo_attention", query, key, value, attended, sums)
    middle = torch.addmm(states, attended, weights.output.T)
    normed, mlp_scales = sequences.norm(middle, weights.mlp_norm)
    gate, up = normed @ weights.gate.T, normed @ weights.up.T
    gated = torch.empty_like(gate)
    sequences.call("grpo_gate", gate, up, gated, gate.numel())
    kept = _Kept(states, attention_scales, query, key, value, attended, sums, middle, mlp_scales, gate, up)
    return torch.addmm(middle, gated, weights.down.T), kept


def _run_back(sequences: _Sequences, grad: Tensor, kept: _Kept, weights: _Weights) -> tuple[Tensor, _Weights]:
    """[N, H] gradient of the states before the layer, and those of the weights, from that of the states after it."""
    gated = grad @ weights.down  # the gradient of what it becomes
    grad_gate, grad_up = torch.empty_like(kept.gate), torch.empty_like(kept.up)
    sequences.call("grpo_gate_backward", gated, kept.gate, kept.up, grad_gate, grad_up, gated.numel())
    down = grad.T @ gated
    normed, _ = sequences.norm(kept.middle, weights.mlp_norm)
    gate, up = grad_gate.T @ normed, grad_up.T @ normed
    grad_states = grad.clone()
    grad_normed = torch.mm(grad_gate, weights.gate).addmm_(grad_up, weights.up)
    mlp_norm = sequences.norm_backward(grad_normed, kept.middle, weights.mlp_norm, kept.mlp_scales, grad_states)

    output = grad_states.T @ kept.attended
    query, key, value = torch.empty_like(kept.query), torch.zeros_like(kept.key), torch.zeros_like(kept.value)
    before = (kept.query, kept.key, kept.value, kept.attended, kept.sums)
    sequences.attention("grpo_attention_backward", *before, grad_states @ weights.output, query, key, value)
    sequences.rotate(query, -1)
    sequences.rotate(key, -1)
    normed, _ = sequences.norm(kept.states, weights.attention_norm)
    grad_normed = torch.mm(query, weights.query).addmm_(key, weights.key).addmm_(value, weights.value)
    attention_norm = sequences.norm_backward(
        grad_normed, kept.states, weights.attention_norm, kept.attention_scales, grad_states
    )
    return grad_states, _Weights(
        attention_norm=attention_norm,
        query=query.T @ normed,
        query_bias=None if weights.query_bias is None else query.sum(dim=0),
        key=key.T @ normed,
        key_bias=None if weights.key_bias is None else key.sum(dim=0),
        value=value.T @ normed,
        value_bias=None if weights.value_bias is None else value.sum(dim=0),
        output=output,
        mlp_norm=mlp_norm,
        gate=gate,
        up=up,
        down=down,
    )


class _Layer(torch.autograd.Function):
    """The layer as a function of its states and weights."""

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any, sequences: _Sequences, states: Tensor, *weights: Tensor
    ) -> Tensor:
        out, kept = _run(sequences, states, _Weights(*weights))
        ctx.sequences = sequences
        ctx.save_for_backward(*kept, *weights)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        kept, weights = ctx.saved_tensors[: len(_Kept._fields)], ctx.saved_tensors[len(_Kept._fields) :]
        grad_states, grad_weights = _run_back(ctx.sequences, grads[0].contiguous(), _Kept(*kept), _Weights(*weights))
        return None, grad_states, *grad_weights


def _forward(layer: Any, lanes: int, hidden_states: Tensor, **arguments: Any) -> Tensor:
    """`layer.forward`: compiled code where one thread runs a packed row in float32, all kept; else what it was."""
    layout: PackedLayout | None = arguments.get("packed_layout")
    is_float32 = hidden_states.dtype == torch.float32 and not torch.is_autocast_enabled("cpu")
    if layout is None or not is_float32 or torch.get_num_threads() > 1 or layer.gradient_checkpointing:
        return cast(Tensor, type(layer).forward(layer, hidden_states, **arguments))
    attention, mlp = layer.self_attn, layer.mlp
    heads = _Heads(
        kv_heads=attention.config.num_key_value_heads,
        group=attention.num_key_value_groups,
        size=attention.head_dim,
        longest=-(-layout.places.shape[1] // lanes) * lanes,
        scale=attention.scaling,
    )
    cos, sin = (each[0].contiguous() for each in arguments["position_embeddings"])
    assert cos.shape == sin.shape == (hidden_states.shape[1], attention.head_dim)
    sequences = _Sequences(layout.segments, heads, cos, sin, layer.input_layernorm.variance_epsilon, lanes)
    weights = _Weights(
        attention_norm=layer.input_layernorm.weight,
        query=attention.q_proj.weight,
        query_bias=attention.q_proj.bias,
        key=attention.k_proj.weight,
        key_bias=attention.k_proj.bias,
        value=attention.v_proj.weight,
        value_bias=attention.v_proj.bias,
        output=attention.o_proj.weight,
        mlp_norm=layer.post_attention_layernorm.weight,
        gate=mlp.gate_proj.weight,
        up=mlp.up_proj.weight,
        down=mlp.down_proj.weight,
    )
    return cast(Tensor, cast(Any, _Layer).apply(sequences, hidden_states[0], *weights)).unsqueeze(0)


def _lanes(model: PreTrainedModel) -> int | None:
    config: Any = model.config
    layers: Any = model.base_model.layers
    return lanes_for((config.hidden_size, config.intermediate_size, layers[0].self_attn.head_dim))


def fits(model: PreTrainedModel) -> bool:
    """Whether the code is for this machine and model: float32, sizes that vectors divide, and no other layers."""
    config: Any = model.config
    if config.model_type not in _MODEL_TYPES or config.hidden_act != "silu" or config.attention_dropout:
        return False
    layers: Any = model.base_model.layers
    more_biases = (layers[0].self_attn.o_proj.bias, layers[0].mlp.down_proj.bias)
    return (
        all(each.device.type == "cpu" and each.dtype == torch.float32 for each in model.parameters())
        and all(bias is None for bias in more_biases)
        and _lanes(model) is not None
    )


def use_compiled_layers(model: PreTrainedModel) -> None:
    """Makes the layers of a model that `fits` run so where they can; they remain what they are in every other way.

    Raises:
        KernelUnavailable: see `load_library`.
    """
    lanes = _lanes(model)
    assert lanes is not None
    _library(lanes)
    for layer in cast(Any, model).base_model.layers:
        layer.forward = partial(_forward, layer, lanes)
