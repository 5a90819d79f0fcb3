"""Two ranks with a vLLM each: it gets the weights that all gather for it, also after it was lost. Gloo on the CPU."""

from __future__ import annotations

import os
import signal
from collections.abc import Sequence
from pathlib import Path

import pytest

from grpo.run.metrics import read_jsonl
from tests.e2e import processes
from tests.e2e.conftest import TINY
from tests.e2e.test_ranks import SHARDED, TwoRanks
from tests.ranks import free_port, needs_ranks
from tests.unit.rollout.test_vllm_child import wait_until_gone

VLLM = (
    *("hardware.engine=vllm", "hardware.engine_cache_tokens=1", "model.build.max_position_embeddings=512"),
    *("model.build.hidden_size=64", "model.build.num_attention_heads=2", "model.build.num_key_value_heads=1"),
    *("train.n_grpo_steps=4", "evaluation.eval_steps=0", "checkpoint.save_steps=0", "hardware.rank_timeout_s=1000"),
)


def children(ranks: TwoRanks) -> list[list[int]]:
    """Process numbers of every rank's vLLM."""
    found: dict[int, list[int]] = {process.pid or 0: [] for process in ranks.processes}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            command = (folder / "cmdline").read_bytes()
            parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
        except OSError:  # it has ended
            continue
        if b"grpo.rollout.vllm_child" in command and parent in found:
            found[parent].append(int(folder.name))
    return list(found.values())


def rows_of(folder: Path) -> Sequence[dict[str, float]]:
    file = folder / "metrics.jsonl"
    return read_jsonl(file) if file.exists() else []


@pytest.mark.vllm
@needs_ranks
def test_every_rank_has_a_vllm_with_the_weights_of_all(tmp_path: Path) -> None:
    """`hardware=multi_gpu hardware.engine=vllm`. One of the two is killed after the first weights were sent."""
    if os.environ.get("REQUIRE_VLLM") != "1":
        pytest.importorskip("vllm", reason="vLLM is not installed; make test-vllm has it")
    run, cache = tmp_path / "run", f"model.warm_start.cache_dir={tmp_path / 'models'}"
    ranks = TwoRanks([*TINY, *SHARDED, *VLLM, cache, f"output_dir={run}"], tmp_path, free_port())
    assert processes.wait_until(lambda: bool(rows_of(run)), ranks.processes[0], 1200), ranks.said(0) + ranks.said(1)
    (first,), (second,) = children(ranks)
    os.kill(second, signal.SIGKILL)
    assert processes.wait_until(lambda: "is restarted once" in ranks.said(1), ranks.processes[1], 600)
    assert ranks.join(1200) == [0, 0], ranks.said(0) + ranks.said(1)
    lost = "grpo: rank 1: vLLM's process was lost: it died, with signal 9; it is restarted once"
    assert ranks.said(1).startswith(lost), ranks.said(1)
    assert "lost" not in ranks.said(0)
    rows = rows_of(run)
    assert [row["step"] for row in rows] == [0, 1, 2, 3, 4]
    assert all("time/canary_s" in row for row in rows)  # every sync is checked, on both ranks
    assert all(0 < row["mismatch/max"] < 1e-5 for row in rows[1:])
    assert all(row["policy/grad_norm"] > 0 for row in rows[1:])
    wait_until_gone([first, second], 1)
    assert {path.name for path in run.glob("vllm_*.log")} == {"vllm_0.log", "vllm_1.log"}
