"""Qwen2.5-Math-1.5B's own shape with random weights in bfloat16: one step on a CPU, within 20 GiB."""

import subprocess
import sys
from pathlib import Path

import pytest

from grpo.run.metrics import read_jsonl

SHAPE = {
    "vocab_size": 151_936,
    "hidden_size": 1536,
    "intermediate_size": 8960,
    "num_hidden_layers": 28,
    "num_attention_heads": 12,
    "num_key_value_heads": 2,
    "max_position_embeddings": 4096,
}
OVERRIDES = [
    "model=tiny",
    "model.master_dtype=bfloat16",
    "hardware=cpu",
    "hardware.compute_dtype=bfloat16",
    "hardware.head_chunk_tokens=64",
    "hardware.activation_checkpointing=true",
    "data=arithmetic",
    "reward=random",
    "loss=grpo_clip",
    "train.n_grpo_steps=1",
    "train.rollout_batch_size=4",
    "train.train_batch_size=4",
    "train.group_size=2",
    "sampling.max_tokens=8",
    "evaluation.num_problems=2",
    "checkpoint.save_steps=1",
    *(f"model.build.{key}={value}" for key, value in SHAPE.items()),
]
RUN_AND_MEASURE = """
import resource, runpy, sys
sys.argv[0] = "grpo.train"
try:
    runpy.run_module("grpo.train", run_name="__main__")
finally:
    print("peak", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
"""


@pytest.mark.slow
def test_one_step_of_the_full_size_fits_in_20_gib(tmp_path: Path):
    places = [f"output_dir={tmp_path}/run", f"model.warm_start.cache_dir={tmp_path}/models"]
    done = subprocess.run(
        [sys.executable, "-c", RUN_AND_MEASURE, *OVERRIDES, *places], capture_output=True, text=True, timeout=1500
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert "1543.71 million parameters" in done.stdout
    peak_gib = int(done.stdout.rsplit("peak ", 1)[1]) / 2**30
    assert peak_gib < 20
    step = read_jsonl(tmp_path / "run" / "metrics.jsonl")[-1]
    assert step["policy/grad_norm"] > 0
    assert step["policy/skipped_updates"] == 0
    assert step["mismatch/mean"] < 0.05
    assert (tmp_path / "run" / "checkpoints" / "step_000001" / "model.safetensors").stat().st_size > 3e9
