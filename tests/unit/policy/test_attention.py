"""Packed attention: the same numbers as padded, whatever the family, and a model that is otherwise as before."""

import copy
import json

import pytest
import torch

from grpo.config import Packing
from grpo.policy.attention import packed_arguments, use_packed_attention
from grpo.policy.forward import ForwardSettings, response_log_probs
from grpo.policy.packing import collate
from grpo.policy.update import _checkpoint_activations
from grpo.rl.log_probs import TokenDistribution
from tests.unit.policy.batches import gradients_of_update, grouped_batch, make_policy, tiny_model

CPU = torch.device("cpu")
PACKED = [Packing.packed, Packing.shared_prompts]


def family_model(family, **overrides):
    """A tiny random model of a family, with biases, norms of queries and keys, or untied embeddings as it has them."""
    from transformers import LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM, Qwen3Config, Qwen3ForCausalLM

    config_class, model_class = {
        "qwen2": (Qwen2Config, Qwen2ForCausalLM),
        "qwen3": (Qwen3Config, Qwen3ForCausalLM),
        "llama": (LlamaConfig, LlamaForCausalLM),
    }[family]
    shape = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "vocab_size": 263}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16 if family == "qwen3" else 8}
    special = {"bos_token_id": None, "eos_token_id": 0, "pad_token_id": None, "initializer_range": 0.2}
    torch.manual_seed(0)
    return model_class(config_class(**{**shape, **heads, **special, **overrides}))


def log_probs_and_gradients(model, packing, *, compute_dtype=torch.float32, checkpointing=False):
    """Log-probs [B, T] of a batch in one micro-batch, and the gradients of their weighted sum."""
    model = copy.deepcopy(model)
    if packing is not Packing.padded:
        use_packed_attention(model)
    if checkpointing:
        _checkpoint_activations(model)
    batch = grouped_batch()
    order = [0, 3, 6, 9, 1, 4, 7, 10, 2, 5, 8, 11]  # group by group, as micro_batch_rows gives them
    micro_batch = collate(batch, order, CPU, packing)
    settings = ForwardSettings(TokenDistribution(), 0, compute_dtype, head_chunk_tokens=64)
    log_probs, _ = response_log_probs(model, micro_batch, settings)
    weights = torch.randn(log_probs.shape, generator=torch.Generator().manual_seed(1))
    (log_probs * weights * micro_batch.response_mask).sum().backward()
    return log_probs.detach(), {name: p.grad for name, p in model.named_parameters()}


def relative_distance(left, right):
    """Of two gradients, as vectors."""
    distance = sum((left[name] - right[name]).square().sum() for name in left).sqrt()
    return float(distance / sum(right[name].square().sum() for name in right).sqrt())


@pytest.mark.parametrize("family", ["qwen2", "qwen3", "llama"])
@pytest.mark.parametrize("packing", PACKED)
@pytest.mark.parametrize("checkpointing", [False, True])
def test_packed_equals_padded(family, packing, checkpointing):
    model = family_model(family)
    log_probs, gradients = log_probs_and_gradients(model, packing, checkpointing=checkpointing)
    expected, expected_gradients = log_probs_and_gradients(model, Packing.padded)
    torch.testing.assert_close(log_probs, expected, rtol=1e-5, atol=1e-6)
    scale = max(float(gradient.abs().max()) for gradient in expected_gradients.values())
    for name, gradient in expected_gradients.items():
        torch.testing.assert_close(gradients[name], gradient, rtol=1e-5, atol=1e-5 * scale)


@pytest.mark.parametrize("family", ["qwen2", "qwen3", "llama"])
@pytest.mark.parametrize("packing", PACKED)
def test_packed_comes_as_close_as_padded_in_bfloat16(family, packing):
    model = family_model(family)
    exact, exact_gradients = log_probs_and_gradients(model, Packing.padded)
    padded, padded_gradients = log_probs_and_gradients(model, Packing.padded, compute_dtype=torch.bfloat16)
    packed, packed_gradients = log_probs_and_gradients(model, packing, compute_dtype=torch.bfloat16)
    assert float((packed - exact).abs().max()) < 2 * float((padded - exact).abs().max()) + 1e-3
    error = relative_distance(padded_gradients, exact_gradients)
    assert relative_distance(packed_gradients, exact_gradients) < 2 * error < 0.2


@pytest.mark.parametrize("packing", PACKED)
def test_the_same_pass_twice_gives_the_same_bits(packing):
    runs = [
        gradients_of_update(make_policy(tiny_model(), hardware={"packing": packing}), grouped_batch()) for _ in range(2)
    ]
    assert all(torch.equal(runs[0][name], runs[1][name]) for name in runs[0])


@pytest.mark.parametrize("family", ["qwen2", "qwen3", "llama"])
def test_without_a_layout_the_model_is_as_before_and_heeds_its_mask(family):
    plain, packed = family_model(family), family_model(family)
    use_packed_attention(packed)
    ids = torch.randint(1, 263, (3, 9), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    mask[1, :4] = 0
    with torch.no_grad():
        assert torch.equal(plain(input_ids=ids).logits, packed(input_ids=ids).logits)
        masked = packed(input_ids=ids, attention_mask=mask).logits
        assert torch.equal(plain(input_ids=ids, attention_mask=mask).logits, masked)
        assert not torch.allclose(masked[1, 4:], packed(input_ids=ids).logits[1, 4:])
        arguments = {"attention_mask": mask, "max_new_tokens": 5, "do_sample": False, "pad_token_id": 0}
        assert torch.equal(plain.generate(ids, **arguments), packed.generate(ids, **arguments))


def test_no_mask_of_all_pairs_of_packed_tokens_is_made():
    model = tiny_model()
    policy = make_policy(model)
    masks = []
    layer = model.model.layers[0]
    layer.register_forward_pre_hook(
        lambda _layer, _args, kwargs: masks.append(kwargs["attention_mask"]), with_kwargs=True
    )
    policy.log_probs(grouped_batch())
    assert [mask.numel() for mask in masks] == [0]


def test_the_name_of_the_attention_is_in_no_saved_file(tmp_path):
    from transformers import AutoModelForCausalLM

    model = family_model("qwen2")
    use_packed_attention(model)
    model.save_pretrained(tmp_path)
    files = [path for path in tmp_path.iterdir() if path.suffix == ".json"]
    assert files
    assert not any("packed" in path.read_text() for path in files)
    assert "_attn_implementation" not in json.loads((tmp_path / "config.json").read_text())
    assert AutoModelForCausalLM.from_pretrained(tmp_path).config._attn_implementation == "sdpa"


def test_attention_that_is_not_known_is_refused_with_a_remedy():
    model = family_model("qwen2", use_sliding_window=True, sliding_window=4, max_window_layers=1)
    assert "sliding_attention" in model.config.layer_types
    with pytest.raises(ValueError, match=r"sliding_attention in qwen2; use hardware.packing=padded"):
        make_policy(model)
    make_policy(model, hardware={"packing": Packing.padded})


def test_a_model_that_would_mix_sequences_up_is_not_called():
    layout = collate(grouped_batch(), [0, 3], CPU, Packing.packed).layout
    with pytest.raises(AssertionError, match="see each other"):
        packed_arguments(tiny_model(), layout)
