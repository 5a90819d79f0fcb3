"""The GPU's bench at tiny sizes on a CPU: the same code, but for the reading of memory and the waiting."""

from __future__ import annotations

import copy
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, cast

import pytest
import torch

from bench import gpu, gpu_tables
from bench.gpu_cases import CASES, FULL, QUICK, QWEN
from bench.gpu_tables import Bench, last_line, run_process
from bench.peers import gpu_device, gpu_rate, gpu_rollout, gpu_update
from bench.peers.gpu_rate import Rate, RateJob
from bench.peers.gpu_rollout import Rollout, RolloutJob
from bench.peers.gpu_update import Update, UpdateJob
from bench.peers.gpu_work import Work, model_flops, usual_flops, work_of
from bench.rollout_cases import TINY, Size
from bench.rollout_process import NotMeasured
from grpo.policy.low_memory import AdamW8bit
from grpo.policy.sharding import ShardedModel, whole_tensor
from grpo.policy.update import Policy

JOBS: dict[str, tuple[Callable[..., Any], Callable[..., Any]]] = {
    "rate": (RateJob, gpu_rate.measure),
    "update": (UpdateJob, gpu_update.measure),
    "rollout": (RolloutJob, gpu_rollout.measure),
}
SCRIPT = Path(gpu.__file__).with_name("gpu.sh")


def in_this_process(command: list[str], job: Any, limit_s: float) -> list[dict[str, Any]]:
    """What the process would say, to and from JSON as there."""
    job_type, measure = JOBS[command[-1].removeprefix("bench.peers.gpu_")]
    return json.loads(json.dumps([asdict(one) for one in measure(job_type(**json.loads(json.dumps(asdict(job)))))]))


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> None:
    monkeypatch.setattr(sys, "argv", ["bench", "--quick", "--device", "cpu", *arguments])
    gpu.main()


def update_job(*overrides: str, **options: Any) -> UpdateJob:
    batches = [[9] * 8, [3, 9, 1, 2, 5, 6, 7, 8]]
    return replace(UpdateJob(list(overrides), "cpu", asdict(TINY), 6, batches, 4), **options)


def test_work_is_counted_by_hand() -> None:
    # Two groups of two after 3 tokens: 2 · 3 of prompts and 10 of responses; every sequence with its own: 4 · 3 + 10.
    # Prompts see 1 + 2 + 3 each; responses of 1, 2, 3 and 4 see the 3 of the prompt and 1 + ... + T of their own.
    assert work_of(3, [1, 2, 3, 4], 2) == Work(22, 16, 10, 2 * 6 + 3 * 10 + 1 + 3 + 6 + 10)
    # One token a group, nothing shared.
    assert work_of(1, [1], 1) == Work(2, 2, 1, 1 + 1 + 1)


def test_flops_are_counted_by_hand() -> None:
    # H = 4, L = 2, MLP 8, 2 heads of 2, 1 key-value head, V = 10: q and o 16 each, k and v 8 each, MLP 3 · 32 a layer.
    size, work = Size("hand", 4, 2, 8, 2, 1, 10), Work(22, 16, 10, 62)
    assert size.num_matrix_parameters == 2 * (48 + 96) + 40
    assert model_flops(size, work) == 6 * 288 * 16 + 12 * 2 * 4 * 62 + 6 * 40 * 10
    assert usual_flops(size, work) == 6 * 328 * 22


def test_the_model_is_qwens_and_the_batch_the_issues() -> None:
    assert QWEN.num_matrix_parameters == pytest.approx(1.54e9, rel=0.005)
    work = work_of(FULL.prompt_tokens, [FULL.response_tokens] * FULL.num_rows, FULL.group_size)
    assert (work.sequence_tokens, work.unique_tokens) == (256 * 712, 32 * 200 + 256 * 512)
    # 1.310e9 · 6 · 137,472 + 12 · 28 · 1,536 · 60.5e6 + 6 · 1,536 · 151,936 · 131,072
    assert model_flops(QWEN, work) == pytest.approx(1.081e15 + 3.12e13 + 1.835e14, rel=0.002)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_an_update_is_the_runs_and_trains_every_sequence(case: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[Policy, dict[str, float], bool]] = []
    update = Policy.update

    def spy(policy: Policy, batch: Any, step: int) -> dict[str, float]:
        weight = cast(Any, policy.model).lm_head.weight
        before = whole_tensor(weight.detach()).clone()
        metrics = update(policy, batch, step)
        seen.append((policy, metrics, not torch.equal(whole_tensor(weight.detach()), before)))
        return metrics

    monkeypatch.setattr(Policy, "update", spy)
    updates = gpu_update.measure(update_job(*case.overrides))
    assert [one.num_micro_batches for one in updates] == [1, 1]
    assert all(0 < one.optimizer_s < one.seconds for one in updates)
    assert {(one.peak, one.reserved) for one in updates} == {(None, None)}
    assert len(seen) == 4
    assert all(metrics["policy/trained_tokens_share"] == 1 and has_moved for _, metrics, has_moved in seen)
    policy = seen[0][0]
    assert isinstance(policy._workers, ShardedModel) is ("hardware.sharded=true" in case.overrides)
    assert not torch.distributed.is_initialized()
    is_8bit = case.goal_gib is not None
    assert isinstance(policy.optimizer, AdamW8bit) is is_8bit
    assert {one.dtype for one in policy.model.parameters()} == {torch.bfloat16 if is_8bit else torch.float32}
    assert policy._forward.compute_dtype is torch.bfloat16
    assert policy._hardware.activation_checkpointing


