"""Ten steps of a small run, as they were recorded: any change of the numbers is seen, and explained in CHANGELOG.md.

To record them again: python -m tests.e2e.test_golden
"""

import json
import tempfile
from pathlib import Path

import pytest
import torch

from grpo.config import compose_run_config
from grpo.run.metrics import is_timing, read_jsonl
from grpo.train import run_training

GOLDEN = Path(__file__).with_name("golden_trajectory.json")
OVERRIDES = [
    "experiment=quickstart",
    "model.warm_start.steps=0",
    "reward=random",
    "seed=7",
    "train.n_grpo_steps=10",
    "train.rollout_batch_size=32",
    "train.train_batch_size=16",
    "train.learning_rate=1e-4",
    "sampling.max_tokens=16",
    "evaluation.num_problems=8",
    "evaluation.eval_steps=5",
    "checkpoint.save_steps=0",
    "logging.console=plain",
]


def run(folder: Path):
    cfg = compose_run_config([*OVERRIDES, f"model.warm_start.cache_dir={folder}/models"])
    assert run_training(cfg, folder / "run") == 0
    rows = read_jsonl(folder / "run" / "metrics.jsonl")
    return [{key: value for key, value in row.items() if not is_timing(key)} for row in rows]


def test_ten_steps_are_as_recorded(tmp_path):
    golden = json.loads(GOLDEN.read_text())
    if golden["torch"] != torch.__version__.split("+")[0]:
        pytest.skip(f"recorded with torch {golden['torch']}, this is {torch.__version__}")
    rows = run(tmp_path)
    assert len(rows) == len(golden["rows"]) == 11
    for row, expected in zip(rows, golden["rows"], strict=True):
        assert row.keys() == expected.keys()
        for key, value in expected.items():
            # mismatch/* is rounding error itself: only its size is stable
            tolerance = {"abs": 1e-5} if key.startswith("mismatch/") else {"rel": 1e-3, "abs": 1e-6}
            assert row[key] == pytest.approx(value, **tolerance), f"step {row['step']}: {key}"


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as scratch:
        record = {"torch": torch.__version__.split("+")[0], "rows": run(Path(scratch))}
    GOLDEN.write_text(json.dumps(record, indent=1) + "\n")
