"""Contract 1: the gradient does not depend on how a batch is cut into micro-batches and packed, nor on its order."""

import functools
from dataclasses import replace

import pytest
import torch

from grpo.config import AggregationName, LossConfig, ObjectiveName, Packing, compose_run_config
from grpo.policy.update import Policy
from grpo.types import TrainBatch
from tests.unit.policy.batches import (
    gradients_of_update,
    grouped_batch,
    make_policy,
    ragged_batch,
    tiny_model,
    with_advantages,
)

PADDED = {"packing": Packing.padded, "micro_batch_tokens": 10_000}
LOSSES = ["no_baseline", "reinforce_with_baseline", "grpo_clip", "dr_grpo", "dapo", "gspo", "cispo", "rloo"]


@functools.cache
def loss_config(name, *overrides):
    return compose_run_config([f"loss={name}", *overrides]).loss


@functools.cache
def padded_gradient(name):
    """Of grouped rows, padded to one micro-batch."""
    return gradients_of_update(make_policy(tiny_model(), loss=loss_config(name), hardware=PADDED), grouped_batch())


def assert_same(left, right, rtol=1e-5):
    scale = max(float(grad.abs().max()) for grad in left.values())
    assert scale > 1e-4, "no gradient to compare"
    for name in left:
        torch.testing.assert_close(
            left[name], right[name], rtol=rtol, atol=rtol * scale, msg=lambda m, n=name: f"{n}: {m}"
        )


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize(
    "knobs",
    [
        {"hardware": {"micro_batch_tokens": 1}},
        {"hardware": {"micro_batch_tokens": 40}},
        {"hardware": {"head_chunk_tokens": 3}},
        {"hardware": {"activation_checkpointing": True}},
        {"hardware": {"packing": Packing.packed}},
        {"hardware": {"packing": Packing.padded}},
        {"gradient_accumulation_steps": 3},
        {"gradient_accumulation_steps": 12},
    ],
    ids=lambda knobs: str(knobs).translate(str.maketrans("", "", "{}' ")),
)
def test_memory_knobs_do_not_change_the_gradient(name, knobs):
    batch = ragged_batch()
    whole = gradients_of_update(make_policy(tiny_model(), loss=loss_config(name)), batch)
    cut = gradients_of_update(make_policy(tiny_model(), loss=loss_config(name), **knobs), batch)
    assert_same(whole, cut)


@pytest.mark.parametrize("name", LOSSES)
def test_order_of_sequences_does_not_change_the_gradient(name):
    batch = ragged_batch()
    order = [7, 2, 11, 0, 5, 9, 1, 10, 3, 8, 6, 4]
    small = {"hardware": {"micro_batch_tokens": 60}}
    straight = gradients_of_update(make_policy(tiny_model(), loss=loss_config(name), **small), batch)
    shuffled = gradients_of_update(make_policy(tiny_model(), loss=loss_config(name), **small), batch.select(order))
    assert_same(straight, shuffled)


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("packing", Packing)
@pytest.mark.parametrize("budget", [30, 10_000])
def test_packing_and_shared_prompts_do_not_change_the_gradient(name, packing, budget):
    """30 tokens cut every group, 10,000 hold them all."""
    hardware = {"packing": packing, "micro_batch_tokens": budget}
    policy = make_policy(tiny_model(), loss=loss_config(name), hardware=hardware)
    assert_same(padded_gradient(name), gradients_of_update(policy, grouped_batch()))


@pytest.mark.parametrize("packing", [Packing.packed, Packing.shared_prompts])
@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("checkpointing", [False, True])
def test_packed_rows_in_any_order_and_group_size(packing, seed, checkpointing):
    generator = torch.Generator().manual_seed(seed)
    batch = grouped_batch(num_groups=(1, 4, 12, 2)[seed], group_size=(12, 3, 1, 6)[seed], seed=seed)
    order = torch.randperm(12, generator=generator).tolist()
    padded = gradients_of_update(make_policy(tiny_model(), hardware=PADDED), batch)
    hardware = {"packing": packing, "micro_batch_tokens": 50, "activation_checkpointing": checkpointing}
    seen = gradients_of_update(make_policy(tiny_model(), hardware=hardware), batch.select(order))
    assert_same(padded, seen)


