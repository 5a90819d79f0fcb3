"""The update: what it changes, what it reports, and what it leaves alone."""

import dataclasses
import math

import pytest
import torch

from grpo.config import LossConfig, LrSchedule, Packing, TrainConfig, compose_run_config
from grpo.policy import update
from grpo.policy.optimizer import learning_rate, move_state
from grpo.rl.chunked_head import chunked_log_probs
from grpo.types import TrainBatch
from tests.unit.policy.batches import VOCAB, make_policy, ragged_batch, tiny_model, with_advantages


def weights(model):
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def on_policy(policy, batch):
    """The batch as an engine would report it that agrees with the policy."""
    return TrainBatch(batch.token_ids, batch.prompt_lengths, tuple(policy.log_probs(batch)), batch.advantages)


def mean_log_prob(policy, batch, rows):
    return float(torch.cat([policy.log_probs(batch)[row] for row in rows]).mean())


def test_good_completions_become_likelier_and_bad_ones_less_likely():
    advantages = torch.tensor([1.0, -1.0] * 6)
    policy, batch = make_policy(tiny_model(), learning_rate=1e-3), ragged_batch(advantages=advantages)
    good, bad = range(0, 12, 2), range(1, 12, 2)
    before = mean_log_prob(policy, batch, good), mean_log_prob(policy, batch, bad)
    for step in range(1, 6):
        policy.update(batch, step)
    assert mean_log_prob(policy, batch, good) > before[0] + 0.05
    assert mean_log_prob(policy, batch, bad) < before[1] - 0.05


def test_on_policy_step_reports_ratio_one_and_no_mismatch():
    policy = make_policy(tiny_model(), loss=compose_run_config(["loss=grpo_clip"]).loss)
    metrics = policy.update(on_policy(policy, ragged_batch()), 1)
    assert metrics["policy/ratio_mean"] == 1.0
    assert metrics["policy/clip_fraction"] == 0.0
    assert metrics["mismatch/max"] < 1e-5
    assert 0 < metrics["policy/entropy"] <= math.log(VOCAB)


def test_several_optimiser_steps_move_the_ratio_and_clip():
    loss = compose_run_config(["loss=grpo_clip", "loss.cliprange=0.01"]).loss
    policy = make_policy(tiny_model(), loss=loss, epochs_per_rollout_batch=3, train_batch_size=4, learning_rate=3e-3)
    metrics = policy.update(on_policy(policy, ragged_batch()), 1)
    assert metrics["policy/ratio_max"] > 1.01
    assert metrics["policy/clip_fraction"] > 0.05


def test_old_log_probs_are_those_before_the_first_optimiser_step():
    """With lr 0 nothing moves: every later ratio is exactly that of unchanged weights."""
    policy = make_policy(tiny_model(), epochs_per_rollout_batch=2, train_batch_size=6, learning_rate=1e-30)
    metrics = policy.update(on_policy(policy, ragged_batch()), 1)
    assert metrics["policy/ratio_mean"] == pytest.approx(1.0, abs=1e-6)
    assert metrics["policy/ratio_max"] == pytest.approx(1.0, abs=1e-5)


def test_mismatch_is_the_distance_of_sampler_and_old_log_probs():
    policy = make_policy(tiny_model())
    batch = on_policy(policy, ragged_batch())
    shifted = TrainBatch(
        batch.token_ids, batch.prompt_lengths, tuple(v + 0.25 for v in batch.sampler_log_probs), batch.advantages
    )
    metrics = policy.update(shifted, 1)
    assert metrics["mismatch/mean"] == pytest.approx(0.25, abs=1e-5)


def test_the_ratio_of_stale_completions_is_to_the_sampler():
    """Sampler log-probs 0.1 nat below the policy's: the ratio is e^0.1, and above a clip range of 0.05 throughout."""
    loss = compose_run_config(["loss=grpo_clip", "loss.cliprange=0.05"]).loss
    for staleness, ratio in ((0, 1.0), (1, math.exp(0.1))):
        policy = make_policy(tiny_model(), loss=loss, max_grad_norm=1.0)
        base = on_policy(policy, ragged_batch(advantages=torch.ones(12)))
        low = dataclasses.replace(
            base, sampler_log_probs=tuple(v - 0.1 for v in base.sampler_log_probs), staleness=staleness
        )
        metrics = policy.update(low, 1)
        assert metrics["policy/ratio_mean"] == pytest.approx(ratio, rel=1e-4)
        assert metrics["policy/clip_fraction"] == pytest.approx(float(staleness), abs=1e-6)
        assert ("mismatch/mean" in metrics) == (staleness == 0)
        assert (metrics["policy/grad_norm"] == 0) == (staleness == 1)


