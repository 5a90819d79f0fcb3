import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from grpo.config import BuildConfig, OptimizerName, TrainConfig
from grpo.policy import low_memory
from grpo.policy.load import build_model
from grpo.policy.low_memory import (
    AdamW8bit,
    decode_positive,
    decode_signed,
    encode_positive,
    encode_signed,
    random_bits,
    round_to_bfloat16,
)
from grpo.policy.optimizer import build_optimizer
from grpo.policy.small_tokenizer import build_small_tokenizer
from grpo.run.checkpoints import TrainState, load_checkpoint, save_checkpoint

BETAS = (0.9, 0.95)
LARGEST_RATIO = math.sqrt(0.1**2 / (0.05 * (1 - 0.9**2 / 0.95)))  # R of the module: 1.165
# Magnitudes of gradients, and squares that float32 still holds to a few digits.
blocks = st.lists(
    st.one_of(st.just(0.0), st.floats(2.0**-50, 2.0**50, width=32)), min_size=1, max_size=8, unique=True
).flatmap(lambda values: st.tuples(st.just(values), st.integers(0, 2**31)))


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def drawn(values: list[float], seed: int) -> Tensor:
    """Three blocks [3, 128] of these magnitudes, both signs."""
    picks = torch.randint(len(values), (3, 128), generator=generator(seed))
    signs = torch.randint(2, (3, 128), generator=generator(seed + 1)) * 2 - 1
    return torch.tensor(values)[picks] * signs


def optimizer_of(*parameters: Tensor, lr: float = 1e-2, decay: float = 0.0, seed: int = 0, **options: Any) -> AdamW8bit:
    return AdamW8bit(parameters, lr=lr, **{"betas": BETAS, "eps": 1e-8, **options}, weight_decay=decay, seed=seed)


def steps(optimizer: torch.optim.Optimizer, gradients: Callable[[int], list[Tensor]], first: int, last: int) -> None:
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    for step in range(first, last + 1):
        for parameter, gradient in zip(parameters, gradients(step), strict=True):
            parameter.grad = gradient.to(parameter.dtype)
        optimizer.step()


def normal_gradients(*shapes: tuple[int, ...]) -> Callable[[int], list[Tensor]]:
    return lambda step: [torch.randn(shape, generator=generator(step * 100 + n)) for n, shape in enumerate(shapes)]


# Codes


def test_signed_codes_by_hand() -> None:
    """√(0.25) · 127 = 63.5, which rounds to the even 64; √(0.0001) · 127 = 1.27; √(1e-5) · 127 = 0.40."""
    values = torch.zeros(1, 128)
    values[0, :5] = torch.tensor([-8.0, 2.0, 8e-4, -8e-5, -2.0])
    codes, scales = encode_signed(values)
    assert codes[0, :6].tolist() == [-127, 64, 1, 0, -64, 0]
    assert scales.tolist() == [[8.0]]
    assert decode_signed(codes, scales)[0, 1].item() == pytest.approx(8 * (64 / 127) ** 2)


def test_positive_codes_by_hand() -> None:
    """√(0.25) · 255 = 127.5: half are 127, half 128. √(1e-7) · 255 = 0.08, and never 0."""
    values = torch.full((1000, 128), 1.0)
    values[:, 0], values[:, 1] = 4.0, 4e-7
    values[:, 2] = 0.0
    codes, scales = encode_positive(values, random_bits(values, generator()))
    assert (scales == 4).all()
    assert codes[:, :3].unique(dim=0).tolist() == [[255, 1, 0]]
    assert codes[:, 3:].unique().tolist() == [127, 128]
    assert codes[:, 3:].float().mean().item() == pytest.approx(127.5, abs=0.01)  # 5 standard errors are 0.007


def test_a_block_of_zeros_is_not_divided_by_its_scale() -> None:
    """nan as an integer is 0 on some devices only."""
    assert torch.equal(low_memory._relative(torch.zeros(1, 128), torch.zeros(1, 1)), torch.zeros(1, 128))


