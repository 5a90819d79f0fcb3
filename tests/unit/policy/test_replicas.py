"""Micro-batches side by side: the same gradients and metrics, the same bits every time, no memory held twice."""

from dataclasses import replace

import pytest
import torch

from grpo.config import KlEstimator, LossConfig, ObjectiveName
from grpo.policy import replicas
from grpo.policy.replicas import Replicas, deal, num_replicas
from grpo.rollout.decoder import Decoder
from tests.unit.policy.batches import gradients_of_update, grouped_batch, make_policy, tiny_model, with_advantages

LOSS = LossConfig(name="x", objective=ObjectiveName.clipped_token, cliprange=0.02)


@pytest.fixture(autouse=True)
def threads():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def train(num, *, batch=None, loss=LOSS, tokens=48, **knobs):
    """Weights and metrics of three updates."""
    reference = tiny_model(seed=5) if loss.kl_coef else None
    model = tiny_model()
    hardware = {"micro_batch_tokens": tokens}
    policy = make_policy(
        model, loss=loss, hardware=hardware, reference=reference, replicas=num, learning_rate=1e-3, **knobs
    )
    metrics = [policy.update(batch or grouped_batch(), step) for step in (1, 2, 3)]
    assert all(parameter.grad is None for each in policy._workers.models for parameter in each.parameters())
    return dict(model.named_parameters()), metrics


@pytest.mark.parametrize("num", [2, 3, 5])
@pytest.mark.parametrize("loss", [LOSS, replace(LOSS, kl_estimator=KlEstimator.k3, kl_coef=0.1)], ids=["plain", "kl"])
@pytest.mark.parametrize("knobs", [{}, {"train_batch_size": 6, "epochs_per_rollout_batch": 2}], ids=["one", "several"])
def test_weights_and_metrics_are_those_of_one_model(num, loss, knobs):
    weights, metrics = train(1, loss=loss, **knobs)
    others, other_metrics = train(num, loss=loss, **knobs)
    for name, weight in weights.items():
        # AdamW divides by the gradient's size: what is near 0 may go either way, by a step of 1e-3 at most.
        torch.testing.assert_close(others[name], weight, rtol=1e-4, atol=2e-5)
    for one, other in zip(metrics, other_metrics, strict=True):
        assert one.keys() == other.keys()
        assert other == pytest.approx(one, rel=1e-4, abs=1e-6)


def test_gradients_agree_to_the_contracts_precision():
    hardware = {"micro_batch_tokens": 60}
    first, *rest = (
        gradients_of_update(make_policy(tiny_model(), loss=LOSS, hardware=hardware, replicas=num), grouped_batch())
        for num in (1, 2, 3)
    )
    for others in rest:
        for name, gradient in first.items():
            assert (gradient - others[name]).norm() <= 1e-5 * gradient.norm()


def test_the_same_update_gives_the_same_bits():
    first, second = train(3)[0], train(3)[0]
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_every_micro_batch_goes_through_once_and_all_replicas_work(monkeypatch):
    seen = []
    model = tiny_model()
    policy = make_policy(model, hardware={"micro_batch_tokens": 60}, replicas=3)
    whole = policy._micro_batch_loss

    def noting(own, batch, micro_batch, *rest):
        seen.append((policy._workers.models.index(own), torch.get_num_threads(), micro_batch.rows))
        return whole(own, batch, micro_batch, *rest)

    monkeypatch.setattr(policy, "_micro_batch_loss", noting)
    torch.set_num_threads(2)
    policy.update(grouped_batch(), 1)
    assert sorted(row for _, _, rows in seen for row in rows) == list(range(12))
    assert {place for place, _, _ in seen} == {0, 1, 2}
    assert {count for _, count, _ in seen} == {1}
    assert torch.get_num_threads() == 2


def test_fewer_sequences_than_replicas():
    advantages = torch.zeros(12)
    advantages[[3, 7]] = torch.tensor([1.0, -1.0])
    batch = with_advantages(grouped_batch(), advantages)
    one, several = train(1, batch=batch)[0], train(5, batch=batch)[0]
    for name in one:
        torch.testing.assert_close(several[name], one[name], rtol=1e-4, atol=2e-5)
    nothing = with_advantages(grouped_batch(), torch.zeros(12))
    one, several = train(1, batch=nothing)[0], train(2, batch=nothing)[0]
    assert all(torch.equal(one[name], several[name]) for name in one)


def test_replicas_have_the_models_memory_also_after_the_engine_moved_it():
    model = tiny_model()
    copies = Replicas(model, 2)
    assert [p.data_ptr() for p in copies.models[1].parameters()] == [p.data_ptr() for p in model.parameters()]
    Decoder(model, dtype=torch.float32, device=torch.device("cpu"))
    pointers = copies.run(lambda own, _: [p.data_ptr() for p in own.parameters()], [0, 1])
    assert pointers[0] == pointers[1]
    assert all(p is not q for p, q in zip(model.parameters(), copies.models[1].parameters(), strict=True))


def test_tied_weights_stay_tied():
    other = Replicas(tiny_model(tie_word_embeddings=True), 2).models[1]
    assert other.lm_head.weight is other.model.embed_tokens.weight


def test_an_error_in_a_replica_reaches_the_caller():
    def failing(own, share):
        if share == 1:
            raise RuntimeError("no more memory")

    torch.set_num_threads(2)
    with pytest.raises(RuntimeError, match="no more memory"):
        Replicas(tiny_model(), 2).run(failing, [0, 1])
    assert torch.get_num_threads() == 2


def test_large_models_have_one(monkeypatch):
    model = tiny_model()
    size = sum(p.nbytes for p in model.parameters())
    torch.set_num_threads(3)
    assert num_replicas(model) == 3
    for limit, expected in ((2 * size, 3), (2 * size - 1, 2), (size - 1, 1)):
        monkeypatch.setattr(replicas, "_MAX_GRADIENT_BYTES", limit)
        assert num_replicas(model) == expected
    torch.set_num_threads(1)
    assert num_replicas(model) == 1


def test_work_is_dealt_out_largest_first():
    # 9 to the first, 7 to the second, 5 to the second (12), 4 to the first (13), 1 to the second (13).
    shares, load = deal([[0], [1], [2], [3], [4]], [5, 9, 1, 7, 4], 2)
    assert shares == [[[1], [4]], [[3], [0], [2]]]
    assert load == 13
    assert deal([[0]], [3], 2) == ([[[0]]], 3)
    assert deal([], [], 2) == ([], 0)
