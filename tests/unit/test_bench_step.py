"""The bench of a whole step: that both sides get the same work, and what its tables say of it."""

import json
import os
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from bench import step
from bench.peers.our_step import add_phases, train
from bench.peers.step_job import StepJob, StepResult, peak_gib, read_lines, resident_gib, text_reward
from bench.step_cases import CASES, Case, build_job, forced_lengths
from bench.step_processes import Progress, TooSlow, check_lengths, environment, run_process
from bench.step_startup import marks_in_order, slowest_imports
from bench.step_tables import Compared, memory_section, overhead_section, time_section
from grpo.config import LoggingConfig
from grpo.reward.equivalence import decide
from grpo.run.metrics import read_jsonl

TINY = {case.name: case.quick() for case in CASES}


def ours(tmp_path: Path, case: Case, *, graded: bool = False) -> tuple[StepJob, StepResult]:
    job = replace(build_job(case, tmp_path, threads=1, graded=graded), folder=str(tmp_path / "run"))
    return job, train(job, Path(job.folder))


def result(
    steps: list[float], *, start: float | None = 1.0, end: float = 2.0, peak: float = 3.0, **parts: list[float]
) -> StepResult:
    return StepResult({"step": steps, **parts}, start_gib=start, end_gib=end, peak_gib=peak, num_parameters=661_888)


def test_lengths_vary_as_the_case_says() -> None:
    case = next(case for case in CASES if case.name == "varying")
    lengths = forced_lengths(case, 50)
    assert lengths == forced_lengths(case, 50)
    assert lengths is not None
    assert {len(row) for row in lengths} == {128}
    flat = [length for row in lengths for length in row]
    # Exponential of mean 64/3 cut at 64: E = m (1 - exp(-3)) = 20.3; 6,400 numbers of standard deviation 18 give +-0.7.
    assert sum(flat) / len(flat) == pytest.approx(20.3, abs=0.7)
    assert (min(flat), max(flat)) == (1, 64)
    assert forced_lengths(replace(case, varying=False), 50) is None


@pytest.mark.parametrize("name", ["varying", "bf16"])
def test_ours_does_the_work_that_is_asked_for(tmp_path: Path, name: str) -> None:
    job, measured = ours(tmp_path, TINY[name])
    check_lengths(job, measured)
    assert (job.lengths is None) == (name == "bf16")
    # TRL gets the prompts that ours drew, in that order.
    questions = [row["question"] for row in read_jsonl(Path(job.folder) / "completions.jsonl")]
    prompts = [row["prompt"] for row in read_lines(job.prompts)]
    assert len(questions) == len(prompts) == job.num_steps * job.num_problems
    assert all(question in prompt for question, prompt in zip(questions, prompts, strict=True))
    assert [len(row) for row in measured.prompt_tokens] == [job.num_problems] * job.num_steps
    # The parts add up to the step, and none is empty.
    named = ("rollout", "update", "grading", "sync", "logging", "data and advantages")
    for place, whole in enumerate(measured.parts["step"]):
        assert sum(measured.parts[part][place] for part in named) == pytest.approx(whole)
        assert all(0 < measured.parts[part][place] < whole for part in named)
    # No completion is without an advantage, so that none can be left out of the update.
    rows = read_jsonl(Path(job.folder) / "completions.jsonl")
    assert all(abs(one["advantage"]) > 1e-3 for row in rows for one in row["completions"])
    assert not (Path(job.folder) / "checkpoints").exists()


def test_overheads_are_those_of_a_run_that_grades(tmp_path: Path) -> None:
    job, measured = ours(tmp_path, TINY["large"], graded=True)
    rows = [row for row in read_jsonl(Path(job.folder) / "metrics.jsonl") if row["step"] > 0]
    # Of eight answers six are right, as roots or plainly; all have their tags.
    assert [(row["reward/mean"], row["reward/format"], row["grade/errors"]) for row in rows] == [(0.75, 1.0, 0)] * 2
    completions = read_jsonl(Path(job.folder) / "completions.jsonl")[0]["completions"]
    assert [decide(one["extracted"], "7") is None for one in completions] == [False] * 6 + [True] * 2
    assert all(seconds > 0 for name in ("draw", "submit") for seconds in measured.parts[name])
    table = overhead_section(TINY["large"], [measured])
    assert [row[0] for row in table.rows][-1] == "neither rollout nor update"


