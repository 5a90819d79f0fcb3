"""`python -m grpo.evaluate`: a run's model on problems, interrupted and not, alone and against others."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra.core.global_hydra import GlobalHydra

from tests.e2e import evaluations, processes

Evaluate = Callable[..., tuple[int, str, str]]
CPU = ("hardware=cpu", "hardware.num_threads=1")
SHORT = (*CPU, "max_tokens=12", "num_samples=8")
SAMPLED = (*SHORT, "temperature=1.0", "samples_per_problem=3")
FILES = {"settings.json", "provenance.json", "results.jsonl", "metrics.json", "analysis.txt"}


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: pytest.TempPathFactory, tiny: Callable[..., list[str]]) -> Path:
    """A finished run of the smallest kind; its evaluations are sampled at temperature 1."""
    folder = tmp_path_factory.mktemp("runs")
    status = processes.run(tiny(folder / "mine"), folder / "log")
    assert status == 0, (folder / "log").read_text()
    return folder / "mine"


@pytest.fixture
def evaluate(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path) -> Iterator[Evaluate]:
    """`python -m grpo.evaluate` in this process and an empty folder: exit status, standard output and error."""
    num_threads = torch.get_num_threads()
    monkeypatch.chdir(tmp_path)

    def call(*overrides: object) -> tuple[int, str, str]:
        from grpo.evaluate import main

        GlobalHydra.instance().clear()
        monkeypatch.setattr(sys, "argv", ["grpo.evaluate", *map(str, overrides)])
        capfd.readouterr()
        with pytest.raises(SystemExit) as left:
            main()
        assert isinstance(left.value.code, int)
        return left.value.code, *capfd.readouterr()

    yield call
    torch.set_num_threads(num_threads)


@pytest.fixture
def refusal(evaluate: Evaluate) -> Callable[..., str]:
    """The sentence that a start is refused with; nothing is left behind."""

    def of(*overrides: object) -> str:
        before = {path for path in Path.cwd().rglob("*") if path.is_file()}
        status, out, err = evaluate(*overrides)
        assert status == 1, out
        assert err.startswith("grpo: ")
        assert err.count("\n") == 1, err
        assert "Traceback" not in out + err
        assert {path for path in Path.cwd().rglob("*") if path.is_file()} == before
        return err.removeprefix("grpo: ").rstrip("\n")

    return of


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_run_evaluates_as_it_did_itself(evaluate: Evaluate, run_folder: Path) -> None:
    """Prompt, problems and random numbers are the run's: completions are those of its own last evaluation."""
    status, out, _ = evaluate(*SHORT, f"model.path={run_folder}", "temperature=1.0", "output_dir=here")
    assert status == 0
    assert f"{run_folder}: its last checkpoint, step_000006" in out
    rows, theirs = read(Path("here/results.jsonl")), read(run_folder / "evaluations" / "step_000006.jsonl")
    assert len(rows) == len(theirs) == 8
    for row, other in zip(rows, theirs, strict=True):
        (one,) = row["completions"]
        assert (row["problem"], row["question"], row["gold"]) == (other["problem"], other["question"], other["gold"])
        assert (one["text"], one["num_tokens"]) == (other["completion"], other["num_tokens"])
        assert (one["finish_reason"], one["rule"]) == (other["finish_reason"], other["reason"])
        assert row["question"] in row["prompt"]
    assert {path.name for path in Path("here").iterdir()} == FILES


def test_the_same_command_again_repeats_nothing(evaluate: Evaluate, run_folder: Path) -> None:
    command = (*SHORT, f"model.path={run_folder}")
    _, first, _ = evaluate(*command)
    (folder,) = Path("outputs/evaluations").iterdir()
    assert folder.name.startswith("mine_step_000006-") or "_mine_step_000006-" in folder.name
    before = (folder / "results.jsonl").stat().st_mtime_ns
    status, again, _ = evaluate(*command)
    assert status == 0
    assert "all results are there" in again
    assert "tokens/s" in first
    assert "tokens/s" not in again
    assert (folder / "results.jsonl").stat().st_mtime_ns == before
    assert first.splitlines()[-10:] == again.splitlines()[-10:]
    evaluate(*command, "max_tokens=13")
    assert len(list(Path("outputs/evaluations").iterdir())) == 2


