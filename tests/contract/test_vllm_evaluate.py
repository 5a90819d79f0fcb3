"""`python -m grpo.evaluate` on vLLM: two models, one after the other, answer as they do on the torch engine."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from grpo.config import compose_run_config
from grpo.evaluate import main
from grpo.warm_start import built_model_folder

ROOT = Path(__file__).resolve().parents[2]
QUICKSTART = ("experiment=quickstart", "hardware.num_threads=1")
ASKED = ("max_tokens=12", "num_samples=6", "temperature=0")


def evaluated_on_vllm(overrides: Sequence[str]) -> str:
    """What `python -m grpo.evaluate` prints, in a process of its own, which vLLM then has to itself."""
    command = [sys.executable, "-m", "grpo.evaluate", *overrides, "backend=vllm"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=1500)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return done.stdout


def rows(folder: Path, model: Path) -> list[dict[str, Any]]:
    (own,) = folder.glob(f"*{model.name}-*")
    lines = (own / "results.jsonl").read_text().splitlines()
    return [{"problem": row["problem"], **row["completions"][0]} for row in map(json.loads, lines)]


@pytest.mark.vllm
def test_two_models_are_evaluated_as_on_the_torch_engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if os.environ.get("REQUIRE_VLLM") != "1":
        pytest.importorskip("vllm", reason="vLLM is not installed; make test-vllm has it")
    steps = ("model.warm_start.steps=0", f"model.warm_start.cache_dir={tmp_path / 'models'}")
    models = [
        built_model_folder(compose_run_config([*QUICKSTART, *steps, f"seed={seed}"]), lambda _: None) for seed in (1, 2)
    ]
    command = [*QUICKSTART, *ASKED, f"compare=[{models[0]},{models[1]}]"]
    assert "vllm engine, float32" in evaluated_on_vllm([*command, f"output_dir={tmp_path / 'vllm'}"])
    assert (tmp_path / "vllm" / "comparison.txt").exists()
    monkeypatch.setattr(sys, "argv", ["grpo.evaluate", *command, "backend=torch", f"output_dir={tmp_path / 'torch'}"])
    with pytest.raises(SystemExit) as left:
        main()
    assert left.value.code == 0
    first, second = (rows(tmp_path / "vllm", model) for model in models)
    assert first != second
    assert [first, second] == [rows(tmp_path / "torch", model) for model in models]
