"""What is said of a model or a GPU that vLLM cannot use; the GPUs here are made up."""

from __future__ import annotations

import json
import os
import types
from pathlib import Path

import pytest
import torch

from grpo.config import compose_run_config
from grpo.rollout import vllm_checks
from grpo.rollout.vllm_build import child_variables
from grpo.rollout.vllm_checks import GpuMemory, check_architecture, check_context, check_gpu_memory, memory_holders
from grpo.rollout.vllm_types import VllmSettings
from grpo.run.silence import SilentConsole
from grpo.train import build_run

GIB = 2**30
GPU = torch.device("cuda", 1)


def test_a_gpu_whose_memory_is_taken() -> None:
    memory = GpuMemory(free=4 * GIB, total=80 * GIB)
    with pytest.raises(ValueError, match="cuda:1 has") as caught:
        check_gpu_memory(GPU, 0.85, memory, lambda gpu: ["pid 4711 (python, 70.0 GiB)", "pid 12 (Xorg, 0.5 GiB)"])
    assert str(caught.value) == (
        "cuda:1 has 4.0 of 80.0 GiB free, but hardware.engine_memory_fraction=0.85 asks for 68.0 GiB; it is held by "
        "pid 4711 (python, 70.0 GiB), pid 12 (Xorg, 0.5 GiB); end those processes, or use "
        "hardware.engine_memory_fraction=0.05 or less"
    )
    with pytest.raises(ValueError, match="held by processes that nvidia-smi does not show here; end"):
        check_gpu_memory(GPU, 0.85, memory, lambda gpu: [])
    check_gpu_memory(GPU, 0.05, memory, lambda gpu: pytest.fail("nobody needs to be asked"))


def test_a_gpu_whose_memory_is_all_taken() -> None:
    with pytest.raises(ValueError, match=r"^cuda:1 has 0\.4 of 80\.0 GiB free, .*; end those .*, or use another GPU$"):
        check_gpu_memory(GPU, 0.85, GpuMemory(free=2 * GIB // 5, total=80 * GIB), lambda gpu: ["pid 1 (x, 79.0 GiB)"])


def test_who_holds_a_gpus_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    properties = types.SimpleNamespace(uuid="abc-1")
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
    commands: list[list[str]] = []

    def run(command: list[str]) -> str:
        commands.append(command)
        own = f"{os.getpid()}, python, 600"  # what asking torch for the GPU's free memory takes
        return f"12, /usr/lib/Xorg, 512\n4711, python -c a, b, 71680\n{own}\n99, [Not Found], [N/A]\n\nNo devices\n"

    assert memory_holders(GPU, run) == [
        "pid 4711 (python -c a, b, 70.0 GiB)",
        "pid 12 (/usr/lib/Xorg, 0.5 GiB)",
        "pid 99 ([Not Found], 0.0 GiB)",
    ]
    assert commands[0][1:] == [
        "--id=GPU-abc-1",
        "--query-compute-apps=pid,process_name,used_memory",
        "--format=csv,noheader,nounits",
    ]
    assert memory_holders(GPU, lambda command: "") == []


def test_nobody_can_be_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vllm_checks.shutil, "which", lambda name: None)
    assert memory_holders(GPU) == []


def test_a_model_that_vllm_does_not_know() -> None:
    sentence = (
        "^model.path=my/model is a MineForCausalLM, which the installed vLLM does not know; use hardware.engine=t"
    )
    with pytest.raises(ValueError, match=sentence):
        check_architecture("my/model", ["MineForCausalLM"], {"Qwen2ForCausalLM"})
    check_architecture("my/model", ["Qwen2ForCausalLM"], {"Qwen2ForCausalLM"})


def test_max_tokens_beyond_the_context() -> None:
    with pytest.raises(
        ValueError, match=r"=4096 leaves no room for a prompt in the model's context of 4096 tokens; use 2048"
    ):
        check_context(4096, 4096)
    check_context(4095, 4096)


@pytest.mark.parametrize(("visible", "gpu"), [(None, "1"), ("", "1"), ("4,7,9", "7"), ("GPU-a,GPU-b", "GPU-b")])
def test_the_child_sees_its_own_gpu_alone(visible: str | None, gpu: str) -> None:
    settings = VllmSettings({}, "bfloat16", "cuda", 4096, None, 0.85)
    variables = child_variables(settings, GPU, None, visible)
    assert variables["CUDA_VISIBLE_DEVICES"] == gpu
    assert variables["VLLM_ENABLE_V1_MULTIPROCESSING"] == "0"
    assert "TORCHDYNAMO_DISABLE" not in variables
    on_cpu = child_variables(VllmSettings({}, "float32", "cpu", 4096, 1, 0.85), torch.device("cpu"), 3, visible)
    assert on_cpu["OMP_NUM_THREADS"] == "3"
    assert "CUDA_VISIBLE_DEVICES" not in on_cpu


def test_two_gpus_run_vllm_in_a_child_and_one_gpu_here() -> None:
    assert compose_run_config(["hardware=two_gpu"]).hardware.engine_process.name == "child"
    assert compose_run_config(["hardware=single_gpu"]).hardware.engine_process.name == "same"


def test_several_gpus_have_a_vllm_in_a_child_each_where_that_is_asked_for() -> None:
    for name in ("multi_gpu", "multi_node"):
        hardware = compose_run_config([f"hardware={name}", "hardware.engine=vllm"]).hardware
        assert hardware.engine_process.name == "child"
        assert hardware.engine_memory_fraction == 0.3  # the rest is the policy's


REFUSALS = {
    ("MineForCausalLM", "hardware=cpu"): "is a MineForCausalLM, which the installed vLLM does not know",
    ("Qwen2ForCausalLM", "hardware=cpu", "sampling.max_tokens=128"): "leaves no room for a prompt in the model's conte",
    ("Qwen2ForCausalLM", "hardware=cpu", "evaluation.max_tokens=200"): r"max_tokens\)=200 leaves no room for a prompt",
    ("Qwen2ForCausalLM", "hardware=cpu", "sampling.temperature=3"): "temperature=3.0 is not between 0.01 and 2.0",
    ("Qwen2ForCausalLM", "hardware=single_gpu"): r"cuda:0 has 4.0 of 80.0 GiB free, .* held by pid 7 \(it, 76.0 GiB\)",
}


@pytest.mark.parametrize("case", REFUSALS, ids=" ".join)
def test_what_vllm_cannot_run_is_said_before_weights_are_loaded(
    case: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The model's folder has no weights and no tokenizer, which would be said otherwise."""
    architecture, *overrides = case
    config = {"model_type": "qwen2", "architectures": [architecture], "max_position_embeddings": 128}
    (tmp_path / "config.json").write_text(json.dumps(config))
    monkeypatch.setattr("grpo.rollout.vllm_probe.known_architectures", lambda: {"Qwen2ForCausalLM"})
    monkeypatch.setattr(vllm_checks, "gpu_memory", lambda device: GpuMemory(4 * GIB, 80 * GIB))
    monkeypatch.setattr(vllm_checks, "memory_holders", lambda device: ["pid 7 (it, 76.0 GiB)"])
    small = ("experiment=quickstart", "data.num_train=20", "sampling.max_tokens=8", "model.warm_start.steps=0")
    cfg = compose_run_config([*small, f"model.path={tmp_path}", *overrides, "hardware.engine=vllm"])
    with pytest.raises(ValueError, match=REFUSALS[case]) as caught:
        build_run(cfg, tmp_path, SilentConsole(), None)
    assert "\n" not in str(caught.value)
