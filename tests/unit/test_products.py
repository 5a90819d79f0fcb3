"""Products of bfloat16 matrices in float32, and of float32 ones by compiled code: the same numbers, and everywhere."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from grpo import products
from grpo.config import compose_run_config
from grpo.native import load_library, vector_lanes
from grpo.policy.build import build_policy
from grpo.products import attention, fast_products
from grpo.types import Sampling
from tests.contract.engines import keys_of, merged_tokenizer, torch_engine
from tests.contract.engines import tiny_model as engine_model
from tests.unit.policy.batches import gradients_of_update, make_policy, ragged_batch, tiny_model

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
    monkeypatch.setattr(products, "_bfloat16_is_slow", lambda: True)


@pytest.mark.parametrize("has_autocast", [False, True])
def test_attention_in_bfloat16_rounds_once(has_autocast: bool) -> None:
    """Its result, and each of its gradients, are those of float64 to the nearest bfloat16 number but for a few."""
    generator = torch.Generator().manual_seed(0)
    given = [torch.randn(2, heads, 30, 16, generator=generator).bfloat16() for heads in (4, 2, 2)]
    narrow = [each.clone().requires_grad_() for each in given]
    exact = [each.double().requires_grad_() for each in given]
    upstream = torch.randn(2, 4, 30, 16, generator=generator).bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=has_autocast):
        found = attention(*narrow, is_causal=True, enable_gqa=True)
    expected = F.scaled_dot_product_attention(*exact, is_causal=True, enable_gqa=True)
    found.backward(upstream)
    expected.backward(upstream.double())
    assert found.dtype == torch.bfloat16
    pairs = [(found, expected), *((ours.grad, theirs.grad) for ours, theirs in zip(narrow, exact, strict=True))]
    for ours, theirs in pairs:
        assert ours is not None
        assert theirs is not None
        assert float((ours == theirs.bfloat16()).double().mean()) > 0.99


def outputs_and_gradients(is_wide: bool, monkeypatch: pytest.MonkeyPatch) -> list[torch.Tensor]:
    monkeypatch.setattr(products, "_bfloat16_is_slow", lambda: is_wide)
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
    monkeypatch.setattr(products, "_bfloat16_is_slow", lambda: False)
    with NarrowProducts() as seen, fast_products(CPU, torch.bfloat16), torch.inference_mode():
        torch.ones(2, 2).bfloat16() @ torch.ones(2, 2).bfloat16()
    assert seen.found


@pytest.mark.parametrize(
    ("machine", "capability", "slow"),
    [("x86_64", "AVX2", True), ("AMD64", "DEFAULT", True), ("x86_64", "AVX512", False), ("arm64", "DEFAULT", False)],
)
def test_which_machines_are_slow_with_bfloat16(
    monkeypatch: pytest.MonkeyPatch, machine: str, capability: str, slow: bool
) -> None:
    monkeypatch.setattr("platform.machine", lambda: machine)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    assert products._bfloat16_is_slow.__wrapped__() is slow


# --- float32 --------------------------------------------------------------------------------------------------------

needs_vectors = pytest.mark.skipif(not vector_lanes(), reason="the code is for x86 CPUs with AVX2")


def library_of(lanes: int) -> Any:
    library = products._library(lanes)
    assert library is not None
    return library


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the operations that compiled code does, on any machine that can run it."""
    lanes, names = max(vector_lanes()), list[str]()

    def noted(name: str, make: Any) -> Any:
        def noting(*args: Any, **kwargs: Any) -> Any:
            found = make(*args, **kwargs)
            names.extend([] if found is None else [name])
            return found

        return noting

    monkeypatch.setattr(products, "_float32_is_slow", lambda: True)
    original = products._library
    monkeypatch.setattr(products, "_library", lambda _: original(lanes))
    own = {func: noted(func.name().removeprefix("aten::"), make) for func, make in products._COMPILED.items()}
    monkeypatch.setattr(products, "_COMPILED", own)
    return names


def matrix(rows: int, columns: int, layout: str, seed: int) -> torch.Tensor:
    """[rows, columns] as it comes, transposed, or a part of a larger one."""
    generator = torch.Generator().manual_seed(seed)
    if layout == "transposed":
        return torch.randn(columns, rows, generator=generator).t()
    if layout == "part":
        return torch.randn(rows + 3, columns + 5, generator=generator)[2 : rows + 2, 1 : columns + 1]
    return torch.randn(rows, columns, generator=generator)


@needs_vectors
@pytest.mark.parametrize("lanes", vector_lanes())
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("shape", [(32, 1, 32), (33, 5, 47), (97, 256, 64), (300, 257, 33), (61, 600, 1601)])
@pytest.mark.parametrize("layouts", [*itertools.product(("plain", "transposed", "part"), repeat=2)], ids="-".join)
def test_a_product_is_right_and_stays_in_its_place(
    lanes: int, threads: int, shape: tuple[int, int, int], layouts: tuple[str, str]
) -> None:
    rows, depth, columns = shape
    left, right = matrix(rows, depth, layouts[0], 1), matrix(depth, columns, layouts[1], 2)
    exact = left.double() @ right.double()
    around = torch.full((rows + 2, columns + 3), 7.0)
    out = around[1:-1, 2:-1]
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        products._multiply(library_of(lanes), left, right, out)
        once = out.clone()
        products._multiply(library_of(lanes), left, right, out, adds=True)
    finally:
        torch.set_num_threads(before)
    bound = 1e-6 * depth**0.5 * float(left.norm(dim=1).max() * right.norm(dim=0).max() / depth**0.5)
    assert float((once - exact).abs().max()) <= bound
    assert float((out - 2 * exact).abs().max()) <= 2 * bound
    out[:] = 7
    assert bool((around == 7).all())


