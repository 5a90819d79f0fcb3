"""A whole run on vLLM: it learns what it learns on the torch engine."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from grpo.run.metrics import read_jsonl

ROOT = Path(__file__).resolve().parents[2]
QUICKSTART = (
    "experiment=quickstart",
    "hardware=cpu",
    "hardware.engine=vllm",
    "evaluation.eval_steps=0",
    "logging.plot_steps=0",
)
# With hardware.engine=torch seeds 0 to 4 end between 92.0% and 96.9% of 512 problems on two machines, and with vLLM a
# run has ended at 89%: sums whose last bits differ are as different as seeds are. What does not learn stays below the
# first of the two.
BEFORE, LEAST_AFTER = 0.4, 0.85


@pytest.mark.vllm
def test_the_quickstart_reaches_the_accuracy_of_the_torch_engine(tmp_path: Path) -> None:
    if os.environ.get("REQUIRE_VLLM") != "1":
        pytest.importorskip("vllm", reason="vLLM is not installed; make test-vllm has it")
    run = tmp_path / "run"
    places = (f"output_dir={run}", f"model.warm_start.cache_dir={tmp_path / 'models'}")
    command = [sys.executable, "-m", "grpo.train", *QUICKSTART, *places]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=1500)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    rows = {row["step"]: row for row in read_jsonl(run / "metrics.jsonl")}
    assert rows[0]["eval/accuracy"] < BEFORE
    assert rows[100]["eval/accuracy"] >= LEAST_AFTER