@pytest.mark.parametrize("replicas", [1, 2])
def test_the_log_probs_that_an_update_has_seen(replicas):
    advantages = torch.tensor([1.0, -1.0, *[0.0] * 8, 0.5, 0.5])
    policy = make_policy(tiny_model(), replicas=replicas, hardware={"micro_batch_tokens": 30})
    batch = ragged_batch(advantages=advantages)
    expected = policy.log_probs(batch)
    policy.update(batch, 1)
    seen = policy.seen_log_probs(batch)
    assert sorted(seen) == [0, 1, 10, 11]
    for row, values in seen.items():
        torch.testing.assert_close(values, expected[row])
    policy.update(with_advantages(batch, torch.zeros(12)), 2)
    assert not policy.seen_log_probs(batch)


def test_stale_completions_of_a_loss_without_ratio_are_weighted():
    """Sampler log-probs 0.5 nat below the policy's: a weight of e^0.5, stale or not."""
    norms = []
    for staleness in (0, 1):
        policy = make_policy(tiny_model(), loss=LossConfig(name="x", importance_cap=2.0))
        base = on_policy(policy, ragged_batch())
        low = tuple(v - 0.5 for v in base.sampler_log_probs)
        norms.append(policy.update(dataclasses.replace(base, sampler_log_probs=low, staleness=staleness), 1))
    assert norms[0]["policy/grad_norm"] == pytest.approx(norms[1]["policy/grad_norm"], rel=1e-6)


def test_an_optimiser_that_is_offloaded_has_its_state_on_the_device_for_its_step_alone(monkeypatch):
    seen = []

    def noting(optimizer, device):
        seen.append((device.type, len(optimizer.state)))
        move_state(optimizer, device)

    monkeypatch.setattr(update, "move_state", noting)
    batch = ragged_batch()
    here, moved = make_policy(tiny_model()), make_policy(tiny_model(), hardware={"optimizer_offload": True})
    num = len(list(moved.model.parameters()))
    for policy in (here, moved):
        policy.update(batch, 1)
    assert [place for place, _ in seen] == ["cpu", "cpu"]
    assert [count for _, count in seen] == [0, num]  # before the first step and after it
    assert all(torch.equal(p, weights(moved.model)[name]) for name, p in weights(here.model).items())
    move_state(moved.optimizer, torch.device("meta"))
    for state in moved.optimizer.state.values():
        assert {name: value.device.type for name, value in state.items()} == {
            "step": "cpu",
            "exp_avg": "meta",
            "exp_avg_sq": "meta",
        }


def test_kl_is_zero_at_the_reference_and_pulls_back_to_it():
    loss = compose_run_config(["loss=grpo_clip", "loss.kl_estimator=k3", "loss.kl_coef=1.0"]).loss
    batch = ragged_batch(advantages=torch.zeros(12))
    same = make_policy(tiny_model(), loss=loss, reference=tiny_model())
    assert same.update(batch, 1)["policy/kl"] < 1e-9
    away = make_policy(tiny_model(seed=3), loss=loss, reference=tiny_model(), learning_rate=1e-3)
    first = away.update(batch, 1)["policy/kl"]
    for step in range(2, 8):
        last = away.update(batch, step)["policy/kl"]
    assert last < 0.9 * first


def test_importance_cap_bounds_the_weight_of_a_token():
    """Sampler log-probs 1 nat below the policy's: weight e without a cap, 1.5 with it."""
    batch = ragged_batch()
    norms = {}
    for cap in (None, 1.5, 10.0):
        policy = make_policy(tiny_model(), loss=LossConfig(name="x", importance_cap=cap))
        base = on_policy(policy, batch)
        low = TrainBatch(
            base.token_ids, base.prompt_lengths, tuple(v - 1 for v in base.sampler_log_probs), base.advantages
        )
        norms[cap] = policy.update(low, 1)["policy/grad_norm"]
    assert norms[1.5] / norms[None] == pytest.approx(1.5, rel=1e-4)
    assert norms[10.0] / norms[None] == pytest.approx(math.e, rel=1e-4)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_step_that_is_not_finite_is_skipped_and_counted(bad):
    batch = ragged_batch()
    policy = make_policy(tiny_model(), learning_rate=1e-2)
    policy.update(batch, 1)  # the optimiser has moments now
    before = weights(policy.model)
    broken = TrainBatch(batch.token_ids, batch.prompt_lengths, batch.sampler_log_probs, torch.full((12,), bad))
    assert policy.update(broken, 2)["policy/skipped_updates"] == 1
    after = weights(policy.model)
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert policy.update(batch, 3)["policy/skipped_updates"] == 0


