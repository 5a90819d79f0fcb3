"""Sampling by compiled code, on x86 CPUs with AVX2 or AVX512: `kernel.c`, what it needs, and how it is called.

A step of a small model is hundreds of operations of a few microseconds, and a core of a CPU reads a row's keys and
values faster than torch's attention for one query does. The C code makes a step in two calls, without Python's lock.
It is compiled on first use, in a second, by the machine's own C compiler. Where there is none, or another processor,
torch's operations do the same. Where only some of it fits, torch's operations do the rest: a batch that has all cores
draws tokens by it, and attends by it if the cache is bfloat16.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from grpo.native import KernelUnavailable, lanes_for, load_library
from grpo.rollout.stopping import StopRules
from grpo.rollout.weights import Layer, Linear
from grpo.types import Sampling

if TYPE_CHECKING:
    from grpo.rollout.batch import Rows

_SOURCE = Path(__file__).with_name("kernel.c")


@cache
def _library(lanes: int) -> ctypes.CDLL:
    library = _loaded(lanes)
    library.grpo_scratch.argtypes = [ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64]
    library.grpo_scratch.restype = ctypes.c_int64
    library.grpo_decode.argtypes = [*[ctypes.c_void_p] * 4, ctypes.c_int64, ctypes.c_void_p]
    library.grpo_decode.restype = None
    library.grpo_sample_scratch.argtypes = [ctypes.c_int64]
    library.grpo_sample_scratch.restype = ctypes.c_int64
    library.grpo_sample.argtypes = [*[ctypes.c_void_p] * 3, ctypes.c_int]
    library.grpo_sample.restype = None
    library.grpo_attention_scratch.argtypes = [ctypes.c_int64] * 3
    library.grpo_attention_scratch.restype = ctypes.c_int64
    library.grpo_attention.argtypes = [*[ctypes.c_int64] * 7, *[ctypes.c_void_p] * 6, ctypes.c_int]
    library.grpo_attention.restype = None
    return library


def _has(name: str) -> bool:
    """Whether torch finds that the processor can do this."""
    return bool(getattr(torch.cpu, "get_capabilities", dict)().get(name))


def _loaded(lanes: int) -> ctypes.CDLL:
    """For what this processor and this compiler can do."""
    flags = ["-fopenmp", "-mavx512bf16"] if lanes == 16 and _has("avx512_bf16") else ["-fopenmp"]
    while flags:
        try:
            return load_library(_SOURCE, lanes, *flags)
        except KernelUnavailable:  # it knows less than the processor: what is left out only costs time
            flags.pop()
    return load_library(_SOURCE, lanes)


def _structure(name: str, **fields: Any) -> type[ctypes.Structure]:
    """What kernel.c calls so."""
    return type(name, (ctypes.Structure,), {"_fields_": list(fields.items())})


_ADDRESS, _COUNT, _FLOAT = ctypes.c_void_p, ctypes.c_int64, ctypes.c_float
_Linear = _structure("Linear", weight=_ADDRESS, bias=_ADDRESS)
_Layer = _structure(
    "Layer",
    attention_norm=_ADDRESS,
    mlp_norm=_ADDRESS,
    head_norm=_ADDRESS,
    qkv=_Linear,
    output=_Linear,
    gate_up=_Linear,
    down=_Linear,
)
_Model = _structure(
    "Model",
    **dict.fromkeys(("layers", "hidden", "intermediate", "kv_heads", "group", "head_size", "vocabulary"), _COUNT),
    eps=_FLOAT,
    **dict.fromkeys(("layer", "embedding", "head", "final_norm"), _ADDRESS),
)
_Rows = _structure(
    "Rows",
    **dict.fromkeys(("rows", "vocabulary", "columns", "width", "narrow"), _COUNT),
    **dict.fromkeys(("starts", "counts", "finished", "stopped", "tokens", "log_probs"), _ADDRESS),
    **dict.fromkeys(("uniform", "logits", "sampled", "keys", "values"), _ADDRESS),
)
_Rules = _structure(
    "Rules",
    temperature=_FLOAT,
    **dict.fromkeys(("min_tokens", "max_tokens", "num_banned", "num_stops"), _COUNT),
    **dict.fromkeys(("banned", "is_end", "tables", "states"), _ADDRESS),
)


def _address(tensor: Tensor | None) -> int | None:
    if tensor is None:
        return None
    assert tensor.is_contiguous()
    return tensor.data_ptr()


def _addresses(tensors: Sequence[Tensor]) -> ctypes.Array[Any]:
    return (_ADDRESS * len(tensors))(*map(_address, tensors))


class Sampler:
    """The compiled code for drawing tokens from logits in float32 or bfloat16, which takes all of torch's threads."""

    def __init__(self, lanes: int) -> None:
        """Loads the code.

        Args:
            lanes: one of `vector_lanes`.

        Raises:
            KernelUnavailable: see `load_library`.
        """
        self._library = _library(lanes)

    def bind(self, rows: Rows, rules: StopRules, sampling: Sampling, banned_ids: Sequence[int]) -> BoundSampler:
        """The code for rows whose tensors, logits excepted, stay where they are in memory."""
        return BoundSampler(self._library, rows, rules, sampling, banned_ids)


