"""bfloat16 on CPUs that have no instructions for it.

torch multiplies bfloat16 matrices there one number after another, five to eight times slower than float32. Widened
to float32, multiplied and summed there, and rounded once, they give what bfloat16 hardware gives (a product of two
bfloat16 numbers is exact in float32, in which such hardware sums, too), at the speed of float32. So a run with the
numerics of a GPU can be rehearsed on any laptop.
"""

from __future__ import annotations

import platform
from contextlib import AbstractContextManager, nullcontext
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

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


def fast_products(device: torch.device, dtype: torch.dtype) -> AbstractContextManager[object]:
    """A context, of one thread, in which products of matrices of the dtype are as fast as the device can have them.

    Forward and backward passes must both be in it. Where the device multiplies the dtype itself it does nothing.
    """
    return _WidenedProducts() if device.type == "cpu" and dtype == torch.bfloat16 and _is_slow() else nullcontext()


@cache
def _is_slow() -> bool:
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