@settings(max_examples=100, deadline=None)
@given(blocks)
def test_signed_codes_keep_signs_and_are_near(drawing: tuple[list[float], int]) -> None:
    values = drawn(*drawing)
    codes, scales = encode_signed(values)
    decoded = decode_signed(codes, scales)
    ratios = (values.abs() / scales).nan_to_num(0)
    error = ((decoded - values).abs() / scales).nan_to_num(0)
    assert (error <= ratios.sqrt() / 127 + 1.6e-5).all()
    assert (decoded * values >= 0).all()
    assert (decoded.abs() <= scales * (1 + 1e-6)).all()


@settings(max_examples=100, deadline=None)
@given(blocks)
def test_positive_codes_are_near_and_0_is_only_0(drawing: tuple[list[float], int]) -> None:
    values = drawn(*drawing).abs()
    codes, scales = encode_positive(values, random_bits(values, generator(drawing[1])))
    decoded = decode_positive(codes, scales)
    ratios = (values / scales).nan_to_num(0)
    error = ((decoded - values).abs() / scales).nan_to_num(0)
    assert (error <= 2 * ratios.sqrt() / 255 + 1.6e-5).all()
    assert ((decoded > 0) == (values > 0)).all()


# Rounding


@pytest.mark.parametrize("value", [1.001, -1.001, 3e-5, -1234.5678, 1e-40])
def test_the_mean_of_many_roundings_is_the_value(value: float) -> None:
    values = torch.full((400_000,), value)
    rounded = round_to_bfloat16(values, random_bits(values, generator())).double()
    neighbours = rounded.unique().tolist()
    assert len(neighbours) == 2
    assert neighbours[0] < value < neighbours[1]
    step = neighbours[1] - neighbours[0]
    assert abs(rounded.mean().item() - torch.tensor(value).double().item()) < 0.004 * step  # 5 standard errors


def test_bits_of_weights_and_states_are_uniform_and_independent() -> None:
    bits = random_bits(torch.zeros(2_000_000), generator())
    weight, state = (bits & 0xFFFF).double() / 2**16, (bits >> 16).double() / 2**15
    for part in (weight, state):
        assert 0 <= float(part.min()) < 1e-5
        assert 1 - 1e-4 < float(part.max()) < 1
        assert float(part.mean()) == pytest.approx(0.5, abs=1e-3)
        assert float(part.var()) == pytest.approx(1 / 12, abs=1e-3)
    assert abs(float(torch.corrcoef(torch.stack((weight, state)))[0, 1])) < 3e-3


def test_weights_and_states_are_rounded_by_other_bits() -> None:
    values = torch.rand(500, 128, generator=generator()) + 0.01
    bits = random_bits(values, generator(1))
    others = random_bits(values, generator(2))
    low, high = (bits >> 16 << 16) + (others & 0xFFFF), (others >> 16 << 16) + (bits & 0xFFFF)  # where they are others
    codes, weights = encode_positive(values, bits)[0], round_to_bfloat16(values, bits)
    assert torch.equal(encode_positive(values, low)[0], codes)
    assert torch.equal(round_to_bfloat16(values, high), weights)
    assert 0.1 < float((encode_positive(values, high)[0] != codes).float().mean()) < 0.9
    assert 0.1 < float((round_to_bfloat16(values, low) != weights).float().mean()) < 0.9


def test_what_bfloat16_holds_is_not_moved() -> None:
    values = torch.tensor([0.0, -0.0, 1.0, -2.5, 3.0e38, 1e-38, math.inf, -math.inf]).bfloat16()
    for seed in range(20):
        assert torch.equal(round_to_bfloat16(values.float(), random_bits(values, generator(seed))), values)
    broken = torch.full((1000,), math.nan)
    assert round_to_bfloat16(broken, random_bits(broken, generator())).isnan().all()
    tail = torch.tensor([0x7F800001], dtype=torch.int32).view(torch.float32)  # a nan whose upper half is infinity's
    assert round_to_bfloat16(tail, random_bits(tail, generator())).isnan().all()