def test_a_budget_cuts_the_batch() -> None:
    # Shared prompts: a group is 6 + 4 · 9 tokens, of which 20 hold a prompt and one response: 8 parts of 15.
    (one, _) = gpu_update.measure(update_job("hardware.micro_batch_tokens=20"))
    assert one.num_micro_batches == 8


def test_a_batch_has_groups_that_share_their_prompt() -> None:
    job = update_job()
    batch = gpu_update.make_batch(job, job.batches[1])
    prompts = [tuple(ids[:6].tolist()) for ids in batch.token_ids]
    assert [batch.response_length(row) for row in range(8)] == job.batches[1]
    assert len(set(prompts[:4])) == len(set(prompts[4:])) == 1
    assert prompts[0] != prompts[4]
    assert not any((ids == 0).any() for ids in batch.token_ids)
    assert (batch.advantages != 0).all()


def test_engine_and_generate_sample_the_same_number_of_tokens() -> None:
    job = RolloutJob("ours", "cpu", asdict(TINY), [16, 8], 4, 12, 6, 2)
    for way, has_mismatch in (("ours", True), ("generate", False)):
        rollouts = gpu_rollout.measure(replace(job, way=way))
        assert len(rollouts) == 2
        assert all(one.seconds > 0 and one.peak is None for one in rollouts)
        assert (rollouts[0].mismatch is not None) is has_mismatch
        if rollouts[0].mismatch:
            mean, most = rollouts[0].mismatch
            assert 0 <= mean <= most < 0.05  # 0 where nothing rounds otherwise


def test_the_mismatch_is_that_of_engine_and_policy(monkeypatch: pytest.MonkeyPatch) -> None:
    build_policy = gpu_rollout.build_policy

    def build_other(cfg: Any, model: Any, ends: Any) -> Any:
        other = copy.deepcopy(model)
        with torch.no_grad():
            other.lm_head.weight[::2] *= 2
        return build_policy(cfg, other, ends)

    monkeypatch.setattr(gpu_rollout, "build_policy", build_other)
    (rollout,) = gpu_rollout.measure(RolloutJob("ours", "cpu", asdict(TINY), [16], 4, 12, 6, 2))
    assert rollout.mismatch is not None
    mean, most = rollout.mismatch
    assert 0.01 < mean < most


def test_a_model_is_of_its_dtype_and_the_default_is_as_before() -> None:
    model = gpu_device.random_model(TINY, 16, torch.bfloat16, torch.device("cpu"))
    assert {one.dtype for one in model.parameters()} == {torch.bfloat16}
    assert model.model.rotary_emb.inv_freq.dtype is torch.float32
    assert torch.get_default_dtype() is torch.float32


def test_a_job_has_a_process_of_its_own_and_an_error_is_one_line() -> None:
    job = RateJob("cpu", [[4, 4, 4]], 0.001)
    command = [sys.executable, "-m", "bench.peers.gpu_rate"]
    (one,) = run_process(command, job, 60)
    assert (one["device"], one["shape"]) == ("cpu", [4, 4, 4])
    assert one["flops"] > 0
    with pytest.raises(NotMeasured, match=r"^RuntimeError: Expected one of cpu.{,140}$") as caught:
        run_process(command, replace(job, device="nowhere"), 60)
    assert "Traceback" in caught.value.details
    with pytest.raises(NotMeasured, match=r"^not done in 0 s$"):
        run_process([sys.executable, "-c", "import time; time.sleep(60)"], job, 0.05)


def test_the_last_line_is_the_errors_own() -> None:
    log = "Traceback\n  File x\ntorch.OutOfMemoryError: CUDA out of memory.\n[rank0] bye\n\n"
    assert last_line(log) == "torch.OutOfMemoryError: CUDA out of memory."
    assert last_line(f"killed in {gpu_tables.ROOT}/bench\n") == "killed in ./bench"
    assert last_line("") == ""


def test_the_bench_prints_every_table_and_writes_the_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(gpu_tables, "run_process", in_this_process)
    page = tmp_path / "new" / "gpu.md"
    run(monkeypatch, "--out", str(page))
    text = page.read_text()
    assert "`python -m bench.gpu --device cpu --quick`" in text
    assert "matrix rate: cpu" in text
    assert "torch 2." in text
    for case in CASES:
        assert text.count(f"| {case.name} |") == 1
    for row in ("| padded | equal |", "| shared_prompts | exponential |", "| 64 | yes |", "| 16 | no |"):
        assert text.count(row) == 1
    for number in QUICK.rollout_rows:
        assert text.count(f"| {number} | torch engine |") == text.count(f"| {number} | transformers generate |") == 1
    assert "not measured" not in text
    assert str(tmp_path) not in text
    assert "The torch engine against generate" in capsys.readouterr().out


