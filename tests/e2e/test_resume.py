"""Contracts 3 and 8: killed at any instant and resumed = never killed, and every file is whole or absent."""

from __future__ import annotations

import json
import mmap
import os
import random
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from grpo.config import compose_run_config
from grpo.run.checkpoints import checkpoints_in, step_of
from grpo.run.folder import open_run_folder
from grpo.run.metrics import read_jsonl
from tests.e2e import processes

ROOT = Path(__file__).resolve().parents[2]
SEVERAL_UPDATES = ("train.epochs_per_rollout_batch=2", "train.train_batch_size=8")
# What a step may carry over to the next besides weights: each must survive a resume.
VARIANTS = {
    "one_update": (),
    "several_updates": SEVERAL_UPDATES,
    "dynamic_sampling": ("loss=dapo", *SEVERAL_UPDATES),
    "kl": ("loss.kl_estimator=k3", "loss.kl_coef=0.01", "train.weight_decay=0.1"),
    "schedule": ("train.lr_schedule=cosine", "train.warmup_steps=2", "loss.importance_cap=2.0"),
    "untied": ("model.build.tie_word_embeddings=false", "sampling.top_p=0.9", "sampling.temperature=0.8"),
    "overlap": ("hardware.overlap=true", "loss=grpo_clip"),
    "overlap_without_ratio": ("hardware.overlap=true", "loss.importance_cap=2.0", *SEVERAL_UPDATES),
    "bfloat16": ("model.master_dtype=bfloat16", "train.canary_steps=0"),
}
LONGER = ("train.n_grpo_steps=12",)
CHECKPOINT = (
    *("config.json", "generation_config.json", "model.safetensors", "optimizer.safetensors", "state.json"),
    *("tokenizer.json", "tokenizer_config.json"),
)

Overrides = Callable[..., list[str]]
Train = Callable[[list[str]], tuple[int, str, str]]
Record = Callable[[Path], dict[str, Any]]
AssertSame = Callable[[dict[str, Any], dict[str, Any]], None]
Leftovers = Callable[[Path], list[Path]]


def whole_files(folder: Path) -> set[str]:
    """Reads every file that has its final name; a half-written one raises."""
    names = set()
    for path in folder.rglob("*"):
        name = path.relative_to(folder).as_posix()
        if path.is_dir() or name.startswith((".tmp-", ".old-")) or "/.tmp-" in name or "/.old-" in name:
            continue
        names.add(name)
        match path.suffix:
            case ".json":
                json.loads(path.read_text())
            case ".jsonl":
                data = path.read_bytes()
                *lines, rest = data.split(b"\n")
                # A kill may end an append early, where a page of memory ends; who reads the file leaves that line out.
                assert rest == b"" or (path.parent == folder and len(data) % mmap.PAGESIZE == 0), name
                assert all(isinstance(json.loads(line), dict) for line in lines), name
            case ".safetensors":
                assert load_file(path), name
            case ".png":
                Image.open(path).load()
            case ".yaml":
                assert path.read_text().endswith("\n"), name
            case _:
                raise AssertionError(f"{name} has no reader here")
    for checkpoint in (folder / "checkpoints").glob("step_*"):
        assert {path.name for path in checkpoint.iterdir()} - {"ahead.jsonl"} == set(CHECKPOINT), checkpoint.name
    return names


@pytest.fixture(scope="module")
def undisturbed_folder(tmp_path_factory: pytest.TempPathFactory, tiny: Overrides) -> Callable[..., Path]:
    """The folder of a run that nobody disturbs, in a process of its own; made once for each set of overrides."""
    folders: dict[tuple[str, ...], Path] = {}

    def of(*more: str) -> Path:
        if more not in folders:
            folder = tmp_path_factory.mktemp("undisturbed")
            status = processes.run(tiny(folder / "run", *more), folder / "log")
            assert status == 0, (folder / "log").read_text()
            folders[more] = folder / "run"
        return folders[more]

    return of


@pytest.fixture(scope="module")
def undisturbed(undisturbed_folder: Callable[..., Path], record: Record) -> Callable[..., dict[str, Any]]:
    """What such a run leaves."""
    return lambda *more: record(undisturbed_folder(*more))


