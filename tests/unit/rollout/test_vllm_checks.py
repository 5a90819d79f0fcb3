"""What is said of a model or a GPU that vLLM cannot use; the GPUs here are made up."""

from __future__ import annotations

import types

import pytest
import torch

from grpo.config import compose_run_config
from grpo.rollout import vllm_checks
from grpo.rollout.vllm_build import child_variables
from grpo.rollout.vllm_checks import GpuMemory, check_architecture, check_context, check_gpu_memory, memory_holders
from grpo.rollout.vllm_types import VllmSettings

GIB = 2**30
GPU = torch.device("cuda", 1)


def test_a_gpu_whose_memory_is_taken() -> None:
    memory = GpuMemory(free=4 * GIB, total=80 * GIB)
    with pytest.raises(ValueError, match="cuda:1 has") as caught:
        check_gpu_memory(GPU, 0.85, memory, ["pid 4711 (python, 70.0 GiB)", "pid 12 (Xorg, 0.5 GiB)"])
    assert str(caught.value) == (
        "cuda:1 has 4.0 of 80.0 GiB free, but hardware.engine_memory_fraction=0.85 asks for 68.0 GiB; it is held by "
        "pid 4711 (python, 70.0 GiB), pid 12 (Xorg, 0.5 GiB); end those processes, or use "
        "hardware.engine_memory_fraction=0.05 or less"
    )
    with pytest.raises(ValueError, match="held by processes that nvidia-smi does not show here; end"):
        check_gpu_memory(GPU, 0.85, memory, [])
    check_gpu_memory(GPU, 0.05, memory, [])


def test_who_holds_a_gpus_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    properties = types.SimpleNamespace(uuid="abc-1")
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
    commands: list[list[str]] = []

    def run(command: list[str]) -> str:
        commands.append(command)
        return "12, /usr/lib/Xorg, 512\n4711, python -c a, b, 71680\n99, [Not Found], [N/A]\n\nNo devices\n"

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