def test_a_step_is_what_its_parts_take() -> None:
    measured = StepResult({"step": [20.0], "record": [3.0], "draw": [2.0], "submit": [0.5]})
    phases = {"rollout": 4.0, "grade": 1.0, "update": 6.0, "sync": 0.25, "evaluate": 3.0, "canary": 1.0}
    add_phases(measured, [{"step": 0}, {"step": 1, **{f"time/{name}_s": value for name, value in phases.items()}}])
    # 20 - 2 drawing - 3 evaluating - 1 canary = 14, of which 4 - 0.5 + 6 + 1 + 0.5 + 0.25 + 3 - 2 = 12.25 are named.
    assert {name: seconds[0] for name, seconds in measured.parts.items()} == {
        "step": 14.0,
        "record": 3.0,
        "draw": 2.0,
        "submit": 0.5,
        "rollout": 3.5,
        "update": 6.0,
        "grading": 1.5,
        "sync": 0.25,
        "logging": 1.0,
        "data and advantages": 1.75,
    }


def test_forced_lengths_are_checked(tmp_path: Path) -> None:
    job = build_job(TINY["small"], tmp_path, threads=1)
    right = StepResult(completion_tokens=[[6] * 16, [6] * 16])
    check_lengths(job, right)
    with pytest.raises(RuntimeError, match="were forced"):
        check_lengths(job, StepResult(completion_tokens=[[6] * 16, [6] * 15 + [5]]))
    with pytest.raises(RuntimeError, match="were forced"):
        check_lengths(job, StepResult(completion_tokens=right.completion_tokens[:1]))


def test_rewards_are_told_apart() -> None:
    rewards = {text_reward(str(number)) for number in range(1000)}
    assert len(rewards) == 1000
    assert all(0 <= reward < 1 for reward in rewards)
    assert text_reward("a") == text_reward("a")


def test_times_leave_the_warm_up_out_and_pair_rounds() -> None:
    # Medians of rounds: ours 2 and 1, TRL 6 and 5; ratios 3 and 5, their median 4.
    mine = [result([9, 1, 3], rollout=[9, 1, 1], update=[9, 0.5, 0.5]), result([9, 1], rollout=[9, 1], update=[9, 0.5])]
    theirs = [result([9, 6], rollout=[9, 4], update=[9, 2]), result([9, 5], rollout=[9, 4], update=[9, 1])]
    compared = Compared(CASES[0], mine, theirs, "note")
    row = time_section([compared], "", "2 rounds.").rows[0]
    assert row[:3] == ("small", "0.66M", "16 x 8 x 64 tokens, float32")
    assert row[3:] == ("1.500", "5.500", "4.00 (3.00..5.00)", "2.5", "1.000 / 4.000", "0.500 / 1.500")
    alone = time_section([Compared(CASES[0], mine, [])], "no network", "").rows[0]
    assert alone[3:] == ("1.500", "no network", "-", "2.5", "1.000", "0.500")


def test_memory_is_compared_whole_and_by_what_steps_added() -> None:
    compared = Compared(CASES[2], [result([1, 1])], [result([1, 1], end=6, peak=6)])
    assert memory_section([compared]).rows == [("large", "3.00", "6.00", "0.50", "1.00", "5.00", "0.20")]
    unknown = Compared(CASES[2], [result([1, 1], start=None)], [])
    assert memory_section([unknown]).rows == [("large", "3.00", "-", "-", "nan", "-", "-")]
    assert peak_gib() >= (resident_gib() or 0) > 0.01


