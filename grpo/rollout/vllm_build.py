"""From `hardware` and a model to a vLLM engine, in this process or in a child of it."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from grpo.config import EngineProcess, HardwareConfig
from grpo.rollout.vllm_engine import VllmEngine
from grpo.rollout.vllm_types import Backend, VllmError, VllmSettings

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_SPARE_TOKENS = 256  # vLLM keeps a block of its cache to itself, of 128 tokens on a CPU


def vllm_settings(cfg: HardwareConfig, model: Any, dtype: torch.dtype) -> VllmSettings:
    """How vLLM is built for a model; its memory on a CPU is counted in tokens, as the torch engine's is."""
    device = torch.device(cfg.engine_device).type
    context = int(model.config.max_position_embeddings)
    return VllmSettings(
        config=config_json(model, dtype),
        dtype=str(dtype).removeprefix("torch."),
        device=device,
        context=context,
        cache_bytes=cache_bytes(model.config, dtype, cfg.engine_cache_tokens) if device == "cpu" else None,
        memory_fraction=cfg.engine_memory_fraction,
        sleep=cfg.engine_sleep and device == "cuda" and cfg.policy_device == cfg.engine_device,
        batch_invariant=cfg.engine_batch_invariant,
    )


def config_json(model: Any, dtype: torch.dtype) -> dict[str, Any]:
    """The model's config.json. A sharded model's class has another name; its base knows the right one."""
    names = [cls.__name__ for cls in type(model).__mro__ if cls.__module__.startswith("transformers.models")]
    config = {**model.config.to_dict(), "dtype": str(dtype).removeprefix("torch.")}
    return {**config, "architectures": config.get("architectures") or names[:1]}


def cache_bytes(config: Any, dtype: torch.dtype, cache_tokens: int) -> int:
    """Bytes of a key-value cache that holds so many tokens, and at least one sequence as long as the context."""
    head_size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    of_a_token = 2 * config.num_hidden_layers * config.num_key_value_heads * head_size * dtype.itemsize
    return (max(cache_tokens, config.max_position_embeddings) + _SPARE_TOKENS) * of_a_token


def build_vllm_engine(
    cfg: HardwareConfig,
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    *,
    end_ids: Sequence[int],
    compute_dtype: torch.dtype,
    log: Path | None,
    warn: Callable[[str], None],
) -> VllmEngine:
    """See `grpo.rollout.build.build_engine`.

    Raises:
        ValueError: vLLM cannot run this model here; its words, and the remedy.
    """
    settings = vllm_settings(cfg, model, compute_dtype)
    try:
        backend = _child(cfg, settings, log, warn) if cfg.engine_process is EngineProcess.child else _core(settings)
    except VllmError as error:
        raise ValueError(f"{error}; use hardware.engine=torch, which runs where the policy does") from error
    return VllmEngine(backend, model, tokenizer, end_ids=end_ids)


def _core(settings: VllmSettings) -> Backend:
    from grpo.rollout.vllm_core import VllmCore

    return VllmCore(settings)


def _child(cfg: HardwareConfig, settings: VllmSettings, log: Path | None, warn: Callable[[str], None]) -> Backend:
    from grpo.rollout.vllm_child_backend import ChildOptions, VllmChild

    policy, engine = _with_index(cfg.policy_device), _with_index(cfg.engine_device)
    both_on_gpus = policy.type == engine.type == "cuda"
    options = ChildOptions(
        log=log or Path(tempfile.gettempdir(), f"grpo-vllm-{os.getpid()}.log"),
        warn=warn,
        policy_device=policy,
        backend="nccl" if both_on_gpus and policy != engine else "gloo",  # NCCL refuses two ranks on one GPU
        variables=child_variables(settings, engine, cfg.num_threads, os.environ.get("CUDA_VISIBLE_DEVICES")),
        keep_weights=cfg.sharded or cfg.overlap,
    )
    return VllmChild(settings, options)


def _with_index(name: str) -> torch.device:
    """The device, `cuda` as the current GPU's."""
    device = torch.device(name)
    return (
        torch.device("cuda", torch.cuda.current_device()) if device.type == "cuda" and device.index is None else device
    )


def child_variables(
    settings: VllmSettings, device: torch.device, num_threads: int | None, visible: str | None
) -> dict[str, str]:
    """What the child's environment says beside the trainer's.

    Args:
        settings: of vLLM.
        device: of the engine, as the trainer numbers it.
        num_threads: of torch on a CPU; None leaves it to OpenMP.
        visible: the trainer's CUDA_VISIBLE_DEVICES.
    """
    from grpo.rollout.vllm_core import environment

    variables = {**environment(settings), "HF_HUB_OFFLINE": "1"}
    if device.type == "cuda":
        gpus = visible.split(",") if visible else []
        assert device.index is not None
        variables["CUDA_VISIBLE_DEVICES"] = gpus[device.index] if gpus else str(device.index)
    elif num_threads is not None:
        variables["OMP_NUM_THREADS"] = str(num_threads)
    return variables
