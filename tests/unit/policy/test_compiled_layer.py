"""Layers of compiled code against transformers' own; what they are not for; machines that cannot compile them."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM, Qwen3Config, Qwen3ForCausalLM

from grpo import native
from grpo.config import Packing
from grpo.policy import compiled_layer
from grpo.policy.attention import use_packed_attention
from grpo.policy.compiled_layer import fits, use_compiled_layers
from grpo.policy.forward import ForwardSettings, response_log_probs
from grpo.policy.packing import MicroBatch, collate
from grpo.policy.replicas import Replicas
from grpo.policy.update import _checkpoint_activations
from grpo.rl.log_probs import TokenDistribution
from grpo.rollout.decoder import Decoder
from grpo.types import TrainBatch
from tests.unit.policy.batches import gradients_of_update, grouped_batch, make_policy, tiny_model

pytestmark = pytest.mark.skipif(not native.vector_lanes(), reason="the code is for x86 CPUs with AVX2")

VOCAB = 61
WIDEST, NARROWEST = max(native.vector_lanes(), default=8), 8  # lanes of vectors
SHAPE: dict[str, Any] = {
    "vocab_size": VOCAB,
    "num_hidden_layers": 2,
    "hidden_size": 6 * WIDEST,
    "intermediate_size": 9 * WIDEST,
}
NARROW = {**SHAPE, "hidden_size": 6 * NARROWEST, "intermediate_size": 9 * NARROWEST}
# Query heads a key-value head: 1, 2, 3 and 4. Head sizes in and out of pairs of registers, and other than H / heads.
MODELS = {
    "one": lambda: LlamaForCausalLM(LlamaConfig(**SHAPE, num_attention_heads=2, num_key_value_heads=2)),
    "two": lambda: Qwen2ForCausalLM(Qwen2Config(**SHAPE, num_attention_heads=6, num_key_value_heads=3)),
    "three": lambda: Qwen2ForCausalLM(Qwen2Config(**SHAPE, num_attention_heads=3, num_key_value_heads=1)),
    "four": lambda: LlamaForCausalLM(
        LlamaConfig(**SHAPE, num_attention_heads=4, num_key_value_heads=1, head_dim=4 * WIDEST)
    ),
    "narrow": lambda: Qwen2ForCausalLM(Qwen2Config(**NARROW, num_attention_heads=6, num_key_value_heads=3)),
    "narrow four": lambda: LlamaForCausalLM(
        LlamaConfig(**NARROW, num_attention_heads=4, num_key_value_heads=1, head_dim=4 * NARROWEST)
    ),
}
every_model = pytest.mark.parametrize("name", MODELS)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def random_model(name: str) -> Any:
    """Weights, biases and norms that all matter."""
    model = MODELS[name]()
    use_packed_attention(model)
    generator = torch.Generator().manual_seed(0)
    for key, parameter in model.named_parameters():
        parameter.data.normal_(std=0.2, generator=generator)
        if "norm" in key:
            parameter.data += 1
    return model


def batch_of(prompts: list[int], responses: list[int]) -> TrainBatch:
    """Sequences of these lengths; those whose prompts are as long have the same."""
    generator = torch.Generator().manual_seed(1)
    tokens = torch.randint(1, VOCAB, (300,), generator=generator)
    return TrainBatch(
        token_ids=tuple(
            torch.cat([tokens[:prompt], torch.randint(1, VOCAB, (response,), generator=generator)])
            for prompt, response in zip(prompts, responses, strict=True)
        ),
        prompt_lengths=tuple(prompts),
        sampler_log_probs=tuple(torch.zeros(response) for response in responses),
        advantages=torch.ones(len(prompts)),
    )


# Segments of one token and of more than 32, which are a chunk; contexts that eight divides and does not.
BATCHES = {
    "groups": batch_of([9] * 4 + [2] * 2 + [40] * 3, [31, 1, 33, 7, 64, 6, 5, 80, 24]),
    "alone": batch_of([5, 16, 1], [90, 1, 31]),
}


def laid_out(batch: TrainBatch, packing: Packing = Packing.shared_prompts) -> MicroBatch:
    return collate(batch, range(len(batch)), torch.device("cpu"), packing)


def log_probs_and_gradients(
    model: Any, micro_batch: MicroBatch, dtype: torch.dtype = torch.float32
) -> tuple[Tensor, dict[str, Tensor]]:
    """Log-probs [b, T], and the gradients of their weighted sum; the model gets none."""
    model = copy.deepcopy(model)
    settings = ForwardSettings(TokenDistribution(), 0, dtype, head_chunk_tokens=64)
    log_probs, _ = response_log_probs(model, micro_batch, settings)
    weights = torch.randn(log_probs.shape, generator=torch.Generator().manual_seed(1))
    (log_probs * weights * micro_batch.response_mask).sum().backward()
    return log_probs.detach(), {name: parameter.grad for name, parameter in model.named_parameters()}


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the functions of C that are called."""
    names: list[str] = []

    def call(lanes: int, name: str, *arguments: Any) -> None:
        names.append(name)
        original(lanes, name, *arguments)

    original = compiled_layer._call
    monkeypatch.setattr(compiled_layer, "_call", call)
    return names


