"""How weights enter vLLM: engines of our own, registered with its weight-transfer factory when this module is imported.

vLLM's layerwise reload puts every layer onto the meta device first and fills it once all its weights have come. So an
update that breaks off leaves layers without memory, which raise when they are used, and never half of the new weights.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from vllm.distributed.weight_transfer import WeightTransferEngine  # pyright: ignore[reportMissingImports]
from vllm.distributed.weight_transfer import (  # pyright: ignore[reportMissingImports]
    WeightTransferEngineFactory as Factory,
)
from vllm.distributed.weight_transfer.base import (  # pyright: ignore[reportMissingImports]
    WeightTransferInitInfo,
    WeightTransferUpdateInfo,
)
from vllm.model_executor.model_loader.reload import (  # pyright: ignore[reportMissingImports]
    finalize_layerwise_reload,
    initialize_layerwise_reload,
)

from grpo.rollout.vllm_group import WeightGroup
from grpo.rollout.vllm_weights import Bucket, Named, bucket_numel, unpack

DIRECT, GROUP = "grpo_direct", "grpo_group"


@dataclass
class DirectInit(WeightTransferInitInfo):
    """Nothing is needed."""


@dataclass
class DirectUpdate(WeightTransferUpdateInfo):
    """Weights of this process.

    Attributes:
        buckets: named tensors, a bucket at a time, made when they are asked for.
    """

    buckets: Iterable[list[Named]] = field(default_factory=list)


class DirectTransfer(WeightTransferEngine):
    """Reads the policy's tensors where they are: policy and vLLM are one process."""

    init_info_cls = DirectInit
    update_info_cls = DirectUpdate
    _is_open = False

    def init_transfer_engine(self, init_info: Any) -> None:
        """Nothing to set up."""

    def start_weight_update(self) -> None:
        """Takes the layers apart.

        What a former update has left half-way is put together first, whatever it holds: vLLM would count the weights
        that had come then to those that come now, and take a layer for complete before it is.
        """
        if self._is_open:
            finalize_layerwise_reload(self.model, self.model_config)
        self._is_open = True
        initialize_layerwise_reload(self.model)

    def receive_weights(self, update_info: Any) -> None:
        """Loads all buckets.

        Raises:
            ValueError: weights of vLLM's model are in none of them.
        """
        self._load(update_info.buckets)

    def finish_weight_update(self) -> None:
        """Puts the layers together again.

        On CPUs vLLM multiplies by a packed copy of the output head. One that is tied to the embedding has no weights of
        its own in the update, and its copy would stay that of the former weights.
        """
        finalize_layerwise_reload(self.model, self.model_config)
        self._is_open = False
        head = getattr(self.model, "lm_head", None)
        if self.device.type == "cpu" and head is not None and hasattr(head, "quant_method"):
            head.quant_method.process_weights_after_loading(head)

    def shutdown(self) -> None:
        """Nothing to end."""

    def _load(self, buckets: Iterable[Iterable[Named]]) -> None:
        wanted = {name for name, _ in self.model.named_parameters()}
        loaded: set[str] = set()
        for bucket in buckets:
            loaded |= set(self.model.load_weights(bucket))
        if missing := wanted - loaded - _tied(self.model):
            raise ValueError(f"the update lacks {min(missing)} and {len(missing) - 1} other weights")


def _tied(model: Any) -> set[str]:
    """The output head's weight where it is the embedding's."""
    config = getattr(model, "config", None)
    return {"lm_head.weight"} if getattr(config, "tie_word_embeddings", False) else set()


@dataclass
class GroupInit(WeightTransferInitInfo):
    """How to meet the trainer.

    Attributes:
        meeting: a file that both know.
        backend: "gloo" or "nccl".
    """

    meeting: str
    backend: str


@dataclass
class GroupUpdate(WeightTransferUpdateInfo):
    """Weights that the trainer sends.

    Attributes:
        dtype: of all weights.
        ask: tells the trainer that the next bucket may come, and returns what will be in it, or None after the last.
            The trainer sends none before that, and so waits for nobody that has failed.
    """

    dtype: torch.dtype
    ask: Callable[[], Bucket | None]


class GroupTransfer(DirectTransfer):
    """Receives the weights over a process group: the trainer is rank 0, this process rank 1."""

    init_info_cls = GroupInit
    update_info_cls = GroupUpdate
    _group: WeightGroup | None = None

    def init_transfer_engine(self, init_info: Any) -> None:
        """Joins the group."""
        self._group = WeightGroup(init_info.meeting, rank=1, backend=init_info.backend, device=self.device)

    def receive_weights(self, update_info: Any) -> None:
        """Loads all buckets as they come; see `DirectTransfer.receive_weights`."""
        self._load(self._received(update_info))

    def shutdown(self) -> None:
        """Leaves the group."""
        self._group = None

    def _received(self, update: GroupUpdate) -> Iterator[Iterator[Named]]:
        assert self._group is not None
        while (bucket := update.ask()) is not None:
            # A buffer of its own for every bucket: vLLM keeps views of it until a layer is complete.
            num_bytes = bucket_numel(bucket) * update.dtype.itemsize
            flat = torch.empty(num_bytes, dtype=torch.uint8, device=self._group.device)
            self._group.receive(flat)
            yield unpack(flat.to(self.device), bucket, update.dtype)


Factory.register_engine(DIRECT, DirectTransfer)
Factory.register_engine(GROUP, GroupTransfer)
