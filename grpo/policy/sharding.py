"""The policy over several processes: each holds a part of every weight, gradient and optimiser state (FSDP2).

A layer's weights are gathered when it runs and dropped afterwards; gradients are summed over the ranks, not averaged,
for the loss of an optimiser step has one denominator already. Gathering is something that all ranks do at once, so all
must run the model equally often: whoever has no micro-batch left runs an idle one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeVar, cast

import torch
from torch import Tensor, nn

from grpo.distributed import Ranks
from grpo.policy.block_states import is_sharded
from grpo.policy.forward import ForwardSettings, response_log_probs
from grpo.policy.packing import MicroBatch

if TYPE_CHECKING:
    from transformers import PreTrainedModel

T = TypeVar("T")


class ShardedModel(nn.Module):
    """A transformers model whose parameters are this rank's parts. Calling it gathers them, and needs all ranks."""

    def __init__(self, model: PreTrainedModel, ranks: Ranks, device: torch.device) -> None:
        """Shards the model in place, over all ranks; its weights become those of rank 0.

        Args:
            model: on any device; only rank 0's values count.
            ranks: all of a process group of torch.distributed.
            device: of this rank.
        """
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard

        super().__init__()
        self.model, self._ranks = model, ranks
        whole = {name: parameter.detach() for name, parameter in model.named_parameters()}
        mesh = init_device_mesh(device.type, (ranks.size,))
        # Weights keep their dtype on the way, as they do on one device under autocast.
        options = {"mesh": mesh, "mp_policy": MixedPrecisionPolicy(reduce_dtype=torch.float32)}
        for layer in cast(Any, model).model.layers:
            fully_shard(layer, **options)
        fully_shard(self, **options)  # embedding, last norm and head
        for module in self.modules():
            if isinstance(module, FSDPModule):
                module.set_gradient_divide_factor(1.0)
                module.set_force_sum_reduction_for_comms(True)  # gloo knows no factor
        self._take_from_first(whole)

    @torch.no_grad()
    def _take_from_first(self, whole: dict[str, Tensor]) -> None:
        """Deals rank 0's weights out, one after another, and copies its buffers."""
        import torch.distributed as dist
        from torch.distributed.tensor import distribute_tensor

        for name, parameter in self.model.named_parameters():
            part = cast(Any, parameter)
            value = whole.pop(name).to(part.to_local().device)
            part.to_local().copy_(distribute_tensor(value, part.device_mesh, part.placements).to_local())
        for buffer in self.model.buffers():
            dist.broadcast(buffer, src=0)

    def forward(
        self, micro_batch: MicroBatch, settings: ForwardSettings, expected_grad: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """`response_log_probs`, while the weights are there."""
        return response_log_probs(self.model, micro_batch, settings, expected_grad=expected_grad)

    def __len__(self) -> int:
        """How many work side by side."""
        return self._ranks.size

    def run(self, work: Callable[[Any, Any], T], shares: Sequence[Sequence[Any]]) -> list[T]:
        """Calls work(self, share) with this rank's share, filled up with None to the length of the longest.

        Args:
            work: runs the model once for every element; FSDP sums the gradients.
            shares: the same on all ranks; one a rank, or fewer.

        Returns:
            What the calls of all ranks returned, by rank.
        """
        if not shares:
            return []
        share = shares[self._ranks.rank] if self._ranks.rank < len(shares) else ()
        return self._ranks.gather(work(self, _filled_up(share, max(map(len, shares)))))

    def filled_up(self, parts: Sequence[T]) -> list[T | None]:
        """What only this rank is to run the model for, and None until it is as much as on the other ranks."""
        return _filled_up(parts, max(self._ranks.gather(len(parts))))

    def idle_loss(self, micro_batch: MicroBatch, settings: ForwardSettings) -> Tensor:
        """A loss of 0 on a micro-batch that means nothing, whose passes gather and sum what others' need."""
        log_probs, _ = self(micro_batch, replace(settings, min_tokens=0))  # nothing is banned, all is finite
        return log_probs.sum() * 0

    def drop_gathered(self) -> None:
        """Drops what a forward pass has left for a backward pass that does not come."""
        cast(Any, self).reshard()


def _filled_up(share: Sequence[T], length: int) -> list[T | None]:
    return [*share, *[None] * (length - len(share))]


def whole_tensor(value: Any) -> Tensor:
    """The value itself, or all of it where this is a rank's part."""
    return value.full_tensor() if is_sharded(value) else value


def model_log_probs(
    model: PreTrainedModel | ShardedModel,
    micro_batch: MicroBatch,
    settings: ForwardSettings,
    *,
    expected_grad: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """`response_log_probs` of a model that may be sharded."""
    if isinstance(model, ShardedModel):
        return model(micro_batch, settings, expected_grad)
    return response_log_probs(model, micro_batch, settings, expected_grad=expected_grad)


class GatheredModel:
    """A sharded model as engines read it: what is a parameter there is a whole tensor here.

    Nothing is kept: each is gathered when it is read, so all ranks must read the same in the same order.
    """

    def __init__(self, module: nn.Module) -> None:
        """Of a model, or of a part of it."""
        self._module = module

    def __getattr__(self, name: str) -> Any:
        """The module's attribute; a part that holds parameters is again one of these."""
        return _gathered(getattr(self._module, name))

    def __iter__(self) -> Iterator[Any]:
        return (_gathered(part) for part in cast(Any, self._module))

    def __len__(self) -> int:
        return len(cast(Any, self._module))

    def __getitem__(self, place: Any) -> Any:
        return _gathered(cast(Any, self._module)[place])

    def named_parameters(self) -> Iterator[tuple[str, Tensor]]:
        """Every parameter once, by name, gathered one at a time."""
        return ((name, _gathered(parameter)) for name, parameter in self._module.named_parameters())

    def parameters(self) -> Iterator[Tensor]:
        """`named_parameters` without names."""
        return (parameter for _, parameter in self.named_parameters())


def _gathered(value: Any) -> Any:
    if isinstance(value, Tensor):
        return whole_tensor(value.detach())
    if isinstance(value, nn.Module) and next(value.parameters(), None) is not None:
        return GatheredModel(value)
    return value