def test_small_updates_are_not_lost() -> None:
    """bfloat16 has steps of 2**-7 above 1 and 2**-8 below: 100 updates of 1e-4 each are lost by rounding to nearest.

    Each takes 1e-4 off. A weight's sum has the variance of at most 100 · 1e-4 · 2**-8, so the mean of 8,192 has a
    standard error of 7e-5.
    """
    weights = torch.nn.Parameter(torch.ones(8192, dtype=torch.bfloat16))
    steps(optimizer_of(weights, lr=1e-4), lambda _: [torch.ones(8192)], 1, 100)
    assert weights.float().mean().item() == pytest.approx(0.99, abs=3e-4)
    lost = torch.nn.Parameter(torch.ones(8192, dtype=torch.bfloat16))
    steps(torch.optim.AdamW([lost], lr=1e-4, weight_decay=0.0), lambda _: [torch.ones(8192)], 1, 100)
    assert (lost == 1).all()


def test_random_bits_follow_seed_step_and_parameter_only() -> None:
    """lr = 0.3 · 2**-8 takes weights of 1 down with a probability of 0.3, each time by other bits."""

    def one_step(seed: int, step: int) -> list[Tensor]:
        weights = [torch.nn.Parameter(torch.ones(1024, dtype=torch.bfloat16)) for _ in range(2)]
        optimizer = optimizer_of(*weights, lr=0.0, seed=seed)
        torch.randn(seed + step)  # the global state is another each time
        before = torch.get_rng_state()
        steps(optimizer, lambda _: [torch.ones(1024)] * 2, 1, step - 1)
        optimizer.param_groups[0]["lr"] = 0.3 * 2**-8
        steps(optimizer, lambda _: [torch.ones(1024)] * 2, step, step)
        assert torch.equal(torch.get_rng_state(), before)
        return [weight.detach() != 1 for weight in weights]

    first, second = one_step(0, 1)
    assert first.float().mean().item() == pytest.approx(0.3, abs=0.07)
    assert torch.equal(first, one_step(0, 1)[0])
    for other in (second, *one_step(1, 1), *one_step(0, 2)):
        assert (first == other).float().mean().item() == pytest.approx(0.3**2 + 0.7**2, abs=0.08)


def test_random_bits_do_not_depend_on_who_else_has_a_gradient() -> None:
    def second(first_gradient: Tensor | None) -> Tensor:
        weights = [torch.nn.Parameter(torch.ones(1024, dtype=torch.bfloat16)) for _ in range(2)]
        weights[0].grad, weights[1].grad = first_gradient, torch.ones(1024).bfloat16()
        optimizer_of(*weights, lr=0.3 * 2**-8).step()
        return weights[1].detach()

    assert torch.equal(second(None), second(torch.ones(1024).bfloat16()))


# The optimiser


