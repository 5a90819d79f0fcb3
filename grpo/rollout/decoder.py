"""The policy's transformer run with a preallocated key-value cache, over the policy's own weights.

Where device and dtype are the policy's, no weight is copied: a `Decoder` holds references. It serves the Qwen2, Qwen3
and Llama families, whose layers differ in biases and in norms of queries and keys only.

Axes: R rows, T new tokens, S cached positions, H hidden size, K key-value heads, g query heads per key-value head,
D head size. Prompts are padded on the left, so that all rows write the same cache column.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from grpo.native import lanes_for, vector_lanes
from grpo.products import attention, fast_products
from grpo.rollout.kernel import CacheAttention, Kernel, Sampler, head_size
from grpo.rollout.weights import Linear, load_layer

SUPPORTED_MODEL_TYPES = ("qwen2", "qwen3", "llama")
_SUPPORTED_ROPE = ("default", "linear", "llama3", "yarn")


def check_supported(config: Any) -> None:
    """Says which models this engine does not know, before it computes something else than they do.

    Raises:
        ValueError: model type, rope, activation or attention that `Decoder` does not implement.
    """
    if config.model_type not in SUPPORTED_MODEL_TYPES:
        raise ValueError(
            f"the torch engine does not know model_type={config.model_type!r}, it knows "
            f"{', '.join(SUPPORTED_MODEL_TYPES)}; use hardware.engine=vllm, or a model of these families"
        )
    rope = (getattr(config, "rope_parameters", None) or {}).get("rope_type", "default")
    if rope not in _SUPPORTED_ROPE:
        raise ValueError(f"the torch engine does not know rope_type={rope!r}, it knows {', '.join(_SUPPORTED_ROPE)}")
    if config.hidden_act != "silu":
        raise ValueError(f"the torch engine does not know hidden_act={config.hidden_act!r}, it knows 'silu'")
    layer_types = set(getattr(config, "layer_types", None) or ["full_attention"])
    if layer_types != {"full_attention"}:
        raise ValueError(
            f"the torch engine does not know {', '.join(sorted(layer_types - {'full_attention'}))}; set "
            "use_sliding_window to false in the model's config.json, or use hardware.engine=vllm"
        )


@dataclass(frozen=True, slots=True)
class KeyValueCache:
    """Keys and values of every layer.

    Attributes:
        keys, values: per layer [R, K, S, D].
        valid: [R, S] bool, False on the padding left of a prompt; None if no row is padded.
    """

    keys: tuple[Tensor, ...]
    values: tuple[Tensor, ...]
    valid: Tensor | None

    @property
    def num_columns(self) -> int:
        """S."""
        return self.keys[0].shape[2]

    def rows(self, rows: slice) -> KeyValueCache:
        """A view of these rows."""
        keys, values = tuple(layer[rows] for layer in self.keys), tuple(layer[rows] for layer in self.values)
        return KeyValueCache(keys, values, None if self.valid is None else self.valid[rows])

    def select(self, index: Tensor, columns: slice) -> KeyValueCache:
        """A copy of row index[i] for every i, of these columns; what they are more than there are is not filled."""
        num_columns = columns.stop - columns.start

        def copied(layer: Tensor) -> Tensor:
            part = layer[:, :, columns]
            if part.shape[2] == num_columns:
                return part[index]
            copy = layer.new_empty(len(index), layer.shape[1], num_columns, layer.shape[3])
            copy[:, :, : part.shape[2]] = part[index]
            return copy

        valid = self.valid
        if valid is not None:
            valid = valid[:, columns][index]
            valid = torch.cat([valid, valid.new_ones(len(index), num_columns - valid.shape[1])], dim=1)
        return KeyValueCache(tuple(map(copied, self.keys)), tuple(map(copied, self.values)), valid)


class Decoder:
    """Hidden states of new tokens, given a cache.

    Attributes:
        kernel: the compiled code for whole steps, over the same weights; None where it is not wanted, or not for them.
        sampler: the compiled code for drawing tokens only; None where it is not wanted, or not for the machine.
    """

    kernel: Kernel | None = None
    sampler: Sampler | None = None

    def __init__(self, model: Any, *, dtype: torch.dtype, device: torch.device, use_kernel: bool = False):
        """Refers to the model's weights, or copies them where dtype or device differ.

        Args:
            model: a transformers causal language model of a supported family.
            dtype: of matrix products. Where it is narrower than the weights, everything between them is in the
                weights' dtype, as it is in the policy under autocast.
            device: where to run.
            use_kernel: for all that the compiled code can do here: see `grpo.rollout.kernel`.

        Raises:
            KernelUnavailable: this machine could run the code, but cannot compile it.
        """
        check_supported(model.config)
        self.config, self._use_kernel = model.config, use_kernel
        self.dtype, self.device = dtype, torch.empty(0, device=device).device  # mps is mps:0, as its tensors say
        self._residual_dtype = model.lm_head.weight.dtype
        self._rotary = model.model.rotary_emb
        self._eps = torch.tensor(model.config.rms_norm_eps, dtype=torch.float32, device=self.device)
        self.load(model)
        self._cache_attention: CacheAttention | None = None
        if use_kernel and self.device.type == "cpu" and vector_lanes():
            self.sampler = Sampler(vector_lanes()[0])
            lanes = lanes_for([self.head_size], narrow=True)
            if lanes is not None and dtype == torch.bfloat16:
                self._cache_attention = CacheAttention(lanes)

    def load(self, model: Any) -> None:
        """Takes over the model's current weights."""

        def taken(parameter: Tensor, dtype: torch.dtype) -> Tensor:
            return parameter.detach().to(device=self.device, dtype=dtype)

        self._layers = [
            load_layer(layer, dtype=self.dtype, norm_dtype=self._residual_dtype, device=self.device)
            for layer in model.model.layers
        ]
        self._embedding = taken(model.model.embed_tokens.weight, self._residual_dtype)
        self._final_norm = taken(model.model.norm.weight, self._residual_dtype)
        self._head = taken(model.lm_head.weight, self.dtype)
        if self._use_kernel and Kernel.fits(self.config, self._layers, residual_dtype=self._residual_dtype):
            weights = {"embedding": self._embedding, "final_norm": self._final_norm, "head": self._head}
            self.kernel = Kernel(self.config, self._layers, **weights)

    def rotary_table(self, length: int) -> tuple[Tensor, Tensor]:
        """Cosines and sines, [length, D] each; the sines of the first half are negative, see `_rotate`."""
        positions = torch.arange(length, device=self._rotary.inv_freq.device).unsqueeze(0)
        like = torch.empty(0, dtype=self._residual_dtype, device=self._rotary.inv_freq.device)
        cos, sin = self._rotary(like, positions)
        first, second = sin[0].chunk(2, dim=-1)
        return cos[0].to(self.device), torch.cat((-first, second), dim=-1).to(self.device)

    def new_cache(self, rows: int, length: int, valid: Tensor | None) -> KeyValueCache:
        """Room for `length` positions of so many rows."""
        shape = (rows, self.config.num_key_value_heads, length, self.head_size)

        def empty() -> tuple[Tensor, ...]:
            return tuple(torch.empty(shape, dtype=self.dtype, device=self.device) for _ in self._layers)

        return KeyValueCache(empty(), empty(), valid)

    @property
    def head_size(self) -> int:
        """D."""
        return head_size(self.config, self._layers)

    @property
    def weight_bytes(self) -> int:
        """Of the matrices that every step reads."""
        matrices = [self._head]
        for layer in self._layers:
            matrices += [linear.weight for linear in (layer.qkv, layer.output, layer.gate_up, layer.down)]
        return sum(matrix.nbytes for matrix in matrices)

    @property
    def vocab_size(self) -> int:
        """V, the rows of the output matrix."""
        return self._head.shape[0]

    def forward(
        self, tokens: Tensor, rotary: tuple[Tensor, Tensor], cache: KeyValueCache, start: int, first: int = 0
    ) -> Tensor:
        """Runs new tokens through all layers and writes their keys and values to the cache.

        Args:
            tokens: [R, T] ids.
            rotary: cosines and sines at the tokens' positions, [R, T, D] each.
            cache: filled up to column `start`.
            start: cache column of the first new token.
            first: columns before it are not looked at.

        Returns:
            [R, H] hidden states of each row's last token, after the final norm.
        """
        with fast_products(self.device, self.dtype, compiled=self._use_kernel):
            return self._forward(tokens, rotary, cache, start, first)

    def _forward(
        self, tokens: Tensor, rotary: tuple[Tensor, Tensor], cache: KeyValueCache, start: int, first: int
    ) -> Tensor:
        rows, length = tokens.shape
        mask = None if length == 1 else _attention_mask(cache, length, start, first)
        past = slice(first, start)
        hidden = F.embedding(tokens.flatten(), self._embedding)
        for number, layer in enumerate(self._layers):
            qkv = _linear(self._norm(hidden, layer.attention_norm).to(self.dtype), layer.qkv)
            if layer is self._layers[-1]:  # of whose other tokens nobody asks for more than keys and values
                hidden = hidden.view(rows, length, -1)[:, -1]
            num_queries = len(hidden) // rows
            attended = self._attention(number, qkv.view(rows, length, -1), rotary, cache, past, mask, num_queries)
            hidden = _add_linear(hidden, attended, layer.output)
            gate, up = _linear(self._norm(hidden, layer.mlp_norm).to(self.dtype), layer.gate_up).chunk(2, dim=-1)
            hidden = _add_linear(hidden, F.silu(gate).mul_(up), layer.down)
        return self._norm(hidden, self._final_norm).to(self.dtype)

    def logits(self, hidden: Tensor) -> Tensor:
        """[R, V] of [R, H]."""
        with fast_products(self.device, self.dtype, compiled=self._use_kernel):
            return F.linear(hidden, self._head)

    def _norm(self, hidden: Tensor, weight: Tensor) -> Tensor:
        """Root mean square norm (arXiv 1910.07467) over the last axis, in float32; `F.rms_norm` takes twice as long."""
        states = hidden.float()
        length = torch.linalg.vector_norm(states, dim=-1, keepdim=True)
        scale = torch.addcmul(self._eps, length, length, value=1 / hidden.shape[-1]).rsqrt_()
        return (states * scale).to(hidden.dtype) * weight

    def _attention(
        self,
        number: int,
        qkv: Tensor,
        rotary: tuple[Tensor, Tensor],
        cache: KeyValueCache,
        past: slice,
        mask: Tensor | None,
        num_queries: int,
    ) -> Tensor:
        """[R * Q, heads * D] attention of the last Q tokens over the cache, which the new tokens have then joined."""
        layer, keys, values = self._layers[number], cache.keys[number], cache.values[number]
        rows, length, _ = qkv.shape
        heads, size = keys.shape[1], keys.shape[3]
        qkv = qkv.view(rows, length, -1, size)
        states, value = qkv[:, :, :-heads], qkv[:, :, -heads:]
        if layer.head_norm is not None:
            states = self._norm(states, layer.head_norm)
        states = _rotate(states, *rotary)
        first, start = past.start, past.stop
        end = start + length
        keys[:, :, start:end] = states[:, :, -heads:].transpose(1, 2)
        values[:, :, start:end] = value.transpose(1, 2)
        query = states[:, length - num_queries :, :-heads].to(self.dtype)
        if num_queries == 1:  # the g query heads of one key-value head attend to it as if they were g positions
            query = query.view(rows, heads, -1, size)
            if self._cache_attention is not None:
                return self._cache_attention(query, keys, values, cache.valid, slice(first, end))
            mask = None if cache.valid is None else cache.valid[:, None, None, first:end]
            keys, values = keys[:, :, first:end], values[:, :, first:end]
            return attention(query, keys, values, attn_mask=mask).view(rows, -1)
        keys, values = keys[:, :, first:end], values[:, :, first:end]
        query = query.transpose(1, 2)
        if mask is not None and self.device.type == "cuda":  # where no kernel but the slowest takes groups and a mask
            keys, values = (each.repeat_interleave(query.shape[1] // heads, dim=1) for each in (keys, values))
        attended = attention(
            query, keys, values, attn_mask=mask, is_causal=mask is None, enable_gqa=keys.shape[1] != query.shape[1]
        )
        return attended.transpose(1, 2).reshape(rows * length, -1)


def _linear(states: Tensor, linear: Linear) -> Tensor:
    return F.linear(states, linear.weight, linear.bias)


def _add_linear(residual: Tensor, states: Tensor, linear: Linear) -> Tensor:
    """The residual plus the projected states, in one pass where that rounds as two would."""
    if linear.bias is None and residual.dtype == states.dtype == torch.float32:
        return torch.addmm(residual, states, linear.weight.t())
    return residual + _linear(states, linear)


def _rotate(states: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary embedding (arXiv 2104.09864) of [R, T, heads, D] in the half-split layout; see `Decoder.rotary_table`."""
    turned = states.roll(states.shape[-1] // 2, dims=-1)
    return (states * cos.unsqueeze(2)).add_(turned * sin.unsqueeze(2))


def _attention_mask(cache: KeyValueCache, length: int, start: int, first: int) -> Tensor | None:
    """[R, 1, T, S] bool, or None where plain causal attention is right.

    A padded query sees itself, so that no row of the softmax is empty; no real token ever sees it.
    """
    if cache.valid is None:
        return None
    valid = cache.valid[:, None, None, first : start + length]
    queries = torch.arange(start, start + length, device=valid.device)
    columns = torch.arange(first, start + length, device=valid.device)
    causal = columns <= queries.unsqueeze(1)
    return (valid & causal) | (columns == queries.unsqueeze(1))
