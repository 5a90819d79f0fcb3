"""What belongs to a sharded policy alone; that it computes what another does is tests/contract/test_ranks.py."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from grpo.config import HardwareConfig, OptimizerName, Packing, TrainConfig
from grpo.distributed import ONE_RANK, Ranks
from grpo.policy.block_states import own_part
from grpo.policy.passes import Passes
from grpo.policy.sharding import GatheredModel, whole_tensor
from tests.ranks import needs_ranks, run_ranks
from tests.unit.policy.batches import gradients_of_update, grouped_batch, make_policy, ragged_batch, tiny_model


def passes_of(**hardware: Any) -> Passes:
    values = {"name": "x", "policy_device": "cpu", "engine_device": "cpu", **hardware}
    return Passes(TrainConfig(), HardwareConfig(**values), torch.device("cpu"))


@pytest.mark.parametrize("num_ranks", [2, 3, 5])
@pytest.mark.parametrize("packing", Packing)
@pytest.mark.parametrize(
    "batch", [ragged_batch(num=60), grouped_batch(num_groups=15), grouped_batch(num_groups=2, group_size=30)]
)
def test_ranks_get_fair_shares(batch: Any, packing: Packing, num_ranks: int) -> None:
    passes = passes_of(packing=packing)
    shares = passes.fair_shares(batch, range(60), num_ranks)
    assert sorted(row for share in shares for row in share) == list(range(60))
    loads = [sum(map(len, (batch.token_ids[row] for row in share))) for share in shares]
    assert len(loads) == num_ranks
    assert max(loads) <= 1.15 * sum(loads) / num_ranks


def test_groups_stay_together_where_that_is_fair() -> None:
    batch = grouped_batch(num_groups=12, group_size=5)
    owners = [tuple(batch.token_ids[row][: batch.prompt_lengths[row]].tolist()) for row in range(60)]
    for share in passes_of(packing=Packing.shared_prompts).fair_shares(batch, range(60), 2):
        assert {owners.count(owners[row]) for row in share} == {
            sum(owners[r] == owners[row] for r in share) for row in share
        }


def test_fewer_rows_than_ranks_are_shares_for_few() -> None:
    assert passes_of().fair_shares(ragged_batch(), [3], 4) == [[3]]
    assert passes_of().fair_shares(ragged_batch(), [], 4) == []


def read(ranks: Ranks) -> tuple[Any, ...]:
    policy = make_policy(tiny_model(seed=ranks.rank), ranks=ranks, learning_rate=1e-2)
    policy.update(grouped_batch(), 1)
    model = policy.whole_model
    named = {name: value.clone() for name, value in model.named_parameters()}
    attributes = [
        model.model.layers[1].mlp.down_proj.weight,
        next(iter(model.model.layers)).self_attn.q_proj.bias,
        *list(model.parameters())[:1],
    ]
    facts = (len(model.model.layers), hasattr(model.model.layers[0].self_attn, "q_norm"), model.config.hidden_size)
    return named, attributes, facts, isinstance(model, GatheredModel), list(model.model.rotary_emb.inv_freq)


@needs_ranks
def test_engines_read_whole_weights_of_a_sharded_model() -> None:
    expected, attributes, facts, gathered, frequencies = read(ONE_RANK)
    assert not gathered
    for named, others, other_facts, gathered, other_frequencies in run_ranks(2, read):
        assert gathered
        assert other_facts == facts == (2, False, 32)
        assert other_frequencies == frequencies
        assert list(named) == list(expected)
        for name, value in expected.items():
            torch.testing.assert_close(named[name], value, rtol=1e-4, atol=2e-5)
        for value, other in zip(attributes, others, strict=True):
            torch.testing.assert_close(other, value.detach(), rtol=1e-4, atol=2e-5)


def autocast_gradients(ranks: Ranks) -> dict[str, Tensor]:
    hardware = {"micro_batch_tokens": 60, "activation_checkpointing": True}
    policy = make_policy(tiny_model(), ranks=ranks, hardware=hardware)
    policy._forward = replace(policy._forward, compute_dtype=torch.bfloat16)
    return gradients_of_update(policy, grouped_batch())


@needs_ranks
def test_gradients_in_bfloat16_differ_by_its_rounding_only() -> None:
    expected = autocast_gradients(ONE_RANK)
    for found in run_ranks(2, autocast_gradients):
        for name, value in expected.items():
            assert found[name].dtype is torch.float32
            assert (found[name] - value).norm() <= 0.03 * value.norm(), name


def eight_bit(ranks: Ranks) -> tuple[Tensor, set[torch.Size]]:
    """The embedding after three updates, and the shapes of this rank's parts of its states."""
    model = tiny_model(hidden_size=64)
    policy = make_policy(model, ranks=ranks, optimizer=OptimizerName.adamw_8bit, learning_rate=1e-2)
    for step in (1, 2, 3):
        policy.update(grouped_batch(), step)
    weight: Any = policy.model.get_input_embeddings().weight.detach()
    states = policy.optimizer.state[policy.model.get_input_embeddings().weight]
    return whole_tensor(weight), {own_part(value).shape for key, value in states.items() if key.endswith("codes")}


@needs_ranks
def test_8_bit_states_are_sharded_and_step_as_on_one_rank() -> None:
    expected, shapes = eight_bit(ONE_RANK)
    assert shapes == {torch.Size((132, 128))}
    before = tiny_model(hidden_size=64).get_input_embeddings().weight.detach()
    for found, shapes in run_ranks(2, eight_bit):
        # 263 rows of half a block: 132 and 131. √v is rounded at random, with other numbers on the second rank.
        assert shapes == {torch.Size((66, 128))}
        assert (found - expected).norm() <= 0.05 * (expected - before).norm()


def equal_steps(ranks: Ranks) -> Tensor:
    """This rank's part of a weight that has the same value and gradient everywhere."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Shard, full

    from grpo.policy.low_memory import AdamW8bit

    mesh, placements = init_device_mesh("cpu", (ranks.size,)), [Shard(0)]
    weight = torch.nn.Parameter(full((256, 64), 1.0, dtype=torch.bfloat16, device_mesh=mesh, placements=placements))
    weight.grad = full((256, 64), 0.5, dtype=torch.bfloat16, device_mesh=mesh, placements=placements)
    options = {"lr": 1e-3, "betas": (0.9, 0.95), "eps": 1e-8, "weight_decay": 0.0, "seed": 3}
    AdamW8bit([weight], rank=ranks.rank, **options).step()
    whole: Any = weight.detach()
    return whole.to_local().float()


@needs_ranks
def test_every_rank_rounds_with_random_numbers_of_its_own() -> None:
    first, second = run_ranks(2, equal_steps)
    assert 0.1 < float((first != first[0, 0]).float().mean()) < 0.9  # between two bfloat16 numbers
    assert not torch.equal(first, second)
    assert abs(float(first.mean() - second.mean())) < 1e-4