def test_an_evaluation_that_goes_on_equals_one_that_was_never_interrupted(evaluate: Evaluate, run_folder: Path) -> None:
    command = (*SAMPLED, f"model.path={run_folder}", "problems=[arithmetic,math.jsonl]")
    lines = [{"problem": f"What is {n} + {n}?", "answer": 2 * n, "level": n % 2, "subject": "sums"} for n in range(5)]
    Path("math.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert evaluate(*command, "output_dir=whole")[0] == 0
    rows = read(Path("whole/results.jsonl"))
    assert [row["dataset"] for row in rows] == ["arithmetic"] * 8 + ["math"] * 5
    assert {len(row["completions"]) for row in rows} == {3}
    assert len({one["text"] for row in rows for one in row["completions"]}) > 13  # samples of a problem differ

    folder = Path(shutil.copytree("whole", "part"))
    for name in FILES - {"settings.json", "provenance.json"}:
        (folder / name).unlink()
    parts = [
        {"dataset": row["dataset"], "place": place, **one}
        for dataset in ("math", "arithmetic")
        for place, row in enumerate(row for row in rows if row["dataset"] == dataset)
        for one in row["completions"]
    ]
    kept = "".join(json.dumps(part) + "\n" for part in parts[1::3] + parts[::7])
    (folder / "partial.jsonl").write_text(kept + '{"dataset": "ma')
    status, out, _ = evaluate(*command, "output_dir=part")
    assert status == 0
    num_kept = len(set(kept.splitlines()))
    assert f"{num_kept} of 39 completions are there from before" in out
    assert f"{39 - num_kept} completions with" in out
    assert (folder / "results.jsonl").read_bytes() == Path("whole/results.jsonl").read_bytes()
    assert {path.name for path in folder.iterdir()} == FILES


def wait_for_lines(path: Path, count: int, process: Any) -> None:
    def found() -> bool:
        return path.exists() and path.read_bytes().count(b"\n") >= count

    assert processes.wait_until(found, process), "ended too soon"


def test_signals_and_kills_lose_nothing(
    tmp_path: Path, run_folder: Path, evaluate: Evaluate, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C, SIGTERM, kill -9: each time the same command goes on, and ends with what it would have had at once."""
    base = [
        *CPU,
        f"model.path={run_folder}",
        "max_tokens=400",
        "num_samples=40",
        "temperature=1.0",
        "samples_per_problem=4",
    ]
    base += ["hardware.engine_cache_tokens=8192"]  # few at a time, so that they end one after another
    command = [*base, f"output_dir={tmp_path / 'here'}"]
    partial, log = tmp_path / "here" / "partial.jsonl", tmp_path / "log"
    lines = 0
    for sent, status in ((signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGKILL, -9)):
        process = evaluations.start(command, log)
        wait_for_lines(partial, lines + 1, process)
        os.kill(process.pid or 0, sent)
        process.join(60)
        assert process.exitcode == status, log.read_text()
        lines = partial.read_bytes().count(b"\n")
        assert lines < 160
        if sent is not signal.SIGKILL:
            assert f"interrupted: {lines} of 160 completions are kept in" in log.read_text()
            assert "to go on: python -m grpo.evaluate hardware=cpu" in log.read_text()
    assert "Traceback" not in log.read_text()
    status, out, _ = evaluate(*command)
    assert status == 0
    assert " of 160 completions are there from before" in out
    assert evaluate(*base, f"output_dir={tmp_path / 'whole'}")[0] == 0
    assert (tmp_path / "here" / "results.jsonl").read_bytes() == (tmp_path / "whole" / "results.jsonl").read_bytes()


def test_models_are_compared_on_the_same_problems(evaluate: Evaluate, run_folder: Path) -> None:
    earlier = shutil.copytree(
        run_folder / "checkpoints" / "step_000004", "copied"
    )  # of no run: asked as the others are
    command = (*SHORT, f"compare=[base,{earlier},{run_folder}]")
    status, out, err = evaluate(*command)
    assert (status, err) == (0, "")
    folders = sorted(path.name for path in Path("outputs/evaluations").iterdir())
    assert len(folders) == 4
    (text,) = Path("outputs/evaluations").glob("comparison-*/comparison.txt")
    assert "differ in more than their weights" not in out
    assert "arithmetic: against base" in text.read_text()
    for words in ("gain in points", "of it answers", "of it form", "only this one right", "copied", "step_000006"):
        assert words in text.read_text()
        assert words in out
    status, again, _ = evaluate(*command)
    assert status == 0
    assert again.count("all results are there") == 3
    # One of them alone is already there.
    assert "all results are there" in evaluate(*SHORT, f"model.path={run_folder}")[1]


def test_the_base_is_what_the_run_evaluated_before_its_first_step(evaluate: Evaluate, run_folder: Path) -> None:
    status, _, _ = evaluate(*SHORT, "temperature=1.0", f"compare=[base,{run_folder}]", "output_dir=both")
    assert status == 0
    (folder,) = Path("both").glob("base-*")
    theirs = read(run_folder / "evaluations" / "step_000000.jsonl")
    assert [row["completions"][0]["text"] for row in read(folder / "results.jsonl")] == [
        row["completion"] for row in theirs
    ]
    assert Path("both/comparison.txt").exists()


def test_a_built_model_is_built_and_pass_at_k_is_there(evaluate: Evaluate, tiny: Callable[..., list[str]]) -> None:
    model = [item for item in tiny(None) if item.startswith("model.")]
    status, out, _ = evaluate("experiment=quickstart", *model, *SAMPLED, "output_dir=here", "pass_at=[1,3]")
    assert status == 0
    assert "accuracy (avg@3)" in out
    assert "pass@3" in out
    found = json.loads(Path("here/metrics.json").read_text())["datasets"]["arithmetic"]
    assert set(found["pass_at"]) == {"1", "3"}


def test_more_than_there_is_is_a_warning(evaluate: Evaluate, run_folder: Path) -> None:
    Path("few.jsonl").write_text('{"problem": "1 + 1", "answer": 2}\n')
    status, out, _ = evaluate(*SHORT, f"model.path={run_folder}", "problems=few.jsonl")
    assert status == 0
    assert "warning: num_samples=8, but few has 1 problems; all are used" in out


def test_settings_in_one_folder_are_never_mixed(
    evaluate: Evaluate, refusal: Callable[..., str], run_folder: Path
) -> None:
    assert evaluate(*SHORT, f"model.path={run_folder}", "output_dir=here")[0] == 0
    for override, said in (
        ("max_tokens=13", "max_tokens=12 there, 13 here"),
        (f"model.path={run_folder}/checkpoints/step_000004", "weights="),
        ("num_samples=7", 'problems.arithmetic="8 problems, '),
    ):
        sentence = refusal(*SHORT, f"model.path={run_folder}", "output_dir=here", override)
        assert "here holds another evaluation (" in sentence
        assert said in sentence
        assert sentence.endswith("use its settings to go on, or another output_dir")


GOOD = '{"problem": "1 + 1", "answer": "2"}\n'
REFUSED = {
    ("model.path=no/such/folder",): "model.path=no/such/folder does not exist under",
    ("model.path=RUN", "problems=no.jsonl"): "problems=no.jsonl is no file under",
    (
        "model.path=RUN",
        "problems=mth",
    ): "(did you mean math?); name a JSON Lines file, or one of arithmetic, gsm8k, math",
    ("model.path=RUN", "problems=jsonl"): "problems=jsonl is no file under",
    ("model.path=RUN", "problems=[good.jsonl,good.jsonl]"): "names some problems twice; name each once",
    ("model.path=RUN", "problems=wrong.jsonl"): (
        "wrong.jsonl, line 1, lacks the field 'problem' (its fields: 'question', 'answer'); name the field to read "
        "with data.problem_field=question"
    ),
    ("model.path=RUN", "problems=broken.jsonl"): "broken.jsonl, line 2, is not JSON",
    ("model.path=RUN", "data=math"): "data.test_path=data/math/test.jsonl does not exist under",
    ("model.path=RUN", "max_tokens=9000"): "are more than the 8192 of the model's context; use max_tokens=81",
    ("model.path=RUN", "hardware=two_gpu"): "hardware=two_gpu: needs cuda:0 and cuda:1",
    ("model.path=RUN", "backend=vllm"): "hardware=cpu: hardware.engine=vllm needs",
    ("model.path=RUN", "data.prompt=nothing"): "data.prompt=nothing is neither a template nor a file",
    (
        "model.path=RUN",
        "sampling.temperature=1",
    ): "sampling.temperature has no effect on an evaluation; use temperature=",
    ("compare=[RUN,base/other]", "model.path=RUN"): "compare and model.path both name models",
    ("compare=[]",): "compare=[] does not name two models or more, each once; use compare=[A,B]",
    ("compare=[RUN,RUN]",): "does not name two models or more, each once",
    ("model.path=RUN", "problems=good.jsonl", "data.test_path=good.jsonl"): "put them all into problems=[A,B]",
    ("compare=[base,a/b]",): "base is the model that a run started from, but none of the others is of a run",
    ("num_sample=1",): "num_sample is no setting (did you mean num_samples",
    (
        "--multirun",
        "model.path=RUN",
        "seed=1,2",
    ): "--multirun is for training; evaluate several models with compare=[A,B]",
}


@pytest.mark.parametrize("overrides", REFUSED, ids=" ".join)
def test_bad_input_costs_a_sentence(overrides: tuple[str, ...], run_folder: Path, refusal: Callable[..., str]) -> None:
    if "hardware=two_gpu" in overrides and torch.cuda.device_count() > 1:
        pytest.skip("this machine has the hardware")
    Path("good.jsonl").write_text(GOOD)
    Path("wrong.jsonl").write_text('{"question": "1 + 1", "answer": "2"}\n')
    Path("broken.jsonl").write_text(GOOD + "{oops\n")
    sentence = refusal(*CPU, *(item.replace("RUN", str(run_folder)) for item in overrides))
    assert REFUSED[overrides] in sentence


def test_runs_of_other_problems_are_not_compared_unasked(
    run_folder: Path, tmp_path: Path, refusal: Callable[..., str], evaluate: Evaluate
) -> None:
    other = Path(shutil.copytree(run_folder, tmp_path / "other"))
    config = (other / "config.yaml").read_text()
    config = config.replace("level: 1\n", "level: 2\n").replace("name: random\n", "name: format_only\n")
    (other / "config.yaml").write_text(config)
    assert "level: 2\n" in (other / "config.yaml").read_text()
    sentence = refusal(*SHORT, f"compare=[{run_folder},{other}]")
    assert sentence == (
        f"{run_folder} and {other} have different held-out problems; say which to compare them on: data=..., or "
        "problems=..."
    )
    status, out, _ = evaluate(*SHORT, f"compare=[{run_folder},{other}]", "problems=arithmetic")
    assert status == 0
    assert "The models differ in more than their weights: reward, as their runs have it." in out


def test_it_is_one_process(run_folder: Path, refusal: Callable[..., str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    sentence = "WORLD_SIZE=2, but an evaluation is one process; start it without torchrun"
    assert refusal(*SHORT, f"model.path={run_folder}") == sentence


def test_another_process_in_the_folder_is_waited_for_by_nobody(run_folder: Path, refusal: Callable[..., str]) -> None:
    from grpo.run.files import hold_folder

    with hold_folder(Path("here")):
        assert "here is in use by another run" in refusal(*SHORT, f"model.path={run_folder}", "output_dir=here")