@pytest.mark.parametrize("name", ["grpo_clip", "gspo", "cispo"])
@pytest.mark.parametrize("knobs", [{"micro_batch_tokens": 1}, {"micro_batch_tokens": 50}])
def test_kl_importance_weights_and_several_steps_keep_the_contract(name, knobs):
    batch = ragged_batch()
    loss = loss_config(name, "loss.kl_estimator=k3", "loss.kl_coef=0.1", "loss.importance_cap=1.2")
    train = {"epochs_per_rollout_batch": 2, "train_batch_size": 4}

    def gradient(hardware):
        reference = tiny_model(seed=5).requires_grad_(False)
        policy = make_policy(tiny_model(), loss=loss, reference=reference, hardware=hardware, **train)
        return gradients_of_update(policy, batch)

    assert_same(gradient(None), gradient(knobs))


@pytest.mark.parametrize("packing", Packing)
def test_gradient_equals_the_equation_written_out(packing):
    """Σ_i Σ_t -A_i log π(y_it) / (B T_i) with full logits, one sequence at a time, no packing, no chunks."""
    batch, model = grouped_batch(), tiny_model()
    policy = make_policy(model, loss=loss_config("no_baseline"), hardware={"packing": packing})
    seen = gradients_of_update(policy, batch)
    expected = tiny_model()
    total = torch.zeros(())
    for ids, start, advantage in zip(batch.token_ids, batch.prompt_lengths, batch.advantages, strict=True):
        logits = expected(input_ids=ids[None]).logits[0, start - 1 : -1] / 0.8
        logits[:2, 0] = float("-inf")  # min_tokens=2: the end of sequence is banned twice
        log_probs = logits.log_softmax(-1).gather(1, ids[start:, None])
        total = total - advantage * log_probs.mean() / len(batch)
    total.backward()
    assert_same(seen, {name: p.grad for name, p in expected.named_parameters()})


def test_groups_without_advantage_only_count_in_the_denominator():
    """Half of the sequences carry no advantage: the gradient is half of the other half's alone."""
    batch = ragged_batch()
    zeroed = TrainBatch(
        batch.token_ids,
        batch.prompt_lengths,
        batch.sampler_log_probs,
        torch.cat([batch.advantages[:6], torch.zeros(6)]),
    )
    loss = loss_config("reinforce_with_baseline")
    whole = gradients_of_update(make_policy(tiny_model(), loss=loss), zeroed)
    half = batch.select(range(6))
    alone = gradients_of_update(
        make_policy(tiny_model(), loss=loss, rollout_batch_size=6, train_batch_size=6, group_size=3), half
    )
    assert_same(whole, {name: grad / 2 for name, grad in alone.items()})


OBJECTIVES = {
    "reinforce": LossConfig(name="x"),
    "clipped_token": LossConfig(name="x", objective=ObjectiveName.clipped_token, cliprange=0.02),
    "clipped_sequence": LossConfig(name="x", objective=ObjectiveName.clipped_sequence, cliprange=0.02),
    "cispo": LossConfig(name="x", objective=ObjectiveName.cispo, cliprange=0.02),
    "importance_cap": LossConfig(name="x", objective=ObjectiveName.clipped_token, cliprange=0.02, importance_cap=1.5),
}
DULL = torch.tensor([0.0, 1.3, 0.0, -0.7, 0.0, 0.0, -0.0, 0.4, 0.0, 0.0, 2.0, -1.1])  # first group: none has any


def _train(policy, batch):
    """Weights after two updates of four optimiser steps each, three of one sequence that is dull in the first."""
    metrics = [policy.update(batch, step) for step in (1, 2)]
    return {name: p.detach().clone() for name, p in policy.model.named_parameters()}, metrics


@pytest.mark.parametrize("aggregation", AggregationName)
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_leaving_out_sequences_without_advantage_changes_no_bit_of_the_weights(objective, aggregation, monkeypatch):
    """One sequence to a micro-batch, so that those left out only ever added zeros."""
    batch = with_advantages(grouped_batch(), DULL)
    loss = replace(OBJECTIVES[objective], aggregation=aggregation)
    knobs = {"loss": loss, "learning_rate": 1e-3, "epochs_per_rollout_batch": 2, "train_batch_size": 3}
    hardware = {"micro_batch_tokens": 1}
    left_out, metrics = _train(make_policy(tiny_model(), hardware=hardware, **knobs), batch)
    assert metrics[0]["policy/trained_tokens_share"] < 0.7
    monkeypatch.setattr(Policy, "_trained", lambda _self, _batch, rows: list(rows))
    passed, metrics = _train(make_policy(tiny_model(), hardware=hardware, **knobs), batch)
    assert metrics[0]["policy/trained_tokens_share"] == 1
    assert all(torch.equal(left_out[name], passed[name]) for name in passed)