@pytest.mark.parametrize("variant", VARIANTS)
def test_steps_equal_some_steps_and_a_resume_and_the_rest(
    variant: str,
    tmp_path: Path,
    tiny: Overrides,
    grpo_train: Train,
    record: Record,
    undisturbed_folder: Callable[..., Path],
    assert_same: AssertSame,
) -> None:
    """In this process, which has done much else: nothing may hang on that either."""
    whole = undisturbed_folder(*VARIANTS[variant])
    folder = Path(shutil.copytree(whole, tmp_path / "run"))
    checkpoint = folder / "checkpoints" / "step_000004"
    status, out, _ = grpo_train(tiny(None, *VARIANTS[variant], f"resume={checkpoint}"))
    assert status == 0
    assert f"resumed from {checkpoint}: step 4 of 6" in out
    assert "step_000006 comes after the checkpoint that is resumed; it is dropped and made again" in out
    assert_same(record(folder), record(whole))


def test_the_run_that_is_resumed_does_learn(undisturbed: Callable[..., dict[str, Any]]) -> None:
    """Equality of two runs says nothing where the weights stand still."""
    run = undisturbed()
    assert [row["step"] for row in run["metrics"]] == [0, 1, 2, 3, 4, 5, 6]
    assert all(row["policy/grad_norm"] > 1e-3 for row in run["metrics"][1:])
    assert all(moment.abs().max() > 0 for moment in run["optimizer"].values())
    assert len(set(run["completions"].splitlines())) == 6 * 4


@pytest.mark.parametrize(
    ("seed", "num_kills"), [(0, 12), *(pytest.param(seed, 60, marks=pytest.mark.slow) for seed in range(1, 6))]
)
def test_killed_at_random_instants_equals_never_killed(
    seed: int,
    num_kills: int,
    tmp_path: Path,
    tiny: Overrides,
    record: Record,
    undisturbed: Callable[..., dict[str, Any]],
    assert_same: AssertSame,
    leftovers: Leftovers,
) -> None:
    run_of_kills(tmp_path, tiny, leftovers, num_kills=num_kills, seed=seed)
    assert_same(record(tmp_path / "run"), undisturbed(*LONGER))


def run_of_kills(tmp_path: Path, tiny: Overrides, leftovers: Leftovers, *, num_kills: int, seed: int) -> None:
    """Starts a run again and again and kills it, every third time while it starts; then lets it end."""
    rng = random.Random(seed)
    folder, log = tmp_path / "run", tmp_path / "log"
    overrides = tiny(folder, *LONGER)
    for kill in range(num_kills):
        started = log.stat().st_size if log.exists() else 0
        process = processes.start(overrides, log)
        if kill % 3 == 0:
            assert processes.wait_until((folder / "config.yaml").exists, process)
            time.sleep(rng.uniform(0, 1))
        else:
            processes.wait_until(lambda: b"\nstep" in log.read_bytes()[started:], process)  # noqa: B023
            time.sleep(rng.uniform(0, 0.25))
        process.kill()
        process.join()
        whole_files(folder)
    assert processes.run(overrides, log) == 0, log.read_text()
    assert leftovers(folder) == []
    assert "Traceback" not in log.read_text()
    assert whole_files(folder) == {
        *("config.yaml", "provenance.json", "metrics.jsonl", "completions.jsonl", "curves.png"),
        *(f"evaluations/step_{step:06d}.jsonl" for step in range(0, 13, 3)),
        *(f"checkpoints/step_{step:06d}/{name}" for step in (10, 12) for name in CHECKPOINT),
    }


def test_killed_during_saves_equals_never_killed(
    tmp_path: Path,
    tiny: Overrides,
    record: Record,
    undisturbed: Callable[..., dict[str, Any]],
    assert_same: AssertSame,
    leftovers: Leftovers,
) -> None:
    folder, log = tmp_path / "run", tmp_path / "log"
    checkpoints = folder / "checkpoints"
    overrides = tiny(folder, "checkpoint.save_steps=1", "checkpoint.keep_last=1")

    def is_writing(num_files: int) -> bool:
        newest = max((step_of(path) for path in checkpoints_in(folder)), default=0)
        return any(
            int(path.name.split("-")[1].removeprefix("step_")) > newest and len(list(path.iterdir())) >= num_files
            for path in checkpoints.glob(".tmp-step_*")
        )

    def is_dropping() -> bool:
        oldest = min((step_of(path) for path in checkpoints_in(folder)), default=0)
        return any(
            int(path.name.split("-")[1].removeprefix("step_")) < oldest for path in checkpoints.glob(".tmp-step_*")
        )

    def assert_finished() -> None:
        assert process.exitcode == 0, log.read_text()
        assert leftovers(folder) == []
        assert_same(record(folder), undisturbed("checkpoint.save_steps=1", "checkpoint.keep_last=1"))

    instants = [*(partial(is_writing, num_files) for num_files in (0, 1, 3, 6)), is_dropping]
    for instant in instants:
        for _ in range(10):
            process = processes.start(overrides, log)
            if kill_at(instant, process):
                break
            assert_finished()  # too short an instant to be seen this time
            shutil.rmtree(folder)
        else:
            pytest.fail("never caught in the act")
        assert any(path.name.startswith(".tmp-step_") for path in leftovers(folder))
        whole_files(folder)
    process = processes.start(overrides, log)
    process.join(120)
    assert_finished()