@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_small_parameters_move_as_in_torch(decay: float) -> None:
    gradients = normal_gradients((5, 7), (4095,), ())
    moved = [torch.nn.Parameter(torch.linspace(-1, 1, 35).view(5, 7)), *map(torch.nn.Parameter, torch.ones(2))]
    moved[1] = torch.nn.Parameter(torch.ones(4095))
    wanted = [torch.nn.Parameter(weight.detach().clone()) for weight in moved]
    ours, theirs = optimizer_of(*moved, decay=decay), torch.optim.AdamW(wanted, 1e-2, BETAS, weight_decay=decay)
    for step in range(1, 11):
        for optimizer in (ours, theirs):
            optimizer.param_groups[0]["lr"] = 1e-2 / step
            steps(optimizer, gradients, step, step)
    for weight, other in zip(moved, wanted, strict=True):
        torch.testing.assert_close(weight, other, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("num_blocks", [2, 10**6])
def test_large_parameters_move_nearly_as_in_torch(monkeypatch: pytest.MonkeyPatch, num_blocks: int) -> None:
    """Blocks whose gradients are 10 times those of the block before, a last block of 8, several slices.

    Seen: 0.4% of lr on average, 2% at the most.
    """
    monkeypatch.setattr(low_memory, "_slice_blocks", lambda _: num_blocks)
    shape = (8, 641)
    scale = 10.0 ** (torch.arange(8 * 641) // 128 % 9 - 6).view(shape)
    normal = normal_gradients(shape)
    moved, wanted = (torch.nn.Parameter(torch.ones(shape)) for _ in range(2))
    ours, theirs = optimizer_of(moved, decay=0.1), torch.optim.AdamW([wanted], 1e-2, BETAS, weight_decay=0.1)
    for step in range(1, 31):
        before = moved.detach() - wanted.detach()
        for optimizer in (ours, theirs):
            steps(optimizer, lambda step: [normal(step)[0] * scale], step, step)
        error = (moved - wanted - before).detach() / 1e-2
        assert error.square().mean().sqrt() < 0.01
        assert error.abs().max() < 0.05
        assert error.mean().abs() < 0.0003


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**31), st.sampled_from([0.95, 0.999]), st.integers(1, 30))
def test_no_update_is_longer_than_adams_can_be(seed: int, beta2: float, calm: int) -> None:
    """Gradients that come, go and come back, a million times larger or smaller: |m| <= R √v all the time."""
    largest = math.sqrt(0.1**2 / ((1 - beta2) * (1 - 0.9**2 / beta2)))
    weights = torch.nn.Parameter(torch.zeros(4096))
    optimizer = optimizer_of(weights, betas=(0.9, beta2), eps=1e-30)
    magnitudes = 10.0 ** torch.randint(-6, 1, (4096,), generator=generator(seed))
    for step in range(1, 2 * calm + 3):
        before = weights.detach().clone()
        asleep = torch.rand(4096, generator=generator(seed + step)) < (0.97 if step <= calm else 0.3)
        gradient = torch.randn(4096, generator=generator(seed - step)) * magnitudes * ~asleep
        steps(optimizer, lambda _, gradient=gradient: [gradient], step, step)
        bound = 1e-2 * largest * math.sqrt(1 - beta2**step) / (1 - 0.9**step)
        assert (weights.detach() - before).abs().max() <= bound * (1 + 1e-4)


def test_the_second_moment_decays_and_weights_without_gradient_come_to_rest() -> None:
    """A fifth of every block has no gradient after step 60: an update of √v kept by rounding would go on for ever."""
    scale = torch.exp(0.7 * torch.randn(8192, generator=generator(1)))
    asleep = torch.rand(8192, generator=generator(2)) < 0.2
    normal = normal_gradients((8192,))
    weights = torch.nn.Parameter(torch.zeros(8192))
    optimizer = optimizer_of(weights)
    steps(optimizer, lambda step: [normal(step)[0] * scale], 1, 60)
    state = optimizer.state[weights]
    before = decode_positive(state["exp_avg_sq_codes"], state["exp_avg_sq_scales"]).flatten()[asleep]
    steps(optimizer, lambda step: [normal(step)[0] * scale * ~asleep], 61, 160)
    after = decode_positive(state["exp_avg_sq_codes"], state["exp_avg_sq_scales"]).flatten()[asleep]
    # √(0.95**100) = 0.077; what is rounded at random comes close on average
    assert (after / before).mean().item() == pytest.approx(0.95**50, rel=0.1)
    rested = weights.detach().clone()
    steps(optimizer, lambda step: [normal(step)[0] * scale * ~asleep], 161, 200)
    moves = (weights - rested).detach() / (40 * 1e-2)
    assert moves[asleep].square().mean().sqrt() < 0.01
    assert moves[~asleep].square().mean().sqrt() > 0.03


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("size", [8, 5000])
def test_zero_gradients_move_nothing_and_leave_no_nan(size: int, dtype: torch.dtype) -> None:
    weights = torch.nn.Parameter(torch.ones(size, dtype=dtype))
    optimizer = optimizer_of(weights)
    steps(optimizer, lambda _: [torch.zeros(size)], 1, 3)
    assert (weights == 1).all()
    steps(optimizer, lambda _: [torch.ones(size)], 4, 4)
    assert weights.isfinite().all()
    assert (weights < 1).any()