def test_what_fails_leaves_the_other_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(command: list[str], job: Any, limit_s: float) -> list[dict[str, Any]]:
        is_8bit = isinstance(job, UpdateJob) and "train.optimizer=adamw_8bit" in job.overrides
        if is_8bit or isinstance(job, RateJob) or getattr(job, "way", "") == "generate":
            raise NotMeasured("torch.OutOfMemoryError: full", "log")
        return in_this_process(command, job, limit_s)

    monkeypatch.setattr(gpu_tables, "run_process", failing)
    page = tmp_path / "gpu.md"
    run(monkeypatch, "--only", "rate", "update", "rollout", "--out", str(page))
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in page.read_text().splitlines() if "|" in line]
    table = {tuple(row[:2]): row[2:] for row in rows}
    reason = "not measured: torch.OutOfMemoryError: full"
    assert ("matrix products", reason) in table
    assert (CASES[1].name, reason) in table
    names = [row[0] for row in rows]
    for case in (CASES[0], CASES[2]):
        speed, _, *shares = rows[names.index(case.name)][1:5]
        assert float(speed.replace(",", "")) > 0
        assert shares == ["", ""]  # of a rate that is not known
    assert table["4", "transformers generate"][0] == reason
    assert float(table["4", "torch engine"][0].replace(",", "")) > 0
    assert table["4", "torch engine"][1] == ""


def test_rows_say_what_was_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    """8 completions of 9 tokens after 6, two groups: 120 and 84 tokens in half a second."""
    answers: dict[type, list[dict[str, Any]]] = {
        UpdateJob: [asdict(Update(0.5, 0.125, 3, 3 * 2**29, 2**31))],
        RateJob: [asdict(Rate("big", [1, 2, 3], flops)) for flops in (1e9, 4e9)],
    }
    seconds = {"ours": (0.5, 2.0), "generate": (1.5, 2.5)}

    def answer(command: list[str], job: Any, limit_s: float) -> list[dict[str, Any]]:
        if isinstance(job, RolloutJob):
            return [asdict(Rollout(one, 2**30, [0.01, 0.02])) for one in seconds[job.way]]
        return answers[type(job)]

    monkeypatch.setattr(gpu_tables, "run_process", answer)
    rates, update, rollout = gpu.measure(Bench(QUICK, "cpu", 1.0), ["rate", "update", "rollout"])
    assert (rates.title, rates.rows[1]) == ("The bfloat16 matrix rate: big", ("1 x 2 x 3", "0.004"))
    work = work_of(6, [9] * 8, 4)
    shares = [f"{flops(TINY, work) / 0.5 / 4e9:.1%}" for flops in (model_flops, usual_flops)]
    expected = ("240", "168", *shares, "0.50", "0.12", "3")
    assert update.rows[0] == (CASES[0].name, *expected, "1.5", "2.0")
    assert update.rows[1] == (CASES[1].name, *expected, "1.5 (goal: under 16)", "2.0")
    assert [row[2:] for row in rollout.rows] == [
        ("48", "3.00", "0.50", "1.0"),  # 4 x 6 / 0.5
        ("16", "1.00", "1.50", "1.0"),
        ("24", "1.25", "2.00", "1.0"),  # 8 x 6 / 2
        ("19", "1.00", "2.50", "1.0"),
    ]
    assert "0.01 nats on average, 0.02 at most" in rollout.notes[1]


def script(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    inherited = {name: value for name, value in os.environ.items() if name != "GRPO_GPU_TESTS_ON_CPU"}
    return subprocess.run(
        ["bash", str(SCRIPT), *arguments], env={**inherited, **environment}, capture_output=True, text=True
    )


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_the_script_says_what_is_missing(tmp_path: Path) -> None:
    done = script(PYTHON=sys.executable)
    assert done.returncode == 1
    assert "bench/gpu.sh: torch sees no CUDA device" in done.stderr
    # An interpreter that finds torch and transformers, and nothing of what the project adds.
    bare = tmp_path / "python"
    bare.write_text(
        '#!/bin/sh\ncase "$3" in hydra|antlr4) exit 1;; esac\ncase "$1" in -c) exit 0;; esac\n'
        f'exec {sys.executable} "$@"\n'
    )
    bare.chmod(0o755)
    done = script(PYTHON=str(bare), WHEELS=str(tmp_path / "none"))
    assert done.returncode == 1
    assert "missing: hydra-core antlr4-python3-runtime; run bench/gpu.sh --wheels where" in done.stderr
    assert not any(tmp_path.glob("tmp*"))


@pytest.mark.skipif(shutil.which("bash") is None, reason="no bash")
def test_the_script_is_bash() -> None:
    subprocess.run(["bash", "-n", str(SCRIPT)], check=True)
