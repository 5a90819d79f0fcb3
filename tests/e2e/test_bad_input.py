"""Bad input costs a sentence: value, rule, remedy; exit status 1, no traceback, nothing lost."""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from grpo.config import compose_run_config
from grpo.run.metrics import read_jsonl
from grpo.warm_start import built_model_folder
from tests.e2e import processes

ROOT = Path(__file__).resolve().parents[2]

Overrides = Callable[..., list[str]]
Train = Callable[[list[str]], tuple[int, str, str]]


@pytest.fixture
def refusal(grpo_train: Train) -> Callable[[list[str]], str]:
    """The sentence that a start is refused with."""

    def of(overrides: list[str]) -> str:
        status, out, err = grpo_train(overrides)
        assert status == 1, out
        assert err.startswith("grpo: ")
        assert err.count("\n") == 1, err
        assert "Traceback" not in out + err
        return err.removeprefix("grpo: ").rstrip("\n")

    return of


@pytest.fixture
def model_folder(tmp_path: Path, tiny: Overrides) -> Path:
    """A whole model, to be broken."""
    built = built_model_folder(compose_run_config(tiny(None)), lambda text: None)
    return Path(shutil.copytree(built, tmp_path / "model"))


CONFIG = {
    ("loss=grpo_clp",): "loss=grpo_clp is no option of loss (did you mean grpo_clip?); use one of cispo, dapo, ",
    (
        "experiment=quikstart",
    ): "experiment=quikstart is no option of experiment (did you mean quickstart?); use one of ",
    ("losss=grpo_clip",): "losss is no setting (did you mean loss",
    ("train.learnin_rate=1",): "train.learnin_rate is no setting (did you mean train.learning_rate",
    ("+unknown=1",): "+unknown: no such setting; `python -m grpo.train --cfg job` prints them all",
    ("+train.unknown=1",): "+train.unknown: no such setting; `python -m grpo.train --cfg job` prints them all",
    ("train.group_size=abc",): (
        "train.group_size=abc does not fit (Value 'abc' of type 'str' could not be converted to Integer); "
        "`python -m grpo.train --cfg job` prints values that do"
    ),
    (
        "model.master_dtype=float17",
    ): "model.master_dtype=float17 does not fit (Invalid value 'float17', expected one of",
    ("train.rollout_batch_size=30",): (
        "train.rollout_batch_size=30 is not a multiple of train.group_size=4; use 28 or 32"
    ),
    ("train.train_batch_size=12",): (
        "train.train_batch_size=12 does not divide train.rollout_batch_size=16; use 4 or 16"
    ),
    ("train.gradient_accumulation_steps=3",): (
        "train.gradient_accumulation_steps=3 does not divide train.train_batch_size=16; use 1, or null"
    ),
    ("train={a: 1}",): "train.a is no setting (did you mean train.adam_eps or ",
    ("data=jsonl",): "data.train_path is null; name a JSON Lines file: data.train_path=problems.jsonl",
    ("train.group_size=",): "train.group_size= does not fit",
    ("train.group_size=[",): "train.group_size=[ is no override (no viable alternative at input '['); write key=value",
    (
        "hardware=two_gpu",
    ): "hardware=two_gpu: needs cuda:0 and cuda:1, but torch sees 0 CUDA devices here; use hardware=cpu",
    ("hardware=single_gpu",): "hardware=single_gpu: needs cuda:0, but torch sees 0 CUDA devices here; use hardware=cpu",
    (
        "hardware=mps",
    ): "hardware=mps: needs a Mac with Apple silicon, but torch sees no mps device here; use hardware=cpu",
}