def test_curves_count_by_how_often_they_are_drawn() -> None:
    one = result([9, 9.8], rollout=[9, 6], update=[9, 3], grading=[9, 0.8], draw=[9, 2])
    one.parts |= {name: [0.0, 0.0] for name in ("sync", "data and advantages", "logging")}
    rows = {row[0]: row[1:] for row in overhead_section(CASES[2], [one]).rows}
    # 2 s every tenth step: 0.2 s more in a step of 9.8 s. (0.8 + 0.2) / 10 = 10%.
    assert LoggingConfig.plot_steps == 10
    assert rows["curves"] == ("0.2000", "2.00%")
    assert rows["update"] == ("3.0000", "30.00%")
    assert rows["neither rollout nor update"][1].startswith("10.00% (steps: 10.00%..10.00%")


def test_marks_follow_from_lines_and_phases(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    first = {"step": 0, "time/evaluate_s": 1.5}, {"step": 1, "time/step_s": 4.0, "time/rollout_s": 0.5}
    path.write_text("".join(json.dumps(row) + "\n" for row in first))
    seen = {"model and data": 3.0, "evaluation before training": 6.0, "step": 11.0}
    marks = marks_in_order(seen, path)
    assert list(marks.values()) == [3.0, 4.5, 6.0, 7.0, 7.5]
    assert marks["first rollout begins"] == 7.0


def test_imports_are_added_up_by_package() -> None:
    lines = "import time: self [us] | cumulative | imported package\nimport time:   100 |   300 |   torch.nn\n"
    lines += "noise\nimport time:  50 |  50 | json\nimport time:   200 |  200 |     torch\n"
    assert slowest_imports(lines, 1) == [("torch", 0.0003)]
    assert slowest_imports(lines) == [("torch", 0.0003), ("json", 0.00005)]


def test_each_program_waits_as_it_likes_unless_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_WAIT_POLICY", "PASSIVE")  # as importing grpo leaves it
    assert "OMP_WAIT_POLICY" not in environment(2, "default")
    assert environment(2, "active")["OMP_WAIT_POLICY"] == "ACTIVE"
    assert environment(2, "default")["OMP_NUM_THREADS"] == "2"
    assert os.environ["OMP_WAIT_POLICY"] == "PASSIVE"


def test_every_measurement_is_counted(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["step", "--quick", "--rounds", "2", "--only", "small,overhead,startup"])
    args = step.parse()
    assert len(step.guesses(args, has_peer=False)) == 2 + 2 + 3
    assert len(step.guesses(args, has_peer=True)) == 3 + 4 + 2 + 3
    progress = Progress([1.0, 2.0])
    progress.done("one")
    progress.done("two")
    assert capsys.readouterr().out.splitlines()[1] == "[2/2] two; 0.0 min left"


def test_an_unknown_section_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["step", "--only", "small,medium"])
    with pytest.raises(ValueError, match="--only medium is no section; use some of small,varying,large"):
        step.parse()


def test_no_environment_is_no_obstacle(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(name: str) -> str:
        raise RuntimeError("no network")

    monkeypatch.setattr(step, "python_of", fails)
    assert step.find_peer() == (None, "no network")


def test_a_peer_that_is_too_slow_has_a_bound(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def run(python: str, module: str, job: StepJob, folder: Path, env: object, limit_s: float = 0.0) -> StepResult:
        if python == "trl":
            raise TooSlow(f"not done in {limit_s:.0f} s")
        return result([9.0, 2.0, 2.0], rollout=[1, 1, 1], update=[1, 1, 1])

    monkeypatch.setattr(step, "run_job", run)
    monkeypatch.setattr(step, "build_job", lambda *args, **options: None)
    setting = step.Setting("trl", "", tmp_path, {}, 2, 1, Progress([1.0, 1.0]), 230.0)
    compared = step.compare(CASES[3], setting)
    # Two steps, the warm-up and one more, in 230 s less 30 s for imports.
    assert (compared.peer_least_s, compared.peer) == (100.0, [])
    assert time_section([compared], "", "").rows[0][3:7] == ("2.000", "> 100", "> 50", "2.5")
    assert compared.micro_batches == (
        "bf16: TRL, micro-batches of 64: 2 steps were not done in 230 s, imports among them."
    )


def test_a_process_is_ended_at_its_limit(tmp_path: Path) -> None:
    with pytest.raises(TooSlow, match=r"not done in 0 s"):
        run_process([sys.executable, "-c", "import time; time.sleep(60)"], tmp_path / "log", {}, 0.2)
