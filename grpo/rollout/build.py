"""From `hardware` to an engine, and what must be true of the machine first."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch

from grpo.config import EngineName, HardwareConfig
from grpo.types import Engine

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def check_hardware(cfg: HardwareConfig) -> None:
    """Compares what the config names with what the machine has, before any weights are loaded.

    Raises:
        ValueError: a device or an engine is missing; says which, and what to use instead.
    """
    missing = [problem for problem in (_missing_device(cfg), _missing_engine(cfg)) if problem]
    if missing:
        raise ValueError(f"hardware={cfg.name}: {'; '.join(missing)}")


def _missing_device(cfg: HardwareConfig) -> str:
    names = list(dict.fromkeys((cfg.policy_device, cfg.engine_device)))
    for name in names:
        try:
            torch.device(name)
        except RuntimeError:
            return f"{name} is not a torch device; use cpu, mps, cuda:0 or the like"
    wanted = [torch.device(name) for name in names]
    num_gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if any(device.type == "cuda" and (device.index or 0) >= num_gpus for device in wanted):
        instead = "hardware=single_gpu hardware.engine=torch" if num_gpus else "hardware=cpu, or hardware=mps on a Mac"
        return f"needs {' and '.join(names)}, but torch sees {num_gpus} CUDA devices here; use {instead}"
    if any(device.type == "mps" for device in wanted) and not torch.backends.mps.is_available():
        return "needs a Mac with Apple silicon, but torch sees no mps device here; use hardware=cpu"
    return ""


def _missing_engine(cfg: HardwareConfig) -> str:
    if cfg.engine is EngineName.torch:
        return ""
    package = "" if importlib.util.find_spec("vllm") else "vLLM (pip install -e '.[vllm]') and "
    return (
        f"hardware.engine=vllm needs {package}an adapter that this version does not have yet; use "
        "hardware.engine=torch, which needs nothing (hardware=cpu and hardware=mps do)"
    )


def build_engine(
    cfg: HardwareConfig,
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    *,
    end_ids: Sequence[int],
    compute_dtype: torch.dtype,
) -> Engine:
    """The engine that the config names, with the model's weights as version 0."""
    from grpo.rollout.torch_engine import TorchEngine

    return TorchEngine(
        model,
        tokenizer,
        end_ids=end_ids,
        dtype=compute_dtype,
        device=torch.device(cfg.engine_device),
        cache_tokens=cfg.engine_cache_tokens,
    )
