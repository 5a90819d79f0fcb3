"""From `hardware` to an engine, and what must be true of the machine first."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from grpo.config import EngineName, EngineProcess, HardwareConfig, RunConfig
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
        if cfg.name == "cpu":
            instead = "hardware.policy_device=cpu hardware.engine_device=cpu"
        return f"needs {' and '.join(names)}, but torch sees {num_gpus} CUDA devices here; use {instead}"
    if any(device.type == "mps" for device in wanted) and not torch.backends.mps.is_available():
        return "needs a Mac with Apple silicon, but torch sees no mps device here; use hardware=cpu"
    return ""


def _missing_engine(cfg: HardwareConfig) -> str:
    if cfg.engine is EngineName.torch:
        return ""
    from grpo.rollout.vllm_probe import installed_version, version_problem

    return version_problem(installed_version()) or _wrong_process(cfg)


def _wrong_process(cfg: HardwareConfig) -> str:
    """Why vLLM cannot run on the engine's device, in the process that the config names for it."""
    if torch.device(cfg.engine_device).type == "mps":
        return "vLLM does not run on mps; use hardware.engine=torch"
    if cfg.engine_process is EngineProcess.child:
        return ""
    remedy = "use hardware.engine_process=child"
    if cfg.engine_device != cfg.policy_device:
        return (
            f"vLLM in the trainer's process takes the policy's device, which is {cfg.policy_device} and not "
            f"hardware.engine_device={cfg.engine_device}; {remedy}"
        )
    if torch.device(cfg.engine_device).index not in (None, 0):
        return f"vLLM in the trainer's process takes the first GPU, not {cfg.engine_device}; {remedy}"
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        return f"vLLM in the trainer's process cannot be one of several ranks; {remedy}"
    return ""


def check_engine(cfg: RunConfig) -> None:
    """Compares what vLLM needs of the model and of its GPU with what there is, before any weights are loaded.

    Args:
        cfg: with `model.path` set; other engines need nothing.

    Raises:
        ValueError: one sentence.
    """
    if cfg.hardware.engine is EngineName.torch:
        return
    from transformers import AutoConfig

    from grpo.rollout import vllm_checks
    from grpo.rollout.vllm_engine import check_sampling
    from grpo.rollout.vllm_probe import known_architectures

    check_sampling(cfg.training_sampling(()))
    check_sampling(cfg.evaluation_sampling(()))
    try:
        config = AutoConfig.from_pretrained(str(cfg.model.path), revision=cfg.model.revision, trust_remote_code=False)
    except (OSError, ValueError, KeyError):
        return  # loading the model says what is wrong with it
    vllm_checks.check_architecture(str(cfg.model.path), config.architectures or (), known_architectures())
    longest = max(cfg.sampling.max_tokens, cfg.evaluation.max_tokens or 0)
    vllm_checks.check_context(longest, config.get_text_config().max_position_embeddings)
    device = torch.device(cfg.hardware.engine_device)
    if device.type == "cuda":
        memory = vllm_checks.gpu_memory(device)
        vllm_checks.check_gpu_memory(device, cfg.hardware.engine_memory_fraction, memory, vllm_checks.memory_holders)


def build_engine(
    cfg: HardwareConfig,
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    *,
    end_ids: Sequence[int],
    compute_dtype: torch.dtype,
    log: Path | None = None,
    warn: Callable[[str], None] = print,
) -> Engine:
    """The engine that the config names, with the model's weights as version 0.

    Args:
        cfg: names the engine.
        model: the policy's.
        tokenizer: its tokenizer.
        end_ids: tokens that end a completion.
        compute_dtype: of matrix products.
        log: where a vLLM in a child process prints; None is a file in the folder for temporary ones.
        warn: told what a user should know of the engine while the run goes on.

    Raises:
        ValueError: vLLM cannot run the model; one sentence.
    """
    if cfg.engine is EngineName.vllm:
        from grpo.rollout.vllm_build import build_vllm_engine

        return build_vllm_engine(
            cfg, model, tokenizer, end_ids=end_ids, compute_dtype=compute_dtype, log=log, warn=warn
        )
    from grpo.native import KernelUnavailable
    from grpo.rollout.torch_engine import TorchEngine

    def torch_engine(use_kernel: bool) -> TorchEngine:
        return TorchEngine(
            model,
            tokenizer,
            end_ids=end_ids,
            dtype=compute_dtype,
            device=torch.device(cfg.engine_device),
            cache_tokens=cfg.engine_cache_tokens,
            own_weights=cfg.overlap,
            use_kernel=use_kernel,
        )

    try:
        return torch_engine(cfg.compiled_kernels)
    except KernelUnavailable as problem:
        warn(f"sampling without compiled code takes 1.4 to 10 times as long: {problem}")
        return torch_engine(False)
