"""Matrix products on CPUs where those that torch chooses are slow.

bfloat16 without instructions for it: torch multiplies one number after another, five to eight times slower than
float32. Widened to float32, multiplied and summed there, and rounded once, matrices give what bfloat16 hardware gives
(a product of two bfloat16 numbers is exact in float32, in which such hardware sums, too), at the speed of float32. So a
run with the numerics of a GPU can be rehearsed on any laptop.

float32 on an AMD processor with AVX512: torch asks MKL, which computes there with AVX2. `products.c` is more than twice
as fast. oneDNN would be, too, but keeps half a megabyte for every new number of tokens.
"""

from __future__ import annotations

import ctypes
import platform
from contextlib import AbstractContextManager, nullcontext
from functools import cache
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn import Parameter
from torch.utils._python_dispatch import TorchDispatchMode

from grpo.native import KernelUnavailable, load_library, vector_lanes

_ATEN: Any = torch.ops.aten
_ATTENTION = _ATEN._scaled_dot_product_flash_attention_for_cpu.default
_PRODUCTS = {
    _ATTENTION,
    _ATEN._scaled_dot_product_flash_attention_for_cpu_backward.default,
    _ATEN.scaled_dot_product_attention.default,
    _ATEN.addmm.default,
    _ATEN.baddbmm.default,
    _ATEN.bmm.default,
    _ATEN.linear.default,
    _ATEN.matmul.default,
    _ATEN.mm.default,
    _ATEN.mm.out,
}
_LEAST_SIDE = 32  # of a result of compiled code


def fast_products(
    device: torch.device, dtype: torch.dtype, *, compiled: bool = False
) -> AbstractContextManager[object]:
    """A context, of one thread, in which products of matrices of the dtype are as fast as the device can have them.

    Forward and backward passes must both be in it. Where torch's own are that fast it does nothing.

    Args:
        device: of the matrices.
        dtype: of the matrices.
        compiled: whether code of ours may be compiled for them, where there is a compiler.
    """
    if device.type == "cpu" and dtype == torch.bfloat16 and _bfloat16_is_slow():
        return _WidenedProducts()
    if compiled and device.type == "cpu" and dtype == torch.float32 and _float32_is_slow():
        library = _library(16)
        return nullcontext() if library is None else _CompiledProducts(library)
    return nullcontext()


def attention(query: Tensor, key: Tensor, value: Tensor, **arguments: Any) -> Tensor:
    """`scaled_dot_product_attention`; of bfloat16 on a CPU in float32, and rounded once.

    torch rounds probabilities there, too, and its backward pass over short sequences takes three to four times as long.
    """
    if value.device.type != "cpu" or value.dtype != torch.bfloat16:
        return F.scaled_dot_product_attention(query, key, value, **arguments)
    with torch.autocast("cpu", enabled=False):
        wide = F.scaled_dot_product_attention(query.float(), key.float(), value.float(), **arguments)
    return wide.to(torch.bfloat16)


# --- bfloat16 -------------------------------------------------------------------------------------------------------


@cache
def _bfloat16_is_slow() -> bool:
    """Whether torch multiplies bfloat16 one by one: on x86, where oneDNN's kernels for it want AVX512 at least."""
    is_x86 = platform.machine().lower() in ("x86_64", "amd64")
    return is_x86 and torch.backends.cpu.get_cpu_capability() in ("DEFAULT", "NO AVX", "AVX2")