def test_what_has_no_gradient_is_passed_over() -> None:
    moved, still = (torch.nn.Parameter(torch.ones(5000)) for _ in range(2))
    optimizer = optimizer_of(still, moved, decay=0.1)
    moved.grad = torch.ones(5000)
    assert optimizer.step(lambda: 7.0) == 7.0
    assert (still == 1).all()
    assert (moved < 1).all()
    assert still not in optimizer.state


def test_bytes_per_parameter() -> None:
    """Weights, gradients, codes: 2 + 2 + 1 + 1; two scales of 4 bytes in 128: 0.0625; norms have 12 each."""
    parameters = [torch.nn.Parameter(torch.ones(shape, dtype=torch.bfloat16)) for shape in ((1000, 1536), (1536,))]
    optimizer = optimizer_of(*parameters)
    steps(optimizer, lambda _: [torch.ones_like(parameter) for parameter in parameters], 1, 1)
    tensors = [tensor for p in parameters for tensor in (p, p.grad, *optimizer.state[p].values()) if tensor is not None]
    num_bytes = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
    assert 6.06 < num_bytes / sum(parameter.numel() for parameter in parameters) < 6.08


class LargestFloat32(TorchDispatchMode):
    """The most values that one float32 tensor made meanwhile has."""

    largest = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if isinstance(result, Tensor) and result.dtype in (torch.float32, torch.int32):
            self.largest = max(self.largest, result.numel())
        return result


def test_no_float32_copy_is_larger_than_a_slice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(low_memory, "_slice_blocks", lambda _: 8)
    weights = torch.nn.Parameter(torch.ones(200, 128, dtype=torch.bfloat16))
    optimizer = optimizer_of(weights)
    steps(optimizer, lambda _: [torch.ones(200, 128)], 1, 1)
    weights.grad = torch.ones_like(weights)
    with LargestFloat32() as record:
        optimizer.step()
    assert record.largest == 8 * 128


def test_it_learns_as_well_as_float32_adamw() -> None:
    """A two-layer network on noisy data: the loss on new data, from bfloat16 weights and from float32 weights."""

    def loss_after(dtype: torch.dtype, build: Callable[[Any], torch.optim.Optimizer]) -> float:
        torch.manual_seed(0)
        teacher = torch.randn(64, 8) / 8
        network = torch.nn.Sequential(torch.nn.Linear(64, 128), torch.nn.Tanh(), torch.nn.Linear(128, 8)).to(dtype)
        optimizer = build(network.parameters())
        for step in range(1, 601):
            inputs = torch.randn(64, 64, generator=generator(step))
            noise = 0.3 * torch.randn(64, 8, generator=generator(-step))
            loss = (network(inputs.to(dtype)).float() - (inputs @ teacher).sin() - noise).square().mean()
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        inputs = torch.randn(4096, 64, generator=generator())
        with torch.no_grad():
            return (network.float()(inputs) - (inputs @ teacher).sin()).square().mean().item()

    wanted = loss_after(torch.float32, lambda p: torch.optim.AdamW(p, 1e-3, BETAS, weight_decay=0.0))
    assert wanted < 0.1
    low_memory_loss = loss_after(torch.bfloat16, lambda p: optimizer_of(*p, lr=1e-3))
    assert low_memory_loss < 1.03 * wanted


# Saving, and the config