# --- The same numbers -----------------------------------------------------------------------------------------------


@every_model
@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("packing", [Packing.shared_prompts, Packing.packed])
def test_log_probs_and_gradients_are_those_of_transformers(
    name: str, batch: str, packing: Packing, calls: list[str]
) -> None:
    model, micro_batch = random_model(name), laid_out(BATCHES[batch], packing)
    exact, exact_gradients = log_probs_and_gradients(copy.deepcopy(model).double(), micro_batch, torch.float64)
    assert not calls
    use_compiled_layers(model)
    found, gradients = log_probs_and_gradients(model, micro_batch)
    assert calls.count("grpo_attention") == calls.count("grpo_attention_backward") == 2
    torch.testing.assert_close(found.double(), exact.double(), rtol=1e-5, atol=2e-5)
    for key, gradient in exact_gradients.items():
        assert (gradients[key] - gradient).norm() <= 1e-5 * gradient.norm(), key


@pytest.mark.parametrize("length", [*range(1, 18), 31, 32, 33, 63, 64, 65, 200])
def test_every_length_of_a_prompt_and_of_a_response(length: int) -> None:
    plain = random_model("two")
    compiled = copy.deepcopy(plain)
    use_compiled_layers(compiled)
    for batch in (batch_of([length] * 2, [3, 9]), batch_of([3] * 2, [length, 2])):
        expected, expected_gradients = log_probs_and_gradients(plain, laid_out(batch))
        found, gradients = log_probs_and_gradients(compiled, laid_out(batch))
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=2e-5)
        for key, gradient in expected_gradients.items():
            assert (gradients[key] - gradient).norm() <= 2e-5 * gradient.norm(), key


def test_large_scores_and_gates_overflow_nowhere() -> None:
    """Scores of some hundreds, of which probabilities of 0 and 1 are made, and gates far from 0 on both sides."""
    plain = random_model("two")
    for layer in plain.model.layers:
        layer.self_attn.q_proj.weight.data *= 40
        layer.mlp.gate_proj.weight.data *= 100
    compiled = copy.deepcopy(plain)
    use_compiled_layers(compiled)
    exact, exact_gradients = log_probs_and_gradients(plain.double(), laid_out(BATCHES["groups"]), torch.float64)
    found, gradients = log_probs_and_gradients(compiled, laid_out(BATCHES["groups"]))
    torch.testing.assert_close(found.double(), exact.double(), rtol=1e-3, atol=1e-2)
    for key, gradient in exact_gradients.items():
        assert (gradients[key] - gradient).norm() <= 1e-2 * gradient.norm(), key


@pytest.mark.parametrize("lanes", native.vector_lanes())
def test_a_gates_derivative_is_exact_where_it_is_flat(lanes: int) -> None:
    gate = torch.tensor(
        [-1e9, -300.0, -20.0, -1.0, 0.0, 1.0, 20.0, 300.0, 1e5, 1e9, 3e37, 88.0, -88.0, 87.5, -87.5, 5.0]
    )
    up, grad = torch.full_like(gate, 3.0), torch.full_like(gate, 2.0)
    grad_gate, grad_up, out = torch.empty_like(gate), torch.empty_like(gate), grad.clone()
    compiled_layer._call(lanes, "grpo_gate_backward", out, gate, up, grad_gate, grad_up, len(gate))
    exact, exact_up = gate.double().requires_grad_(), up.double().requires_grad_()
    gated = torch.nn.functional.silu(exact) * exact_up
    gated.backward(grad.double())
    for found, expected in ((out, gated), (grad_gate, exact.grad), (grad_up, exact_up.grad)):
        torch.testing.assert_close(found.double(), expected, rtol=1e-6, atol=1e-25)


