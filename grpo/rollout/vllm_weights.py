"""The sender's side of a weight sync: a model's weights by name, in buckets of bounded size, in vLLM's dtype."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

BUCKET_BYTES = 256 * 2**20


@dataclass(frozen=True, slots=True)
class Weight:
    """Name and shape of a weight, as the model's checkpoint has them."""

    name: str
    shape: tuple[int, ...]

    @property
    def numel(self) -> int:
        """Numbers in it."""
        return torch.Size(self.shape).numel()


Bucket = list[Weight]
Named = tuple[str, Tensor]


@torch.no_grad()
def buckets(model: Any, dtype: torch.dtype, limit_bytes: int = BUCKET_BYTES) -> Iterator[list[Named]]:
    """The model's weights in their order, a bucket at a time, tied ones once: its own memory, or copies in that dtype.

    Each is read once. A sharded one is gathered then, which all ranks do together and in the same order.

    Args:
        model: a transformers model, or one that gathers its parameters when they are read.
        dtype: in which they are sent.
        limit_bytes: of a bucket; a larger weight has a bucket of its own.
    """
    bucket: list[Named] = []
    size = 0
    for name, parameter in model.named_parameters():
        tensor = parameter.detach().to(dtype)
        if bucket and size + tensor.nbytes > limit_bytes:
            yield bucket
            bucket, size = [], 0
        bucket.append((name, tensor))
        size += tensor.nbytes
    if bucket:
        yield bucket


def contents(tensors: Sequence[Named]) -> Bucket:
    """What is in a bucket, without the numbers."""
    return [Weight(name, tuple(tensor.shape)) for name, tensor in tensors]


def bucket_numel(bucket: Bucket) -> int:
    """Numbers in a bucket."""
    return sum(weight.numel for weight in bucket)


def pack(tensors: Sequence[Named], device: torch.device) -> Tensor:
    """[bytes] uint8: one tensor after the other. Not every transport knows every dtype; all know bytes."""
    flat = torch.cat([tensor.reshape(-1).to(device) for _, tensor in tensors])
    return flat.view(torch.uint8)


def unpack(flat: Tensor, bucket: Bucket, dtype: torch.dtype) -> Iterator[Named]:
    """What was packed, as views of `flat`, which must not be written to while they are in use."""
    parts = flat.view(dtype).split([weight.numel for weight in bucket])
    for weight, part in zip(bucket, parts, strict=True):
        yield weight.name, part.view(weight.shape)