@pytest.mark.parametrize("overrides", CONFIG, ids=" ".join)
def test_a_config_that_cannot_be(
    overrides: tuple[str, ...], tmp_path: Path, tiny: Overrides, refusal: Callable[[list[str]], str]
) -> None:
    if overrides[0].startswith("hardware=") and (torch.cuda.is_available() or torch.backends.mps.is_available()):
        pytest.skip("this machine has the hardware")
    assert CONFIG[overrides] in refusal(tiny(tmp_path / "run", *overrides))
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (["train.group_size=3"], "train.rollout_batch_size=16 is not a multiple of train.group_size=3"),
        (["hardware=multi_gpu"], "hardware=multi_gpu needs one process a GPU"),
        (["hydra.mode=MULTIRUN", "train.group_size=3,5"], "nothing was started: 2 of the sweep's 2 points cannot run"),
    ],
)
def test_a_start_that_fails_leaves_no_folder(
    overrides: list[str], sentence: str, tmp_path: Path, tiny: Overrides, grpo_train: Train, monkeypatch: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    status, _, err = grpo_train(tiny(None, *overrides))
    assert status == 1
    assert sentence in err
    assert not list(tmp_path.glob("outputs/20*/*"))
    assert not list(tmp_path.glob("outputs/sweeps/*/*"))


def test_a_clip_range_without_effect_leaves_a_note(tmp_path: Path, tiny: Overrides, grpo_train: Train) -> None:
    note = "loss.cliprange=0.3 has no effect on the only update of a rollout batch"
    _, out, _ = grpo_train(tiny(tmp_path / "named", "loss.cliprange=0.3", "train.n_grpo_steps=0"))
    assert note in out
    _, out, _ = grpo_train(tiny(tmp_path / "not_named", "train.n_grpo_steps=0"))
    assert "has no effect" not in out


def test_a_folder_that_was_there_stays(tmp_path: Path, tiny: Overrides, grpo_train: Train) -> None:
    (tmp_path / "mine").mkdir()
    assert grpo_train(tiny(tmp_path / "mine", "train.group_size=3"))[0] == 1
    assert (tmp_path / "mine").is_dir()


def test_a_config_of_ones_own_with_two_errors(tmp_path: Path) -> None:
    """As a newcomer sees it, from a shell."""
    (tmp_path / "mine.yaml").write_text("defaults: [config, _self_]\ntrain:\n  learnin_rate: 1\n  group_size: [\n")
    command = [sys.executable, "-m", "grpo.train", "--config-dir", str(tmp_path), "--config-name", "mine"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("grpo: ")
    assert done.stderr.count("\n") == 1
    assert "mine.yaml" in done.stderr
    assert "line 4" in done.stderr or "line 5" in done.stderr
    (tmp_path / "mine.yaml").write_text("defaults: [config, _self_]\ntrain:\n  learnin_rate: 1\n  group_size: 4\n")
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert "learnin_rate" in done.stderr


GOOD = '{"problem": "1 + 1", "answer": "2"}\n'
DATA = {
    "missing": (None, "train.jsonl does not exist; name a file that does, JSON Lines with the fields 'problem'"),
    "empty": ("", "train.jsonl is empty, but at least one problem is needed; put one JSON object a line into it"),
    "not_json": (
        GOOD + "{oops\n",
        "train.jsonl, line 2, is not JSON (Expecting property name enclosed in double quotes",
    ),
    "no_field": (
        GOOD + '\n{"problem": "x"}\n',
        "train.jsonl, line 3, lacks the field 'answer' (its fields: 'problem')",
    ),
    "too_long": (
        GOOD + json.dumps({"problem": "1 + " * 3000, "answer": "2"}) + "\n",
        "more than the model's context of 8192; ",
    ),
    "only_test": ('{"problem": "2 + 2", "answer": "4"}\n', "holds only questions of data.test_path="),
}


@pytest.mark.parametrize("case", DATA)
def test_data_that_holds_no_problems(
    case: str, tmp_path: Path, tiny: Overrides, refusal: Callable[[list[str]], str]
) -> None:
    text, sentence = DATA[case]
    train, test = tmp_path / "train.jsonl", tmp_path / "test.jsonl"
    test.write_text('{"problem": "2 + 2", "answer": "4"}\n')
    if text is not None:
        train.write_text(text)
    data = ("data=jsonl", f"data.train_path={train}", f"data.test_path={test}")
    assert sentence in refusal(tiny(tmp_path / "run", *data))
    assert text is None or train.read_text() == text


def remove(*names: str) -> Callable[[Path], object]:
    return lambda folder: [os.remove(folder / name) for name in names]


def only_a_pickle(folder: Path) -> None:
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    os.remove(folder / "model.safetensors")


def cut_weights(folder: Path) -> None:
    os.truncate(folder / "model.safetensors", 1000)


def garbled_config(folder: Path) -> None:
    (folder / "config.json").write_text("{oops")


def without_eos(folder: Path) -> None:
    config = json.loads((folder / "tokenizer_config.json").read_text())
    del config["eos_token"]
    (folder / "tokenizer_config.json").write_text(json.dumps(config))


def without_a_layer(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    kept = {name: tensor for name, tensor in weights.items() if ".layers.1." not in name}
    save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})


def not_numbers(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    weights["model.layers.0.mlp.up_proj.weight"][3, 5] = float("nan")
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


MODELS: dict[str, tuple[Callable[[Path], object], str]] = {
    "no_weights": (remove("model.safetensors"), "model has no weights: no *.safetensors file is in it; add them"),
    "no_config": (remove("config.json"), "model has no config.json; name a model folder in Hugging Face layout"),
    "only_a_pickle": (only_a_pickle, "pytorch_model.bin is a pickle and is not read, convert it to safetensors"),
    "no_tokenizer": (
        remove("tokenizer.json", "tokenizer_config.json"),
        "model has no vocabulary; name a folder with a tokenizer: model.tokenizer",
    ),
    "no_eos": (without_eos, "model has no end-of-sequence token, so no completion could end; set eos_token in its"),
    "garbled_config": (garbled_config, "cannot be loaded ("),
    "cut_weights": (cut_weights, "cannot be loaded ("),
    "no_layer": (
        without_a_layer,
        "model lack model.layers.1.input_layernorm.weight and 11 others that its config.json",
    ),
    "not_numbers": (not_numbers, "model hold NaN or infinity in model.layers.0.mlp.up_proj.weight"),
}


@pytest.mark.parametrize("case", MODELS)
def test_a_model_that_is_none(
    case: str, tmp_path: Path, model_folder: Path, tiny: Overrides, refusal: Callable[[list[str]], str]
) -> None:
    spoil, sentence = MODELS[case]
    spoil(model_folder)
    said = refusal(tiny(tmp_path / "run", f"model.path={model_folder}"))
    assert sentence in said
    assert str(model_folder) in said


@pytest.mark.parametrize("setting", ["model.path", "model.tokenizer"])
def test_a_model_that_is_nowhere(
    setting: str, tmp_path: Path, tiny: Overrides, refusal: Callable[[list[str]], str]
) -> None:
    said = refusal(tiny(tmp_path / "run", f"{setting}={tmp_path}/nope"))
    assert said.startswith(f"{setting}={tmp_path}/nope does not exist under {Path.cwd()}, and is no Hub id, which is ")


def test_a_folder_that_is_no_model(tmp_path: Path, tiny: Overrides, refusal: Callable[[list[str]], str]) -> None:
    (tmp_path / "empty").mkdir()
    said = refusal(tiny(tmp_path / "run", f"model.path={tmp_path}/empty"))
    assert said == f"model.path={tmp_path}/empty has no config.json; name a model folder in Hugging Face layout"


def test_a_model_of_the_hub_that_cannot_be_reached(tmp_path: Path, tiny: Overrides) -> None:
    """Whether the network is missing or switched off, that is known within seconds."""
    command = [sys.executable, "-m", "grpo.train", *tiny(tmp_path / "run", "model.path=nobody/nothing-of-that-name")]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 1
    assert done.stderr.startswith("grpo: ")
    assert done.stderr.count("\n") == 1
    assert "'nobody/nothing-of-that-name' cannot be loaded (" in done.stderr
    assert "check the name, load it beforehand with `python -m grpo.download" in done.stderr


IMPATIENT = """
import sys, time
slept, sleep = [], time.sleep
time.sleep = lambda seconds: slept.append(seconds) if seconds >= 1 else sleep(seconds)
from grpo.train import main
try:
    main()
finally:
    print("slept", slept)
"""


def test_a_hub_that_does_not_answer_is_asked_for_one_file_and_quietly(tmp_path: Path) -> None:
    """The waits between the attempts of huggingface_hub are left out here."""
    command = [sys.executable, "-c", IMPATIENT, "hardware=cpu", "model=qwen2_5_0_5b", "data=arithmetic"]
    unset = {name: value for name, value in os.environ.items() if name != "HF_HUB_OFFLINE"}
    environment = {**unset, "HF_ENDPOINT": "http://127.0.0.1:9", "HF_HOME": str(tmp_path)}
    done = subprocess.run(
        [*command, f"output_dir={tmp_path}/run"], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 1
    assert done.stdout.splitlines()[1:] == ["slept [1, 2, 4, 8, 8]"]
    assert done.stderr.count("\n") == 1, done.stderr
    assert done.stderr.startswith("grpo: model 'Qwen/Qwen2.5-0.5B' cannot be loaded (We couldn't connect to ")


def test_an_output_folder_that_cannot_be_made(
    tmp_path: Path, tiny: Overrides, refusal: Callable[[list[str]], str]
) -> None:
    (tmp_path / "file").write_text("kept")
    assert f"{tmp_path}/file" in refusal(tiny(tmp_path / "file" / "run"))
    assert (tmp_path / "file").read_text() == "kept"


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 4 MB, real: a tmpfs."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(disk)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True).returncode != 0:
        pytest.skip("only root may mount a disk; the test with RLIMIT_FSIZE covers what it can")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


def fill(disk: Path, *, leave_bytes: int) -> Path:
    """A file that takes the disk's room but for so many bytes."""
    path = disk / "ballast"
    free = os.statvfs(disk)
    path.write_bytes(b"\0" * max(0, free.f_bavail * free.f_bsize - leave_bytes))
    return path


def test_a_full_disk_costs_checkpoints_and_not_the_run(tmp_path: Path, small_disk: Path, tiny: Overrides) -> None:
    folder, log = small_disk / "run", tmp_path / "log"
    overrides = tiny(folder, "checkpoint.save_steps=1", "train.n_grpo_steps=30")
    process = processes.start(overrides, log)
    assert processes.wait_until(lambda: any(folder.glob("checkpoints/step_*")), process), log.read_text()
    os.kill(process.pid or 0, signal.SIGSTOP)  # what is free must not change while it is filled
    time.sleep(0.01)  # until the stop has come into effect
    ballast = fill(small_disk, leave_bytes=20_000)
    os.kill(process.pid or 0, signal.SIGCONT)
    process.join(120)
    text = log.read_text()
    assert process.exitcode == 0, text
    assert "Traceback" not in text
    assert "could not be saved (" in text
    assert "the last whole one stays, and the run goes on: make room on the disk" in text
    kept = sorted(folder.glob("checkpoints/*"))
    assert kept, text
    for checkpoint in kept:
        load_file(checkpoint / "model.safetensors")
        json.loads((checkpoint / "state.json").read_text())
    assert not list(folder.rglob(".tmp-*"))
    read_jsonl(folder / "metrics.jsonl")
    ballast.unlink()
    assert processes.run([*overrides, "checkpoint.save_steps=10"], log) == 0, log.read_text()
    assert (folder / "checkpoints" / "step_000030").is_dir()
    assert read_jsonl(folder / "metrics.jsonl")[-1]["step"] == 30


def test_a_file_that_may_not_grow_costs_checkpoints_and_not_the_run(
    tmp_path: Path, tiny: Overrides, grpo_train: Train
) -> None:
    """The same without root's rights: a limit on the size of files, which the logs keep and the weights do not."""
    folder = tmp_path / "run"
    assert grpo_train(tiny(folder, "train.lr_schedule=constant", "train.n_grpo_steps=2"))[0] == 0
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, hard))
    try:
        status, out, _ = grpo_train(tiny(folder, "train.lr_schedule=constant", "logging.completions=false"))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert status == 0
    assert "the checkpoint of step 4 could not be saved (" in out
    assert [path.name for path in folder.glob("checkpoints/*")] == ["step_000002"]
    assert read_jsonl(folder / "metrics.jsonl")[-1]["step"] == 6


def test_weights_that_overflow_stop_the_run_and_leave_a_checkpoint_from_before(
    tmp_path: Path, tiny: Overrides, refusal: Callable[[list[str]], str]
) -> None:
    folder = tmp_path / "run"
    overrides = tiny(folder, "checkpoint.save_steps=1", "checkpoint.keep_last=2", "train.canary_steps=0")
    # The first update is finite and so is taken; what it makes of the weights overflows in every step after it.
    said = refusal([*overrides, "train.learning_rate=1e30", "train.max_skipped_steps=3"])
    assert "the loss or its gradient was not finite in 3 steps in a row (train.max_skipped_steps)" in said
    assert "start from it with model.path=<checkpoint> and a lower train.learning_rate" in said
    rows = read_jsonl(folder / "metrics.jsonl")
    skipped = [row["policy/skipped_updates"] for row in rows if row["step"] > 0]
    assert skipped[:1] == [0]
    assert skipped[1:] == [1, 1, 1]
    assert [path.name for path in sorted(folder.glob("checkpoints/*"))] == ["step_000001"]
