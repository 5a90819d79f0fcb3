"""The rollout bench at tiny sizes, without the environments of peers."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from bench import rollout, rollout_contest, rollout_growth
from bench.limits import Limits, measure_limits
from bench.peers import rollout_generate, rollout_job, rollout_ours
from bench.peers import rollout_growth as growth_process
from bench.peers.rollout_job import Job, Measured
from bench.rollout_cases import (
    LARGE,
    SIZES,
    SMALL,
    TINY,
    build_model,
    build_tokenizer,
    make_prompts,
    save_folder,
    varying_lengths,
    vllm_cache_bytes,
)
from bench.rollout_contest import Case, Contender, Contest, Progress, fastest_each
from bench.rollout_process import NotMeasured, Runner, Series, TimedOut, environment_of
from bench.tables import processor
from grpo.rollout.batch import Batch

LENGTHS = [3, 6, 1, 6, 2, 5]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_folder(TINY, tmp_path_factory.mktemp("rollout") / "tiny")


@pytest.fixture
def job(folder: Path) -> Job:
    prompts = make_prompts(6, 5, 9, TINY.vocabulary)
    return Job(str(folder), "float32", torch.get_num_threads(), prompts, LENGTHS, 6, 1)


def fixed(job: Job, **options: Any) -> Job:
    return replace(job, lengths=[job.cap] * len(job.prompts), options=options)


def test_lengths_vary_around_a_third_of_the_cap() -> None:
    lengths = varying_lengths(20_000, 300)
    assert lengths[:100] == varying_lengths(100, 300)
    assert min(lengths) == 1
    assert max(lengths) == 300
    # E[min(X, c)] of an exponential with mean c / 3 is c / 3 (1 - e^-3) = 95.02; the standard error is about 0.6.
    assert sum(lengths) / len(lengths) == pytest.approx(95.0, abs=2)


def test_prompts_hold_no_end_of_sequence() -> None:
    prompts = make_prompts(128, 24, 48, 10)
    assert {len(prompt) for prompt in prompts} == set(range(24, 49))
    assert {token for prompt in prompts for token in prompt} == set(range(1, 10))


def test_sizes_are_what_they_are_called() -> None:
    for size, millions in zip(SIZES, (1, 5, 20, 53, 150, 500), strict=True):
        assert size.num_matrix_parameters == pytest.approx(millions * 1e6, rel=0.2)
    model = build_model(TINY, 64)
    assert TINY.num_matrix_parameters == sum(one.numel() for one in model.parameters() if one.ndim == 2)


def test_every_token_is_text() -> None:
    tokenizer = build_tokenizer(400)
    assert len(tokenizer) == 400
    texts = tokenizer.batch_decode([[token] for token in range(1, 400)])
    assert all(text.isalnum() and text.isascii() for text in texts)


def test_vllm_gets_memory_for_all_rows() -> None:
    # 128 rows of 2 blocks of 128 tokens and 8 blocks more; keys and values, 4 layers, 64 numbers of 4 bytes each.
    assert vllm_cache_bytes(SMALL, 128, 129, 4) == (128 * 2 + 8) * 128 * 2 * 4 * 64 * 4


def test_ours_ends_every_row_at_its_own_length(job: Job) -> None:
    measured = rollout_ours.measure(replace(job, options={"mismatch_rows": 0}))
    assert measured.seconds > 0
    assert measured.peak_bytes > 2**20


def test_forced_ends_come_last_and_nowhere_else(job: Job) -> None:
    _, engine = rollout_ours.load(job)
    completions = rollout_ours.sample_groups(engine, job, is_fixed=False)
    assert [len(one.token_ids) for one in completions] == LENGTHS
    assert [0 in one.token_ids[:-1] for one in completions] == [False] * 6
    assert rollout_ours.torch_engine.Batch is Batch


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_mismatch_is_that_of_the_compute_dtype(job: Job, dtype: str) -> None:
    extra = rollout_ours.measure(replace(fixed(job, mismatch_rows=4), dtype=dtype)).extra
    (same, most), (full, _) = extra[f"mismatch_{dtype}"], extra["mismatch_float32"]
    assert 0 <= same <= most < (1e-5 if dtype == "float32" else 0.05)
    assert full < 1e-6 if dtype == "float32" else 1e-5 < full < 0.05


def test_generate_ends_every_row_at_its_own_length(job: Job) -> None:
    assert rollout_generate.measure(job).seconds > 0
    assert rollout_generate.measure(fixed(job)).seconds > 0


def test_a_wrong_length_is_an_error(job: Job) -> None:
    with pytest.raises(RuntimeError, match=r"2 of 6 .* completion 1 has 5 tokens instead of 6"):
        rollout_job.timed(lambda part: [min(length, 5) for length in part.lengths], job)


def test_the_warm_up_is_short_and_shares_no_prompt(job: Job) -> None:
    short = job.short()
    assert (short.cap, short.lengths) == (4, [3, 4, 1, 4, 2, 4])
    assert all(one != other for one, other in zip(short.prompts, job.prompts, strict=True))


def test_a_group_runs_its_prompt_once(job: Job) -> None:
    prompts = [prompt for prompt in make_prompts(2, 7, 7, TINY.vocabulary) for _ in range(8)]
    tokens = {}
    for group in (8, 1):
        part = replace(job, prompts=prompts, lengths=[2] * 16, cap=2, options={"prefill": True, "group_size": group})
        extra = rollout_ours.measure(part).extra
        assert extra["prefill_s"] > 0
        tokens[group] = extra["prefill_tokens"]
    assert tokens == {8: 2 * 7, 1: 16 * 7}


def test_peers_inherit_nothing_that_grpo_has_set() -> None:
    inherited = {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "1", "KMP_X": "1", "LD_PRELOAD": "x", "HOME": "/h"}
    own = environment_of(inherited, 3, "default")
    assert {name for name in own if name.startswith(("OMP", "GOMP", "KMP", "LD_"))} == {"OMP_NUM_THREADS"}
    assert (own["OMP_NUM_THREADS"], own["HOME"]) == ("3", "/h")
    assert environment_of(inherited, 3, "active")["OMP_WAIT_POLICY"] == "ACTIVE"


def test_a_process_that_fails_or_hangs_has_a_reason(tmp_path: Path) -> None:
    runner = Runner(tmp_path, 1, "default", 60)
    with pytest.raises(NotMeasured, match=r"^failed$") as caught:
        runner.call([sys.executable, "-c", "raise SystemExit('told why')"], {"threads": 1}, {})
    assert "told why" in caught.value.details
    with pytest.raises(NotMeasured, match="not done in 1 s"):
        replace(runner, limit_s=1).call([sys.executable, "-c", "import time; time.sleep(60)"], {"threads": 1}, {})


class Scripted(Runner):
    """Says numbers instead of measuring: ours takes 1 s in the first round and 2 s in the second."""

    def run(self, engine: str, job: Job, variant: str = "") -> Measured:
        file = self.scratch / f"{engine}{variant}"
        number = file.stat().st_size if file.exists() else 0
        file.write_bytes(b"." * (number + 1))
        seconds = {"ours": (1.0, 2.0), "generate": (4.0, 4.0), "vllmplain": (3.0,), "vllmunseeded": (2.0, 2.0)}
        return Measured(seconds[file.name][number], 2**30, engine)


CASE = Case("fixed", TINY, "float32", 4, 10, False, {"generate": 4, "vllm": 1.3})


def contest(runner: Runner, missing: dict[str, str]) -> Contest:
    return Contest(runner, 2, ("ours", "generate", "vllm"), ("plain", "unseeded"), missing, Progress(7))


def test_ratios_are_taken_within_a_round_and_the_fastest_variant_counts(tmp_path: Path) -> None:
    section = contest(Scripted(tmp_path, 1, "default", 60), {}).hold(CASE)
    # 40 tokens. ours: median of 1 and 2 s. generate: 4/1 and 4/2. vLLM without seeds: 2/1 and 2/2.
    assert section.rows == [
        ("ours", "1.50", "27", "", "", "", "1.00 GiB"),
        ("transformers generate", "4.00", "10", "3.00x", "2.00..4.00", "4x", "1.00 GiB"),
        ("vLLM-CPU (unseeded)", "2.00", "20", "1.50x", "1.00..2.00", "1.3x", "1.00 GiB"),
    ]
    assert "Not shown, first round: vLLM-CPU (plain), 3.00 s, 13 tokens/s." in section.notes


def test_a_peer_that_is_missing_says_why_and_the_rest_runs(tmp_path: Path) -> None:
    own = replace(contest(Scripted(tmp_path, 1, "default", 60), {"vllm": "not measured: x"}), variants=("plain",))
    assert own.hold(CASE).rows[1:] == [
        ("transformers generate", "4.00", "10", "3.00x", "2.00..4.00", "4x", "1.00 GiB"),
        ("vLLM-CPU (plain)", "not measured: x", "", "", "", "1.3x", ""),
    ]


def test_a_variant_without_a_number_is_never_the_fastest() -> None:
    slow, lost = Series("slow", {0: Measured(9.0, 1, "")}), Series("lost", reason="failed")
    contenders = [Contender("vllm", "a", lost), Contender("vllm", "b", slow)]
    assert fastest_each(contenders) == contenders[1:]


def test_what_takes_far_too_long_is_measured_once(tmp_path: Path) -> None:
    class Slow(Runner):
        def run(self, engine: str, job: Job, variant: str = "") -> Measured:
            if variant == "plain":
                raise TimedOut("not done in 660 s")
            assert not variant  # after a variant that ran into the limit
            return Measured(1.0 if engine == "ours" else 31.0, 2**30, engine)

    section = contest(Slow(tmp_path, 1, "default", 660), {}).hold(CASE)
    assert [(*row[:2], row[3]) for row in section.rows] == [
        ("ours", "1.00", ""),
        ("transformers generate", "31.00", "31.00x"),
        ("vLLM-CPU (plain)", "not done in 660 s", "> 600.0x"),
    ]
    again = "not tried again, too slow."
    assert section.notes[1:] == (
        f"Not shown, first round: vLLM-CPU (unseeded), {again}",
        f"transformers generate: {again}",
    )


def test_the_limit_is_the_slower_of_reading_and_computing() -> None:
    limits = Limits({100: 50.0, 1000: 10.0}, flops=4.0)
    assert limits.seconds(100, 0) == 100 / 50
    assert limits.seconds(101, 0) == pytest.approx(101 / 10)
    assert limits.seconds(5000, 0) == 5000 / 10
    assert limits.seconds(100, 40) == 40 / 4
    measured = measure_limits(0.001)
    assert min(measured.read_rates.values()) > 1e7
    assert measured.flops > 1e7


def test_the_least_time_of_a_step() -> None:
    point = growth_process.Point("batch", "tiny", 0, batch=2, tokens=8)
    # 2 rows of 32 + 8/2 positions; keys and values of 2 layers and 32 numbers each; 2 layers of 64 hidden numbers.
    num_bytes = 4 * (TINY.num_matrix_parameters + 72 * 2 * 2 * 32)
    operations = 2 * 2 * TINY.num_matrix_parameters + 4 * 72 * 2 * 64
    assert growth_process.step_seconds(TINY, point, Limits({1: 1.0}, 1e12)) == num_bytes
    assert growth_process.step_seconds(TINY, point, Limits({1: 1e12}, 1.0)) == operations


def test_growth_is_measured_listed_and_drawn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "job").write_text(
        f'{{"threads": {torch.get_num_threads()}, "options": {{"quick": true, "budget_s": 0.01}}}}'
    )
    monkeypatch.setattr(sys, "argv", ["growth", str(tmp_path / "job"), str(tmp_path / "result")])
    growth_process.main()
    assert len(capsys.readouterr().out.splitlines()) == 5
    result = json.loads((tmp_path / "result").read_text())
    section = rollout_growth.section(result)
    assert [row[0] for row in section.rows] == ["batch", "batch", "length", "length", "parameters"]
    assert [row[3] for row in section.rows if row[0] == "length"] == ["8", "16"]
    assert all(point["rate"] > 0 for point in result["points"])
    rollout_growth.draw(result, tmp_path / "growth.png")
    assert (tmp_path / "growth.png").read_bytes().startswith(b"\x89PNG")


def test_growth_covers_what_it_promises() -> None:
    points = [point for _, own in growth_process.wanted(quick=False) for point in own]
    assert [point.batch for point in points if point.panel == "batch"] == [2**power for power in range(10)]
    assert {point.size for point in points if point.panel.startswith("batch")} == {SMALL.name, LARGE.name}
    assert [point.tokens for point in points if point.panel == "length"] == [64, 128, 256, 512, 1024, 2048]
    assert [point.size for point in points if point.panel == "parameters"] == [size.name for size in SIZES]


def test_the_processor_is_named_with_what_matters(tmp_path: Path) -> None:
    path = tmp_path / "cpuinfo"
    path.write_text("processor\t: 0\nmodel name\t: Fast One\nflags\t\t: fpu avx2 avx512f ssse3\n\nprocessor\t: 1\n")
    assert processor(path).endswith(" Fast One (avx2, avx512f)")
    assert "(" not in processor(tmp_path / "none")


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> None:
    monkeypatch.setattr(sys, "argv", ["bench", "--quick", "--rounds", "1", *arguments])
    rollout.main()


def test_the_bench_prints_its_tables_and_writes_the_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "page.md"

    def missing(name: str) -> str:
        raise NotMeasured("its environment could not be made", "pip says no")

    monkeypatch.setattr(rollout, "peer_python", missing)
    run(monkeypatch, "--only", "bf16", "--engines", "vllm", "--threads", "1", "--out", str(page))
    text = page.read_text()
    assert "| vLLM-CPU (plain) | not measured: its environment could not be made |" in text
    assert "`python -m bench.rollout --quick --rounds 1 --only bf16 --engines vllm --threads 1`" in text
    assert "computing in bfloat16: mean " in text
    assert str(tmp_path) not in text
    said = capsys.readouterr()
    assert "rollout 1/2: bf16, ours, round 1: " in said.out
    assert "pip says no" in said.err


def test_arguments_that_mean_nothing_are_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for arguments, says in (
        (["--threads", "0"], "--threads=0 is below 1"),
        (["--vllm", "fast"], "--vllm has fast; use"),
    ):
        with pytest.raises(SystemExit):
            run(monkeypatch, *arguments)
        assert says in capsys.readouterr().err


def test_no_case_is_forgotten() -> None:
    assert [case.name for case in rollout_contest.cases(quick=False)] == list(rollout.SECTIONS[:4])