def kill_at(instant: Callable[[], bool], process: Any) -> bool:
    """Whether it was caught in the act: stopped, seen still to be in it, and then killed."""

    def is_caught() -> bool:
        with suppress(FileNotFoundError):  # a folder got its final name just now, or went
            if not instant():
                return False
            os.kill(process.pid, signal.SIGSTOP)
            time.sleep(0.01)  # until the stop has come into effect
            if instant():
                return True
        os.kill(process.pid, signal.SIGCONT)
        return False

    caught = processes.wait_until(is_caught, process)
    process.kill()
    process.join()
    return caught


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_run_after_its_step_and_the_command_it_prints_goes_on(
    number: signal.Signals,
    tmp_path: Path,
    tiny: Overrides,
    record: Record,
    undisturbed: Callable[..., dict[str, Any]],
    assert_same: AssertSame,
) -> None:
    folder, log = tmp_path / "a run, of mine", tmp_path / "log"  # a name that shell and Hydra must not take apart
    overrides = [*tiny(None, *LONGER), f"output_dir='{folder}'"]
    process = processes.start(overrides, log)
    assert processes.wait_until(lambda: has_lines(folder / "metrics.jsonl", 2), process), log.read_text()
    os.kill(process.pid or 0, number)
    process.join(60)
    text = log.read_text()
    assert process.exitcode == 128 + number, text
    assert "Traceback" not in text
    done = json.loads((folder / "metrics.jsonl").read_text().splitlines()[-1])["step"]
    assert f"{number.name}: this step is finished and saved, then the run ends; again to end it at once" in text
    assert f"stopped by {number.name} after step {done}; to go on: python -m grpo.train experiment=" in text
    assert json.loads((folder / "checkpoints" / f"step_{done:06d}" / "state.json").read_text())["step"] == done < 12
    command = shlex.split(text.partition("to go on: ")[2].splitlines()[0])
    assert command[:3] == ["python", "-m", "grpo.train"]
    assert processes.run(command[3:], log) == 0, log.read_text()
    assert f"step {done} of 12" in log.read_text()
    assert_same(record(folder), undisturbed(*LONGER))


def has_lines(path: Path, number: int) -> bool:
    return path.exists() and len(path.read_text().splitlines()) >= number


def test_a_signal_before_the_first_step_leaves_a_run_that_its_command_starts(
    tmp_path: Path,
    tiny: Overrides,
    record: Record,
    undisturbed: Callable[..., dict[str, Any]],
    assert_same: AssertSame,
) -> None:
    folder = tmp_path / "run"
    open_run_folder(compose_run_config(tiny(folder)), folder, print)
    assert processes.run([*tiny(None), f"resume={folder}"], tmp_path / "log") == 0, (tmp_path / "log").read_text()
    assert_same(record(folder), undisturbed())