@needs_vectors
@pytest.mark.parametrize("lanes", vector_lanes())
def test_an_element_does_not_depend_on_threads_nor_on_others_to_the_last_bit(lanes: int) -> None:
    left, right = matrix(301, 700, "plain", 1), matrix(700, 1700, "transposed", 2)
    before = torch.get_num_threads()
    found = []
    for threads, rows, columns in ((1, 301, 1700), (2, 301, 1700), (1, 37, 1700), (2, 101, 45)):
        torch.set_num_threads(threads)
        out = torch.empty(rows, columns)
        found.append(products._multiply(library_of(lanes), left[:rows], right[:, :columns], out)[:37, :45])
    torch.set_num_threads(before)
    assert all(torch.equal(each, found[0]) for each in found)


@needs_vectors
def test_every_operation_that_multiplies_is_replaced(compiled: list[str]) -> None:
    left, right, bias = torch.randn(3, 20, 40), torch.randn(50, 40), torch.randn(50)
    rows, total = left.flatten(0, 1), torch.randn(60, 50)
    expected = rows @ right.t()
    with fast_products(CPU, torch.float32, compiled=True), torch.inference_mode():
        out = torch.empty(60, 50)
        results = [
            (rows @ right.t(), expected),
            (torch.mm(rows, right.t(), out=out), expected),
            (torch.addmm(total, rows, right.t()), expected + total),
            (total.clone().addmm_(rows, right.t()), expected + total),
            (F.linear(left, right, bias).flatten(0, 1), expected + bias),
            (F.linear(left, right).flatten(0, 1), expected),
        ]
    assert results[1][0] is out
    assert compiled == ["matmul", "mm.out", "addmm", "addmm_", "linear", "linear"]
    for found, right_one in results:
        torch.testing.assert_close(found, right_one, rtol=1e-5, atol=1e-5)


@needs_vectors
def test_what_is_not_for_it_stays_torchs(compiled: list[str]) -> None:
    left, right, total = torch.randn(60, 40), torch.randn(40, 50), torch.randn(60, 50)
    with fast_products(CPU, torch.float32, compiled=True):
        torch.testing.assert_close(torch.addmm(total, left, right, beta=0.5), 0.5 * total + left @ right)
        compiled.clear()
        pairs = [
            (left.double() @ right.double(), total.double()),
            (left[:31] @ right, total[:31]),
            (left[:, :0] @ right[:0], total),
            (torch.mm(left, right, out=torch.empty(50, 60).t()), total),
            (torch.randn(50).addmv(right.t(), left[0]), total[0]),
        ]
        assert not compiled
        assert all(found.shape == like.shape for found, like in pairs)
        assert bool((pairs[2][0] == 0).all())
        assert (left @ right).shape == total.shape
    assert compiled == ["mm"]
    with fast_products(CPU, torch.float32):
        _ = left @ right
    with fast_products(CPU, torch.bfloat16, compiled=True):
        _ = left @ right
    assert compiled == ["mm"]


@needs_vectors
@pytest.mark.parametrize("packing", ["shared_prompts", "padded"])
@pytest.mark.parametrize("threads", [1, 2])
def test_gradients_of_an_update_are_the_same(compiled: list[str], packing: str, threads: int) -> None:
    """Through compiled layers, one core each, and through those of transformers."""
    found, before = [], torch.get_num_threads()
    torch.set_num_threads(threads)
    for is_compiled in (False, True):
        policy = make_policy(tiny_model(), hardware={"packing": packing, "compiled_kernels": is_compiled})
        policy._forward = replace(policy._forward, compiled=is_compiled)
        found.append(gradients_of_update(policy, ragged_batch()))
        assert bool(compiled) == is_compiled
    torch.set_num_threads(before)
    for name, gradient in found[0].items():
        assert float((found[1][name] - gradient).norm()) <= 1e-5 * float(gradient.norm()), name


@needs_vectors
def test_a_run_asks_for_it_unless_told_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    for overrides, expected in (((), True), (("hardware.compiled_kernels=false",), False)):
        cfg = compose_run_config(["hardware=cpu", "model.path=x", *overrides])
        policy, _ = build_policy(cfg, tiny_model(), (0,))
        assert policy._forward.compiled is expected


@needs_vectors
def test_without_a_compiler_products_are_torchs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("CC", "/nowhere/cc")
    monkeypatch.setattr(products, "_float32_is_slow", lambda: True)
    for cached in (products._library, load_library):
        cached.cache_clear()
    with fast_products(CPU, torch.float32, compiled=True) as context:
        assert context is None
        assert (torch.ones(40, 40) @ torch.ones(40, 40)).sum() == 40**3
    for cached in (products._library, load_library):
        cached.cache_clear()


@pytest.mark.parametrize(
    ("processor", "lanes", "slow"),
    [("AMD EPYC", (16, 8), True), ("AMD EPYC", (8,), False), ("Intel(R) Xeon(R)", (16, 8), False), ("", (), False)],
)
def test_which_machines_are_slow_with_float32(
    monkeypatch: pytest.MonkeyPatch, processor: str, lanes: tuple[int, ...], slow: bool
) -> None:
    monkeypatch.setattr(products, "vector_lanes", lambda: lanes)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"cpu_name": processor}, raising=False)
    monkeypatch.setattr(torch.backends.mkl, "is_available", lambda: True)
    assert products._float32_is_slow.__wrapped__() is slow
    monkeypatch.delattr(torch.cpu, "get_capabilities")
    assert not products._float32_is_slow.__wrapped__()
