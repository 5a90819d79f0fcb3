"""Contract 1: the gradient does not depend on how a batch is cut into micro-batches, nor on its order."""

import functools

import pytest
import torch

from grpo.config import compose_run_config
from grpo.types import TrainBatch
from tests.unit.policy.batches import gradients_of_update, make_policy, ragged_batch, tiny_model

LOSSES = ["no_baseline", "reinforce_with_baseline", "grpo_clip", "dr_grpo", "dapo", "gspo", "cispo", "rloo"]


@functools.cache
def loss_config(name, *overrides):
    return compose_run_config([f"loss={name}", *overrides]).loss


def off_policy(batch):
    """Old log-probs away from the policy's, so that ratios and clips matter."""
    return {"old": [values + 0.1 for values in batch.sampler_log_probs]}


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


def test_gradient_equals_the_equation_written_out():
    """Σ_i Σ_t -A_i log π(y_it) / (B T_i) with full logits, one sequence at a time, no packing, no chunks."""
    batch, model = ragged_batch(), tiny_model()
    seen = gradients_of_update(make_policy(model, loss=loss_config("no_baseline")), batch)
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