@pytest.mark.parametrize("delay_s", [0.3, 1.0, 2.0])
def test_ctrl_c_before_the_run_has_anything_to_save_ends_it_at_once(
    delay_s: float, tmp_path: Path, tiny: Overrides
) -> None:
    """In the imports, or in a warm start that would take minutes."""
    warm_start = ("model.warm_start.steps=100000", f"model.warm_start.cache_dir={tmp_path / 'cache'}")
    process = subprocess.Popen(
        [sys.executable, "-m", "grpo.train", *tiny(tmp_path / "run", *warm_start)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        time.sleep(delay_s)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
        if process.returncode == -signal.SIGINT and "grpo/train.py" not in err:
            pytest.skip("slow machine: Python itself was not up yet")
        assert (process.returncode, err) == (130, "grpo: interrupted\n")
    finally:
        process.kill()


def test_a_finished_run_started_again_prints_its_summary_and_changes_nothing(
    tmp_path: Path, tiny: Overrides, grpo_train: Train
) -> None:
    folder = tmp_path / "run"
    assert grpo_train(tiny(folder))[0] == 0
    before = contents(folder)
    for overrides in (tiny(folder), tiny(None, f"resume={folder}")):
        status, out, err = grpo_train(overrides)
        assert (status, err) == (0, "")
        assert "step 6 of 6" in out
        assert "accuracy, 95% interval" in out
        after = contents(folder)
        assert after.keys() == before.keys()
        redrawn = {"curves.png", "provenance.json", "config.yaml"}
        assert {name for name in before if before[name] != after[name]} <= redrawn


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_more_steps_go_on_where_a_finished_run_ended(
    tmp_path: Path,
    tiny: Overrides,
    grpo_train: Train,
    record: Record,
    undisturbed: Callable[..., dict[str, Any]],
    assert_same: AssertSame,
) -> None:
    constant = "train.lr_schedule=constant"
    for steps in (3, 6):
        status, out, _ = grpo_train(tiny(tmp_path / "run", constant, f"train.n_grpo_steps={steps}"))
        assert status == 0
    assert "step 3 of 6" in out
    assert_same(record(tmp_path / "run"), undisturbed(constant))


def test_resume_refuses_what_it_cannot_go_on_with(tmp_path: Path, tiny: Overrides, grpo_train: Train) -> None:
    folder = tmp_path / "run"
    assert grpo_train(tiny(folder))[0] == 0
    before = contents(folder)
    elsewhere = tmp_path / "elsewhere"
    refused = {
        (str(folder), "resume=never"): f"resume=never but {folder} holds a run; use another output_dir, or resume=auto",
        (str(folder), "seed=7", "loss=rloo"): (
            f"{folder} holds another run (loss.advantage=group_mean_std there, leave_one_out here; loss.cliprange=0.2 "
            "there, None here; loss.name=grpo_clip there, rloo here; loss.objective=clipped_token there, reinforce "
            "here; seed=42 there, 7 here); use its settings to go on, or another output_dir"
        ),
        # The schedule's end is in every step's learning rate.
        (str(folder), "train.n_grpo_steps=9"): "train.n_grpo_steps=6 there, 9 here",
        ("", f"resume={elsewhere}"): f"resume={elsewhere} holds no run; name a run's folder or a checkpoint in it",
        ("", f"resume={folder}/checkpoints/step_000005"): f"use one of those in {folder}/checkpoints: step_000004",
        (str(elsewhere), f"resume={folder}"): "are two folders; leave one of them out",
    }
    for (output_dir, *more), sentence in refused.items():
        status, _, err = grpo_train(tiny(Path(output_dir) if output_dir else None, *more))
        assert status == 1
        assert err.startswith("grpo: ")
        assert err.count("\n") == 1
        assert sentence in err
    assert contents(folder) == before


def test_a_start_that_failed_binds_nobody_to_its_settings(tmp_path: Path, tiny: Overrides, grpo_train: Train) -> None:
    status, _, err = grpo_train(tiny(tmp_path / "run", "sampling.max_tokens=9000"))
    assert (status, "more than the model's context of 8192" in err) == (1, True)
    assert grpo_train(tiny(tmp_path / "run", "train.n_grpo_steps=1", "resume=never"))[0] == 0


def test_a_checkpoint_is_a_model_that_transformers_loads(tmp_path: Path, tiny: Overrides, grpo_train: Train) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    assert grpo_train(tiny(tmp_path / "run"))[0] == 0
    folder = tmp_path / "run" / "checkpoints" / "step_000006"
    model = AutoModelForCausalLM.from_pretrained(folder)
    prompt = AutoTokenizer.from_pretrained(folder)("What is 1 + 1?", return_tensors="pt")
    assert torch.isfinite(model(**prompt).logits).all()
    # It is also a model to start from.
    started = tiny(tmp_path / "second", "train.n_grpo_steps=1", f"model.path={folder}")
    assert grpo_train(started)[0] == 0
    assert read_jsonl(tmp_path / "second" / "metrics.jsonl")[-1]["step"] == 1