class _WidenedProducts(TorchDispatchMode):
    """Products of bfloat16 matrices, and attention, in float32, their results rounded to bfloat16."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func not in _PRODUCTS or not any(_is_narrow(value) for value in args):
            return func(*args, **kwargs)
        if "out" in kwargs:
            return kwargs["out"].copy_(func.overloadpacket.default(*map(_widened, args)))
        found = func(*map(_widened, args), **{name: _widened(value) for name, value in kwargs.items()})
        if isinstance(found, Tensor):
            return _rounded(found)
        if func is _ATTENTION:  # its second result, the logarithms of the sums, is float32 for bfloat16 as well
            return _rounded(found[0]), *found[1:]
        return tuple(map(_rounded, found))


def _is_narrow(value: object) -> bool:
    return isinstance(value, Tensor) and value.dtype == torch.bfloat16


def _widened(value: Any) -> Any:
    return value.float() if _is_narrow(value) else value


def _rounded(value: Tensor) -> Tensor:
    return value.to(torch.bfloat16)


# --- float32 --------------------------------------------------------------------------------------------------------


@cache
def _float32_is_slow() -> bool:
    """Whether torch's float32 products are MKL's on a processor whose AVX512 it does not use."""
    is_amd = str(getattr(torch.cpu, "get_capabilities", dict)().get("cpu_name", "")).startswith("AMD")
    return is_amd and max(vector_lanes(), default=0) == 16 and torch.backends.mkl.is_available()


@cache
def _library(lanes: int) -> ctypes.CDLL | None:
    try:
        library = load_library(Path(__file__).with_name("products.c"), lanes, "-fopenmp")
    except KernelUnavailable:
        return None
    library.grpo_product.argtypes = [
        *[ctypes.POINTER(_Matrix)] * 2,
        ctypes.c_void_p,
        *[ctypes.c_int64] * 4,
        ctypes.c_int,
        ctypes.c_void_p,
        ctypes.c_int,
    ]
    library.grpo_product.restype = None
    library.grpo_product_scratch.argtypes = [ctypes.c_int64] * 2
    library.grpo_product_scratch.restype = ctypes.c_int64
    return library


class _Matrix(ctypes.Structure):
    """What products.c calls so."""

    _fields_ = (("data", ctypes.c_void_p), ("row", ctypes.c_int64), ("column", ctypes.c_int64))


class _CompiledProducts(TorchDispatchMode):
    """Products of float32 matrices by `products.c`."""

    def __init__(self, library: ctypes.CDLL) -> None:
        super().__init__()
        self._library = library

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        make = _COMPILED.get(func)
        found = None if make is None else make(self._library, *args, **(kwargs or {}))
        return func(*args, **(kwargs or {})) if found is None else found


def _suit(left: Tensor, right: Tensor) -> bool:
    """Whether [M, K] and [K, N] are for the code: plain float32 tensors, and a result that is worth the packing."""
    is_plain = all(each.dtype == torch.float32 and type(each) in (Tensor, Parameter) for each in (left, right))
    return is_plain and min(len(left), right.shape[1]) >= _LEAST_SIDE and len(right) > 0


def _multiply(library: ctypes.CDLL, left: Tensor, right: Tensor, out: Tensor, *, adds: bool = False) -> Tensor:
    """[M, N] `out`, to whose contiguous rows the product of [M, K] and [K, N] is written or added."""
    (rows, depth), columns = left.shape, right.shape[1]
    scratch = torch.empty(library.grpo_product_scratch(columns, depth), dtype=torch.float32, device="cpu")
    library.grpo_product(
        _Matrix(left.data_ptr(), *left.stride()),
        _Matrix(right.data_ptr(), *right.stride()),
        out.data_ptr(),
        out.stride(0),
        rows,
        columns,
        depth,
        adds,
        scratch.data_ptr(),
        torch.get_num_threads(),
    )
    return out


def _takes(out: Tensor) -> bool:
    return out.dtype == torch.float32 and out.stride(1) == 1 and type(out) in (Tensor, Parameter)


def _mm(library: ctypes.CDLL, left: Tensor, right: Tensor) -> Tensor | None:
    if not _suit(left, right):
        return None
    return _multiply(library, left, right, left.new_empty(len(left), right.shape[1]))


def _mm_out(library: ctypes.CDLL, left: Tensor, right: Tensor, *, out: Tensor) -> Tensor | None:
    return _multiply(library, left, right, out) if _suit(left, right) and _takes(out) else None


def _addmm(
    library: ctypes.CDLL, total: Tensor, left: Tensor, right: Tensor, *, beta: float = 1, alpha: float = 1
) -> Tensor | None:
    if not _suit(left, right) or total.dtype != torch.float32 or beta != 1 or alpha != 1:
        return None
    out = left.new_empty(len(left), right.shape[1]).copy_(total)
    return _multiply(library, left, right, out, adds=True)


def _addmm_(
    library: ctypes.CDLL, total: Tensor, left: Tensor, right: Tensor, *, beta: float = 1, alpha: float = 1
) -> Tensor | None:
    if not _suit(left, right) or not _takes(total) or beta != 1 or alpha != 1:
        return None
    return _multiply(library, left, right, total, adds=True)


def _matmul(library: ctypes.CDLL, left: Tensor, right: Tensor) -> Tensor | None:
    return _linear(library, left, right.t()) if right.dim() == 2 else None


def _linear(library: ctypes.CDLL, states: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor | None:
    if states.dim() < 2:
        return None
    rows = states.flatten(0, -2)
    found = _mm(library, rows, weight.t()) if bias is None else _addmm(library, bias, rows, weight.t())
    return None if found is None else found.unflatten(0, states.shape[:-1])


_COMPILED = {
    _ATEN.mm.default: _mm,
    _ATEN.mm.out: _mm_out,
    _ATEN.addmm.default: _addmm,
    _ATEN.addmm_.default: _addmm_,
    _ATEN.linear.default: _linear,
    _ATEN.matmul.default: _matmul,
}