def test_what_is_not_a_number_stays_so() -> None:
    model = random_model("two")
    use_compiled_layers(model)
    model.model.layers[0].self_attn.k_proj.weight.data[0, 0] = torch.nan
    found, gradients = log_probs_and_gradients(model, laid_out(BATCHES["alone"]))
    assert found[0].isnan().any()
    assert gradients["model.embed_tokens.weight"].isnan().any()


@pytest.mark.parametrize("row", range(9))
def test_a_sequence_sees_no_other(row: int) -> None:
    model = random_model("two")
    use_compiled_layers(model)
    batch = BATCHES["groups"]
    found, _ = log_probs_and_gradients(model, laid_out(batch))
    changed = list(batch.token_ids)
    changed[row] = changed[row].clone()
    changed[row][batch.prompt_lengths[row] :] = 7
    other = TrainBatch(tuple(changed), batch.prompt_lengths, batch.sampler_log_probs, batch.advantages)
    seen, _ = log_probs_and_gradients(model, laid_out(other))
    others = [each for each in range(9) if each != row]
    assert torch.equal(seen[others], found[others])
    assert not torch.equal(seen[row], found[row])


def test_rotations_that_scale_and_weights_that_the_engine_has_joined_and_frozen_ones() -> None:
    yarn = {"rope_type": "yarn", "factor": 4.0, "rope_theta": 10000.0, "original_max_position_embeddings": 512}
    config = LlamaConfig(**SHAPE, num_attention_heads=2, rope_parameters=yarn)
    plain = LlamaForCausalLM(config)
    use_packed_attention(plain)
    assert plain.model.rotary_emb.attention_scaling > 1.1
    for layer in plain.model.layers:
        layer.self_attn.k_proj.weight.data *= 20
    compiled = copy.deepcopy(plain)
    use_compiled_layers(compiled)
    decoder = Decoder(compiled, dtype=torch.float32, device=torch.device("cpu"))
    weight = compiled.model.layers[0].self_attn.k_proj.weight
    assert weight.untyped_storage().nbytes() > weight.nbytes  # it is a part of the decoder's matrix now
    for model in (plain, compiled):
        model.model.layers[1].mlp.up_proj.weight.requires_grad_(False)
        model.model.embed_tokens.weight.requires_grad_(False)
    expected, expected_gradients = log_probs_and_gradients(plain, laid_out(BATCHES["groups"]))
    found, gradients = log_probs_and_gradients(compiled, laid_out(BATCHES["groups"]))
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=2e-5)
    for key, gradient in expected_gradients.items():
        if gradient is None:
            assert gradients[key] is None
        else:
            assert (gradients[key] - gradient).norm() <= 2e-5 * gradient.norm(), key
    del decoder


def test_without_gradients_the_numbers_are_the_same(calls: list[str]) -> None:
    model = random_model("two")
    use_compiled_layers(model)
    expected, _ = log_probs_and_gradients(model, laid_out(BATCHES["groups"]))
    calls.clear()
    settings = ForwardSettings(TokenDistribution(), 0, torch.float32, head_chunk_tokens=64)
    with torch.no_grad():
        found, _ = response_log_probs(model, laid_out(BATCHES["groups"]), settings)
    assert torch.equal(found, expected)
    assert calls.count("grpo_attention") == 2


def test_the_gradient_that_comes_in_is_left_as_it_is() -> None:
    model, seen = random_model("two"), []
    use_compiled_layers(model)

    def note(grad: Tensor) -> None:
        seen.append((grad, grad.clone()))

    for layer in model.model.layers:
        layer.register_forward_hook(lambda module, given, out: out.register_hook(note) and None)
    settings = ForwardSettings(TokenDistribution(), 0, torch.float32, head_chunk_tokens=64)
    response_log_probs(model, laid_out(BATCHES["groups"]), settings)[0].sum().backward()
    assert len(seen) == 2
    assert all(torch.equal(grad, before) for grad, before in seen)


def test_the_same_pass_twice_gives_the_same_bits() -> None:
    model = random_model("four")
    use_compiled_layers(model)
    (first, gradients), (second, others) = (log_probs_and_gradients(model, laid_out(BATCHES["groups"])) for _ in "12")
    assert torch.equal(first, second)
    assert all(torch.equal(gradient, others[key]) for key, gradient in gradients.items())


