"""A model several times over, for threads that work on micro-batches side by side: the same weights, own gradients."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import torch

from grpo.parallel import keep_freed_memory, one_core_each

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_MAX_GRADIENT_BYTES = 64 * 2**20  # of all copies; at 53M parameters threads that share each operation are as fast
T = TypeVar("T")


def num_replicas(model: PreTrainedModel) -> int:
    """As many as there are cores, on a CPU, where the copies' gradients take little memory; else 1."""
    if model.device.type != "cpu":
        return 1
    gradient_bytes = sum(parameter.nbytes for parameter in model.parameters())
    return 1 + max(0, min(torch.get_num_threads() - 1, _MAX_GRADIENT_BYTES // gradient_bytes))


class Replicas:
    """The model, and copies of it whose parameters are the model's own memory.

    Attributes:
        models: the model first.
    """

    def __init__(self, model: PreTrainedModel, num: int) -> None:
        """So many, the model among them; see `num_replicas`."""
        self.models = [model, *(copy.deepcopy(model) for _ in range(num - 1))]
        if num > 1:
            keep_freed_memory()
        self._share()

    def __len__(self) -> int:
        return len(self.models)

    def run(self, work: Callable[[PreTrainedModel, T], Any], shares: Sequence[T]) -> list[Any]:
        """Calls work(model, share) for every share, each with a model of its own, and sums the gradients.

        The sum has a fixed order, so that the same shares give the same bits.

        Args:
            work: leaves gradients in the model's parameters.
            shares: one a model, or fewer.

        Returns:
            What the calls returned, in order.
        """
        if len(shares) <= 1:
            return [work(self.models[0], share) for share in shares]
        self._share()
        with one_core_each(len(shares)) as pool:
            futures = [pool.submit(work, model, share) for model, share in zip(self.models, shares, strict=False)]
            results = [future.result() for future in futures]
        for replica in self.models[1 : len(shares)]:
            for parameter, other in zip(self.models[0].parameters(), replica.parameters(), strict=True):
                if parameter.grad is None:
                    parameter.grad = other.grad
                elif other.grad is not None:
                    parameter.grad += other.grad
                other.grad = None
        return results

    def _share(self) -> None:
        """Points the copies' parameters at the model's memory, which others may have moved."""
        for replica in self.models[1:]:
            for parameter, other in zip(self.models[0].parameters(), replica.parameters(), strict=True):
                other.data = parameter.data


def deal(
    parts: Sequence[Sequence[int]], loads: Sequence[int], num_shares: int
) -> tuple[list[list[Sequence[int]]], int]:
    """Deals micro-batches out, the largest first and each to whom has least.

    Args:
        parts: the micro-batches.
        loads: how much work each is.
        num_shares: among how many.

    Returns:
        At most `num_shares` lists, none of them empty, and the largest load.
    """
    shares: list[list[Sequence[int]]] = [[] for _ in range(num_shares)]
    totals = [0] * num_shares
    for place in sorted(range(len(parts)), key=lambda place: -loads[place]):
        lightest = totals.index(min(totals))
        shares[lightest].append(parts[place])
        totals[lightest] += loads[place]
    return [share for share in shares if share], max(totals)
