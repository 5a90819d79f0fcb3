"""Inputs of the chunked head for its tests, and counters of what it does with them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from grpo.rl.log_probs import TokenDistribution

NUM_TOKENS, HIDDEN, VOCABULARY = 13, 6, 29
DISTRIBUTIONS = {
    "plain": TokenDistribution(),
    "temperature": TokenDistribution(temperature=0.6),
    "top_k": TokenDistribution(top_k=4),
    "top_p": TokenDistribution(top_p=0.6),
    "banned": TokenDistribution(banned_ids=(0, 3, 7)),
    "everything": TokenDistribution(temperature=1.3, top_k=9, top_p=0.8, banned_ids=(0, 3, 7)),
}
_PRODUCTS = {
    "mm",
    "addmm",
    "addmm_",
    "bmm",
    "baddbmm",
    "baddbmm_",
    "addbmm",
    "addbmm_",
    "matmul",
    "linear",
    "mv",
    "dot",
}


def inputs(dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Hidden states, head, targets (none of them banned), and where `banned` holds."""
    generator = torch.Generator().manual_seed(0)
    hidden = (0.5 * torch.randn(NUM_TOKENS, HIDDEN, generator=generator)).to(dtype).requires_grad_()
    weight = torch.randn(VOCABULARY, HIDDEN, generator=generator).to(dtype).requires_grad_()
    targets = torch.randint(8, VOCABULARY, (NUM_TOKENS,), generator=generator)
    return hidden, weight, targets, torch.arange(NUM_TOKENS) % 3 == 0


def incoming() -> Tensor:
    """[N] gradients of the log-probs, all different, some negative."""
    return torch.linspace(-1, 2, NUM_TOKENS)


class Products(TorchDispatchMode):
    """Counts matrix products."""

    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func.overloadpacket.__name__ in _PRODUCTS
        return func(*args, **(kwargs or {}))


class PeakMemory(TorchDispatchMode):
    """Notes how many bytes of tensors that were made inside are alive at once."""

    def __init__(self) -> None:
        super().__init__()
        self.peak = 0
        self._alive: dict[int, tuple[StorageWeakRef, int]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        given = {leaf.untyped_storage()._cdata for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)}
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor) and (storage := leaf.untyped_storage())._cdata not in given:
                self._alive[storage._cdata] = (StorageWeakRef(storage), storage.nbytes())
        self._alive = {key: entry for key, entry in self._alive.items() if not entry[0].expired()}
        self.peak = max(self.peak, sum(size for _, size in self._alive.values()))
        return result
