"""The update's bench: it runs, compares the same gradients, and writes nothing unasked."""

import json
import mmap
import sys
from dataclasses import asdict
from pathlib import Path

import pytest
import torch

from bench import update
from bench.peers import update_step
from bench.peers.update_step import Job, Measured
from bench.rollout_cases import TINY
from grpo.config import Packing

MEASURED = Measured(2.0, 100, 50, 7, 400, 400, 800)


def test_both_ways_have_the_same_gradients_and_leave_the_weights(tmp_path: Path) -> None:
    files = [str(tmp_path / "a.pt"), str(tmp_path / "b.pt")]
    for way, file in zip(update_step.WAYS, files, strict=True):
        job = Job(way, asdict(TINY), 1, 3, [6, 3, 1, 5], group_size=2, gradients=file)
        model, step, _ = update_step.prepare(job)
        weights = [one.detach().clone() for one in model.parameters()]
        step(update_step.make_batch(job, job.response_tokens))
        for weight, now in zip(weights, model.parameters(), strict=True):
            torch.testing.assert_close(now, weight, rtol=0, atol=1e-25)
        measured = update_step.measure(job)
        assert measured.seconds > 0
        # float32: 4 bytes a parameter each, states twice that and a step count per tensor.
        assert measured.weights == measured.gradients == 4 * measured.num_parameters
        assert 8 * measured.num_parameters < measured.states < 8.1 * measured.num_parameters
    assert update.gradient_difference(*files) < 1e-5


def test_gradients_that_differ_are_seen(tmp_path: Path) -> None:
    files = [str(tmp_path / "a.pt"), str(tmp_path / "b.pt")]
    torch.save({"w": torch.tensor([1.0, -4.0]), "v": torch.tensor([1.0])}, files[0])
    torch.save({"w": torch.tensor([1.5, -4.0]), "v": torch.tensor([0.9])}, files[1])
    # w: 0.5 / 4; v: 0.1 / 1
    assert update.gradient_difference(*files) == pytest.approx(0.125)


def use(num_bytes: int) -> None:
    """Writes as much memory, which is the system's own: malloc may have some that another test has freed."""
    torch.frombuffer(mmap.mmap(-1, num_bytes), dtype=torch.float32).fill_(1.0)


def test_peak_memory_sees_what_is_gone_again() -> None:
    before = update_step.resident()
    with update_step.PeakMemory() as memory:
        use(2**26)
    assert memory.peak - before > 0.9 * 2**26
    with update_step.PeakMemory() as memory:
        use(2**12)
    assert memory.peak - before < 0.5 * 2**26


def test_peak_memory_is_sampled_where_the_mark_may_not_be_reset(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(update_step, "_CLEAR_REFS", tmp_path / "nowhere" / "clear_refs")
    before = update_step.resident()
    with update_step.PeakMemory() as memory:
        for _ in range(20):
            use(2**26)
    assert memory.peak - before > 0.5 * 2**26


def test_the_median_of_the_rounds_counts() -> None:
    rounds = [Measured(seconds, 100, peak, 7, 4, 4, 8) for seconds, peak in ((3.0, 10), (1.0, 30), (2.0, 20))]
    assert update.middle(rounds) == Measured(2.0, 100, 20, 7, 4, 4, 8)


def test_a_job_has_a_process_of_its_own(tmp_path: Path) -> None:
    job = Job("ours", asdict(TINY), 1, 2, [3, 4], gradients=str(tmp_path / "g.pt"), dtype="bfloat16")
    measured = update.run_job(job)
    assert measured.weights == 2 * measured.num_parameters
    assert all(one.dtype == torch.bfloat16 for one in torch.load(tmp_path / "g.pt").values())
    with pytest.raises(RuntimeError, match="no such way ended with status 1"):
        update.run_job(Job("no such way", asdict(TINY), 1, 2, [3, 4]))


def test_the_bench_prints_every_table_and_writes_nothing_unasked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    jobs: list[Job] = []

    def measured(job: Job) -> Measured:
        jobs.append(Job(**json.loads(json.dumps(asdict(job)))))
        if job.gradients:
            torch.save({"w": torch.ones(1)}, job.gradients)
        return MEASURED

    monkeypatch.setattr(update, "run_job", measured)
    monkeypatch.setattr(sys, "argv", ["bench", "--quick", "--threads", "3", "--rounds", "2"])
    before = sorted(tmp_path.rglob("*"))
    update.main()
    said = capsys.readouterr().out
    for title in ("The head", "Packing", "Bytes per parameter", "35%", *(packing.value for packing in Packing)):
        assert title in said
    assert sorted(tmp_path.rglob("*")) == before
    # Two ways and every packing with two kinds of lengths, both masters; twice each.
    assert len(jobs) == 2 * (2 + 2 * len(update.PACKINGS) + len(update.MASTERS))
    assert {job.threads for job in jobs} == {3}

    page = tmp_path / "page.md"
    monkeypatch.setattr(sys, "argv", ["bench", "--quick", "--only", "bytes", "--out", str(page)])
    update.main()
    # 400 / 100, 400 / 100, 800 / 100 and their sum
    assert "| 4.00 | 4.00 | 8.00 | 16.00 |" in page.read_text()
    assert "`python -m bench.update --quick --only bytes`" in page.read_text()


def test_numbers_below_one_are_refused(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["bench", "--chunk-tokens", "0"])
    with pytest.raises(SystemExit):
        update.parse()
    assert "--chunk-tokens=0 is below 1; use 1 or more" in capsys.readouterr().err