def test_a_resumed_run_is_the_run_that_was_never_stopped(tmp_path: Path) -> None:
    tokenizer: Any = build_small_tokenizer(["Question: ", " Answer:"])
    shape = BuildConfig(
        hidden_size=64, intermediate_size=128, num_hidden_layers=1, max_position_embeddings=64, tie_word_embeddings=True
    )

    def fresh(seed: int) -> tuple[Any, AdamW8bit]:
        model: Any = build_model(shape, tokenizer, seed=seed, dtype=torch.bfloat16)
        return model, optimizer_of(*model.parameters(), seed=5)

    def train(model: Any, optimizer: AdamW8bit, count: int) -> None:
        ids = torch.tensor([[1, 5, 9, 2, 7]])
        for _ in range(count):
            model(input_ids=ids, labels=ids).loss.backward()
            optimizer.step()
            optimizer.zero_grad()

    model, optimizer = fresh(0)
    train(model, optimizer, 3)
    checkpoint = save_checkpoint(tmp_path, TrainState(3, 0), model, tokenizer, optimizer, keep_last=1)
    resumed, resumed_optimizer = fresh(1)
    load_checkpoint(checkpoint, resumed, resumed_optimizer)
    handed, handed_optimizer = fresh(2)
    handed.load_state_dict(model.state_dict())
    handed_optimizer.load_state_dict(optimizer.state_dict())
    assert any("exp_avg_codes" in state for state in optimizer.state.values())
    for other_model, other in ((resumed, resumed_optimizer), (handed, handed_optimizer)):
        assert_same(model, optimizer, other_model, other)
    for each in ((model, optimizer), (resumed, resumed_optimizer), (handed, handed_optimizer)):
        train(*each, 2)
    for other_model, other in ((resumed, resumed_optimizer), (handed, handed_optimizer)):
        assert_same(model, optimizer, other_model, other)
    assert all(state["step"] == 5 for state in resumed_optimizer.state.values())


def assert_same(model: Any, optimizer: AdamW8bit, other_model: Any, other: AdamW8bit) -> None:
    """Weights and states, bit by bit and in their dtypes."""
    for weight, others in zip(model.parameters(), other_model.parameters(), strict=True):
        assert torch.equal(weight, others)
        state, others_state = optimizer.state[weight], other.state[others]
        assert state.keys() == others_state.keys()
        for key, value in state.items():
            assert torch.equal(value, others_state[key])
            assert value.dtype == others_state[key].dtype


@pytest.mark.parametrize(("name", "kind"), [("adamw", torch.optim.AdamW), ("adamw_8bit", AdamW8bit)])
def test_the_config_names_the_optimizer(name: str, kind: type) -> None:
    cfg = TrainConfig(
        optimizer=OptimizerName[name],
        learning_rate=3e-4,
        adam_beta1=0.8,
        adam_beta2=0.9,
        adam_eps=1e-6,
        weight_decay=0.1,
    )
    model = torch.nn.Linear(80, 80).bfloat16()
    model.bias.requires_grad_(False)
    optimizer = build_optimizer(model, cfg, seed=3)
    assert type(optimizer) is kind
    (group,) = optimizer.param_groups
    assert group["params"] == [model.weight]
    values = {"lr": 3e-4, "betas": (0.8, 0.9), "eps": 1e-6, "weight_decay": 0.1}
    assert {key: group[key] for key in values} == values


def test_the_seed_is_the_optimizers() -> None:
    def weights(seed: int) -> Tensor:
        torch.manual_seed(0)
        model = torch.nn.Linear(80, 80).bfloat16()
        optimizer = build_optimizer(model, TrainConfig(optimizer=OptimizerName.adamw_8bit), seed=seed)
        steps(optimizer, normal_gradients((80, 80), (80,)), 1, 3)
        return model.weight.detach()

    assert torch.equal(weights(1), weights(1))
    assert not torch.equal(weights(1), weights(2))