@pytest.mark.parametrize("aggregation", AggregationName)
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_leaving_out_sequences_changes_no_gradient_in_larger_micro_batches(objective, aggregation, monkeypatch):
    batch = with_advantages(grouped_batch(), DULL)
    loss = replace(OBJECTIVES[objective], aggregation=aggregation)
    left_out = gradients_of_update(make_policy(tiny_model(), loss=loss), batch)
    monkeypatch.setattr(Policy, "_trained", lambda _self, _batch, rows: list(rows))
    assert_same(gradients_of_update(make_policy(tiny_model(), loss=loss), batch), left_out, rtol=1e-6)


def test_a_step_in_which_nothing_is_trained_on_steps_as_with_a_gradient_of_zero(monkeypatch):
    """Momentum and weight decay go on."""
    batch = grouped_batch()
    dull = with_advantages(batch, torch.zeros(12))

    def weights_after():
        policy = make_policy(tiny_model(), learning_rate=1e-2, weight_decay=0.1)
        policy.update(batch, 1)
        before = policy.model.lm_head.weight.detach().clone()
        metrics = policy.update(dull, 2)
        assert metrics["policy/skipped_updates"] == 0
        assert not torch.equal(before, policy.model.lm_head.weight)
        return [p.detach().clone() for p in policy.model.parameters()], policy.optimizer.state_dict()["state"]

    weights, state = weights_after()
    monkeypatch.setattr(Policy, "_trained", lambda _self, _batch, rows: list(rows))
    expected, expected_state = weights_after()
    assert all(torch.equal(left, right) for left, right in zip(weights, expected, strict=True))
    for index, moments in expected_state.items():
        assert all(torch.equal(state[index][name], value) for name, value in moments.items())


def test_with_a_kl_penalty_every_sequence_is_trained_on():
    loss = loss_config("grpo_clip", "loss.kl_estimator=k3", "loss.kl_coef=0.1")
    reference = tiny_model(seed=5).requires_grad_(False)
    policy = make_policy(tiny_model(), loss=loss, reference=reference)
    metrics = policy.update(with_advantages(grouped_batch(), torch.zeros(12)), 1)
    assert metrics["policy/trained_tokens_share"] == 1
    assert metrics["policy/grad_norm"] > 1e-4


def count_tokens(policy):
    """Counts, in the list that it returns, the tokens of every call of the model."""
    seen = []
    embedding = policy.model.get_input_embeddings()
    embedding.register_forward_hook(lambda _module, inputs, _output: seen.append(inputs[0].numel()))
    return seen


def test_a_shared_prompt_costs_its_tokens_once_and_a_dull_group_none():
    """Guard of the update's work: without it a slow pass would compute the same."""
    batch = with_advantages(grouped_batch(num_groups=3, group_size=4), torch.tensor([0.0, 1.0, -1.0] * 4))
    responses = [batch.response_length(row) for row in range(12)]
    prompts = [batch.prompt_lengths[group] for group in range(3)]
    trained = sum(length for row, length in enumerate(responses) if row % 3)
    for packing, expected in [
        (Packing.shared_prompts, trained + prompts[1] + prompts[2]),
        (Packing.packed, trained + 4 * (prompts[1] + prompts[2])),
    ]:
        policy = make_policy(tiny_model(), hardware={"packing": packing})
        seen = count_tokens(policy)
        metrics = policy.update(batch, 1)
        assert seen == [expected]
        assert metrics["policy/trained_tokens_share"] == pytest.approx(trained / sum(responses))
        seen.clear()
        policy.update(with_advantages(batch, torch.zeros(12)), 2)
        assert seen == []


def test_old_log_probs_are_computed_for_trained_sequences_only():
    batch = with_advantages(grouped_batch(num_groups=3, group_size=4), torch.tensor([0.0, 1.0, -1.0] * 4))
    loss = loss_config("grpo_clip")
    policy = make_policy(tiny_model(), loss=loss, epochs_per_rollout_batch=2)
    seen = count_tokens(policy)
    policy.update(batch, 1)
    assert len(seen) == 3  # old log-probs, then two epochs
    assert len(set(seen)) == 1
