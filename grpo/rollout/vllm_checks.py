"""What vLLM needs of a model and of a GPU, compared before any weights are loaded."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

_GIB = 2**30
_SMI = ("--query-compute-apps=pid,process_name,used_memory", "--format=csv,noheader,nounits")


@dataclass(frozen=True, slots=True)
class GpuMemory:
    """Bytes of one GPU."""

    free: int
    total: int


def check_architecture(path: str, architectures: Sequence[str], known: set[str]) -> None:
    """Compares a model's config.json with the models that vLLM has code for.

    Raises:
        ValueError: none of the classes that it names is known.
    """
    if not known.intersection(architectures):
        raise ValueError(
            f"model.path={path} is a {' or a '.join(architectures) or 'model without architectures'}, which the "
            "installed vLLM does not know; use hardware.engine=torch, or a model of the Qwen2, Qwen3 or Llama family"
        )


def check_context(max_tokens: int, context: int) -> None:
    """A completion and at least one token of a prompt must fit into the context.

    Raises:
        ValueError: they do not.
    """
    if max_tokens >= context:
        raise ValueError(
            f"sampling.max_tokens (or evaluation.max_tokens)={max_tokens} leaves no room for a prompt in the model's "
            f"context of {context} tokens; use {context // 2}, say"
        )


def check_gpu_memory(
    device: torch.device, fraction: float, memory: GpuMemory, holders: Callable[[torch.device], Sequence[str]]
) -> None:
    """The share of the whole GPU that vLLM takes must be free.

    Args:
        device: the GPU.
        fraction: hardware.engine_memory_fraction.
        memory: what the GPU has.
        holders: `memory_holders`; asked only where there is too little.

    Raises:
        ValueError: says how much is free, and who has the rest.
    """
    wanted = fraction * memory.total
    if memory.free >= wanted:
        return
    named = ", ".join(holders(device))
    by = f"; it is held by {named}" if named else ", held by processes that nvidia-smi does not show here"
    lower = int(100 * memory.free / memory.total) / 100
    instead = f"hardware.engine_memory_fraction={lower} or less" if lower > 0 else "another GPU"
    raise ValueError(
        f"{device} has {memory.free / _GIB:.1f} of {memory.total / _GIB:.1f} GiB free, but "
        f"hardware.engine_memory_fraction={fraction} asks for {wanted / _GIB:.1f} GiB{by}; end those processes, or use "
        f"{instead}"
    )


def gpu_memory(device: torch.device) -> GpuMemory:
    """What is free now, and what there is."""
    free, total = torch.cuda.mem_get_info(device)
    return GpuMemory(free, total)


def memory_holders(device: torch.device, run: Callable[[list[str]], str] | None = None) -> list[str]:
    """Other processes that hold memory of a GPU, largest first, as nvidia-smi tells: "pid 4711 (python, 12.0 GiB)".

    Args:
        device: the GPU.
        run: runs a command and returns what it prints.
    """
    program = shutil.which("nvidia-smi")
    if run is None and program is None:
        return []
    identity = f"GPU-{torch.cuda.get_device_properties(device).uuid}"
    lines = (run or _output)([program or "nvidia-smi", f"--id={identity}", *_SMI]).splitlines()
    rows = [[part.strip() for part in line.rsplit(",", 1)] for line in lines if line.count(",") >= 2]
    sized = [(float(mib) if mib.replace(".", "").isdigit() else 0.0, who.split(",", 1)) for who, mib in rows]
    return [
        f"pid {pid.strip()} ({name.strip()}, {mib / 1024:.1f} GiB)"
        for mib, (pid, name) in sorted(sized, reverse=True)
        if pid.strip() != str(os.getpid())
    ]


def _output(command: list[str]) -> str:
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=30).stdout
    except (OSError, subprocess.TimeoutExpired):
        return ""