def test_means_are_over_trained_tokens_and_absent_where_there_are_none():
    policy = make_policy(tiny_model())
    batch = ragged_batch()
    advantages = torch.tensor([1.0, -1.0, *[0.0] * 10])
    some = policy.update(with_advantages(batch, advantages), 1)
    other = make_policy(tiny_model(), rollout_batch_size=2, train_batch_size=2, group_size=2)
    alone = other.update(batch.select([0, 1]), 1)
    for key in ("policy/entropy", "policy/ratio_mean", "mismatch/mean", "mismatch/max"):
        assert some[key] == pytest.approx(alone[key], rel=1e-5)
    lengths = [batch.response_length(row) for row in range(12)]
    assert some["policy/trained_tokens_share"] == pytest.approx(sum(lengths[:2]) / sum(lengths))
    none = policy.update(with_advantages(batch, torch.zeros(12)), 2)
    assert set(some) - set(none) == {
        "policy/entropy",
        "policy/ratio_mean",
        "policy/ratio_max",
        "policy/clip_fraction",
        "policy/kl",
        "mismatch/mean",
        "mismatch/max",
    }
    assert (none["policy/loss"], none["policy/grad_norm"], none["policy/trained_tokens_share"]) == (0, 0, 0)


@pytest.fixture
def head_calls(monkeypatch):
    """What the head was told to expect, and the gradient that then came, per call."""
    calls = []

    def spy(*args, expected_grad=None, **kwargs):
        log_probs, entropies = chunked_log_probs(*args, expected_grad=expected_grad, **kwargs)
        if log_probs.requires_grad:
            call = {"expected": expected_grad}
            calls.append(call)
            log_probs.register_hook(lambda grad: call.update(came=grad))
        return log_probs, entropies

    monkeypatch.setattr("grpo.policy.forward.chunked_log_probs", spy)
    return calls


@pytest.mark.parametrize("packing", Packing)
@pytest.mark.parametrize("loss", ["no_baseline", "grpo_clip", "dr_grpo", "dapo", "gspo", "cispo", "rloo"])
def test_the_head_is_told_exactly_the_gradient_that_comes(loss, packing, head_calls):
    loss = compose_run_config([f"loss={loss}"]).loss
    hardware = {"packing": packing, "micro_batch_tokens": 60}
    make_policy(tiny_model(), loss=loss, hardware=hardware).update(ragged_batch(), 1)
    assert len(head_calls) > 1
    for call in head_calls:
        assert call["came"].any()
        assert torch.equal(call["expected"], call["came"])


@pytest.mark.parametrize(
    ("overrides", "train"),
    [
        (["loss.importance_cap=2.0"], {}),
        (["loss.kl_estimator=k3", "loss.kl_coef=0.1"], {}),
        ([], {"epochs_per_rollout_batch": 2}),
    ],
)
def test_the_head_is_told_nothing_where_the_gradient_is_not_known(overrides, train, head_calls):
    loss = compose_run_config(["loss=grpo_clip", *overrides]).loss
    reference = tiny_model(seed=5).requires_grad_(False) if loss.kl_coef else None
    make_policy(tiny_model(), loss=loss, reference=reference, **train).update(ragged_batch(), 1)
    assert head_calls
    assert all(call["expected"] is None for call in head_calls)


def test_gradients_are_clipped_to_the_norm():
    """AdamW ignores the scale of a gradient; plain descent does not: the step is rate * norm long."""
    policy = make_policy(tiny_model(), max_grad_norm=0.01, learning_rate=1.0)
    policy.optimizer = torch.optim.SGD(policy.model.parameters())
    before = weights(policy.model)
    metrics = policy.update(ragged_batch(), 1)
    moved = torch.sqrt(sum(((before[n] - w) ** 2).sum() for n, w in weights(policy.model).items()))
    assert metrics["policy/grad_norm"] > 0.02
    assert float(moved) == pytest.approx(0.01, rel=1e-3)


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        # 2 of 10 steps of warm-up to 1.0, then 8 steps: done = 0/8, 4/8, 7/8 at steps 3, 7, 10
        (LrSchedule.constant, [0.5, 1.0, 1.0, 1.0, 1.0]),
        (LrSchedule.linear, [0.5, 1.0, 1.0, 0.5, 0.125]),
        (LrSchedule.cosine, [0.5, 1.0, 1.0, 0.5, 0.0380602]),  # (1 + cos(7π/8)) / 2
    ],
)
def test_learning_rate_by_step(schedule, expected):
    cfg = TrainConfig(n_grpo_steps=10, learning_rate=1.0, lr_schedule=schedule, warmup_steps=2)
    assert [learning_rate(cfg, step) for step in (1, 2, 3, 7, 10)] == pytest.approx(expected, abs=1e-6)


def test_bfloat16_compute_keeps_float32_masters_and_comes_close():
    batch = ragged_batch()
    exact, narrow = make_policy(tiny_model()), make_policy(tiny_model())
    narrow._forward = type(narrow._forward)(narrow._forward.distribution, 2, torch.bfloat16, 64)
    for left, right in zip(exact.log_probs(batch), narrow.log_probs(batch), strict=True):
        assert 0 < float((left - right).abs().max()) < 0.05
    narrow.update(batch, 1)
    assert {p.dtype for p in narrow.model.parameters()} == {torch.float32}
