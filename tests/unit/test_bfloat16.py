"""Products of bfloat16 matrices in float32: the same numbers but for one rounding, and everywhere."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from grpo import bfloat16
from grpo.bfloat16 import fast_products
from grpo.types import Sampling
from tests.contract.engines import keys_of, merged_tokenizer, torch_engine
from tests.contract.engines import tiny_model as engine_model
from tests.unit.policy.batches import make_policy, ragged_batch, tiny_model

CPU = torch.device("cpu")
MULTIPLY = ("mm", "addmm", "bmm", "baddbmm", "linear", "matmul", "attention", "dot")


class NarrowProducts(TorchDispatchMode):
    """Notes every product of bfloat16 tensors that reaches torch in this thread, and counts the others."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []
        self.num_others = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name, tensors = func.overloadpacket.__name__, [value for value in args if isinstance(value, torch.Tensor)]
        if any(word in name for word in MULTIPLY):
            if any(value.dtype == torch.bfloat16 for value in tensors):
                self.found.append(name)
            else:
                self.num_others += 1
        return func(*args, **(kwargs or {}))


@pytest.fixture
def slow_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bfloat16, "_is_slow", lambda: True)


def outputs_and_gradients(is_wide: bool, monkeypatch: pytest.MonkeyPatch) -> list[torch.Tensor]:
    monkeypatch.setattr(bfloat16, "_is_slow", lambda: is_wide)
    torch.manual_seed(0)
    layer, states = torch.nn.Linear(64, 64), torch.randn(3, 20, 64, requires_grad=True)
    with fast_products(CPU, torch.bfloat16), torch.autocast("cpu", dtype=torch.bfloat16):
        heads = layer(states).view(3, 20, 4, 16).transpose(1, 2)
        attended = F.scaled_dot_product_attention(heads, heads, heads, is_causal=True)
        attended.float().square().sum().backward()
    assert heads.dtype == attended.dtype == torch.bfloat16
    return [heads, attended, states.grad, layer.weight.grad, layer.bias.grad]  # type: ignore[list-item]


def test_results_differ_from_those_of_torch_by_rounding(monkeypatch: pytest.MonkeyPatch) -> None:
    wide, torchs = (outputs_and_gradients(is_wide, monkeypatch) for is_wide in (True, False))
    for ours, theirs in zip(wide, torchs, strict=True):
        scale = float(theirs.detach().float().abs().max())
        assert float((ours.detach().float() - theirs.detach().float()).abs().max()) < 2**-6 * scale


def test_a_product_is_rounded_once(slow_cpu: None) -> None:
    """1 + 2^-8 is no bfloat16 number: sums of 256 parts of 2^-8 beside 1 come out as 2, not as 1."""
    states, weight = torch.ones(1, 257).bfloat16(), torch.full((1, 257), 2**-8).bfloat16()
    weight[0, 0] = 1
    out = torch.empty(1, 1, dtype=torch.bfloat16)
    with fast_products(CPU, torch.bfloat16), torch.inference_mode():
        assert F.linear(states, weight).item() == 2
        assert torch.mm(states, weight.T, out=out) is out
    assert out.item() == 2


@pytest.mark.parametrize("packing", ["shared_prompts", "padded"])
@pytest.mark.parametrize("master", [torch.float32, torch.bfloat16])
def test_an_update_makes_no_other_products(slow_cpu: None, packing: str, master: torch.dtype) -> None:
    hardware = {"packing": packing, "activation_checkpointing": True}
    policy = make_policy(tiny_model().to(master), hardware=hardware)
    policy._forward = replace(policy._forward, compute_dtype=torch.bfloat16)
    with NarrowProducts() as seen:
        policy.update(ragged_batch(), 1)
    assert seen.found == []
    assert seen.num_others > 30


def test_a_rollout_makes_no_other_products(slow_cpu: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("grpo.rollout.torch_engine.suits_one_core", lambda *_: False)  # in this thread, please
    engine = torch_engine(engine_model(), merged_tokenizer(), (0,), dtype=torch.bfloat16)
    with NarrowProducts() as seen:
        engine.generate([[5, 6, 7], [8, 9]], keys_of(2, 2), Sampling(max_tokens=6))
    assert seen.found == []
    assert seen.num_others > 30


def test_where_the_machine_multiplies_itself_nothing_is_done(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bfloat16, "_is_slow", lambda: False)
    with NarrowProducts() as seen, fast_products(CPU, torch.bfloat16), torch.inference_mode():
        torch.ones(2, 2).bfloat16() @ torch.ones(2, 2).bfloat16()
    assert seen.found


@pytest.mark.parametrize(
    ("machine", "capability", "slow"),
    [("x86_64", "AVX2", True), ("AMD64", "DEFAULT", True), ("x86_64", "AVX512", False), ("arm64", "DEFAULT", False)],
)
def test_which_machines_are_slow(monkeypatch: pytest.MonkeyPatch, machine: str, capability: str, slow: bool) -> None:
    monkeypatch.setattr("platform.machine", lambda: machine)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    assert bfloat16._is_slow.__wrapped__() is slow