class Kernel(Sampler):
    """The compiled code for whole steps, with one model's weights, to whose tensors it holds on: C has addresses."""

    def __init__(
        self, config: Any, layers: Sequence[Layer], *, embedding: Tensor, final_norm: Tensor, head: Tensor
    ) -> None:
        """Refers to the weights, for which `fits` must be true.

        Raises:
            KernelUnavailable: see `load_library`.
        """
        lanes = _lanes(config, layers)
        assert lanes is not None
        super().__init__(lanes)
        self._held = (layers, embedding, final_norm, head)
        self._layers = (_Layer * len(layers))(*map(_layer, layers))
        self._model = _Model(
            layers=len(layers),
            hidden=config.hidden_size,
            intermediate=config.intermediate_size,
            kv_heads=config.num_key_value_heads,
            group=config.num_attention_heads // config.num_key_value_heads,
            head_size=head_size(config, layers),
            vocabulary=len(head),
            eps=config.rms_norm_eps,
            layer=ctypes.addressof(self._layers),
            embedding=_address(embedding),
            head=_address(head),
            final_norm=_address(final_norm),
        )

    @staticmethod
    def fits(config: Any, layers: Sequence[Layer], *, residual_dtype: torch.dtype) -> bool:
        """Whether the code is for this machine and these weights.

        Residuals are in float32, matrices in float32 or bfloat16, and vectors divide their sizes. Processors with AMX,
        which multiply tiles of bfloat16, have those left to torch.
        """
        weight = layers[0].qkv.weight
        dtypes = (torch.float32,) if _has("amx_bf16") else (torch.float32, torch.bfloat16)
        is_known = weight.dtype in dtypes and residual_dtype == torch.float32
        return weight.device.type == "cpu" and is_known and _lanes(config, layers) is not None

    def bind(self, rows: Rows, rules: StopRules, sampling: Sampling, banned_ids: Sequence[int]) -> BoundKernel:
        """See `Sampler.bind`."""
        return BoundKernel(self._library, self._model, rows, rules, sampling, banned_ids)


class CacheAttention:
    """`grpo.products.attention` of one new token a row over a bfloat16 cache; torch takes many times as long."""

    def __init__(self, lanes: int) -> None:
        """Loads the code.

        Args:
            lanes: of `lanes_for`, of the size of a head.

        Raises:
            KernelUnavailable: see `load_library`.
        """
        self._library = _library(lanes)

    def __call__(self, query: Tensor, keys: Tensor, values: Tensor, valid: Tensor | None, columns: slice) -> Tensor:
        """[R, K * g * D] what the queries attend to.

        Args:
            query: [R, K, g, D] bfloat16, of the g query heads of every key-value head.
            keys: [R, K, C, D] bfloat16, of a cache.
            values: the same.
            valid: [R, C] bool, False on the padding left of a prompt; None if no row is padded.
            columns: of the cache, that are looked at.
        """
        query = query.contiguous()
        rows, kv_heads, group, size = query.shape
        threads, length = torch.get_num_threads(), columns.stop - columns.start
        scratch = torch.empty(threads * self._library.grpo_attention_scratch(group, size, length), device="cpu")
        out = torch.empty(rows, kv_heads * group * size, dtype=torch.bfloat16, device="cpu")
        counts = (rows, kv_heads, group, size, keys.shape[2], columns.start, columns.stop)
        addresses = map(_address, (valid, query, keys, values, out, scratch))
        self._library.grpo_attention(*counts, *addresses, threads)
        return out


