"""The states of `low_memory.AdamW8bit`: what is kept for a parameter, also for a rank's part of one."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

BLOCK_SIZE = 128
_MIN_QUANTIZED = 4096  # norms and biases are few bytes; bitsandbytes draws the same line


def new_state(parameter: Tensor) -> dict[str, Tensor]:
    """Zeros; sharded where the parameter is, so that their whole is what it would be on one rank."""
    step = torch.zeros((), dtype=torch.float32)
    if not _is_quantized(parameter):
        moments = {key: torch.zeros_like(parameter, dtype=torch.float32) for key in ("exp_avg", "exp_avg_sq")}
        return {"step": step, **moments}
    num_blocks = -(-parameter.numel() // BLOCK_SIZE)
    codes, scales = (num_blocks, BLOCK_SIZE), (num_blocks, 1)
    zeros = {
        "exp_avg_codes": _zeros(parameter, codes, torch.int8),
        "exp_avg_scales": _zeros(parameter, scales, torch.float32),
        "exp_avg_sq_codes": _zeros(parameter, codes, torch.uint8),
        "exp_avg_sq_scales": _zeros(parameter, scales, torch.float32),
    }
    return {"step": step, **zeros}


def _is_quantized(parameter: Tensor) -> bool:
    return parameter.numel() >= _MIN_QUANTIZED


def _zeros(like: Any, shape: tuple[int, int], dtype: torch.dtype) -> Tensor:
    if not is_sharded(like):
        return torch.zeros(shape, dtype=dtype, device=like.device)
    from torch.distributed.tensor import zeros

    return zeros(shape, dtype=dtype, device_mesh=like.device_mesh, placements=like.placements)


def is_sharded(value: Tensor) -> bool:
    """Whether ranks hold a part each (a DTensor, which takes long to import where there is none)."""
    return hasattr(value, "device_mesh")


def own_part(value: Any) -> Tensor:
    """What this rank holds of it."""
    return value.to_local() if is_sharded(value) else value


def check_whole_blocks(parameter: Any) -> None:
    """Says where ranks would cut through blocks, which then were others on another number of ranks.

    Raises:
        ValueError: a parameter that is sharded so.
    """
    if not is_sharded(parameter) or not _is_quantized(parameter):
        return
    num_ranks, num_weights, num_rows = parameter.device_mesh.size(), parameter.numel(), len(parameter)
    num_blocks = -(-num_weights // BLOCK_SIZE)
    for rank in range(1, num_ranks):
        weights = min(rank * -(-num_rows // num_ranks), num_rows) * (num_weights // num_rows)
        blocks = min(rank * -(-num_blocks // num_ranks), num_blocks)
        if weights != min(blocks * BLOCK_SIZE, num_weights):
            raise ValueError(
                f"train.optimizer=adamw_8bit keeps blocks of {BLOCK_SIZE} weights, and {num_ranks} ranks would cut "
                f"through those of a parameter of {list(parameter.shape)}; use a number of ranks that divides "
                f"{num_rows}, or train.optimizer=adamw"
            )
