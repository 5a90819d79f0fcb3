"""The contracts on a GPU: policy and engine share its memory, and kernels differ from the CPU's.

`GRPO_GPU_TESTS_ON_CPU=1 pytest -m gpu` runs them where there is none, which shows that the tests work and no more.
`test_engine.py` runs against the engine on a GPU too.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from grpo.config import OptimizerName, Packing, TrainConfig
from grpo.policy.optimizer import build_optimizer
from grpo.policy.update import Policy
from grpo.types import Sampling, TrainBatch
from tests.contract import engines
from tests.contract.engines import FAMILIES, gpu_device, keys_of, merged_tokenizer, torch_engine, train_batch
from tests.contract.test_batch_shape import PADDED, assert_same, loss_config
from tests.unit.policy.batches import gradients_of_update, grouped_batch, make_policy, tiny_model, with_advantages

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(gpu_device() is None, reason="no CUDA device; GRPO_GPU_TESTS_ON_CPU=1 runs this on the CPU"),
]
DEVICE = gpu_device() or torch.device("cpu")
PROMPTS = [[5, 6, 7, 8], [9], list(range(30, 80)), [7] * 23, list(range(90, 100))]
# What `make_policy` computes log-probs of.
SAMPLING = Sampling(temperature=0.8, min_tokens=2, max_tokens=24)
# Mean and largest difference in nats; bfloat16 has 8 bits, and kernels for one row round otherwise than those for many.
TOLERANCES = {torch.float32: (1e-5, 1e-4), torch.bfloat16: (0.05, 0.5)}
every_dtype = pytest.mark.parametrize("dtype", TOLERANCES, ids=["float32", "bfloat16"])


@pytest.fixture(autouse=True)
def exact_products() -> Iterator[None]:
    """Float32 products in float32 and not in TF32, which has 10 bits of mantissa."""
    previous = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    yield
    torch.set_float32_matmul_precision(previous)


@pytest.fixture
def repeatable() -> Iterator[None]:
    """Kernels that add up in a fixed order where torch has them: attention's backward pass has others by default."""
    previous = os.environ.get("CUBLAS_WORKSPACE_CONFIG")
    os.environ["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)
    if previous is None:
        del os.environ["CUBLAS_WORKSPACE_CONFIG"]
    else:
        os.environ["CUBLAS_WORKSPACE_CONFIG"] = previous


def policy_on(device: torch.device, dtype: torch.dtype = torch.float32, model: Any = None, **options: Any) -> Policy:
    """A policy that computes in this dtype; its master weights are the model's."""
    model = (tiny_model() if model is None else model).to(device)
    policy = make_policy(model, **options)
    policy._forward = replace(policy._forward, compute_dtype=dtype)
    return policy


def contract_model(family: str) -> Any:
    """Likelihoods that differ from token to token, as those of `batches.tiny_model` hardly do."""
    return engines.tiny_model(family).requires_grad_(True)


def difference(policy: Policy, batch: TrainBatch) -> tuple[float, float]:
    """Mean and largest between the sampler's log-probs and the policy's, nats."""
    differences = (torch.cat(policy.log_probs(batch)) - torch.cat(batch.sampler_log_probs)).abs()
    return float(differences.mean()), float(differences.max())


def assert_agree(policy: Policy, batch: TrainBatch, dtype: torch.dtype) -> None:
    mean, most = difference(policy, batch)
    assert mean <= TOLERANCES[dtype][0]
    assert most <= TOLERANCES[dtype][1]


def long_batch(*, group_size: int = 4, prompt: int = 200, response: int = 500) -> TrainBatch:
    """Two groups, longer than a block of any attention kernel, of tokens that `tiny_model` knows."""
    generator = torch.Generator().manual_seed(0)
    prompts = [torch.randint(1, 260, (prompt,), generator=generator) for _ in range(2)]
    rows = range(2 * group_size)
    lengths = [response - row * response // 16 for row in rows]
    responses = [torch.randint(1, 260, (length,), generator=generator) for length in lengths]
    return TrainBatch(
        token_ids=tuple(torch.cat([prompts[row // group_size], responses[row]]) for row in rows),
        prompt_lengths=(prompt,) * len(rows),
        sampler_log_probs=tuple(torch.full((length,), -5.0) for length in lengths),
        advantages=torch.linspace(-1, 1, len(rows)),
    )


# --- Engine and policy ----------------------------------------------------------------------------------------------


@every_dtype
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("packing", Packing)
def test_log_probs_of_engine_and_policy_agree(family: str, packing: Packing, dtype: torch.dtype) -> None:
    policy = policy_on(DEVICE, dtype, contract_model(family), hardware={"packing": packing})
    engine = torch_engine(policy.model, merged_tokenizer(), [0], dtype=dtype)
    groups = engine.generate(PROMPTS, keys_of(5, 4), SAMPLING)
    assert_agree(policy, train_batch(PROMPTS, groups), dtype)


@every_dtype
@pytest.mark.parametrize("master", [torch.float32, torch.bfloat16], ids=["float32_masters", "bfloat16_masters"])
def test_they_agree_after_an_update_and_a_sync(master: torch.dtype, dtype: torch.dtype) -> None:
    """Where dtypes agree the engine's joined matrices are the storage that the optimiser writes."""
    dtype = torch.bfloat16 if master is torch.bfloat16 else dtype
    model = contract_model("qwen2_tied").to(master)
    policy = policy_on(DEVICE, dtype, model, learning_rate=0.03, rollout_batch_size=20, train_batch_size=20)
    engine = torch_engine(policy.model, merged_tokenizer(), [0], dtype=dtype)
    batch = train_batch(PROMPTS, engine.generate(PROMPTS, keys_of(5, 4), SAMPLING))
    policy.update(with_advantages(batch, torch.linspace(-1, 1, 20)), 1)
    assert difference(policy, batch)[0] > 0.2  # or the next lines would show nothing
    engine.sync(policy.model, 1)
    after = train_batch(PROMPTS, engine.generate(PROMPTS, keys_of(5, 4, step=2), SAMPLING))
    assert_agree(policy, after, dtype)


@pytest.mark.parametrize("cache_tokens", [4096, 400, 1])
def test_completions_do_not_depend_on_their_batch(cache_tokens: int) -> None:
    model, keys = engines.tiny_model().to(DEVICE), keys_of(5, 4)
    engine = torch_engine(model, merged_tokenizer(), range(0, 240, 20), cache_tokens=cache_tokens)
    together = engine.generate(PROMPTS, keys, SAMPLING)
    for prompt, group, completions in zip(PROMPTS, keys, together, strict=True):
        for key, completion in zip(group, completions, strict=True):
            [[alone]] = engine.generate([prompt], [[key]], SAMPLING)
            assert completion.token_ids == alone.token_ids
            pair = torch.tensor([completion.sampler_log_probs, alone.sampler_log_probs])
            assert float((pair[0] - pair[1]).abs().max()) < 1e-4


# --- The gradient ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["reinforce_with_baseline", "gspo"])
@pytest.mark.parametrize("budget", [30, 10_000])
@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("packing", Packing)
def test_packing_does_not_change_the_gradient(packing: Packing, checkpointing: bool, budget: int, name: str) -> None:
    """Nor does the device, within what another order of sums explains."""
    batch, loss = grouped_batch(), loss_config(name)
    padded = gradients_of_update(policy_on(DEVICE, loss=loss, hardware=PADDED), batch)
    hardware = {"packing": packing, "micro_batch_tokens": budget, "activation_checkpointing": checkpointing}
    assert_same(padded, gradients_of_update(policy_on(DEVICE, loss=loss, hardware=hardware), batch))
    on_cpu = gradients_of_update(make_policy(tiny_model(), loss=loss, hardware=PADDED), batch)
    assert_same(on_cpu, {key: grad.cpu() for key, grad in padded.items()}, rtol=1e-4)


@every_dtype
@pytest.mark.parametrize("packing", Packing)
def test_gradients_of_long_sequences_are_those_of_full_logits(packing: Packing, dtype: torch.dtype) -> None:
    """Against float32 on the CPU with padding; in bfloat16 within what rounding explains."""
    model, batch = {"hidden_size": 128, "num_attention_heads": 2, "num_key_value_heads": 1}, long_batch(response=300)
    expected = _flat(
        gradients_of_update(_long_policy(torch.device("cpu"), torch.float32, Packing.padded, model), batch)
    )
    seen = _flat(gradients_of_update(_long_policy(DEVICE, dtype, packing, model), batch)).cpu()
    error = float((seen - expected).norm() / expected.norm())
    assert error < (1e-5 if dtype is torch.float32 else 0.02)


def _long_policy(device: torch.device, dtype: torch.dtype, packing: Packing, shape: Any, **train: Any) -> Policy:
    sizes = {"rollout_batch_size": 8, "train_batch_size": 8, **train}
    return policy_on(device, dtype, tiny_model(**shape), hardware={"packing": packing}, **sizes)


def _flat(gradients: dict[str, Tensor]) -> Tensor:
    return torch.cat([gradients[name].flatten() for name in sorted(gradients)])


# --- The same twice -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("packing", Packing)
@pytest.mark.parametrize("optimizer", OptimizerName)
@every_dtype
def test_an_update_is_the_same_twice_bit_by_bit(dtype: torch.dtype, optimizer: OptimizerName, packing: Packing) -> None:
    """In torch's default mode: float32, and bfloat16 of sequences that fit a block of attention's backward pass."""
    batch = long_batch() if dtype is torch.float32 else long_batch(prompt=20, response=40)
    _assert_repeats(dtype, optimizer, packing, batch)


@pytest.mark.usefixtures("repeatable")
@pytest.mark.parametrize("packing", Packing)
@pytest.mark.parametrize("optimizer", OptimizerName)
def test_a_long_update_in_bfloat16_is_the_same_twice_where_torch_is_told(
    optimizer: OptimizerName, packing: Packing
) -> None:
    _assert_repeats(torch.bfloat16, optimizer, packing, long_batch())


def _assert_repeats(dtype: torch.dtype, optimizer: OptimizerName, packing: Packing, batch: TrainBatch) -> None:
    shape = {"hidden_size": 128, "num_attention_heads": 2, "num_key_value_heads": 1}
    runs: list[list[Tensor]] = []
    for _ in range(2):
        policy = _long_policy(DEVICE, dtype, packing, shape, optimizer=optimizer, learning_rate=1e-3)
        before = [one.detach().clone() for one in policy.model.parameters()]
        for step in (1, 2):
            policy.update(batch, step)
        runs.append([one.detach() for one in policy.model.parameters()])
        assert not any(torch.equal(*pair) for pair in zip(before, runs[-1], strict=True))
    assert all(torch.equal(*pair) for pair in zip(*runs, strict=True))


def test_the_8_bit_step_is_the_same_twice_bit_by_bit() -> None:
    """Weights that are rounded at random, and both states."""
    runs: list[list[Tensor]] = []
    for _ in range(2):
        weight = torch.nn.Parameter(torch.linspace(-1, 1, 3 * 4096 + 5, device=DEVICE).bfloat16())
        module = torch.nn.ParameterList([weight, torch.nn.Parameter(torch.ones(64, device=DEVICE))])
        optimizer = build_optimizer(module, TrainConfig(optimizer=OptimizerName.adamw_8bit, learning_rate=1e-3), seed=3)
        for step in range(3):
            generator = torch.Generator().manual_seed(step)
            for one in module.parameters():
                one.grad = torch.randn(one.shape, generator=generator).to(DEVICE, one.dtype)
            optimizer.step()
        states = [value for one in module.parameters() for _, value in sorted(optimizer.state[one].items())]
        runs.append([*(one.detach() for one in module.parameters()), *states])
    assert len(runs[0]) == 2 + 5 + 3
    assert all(torch.equal(*pair) for pair in zip(*runs, strict=True))
    assert len(runs[0][0].unique()) > 100
