"""C code of ours, compiled on first use by the machine's own compiler, and kept in the user's cache folder."""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Iterable, Sequence
from functools import cache
from pathlib import Path

import torch

_HEADER = Path(__file__).with_name("vectors.h")  # what the sources share
_FLAGS = ("-O3", "-ffp-contract=fast", "-fPIC", "-shared", "-mfma")
_VECTORS = {8: ("-mavx2",), 16: ("-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl")}  # by LANES of vectors.h
_COMPILERS = ("cc", "gcc", "clang")
_COMPILE_SECONDS = 120


class KernelUnavailable(Exception):
    """This machine could run the code, but cannot compile or load it; says why."""


def vector_lanes() -> tuple[int, ...]:
    """Of the vectors of float32 that this processor computes with and the sources know, the most first; maybe none."""
    if platform.machine().lower() not in ("x86_64", "amd64"):
        return ()
    return {"AVX2": (8,), "AVX512": (16, 8)}.get(torch.backends.cpu.get_cpu_capability(), ())


def lanes_for(sizes: Iterable[int], *, narrow: bool = False) -> int | None:
    """The most lanes that divide all of these; None where a vector does not, or the processor has none.

    Args:
        sizes: of what vectors are multiplied with.
        narrow: of bfloat16, of which lanes of the widest vectors hold pairs.
    """
    sizes, widest = tuple(sizes), max(_VECTORS)
    multiples = {lanes: 2 * lanes if narrow and lanes == widest else lanes for lanes in vector_lanes()}
    return next((lanes for lanes, multiple in multiples.items() if not any(size % multiple for size in sizes)), None)


@cache
def load_library(source: Path, lanes: int, *flags: str) -> ctypes.CDLL:
    """A C file as a library, compiled now, in a second or two, if it is not yet in the user's cache folder.

    Args:
        source: which uses vectors.h.
        lanes: one of `vector_lanes`.
        flags: for the compiler, beside its own.

    Raises:
        KernelUnavailable: no C compiler, or one that does not compile it; or what it made cannot be loaded.
    """
    command = [*_compiler(), *_FLAGS, *_VECTORS[lanes], *flags]
    try:
        folder = _cache_folder()
        if folder is not None:
            return _load(_compiled(source, command, folder))
        with tempfile.TemporaryDirectory(prefix="grpo-", ignore_cleanup_errors=True) as scratch:
            return _load(_compiled(source, command, Path(scratch)))  # once it is loaded, nobody reads the file
    except OSError as error:
        raise KernelUnavailable(f"a compiled {source.name} can be kept nowhere: {error}") from error


def _load(path: Path) -> ctypes.CDLL:
    try:
        return ctypes.CDLL(str(path))
    except OSError as error:
        raise KernelUnavailable(
            f"{path} cannot be loaded: {error}; remove it, or use hardware.compiled_kernels=false"
        ) from error


def _compiler() -> list[str]:
    named = os.environ.get("CC")
    compiler = named.split() if named else [path for path in map(shutil.which, _COMPILERS) if path][:1]
    if not compiler:
        raise KernelUnavailable(
            f"no C compiler is found, as CC or as {', '.join(_COMPILERS)}; install one, or use "
            "hardware.compiled_kernels=false"
        )
    return compiler


def _compiled(source: Path, command: Sequence[str], folder: Path) -> Path:
    """The shared library, made if it is not in the folder; several processes may make it at once."""
    # Home folders may be shared by machines.
    made_of = [source.read_text(), _HEADER.read_text(), *command, *platform.libc_ver()]
    digest = hashlib.sha256("\n".join(made_of).encode()).hexdigest()[:16]
    path = folder / f"{source.stem}-{digest}.so"
    if path.is_file():
        return path
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        made = Path(scratch) / path.name
        try:
            done = subprocess.run(
                [*command, str(source), "-o", str(made), "-lm"],
                capture_output=True,
                text=True,
                errors="replace",
                timeout=_COMPILE_SECONDS,
                env={**os.environ, "LC_ALL": "C"},
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            raise KernelUnavailable(f"{command[0]} does not run: {error}") from error
        if done.returncode:
            lines = (done.stderr.strip() or "no message").splitlines()
            reason = next((line for line in lines if "error" in line), lines[0])
            raise KernelUnavailable(f"{command[0]} does not compile it: {reason}")
        made.replace(path)
    return path


def _cache_folder() -> Path | None:
    """`$XDG_CACHE_HOME/grpo` or `~/.cache/grpo`; None where nothing can be written there."""
    try:
        folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "grpo"
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder):
            return folder
    except (OSError, RuntimeError):  # the latter of a user who has no home
        return None
