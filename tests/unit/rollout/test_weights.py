"""Joined projections: the policy's parameters become views of them, and nobody else notices."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from grpo.rollout.decoder import Decoder
from tests.contract.engines import FAMILIES, tiny_model

CPU = torch.device("cpu")


def storages(model: Any) -> dict[str, int]:
    return {name: parameter.data_ptr() for name, parameter in model.named_parameters()}


def last_logits(decoder: Decoder) -> Tensor:
    tokens = torch.tensor([[5, 6, 7, 8]])
    cos, sin = decoder.rotary_table(4)
    return decoder.logits(decoder.forward(tokens, (cos[None], sin[None]), decoder.new_cache(1, 4, None), 0))


@pytest.mark.parametrize("family", FAMILIES)
def test_joining_changes_no_value_and_no_parameter(family: str) -> None:
    model = tiny_model(family)
    expected = {name: value.clone() for name, value in model.state_dict().items()}
    identities = [id(parameter) for parameter in model.parameters()]
    Decoder(model, dtype=torch.float32, device=CPU)
    assert [id(parameter) for parameter in model.parameters()] == identities
    assert model.state_dict().keys() == expected.keys()
    assert all(torch.equal(value, expected[name]) for name, value in model.state_dict().items())


def test_queries_keys_and_values_and_gate_and_up_are_rows_of_one_matrix_in_the_policys_memory() -> None:
    model = tiny_model()
    decoder = Decoder(model, dtype=torch.float32, device=CPU)
    attention, mlp = model.model.layers[1].self_attn, model.model.layers[1].mlp
    qkv, gate_up = decoder._layers[1].qkv, decoder._layers[1].gate_up
    assert torch.equal(
        qkv.weight, torch.cat([attention.q_proj.weight, attention.k_proj.weight, attention.v_proj.weight])
    )
    assert qkv.bias is not None
    assert torch.equal(qkv.bias, torch.cat([attention.q_proj.bias, attention.k_proj.bias, attention.v_proj.bias]))
    assert torch.equal(gate_up.weight, torch.cat([mlp.gate_proj.weight, mlp.up_proj.weight]))
    for module, whole in ((attention.v_proj, qkv), (mlp.up_proj, gate_up)):
        assert module.weight.untyped_storage().data_ptr() == whole.weight.untyped_storage().data_ptr()


def test_a_second_load_moves_nothing() -> None:
    model = tiny_model()
    decoder = Decoder(model, dtype=torch.float32, device=CPU)
    before = storages(model)
    decoder.load(model)
    assert storages(model) == before


def test_what_an_optimiser_writes_is_what_the_engine_reads() -> None:
    model = tiny_model().requires_grad_(True)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, fused=True)  # made before the weights are joined
    decoder = Decoder(model, dtype=torch.float32, device=CPU)
    with torch.no_grad():
        before = last_logits(decoder)
    model(torch.tensor([[5, 6, 7]])).logits.square().mean().backward()
    optimizer.step()
    with torch.no_grad():
        after, fresh = last_logits(decoder), model(torch.tensor([[5, 6, 7, 8]])).logits[:, -1]
    assert not torch.allclose(before, after, atol=1e-3)
    torch.testing.assert_close(after, fresh, rtol=1e-5, atol=1e-5)


def test_parameters_that_got_other_memory_are_joined_again() -> None:
    model, other = tiny_model(), tiny_model(seed=1)
    decoder = Decoder(model, dtype=torch.float32, device=CPU)
    model.load_state_dict(other.state_dict(), assign=True)
    decoder.load(model)
    with torch.no_grad():
        expected = other(torch.tensor([[5, 6, 7, 8]])).logits[:, -1]
        torch.testing.assert_close(last_logits(decoder), expected, rtol=1e-5, atol=1e-5)


def test_neighbours_in_the_wrong_order_are_joined_again() -> None:
    model = tiny_model()
    decoder = Decoder(model, dtype=torch.float32, device=CPU)
    mlp = model.model.layers[0].mlp
    mlp.gate_proj.weight.data, mlp.up_proj.weight.data = mlp.up_proj.weight.data, mlp.gate_proj.weight.data
    expected = torch.cat([mlp.gate_proj.weight, mlp.up_proj.weight])
    decoder.load(model)
    assert torch.equal(decoder._layers[0].gate_up.weight, expected)


def test_copies_in_another_dtype_leave_the_policys_memory_alone() -> None:
    model = tiny_model()
    before = storages(model)
    decoder = Decoder(model, dtype=torch.bfloat16, device=CPU)
    assert storages(model) == before
    assert decoder._layers[0].qkv.weight.dtype == torch.bfloat16


def test_a_checkpoint_of_joined_weights_is_as_any_other(tmp_path: Path) -> None:
    model = tiny_model("qwen2_tied")
    model.save_pretrained(tmp_path / "before")
    Decoder(model, dtype=torch.float32, device=CPU)
    model.save_pretrained(tmp_path / "after")
    before, after = (load_file(tmp_path / name / "model.safetensors") for name in ("before", "after"))
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