# --- What they are not for ------------------------------------------------------------------------------------------


def test_elsewhere_the_layers_are_what_they_were(calls: list[str]) -> None:
    plain = random_model("two")
    compiled = copy.deepcopy(plain)
    use_compiled_layers(compiled)

    def same(packing: Packing = Packing.shared_prompts, dtype: torch.dtype = torch.float32) -> bool:
        micro_batch = laid_out(BATCHES["alone"], packing)
        expected, expected_gradients = log_probs_and_gradients(plain, micro_batch, dtype)
        found, gradients = log_probs_and_gradients(compiled, micro_batch, dtype)
        assert all(torch.equal(gradients[key], gradient) for key, gradient in expected_gradients.items())
        return torch.equal(found, expected)

    assert same(Packing.padded)
    assert same(dtype=torch.bfloat16)
    torch.set_num_threads(2)
    assert same()
    torch.set_num_threads(1)
    for model in (plain, compiled):
        _checkpoint_activations(model)
    assert same()
    assert not calls


@pytest.mark.parametrize(
    ("config", "fitting"),
    [
        (LlamaConfig(**SHAPE, num_attention_heads=2), True),
        (LlamaConfig(**SHAPE, num_attention_heads=2, attention_bias=True), False),
        (LlamaConfig(**SHAPE, num_attention_heads=2, mlp_bias=True), False),
        (LlamaConfig(**SHAPE, num_attention_heads=2, hidden_act="gelu"), False),
        (LlamaConfig(**SHAPE, num_attention_heads=2, attention_dropout=0.1), False),
        (LlamaConfig(**NARROW, num_attention_heads=2), True),
        (LlamaConfig(**NARROW, num_attention_heads=4), False),  # heads of 12
        (LlamaConfig(**{**NARROW, "intermediate_size": 70}, num_attention_heads=2), False),
        (Qwen3Config(**SHAPE, num_attention_heads=2, head_dim=24), False),
    ],
)
def test_models_that_they_fit(config: Any, fitting: bool) -> None:
    model = (Qwen3ForCausalLM if isinstance(config, Qwen3Config) else LlamaForCausalLM)(config)
    assert fits(model) == fitting
    assert not fits(model.bfloat16())


# --- The policy's update --------------------------------------------------------------------------------------------


def update_gradients(**hardware: Any) -> dict[str, Tensor]:
    policy = make_policy(tiny_model(), hardware={"micro_batch_tokens": 60, **hardware})
    return gradients_of_update(policy, grouped_batch())


def test_the_update_goes_through_them_unless_told_otherwise(calls: list[str]) -> None:
    expected = update_gradients(compiled_kernels=False)
    assert not calls
    found = update_gradients()
    assert calls.count("grpo_attention_backward") >= 2
    for key, gradient in expected.items():
        assert (found[key] - gradient).norm() <= 1e-5 * gradient.norm(), key


def test_every_replica_goes_through_them(calls: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Replicas] = []
    monkeypatch.setattr("grpo.policy.update.num_replicas", lambda model: 2)
    monkeypatch.setattr("grpo.policy.update.Replicas", lambda *given: made.append(Replicas(*given)) or made[0])
    policy = make_policy(tiny_model(), hardware={"micro_batch_tokens": 60})
    policy._workers = made[0]
    layers = [layer for each in made[0].models for layer in each.model.layers]
    assert len(layers) == 4
    assert all(layer.forward.args[0] is layer for layer in layers)
    torch.set_num_threads(2)  # of which each replica is given one
    shares: list[int] = []
    run = made[0].run
    monkeypatch.setattr(made[0], "run", lambda work, parts: shares.extend(map(len, parts)) or run(work, parts))
    policy.update(grouped_batch(), 1)
    assert len(shares) == 2
    assert calls.count("grpo_attention_backward") == 2 * sum(shares)


def test_without_a_compiler_there_are_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, calls: list[str]) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("CC", "/nowhere/cc")
    for cached in (compiled_layer._library, native.load_library):
        cached.cache_clear()
    warnings: list[str] = []
    policy = make_policy(tiny_model(), hardware={"micro_batch_tokens": 60}, warn=warnings.append)
    policy.update(grouped_batch(), 1)
    assert not calls
    (warning,) = warnings
    assert warning.startswith("updates without compiled code take 1.3 times as long: /nowhere/cc does not run")