class BoundSampler:
    """The compiled code for drawing tokens, and the rows of one batch."""

    def __init__(
        self, library: ctypes.CDLL, rows: Rows, rules: StopRules, sampling: Sampling, banned_ids: Sequence[int]
    ) -> None:
        """See `Sampler.bind`."""
        self._library, self._of, self._threads = library, rows, torch.get_num_threads()
        self._logits = rows.logits
        assert len(rules.is_end) == rows.logits.shape[1]
        banned, tables = torch.tensor(banned_ids, dtype=torch.int64), rules.tables
        arrays = [_addresses(tensors) for tensors in (rows.cache.keys, rows.cache.values, tables, rows.states)]
        keys, values, table_addresses, states = map(ctypes.addressof, arrays)
        self._rows = _Rows(
            rows=len(rows),
            vocabulary=rows.logits.shape[1],
            columns=rows.cache.num_columns,
            width=rows.tokens.shape[1],
            narrow=rows.logits.dtype == torch.bfloat16,
            starts=_address(rows.starts),
            counts=_address(rows.counts),
            finished=_address(rows.finished),
            stopped=_address(rows.stopped),
            tokens=_address(rows.tokens),
            log_probs=_address(rows.log_probs),
            uniform=_address(rows.uniform),
            logits=_address(rows.logits),
            sampled=_address(rows.sampled),
            keys=keys,
            values=values,
        )
        self._rules = _Rules(
            temperature=sampling.temperature or 1.0,
            min_tokens=sampling.min_tokens,
            max_tokens=sampling.max_tokens,
            num_banned=len(banned_ids),
            num_stops=len(tables),
            banned=_address(banned),
            is_end=_address(rules.is_end),
            tables=table_addresses,
            states=states,
        )
        size = self._threads * library.grpo_sample_scratch(rows.logits.shape[1])
        self._sample_scratch = torch.empty(size, dtype=torch.float32)
        self._held = (rules, banned, arrays)

    def sample(self) -> None:
        """Does what `Batch._sample` does, where neither top-k nor top-p removes anything."""
        if self._of.logits is not self._logits:  # torch's operations make new ones
            self._logits = self._of.logits
            self._rows.logits = _address(self._logits)
        structures = ctypes.byref(self._rows), ctypes.byref(self._rules)
        self._library.grpo_sample(*structures, self._sample_scratch.data_ptr(), self._threads)


class BoundKernel(BoundSampler):
    """The compiled code for whole steps, and the rows of one batch."""

    def __init__(
        self,
        library: ctypes.CDLL,
        model: ctypes.Structure,
        rows: Rows,
        rules: StopRules,
        sampling: Sampling,
        banned_ids: Sequence[int],
    ) -> None:
        """See `Kernel.bind`."""
        super().__init__(library, rows, rules, sampling, banned_ids)
        self._model = ctypes.addressof(model)
        scratch = library.grpo_scratch(self._model, len(rows), rows.cache.num_columns)
        self._scratch = torch.empty(scratch, dtype=torch.uint8)

    def decode(self, rotary: tuple[Tensor, Tensor], column: int) -> None:
        """Runs the sampled tokens of all open rows, which makes the logits of the next.

        Args:
            rotary: of `Decoder.rotary_table`, for all positions that rows can have.
            column: of the cache, that the tokens take.
        """
        cos, sin = map(_address, rotary)
        self._library.grpo_decode(self._model, ctypes.byref(self._rows), cos, sin, column, self._scratch.data_ptr())


def _layer(layer: Layer) -> ctypes.Structure:
    def linear(part: Linear) -> ctypes.Structure:
        return _Linear(_address(part.weight), _address(part.bias))

    norms = (layer.attention_norm, layer.mlp_norm, layer.head_norm)
    linears = (layer.qkv, layer.output, layer.gate_up, layer.down)
    return _Layer(*map(_address, norms), *map(linear, linears))


def _lanes(config: Any, layers: Sequence[Layer]) -> int | None:
    sizes = (config.hidden_size, config.intermediate_size, head_size(config, layers))
    return lanes_for(sizes, narrow=layers[0].qkv.weight.dtype == torch.bfloat16)


def head_size(config: Any, layers: Sequence[Layer]) -> int:
    """D, by the matrix that makes queries, keys and values."""
    return len(layers[0].qkv.weight) // (config.num_attention_heads + 2 * config.num_key_value_heads)
