"""Contract 4: tokens outside the response cannot change the loss."""

import pytest
import torch

from grpo.config import Packing
from grpo.policy.forward import response_log_probs
from grpo.policy.packing import collate
from grpo.types import TrainBatch
from tests.contract.test_batch_shape import LOSSES, assert_same, loss_config
from tests.unit.policy.batches import gradients_of_update, grouped_batch, make_policy, ragged_batch, tiny_model


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("layout", Packing)
def test_what_stands_in_the_padding_is_inert(name, layout, monkeypatch):
    """Padding with another token than the first, of the vocabulary or of the packed row, gives the same gradient."""
    import grpo.policy.packing as packing

    batch, hardware = grouped_batch(), {"packing": layout, "micro_batch_tokens": 100}
    plain = gradients_of_update(make_policy(tiny_model(), loss=loss_config(name), hardware=hardware), batch)
    pad = torch.nn.utils.rnn.pad_sequence
    monkeypatch.setattr(
        packing.torch.nn.utils.rnn, "pad_sequence", lambda rows, **kw: pad(rows, **{**kw, "padding_value": 17})
    )
    padded = gradients_of_update(make_policy(tiny_model(), loss=loss_config(name), hardware=hardware), batch)
    assert_same(plain, padded, rtol=1e-6)


def test_prompt_tokens_are_not_trained_on():
    """Without response gradient, a prompt alone moves nothing: zero advantages give a zero gradient everywhere."""
    batch = ragged_batch(advantages=torch.zeros(12))
    grads = gradients_of_update(make_policy(tiny_model()), batch)
    assert all(not grad.any() for grad in grads.values())


@pytest.mark.parametrize("packing", Packing)
def test_every_response_token_counts_and_no_other(packing):
    """Log-probs of row i cover exactly its response: as many as it has tokens, each of the token itself."""
    batch, model = grouped_batch(), tiny_model()
    policy = make_policy(model)
    rows = list(range(len(batch)))
    micro_batch = collate(batch, rows, torch.device("cpu"), packing)
    log_probs, _ = response_log_probs(model, micro_batch, policy._forward)
    for row in rows:
        length = batch.response_length(row)
        assert micro_batch.response_mask[row].sum() == length
        assert (log_probs[row, :length] < 0).all()
        assert not log_probs[row, length:].any()
    targets = iter(micro_batch.targets.tolist())
    for ids, start in zip(batch.token_ids, batch.prompt_lengths, strict=True):
        assert [next(targets) for _ in ids[start:]] == ids[start:].tolist()


@pytest.mark.parametrize("packing", Packing)
def test_a_later_token_cannot_change_an_earlier_log_prob(packing):
    batch, model = grouped_batch(), tiny_model()
    policy = make_policy(model, hardware={"packing": packing})
    changed = TrainBatch(
        tuple(torch.cat([ids[:-1], (ids[-1:] + 1) % 200 + 1]) for ids in batch.token_ids),
        batch.prompt_lengths,
        batch.sampler_log_probs,
        batch.advantages,
    )
    for before, after in zip(policy.log_probs(batch), policy.log_probs(changed), strict=True):
        torch.testing.assert_close(before[:-1], after[:-1], rtol=0, atol=2e-6)
        assert before[-1] != after[-1]


@pytest.mark.parametrize("packing", [Packing.packed, Packing.shared_prompts])
def test_a_sequence_is_blind_to_those_it_is_packed_with(packing):
    batch = grouped_batch()
    policy = make_policy(tiny_model(), hardware={"packing": packing})
    together = policy.log_probs(batch)
    for row in range(len(batch)):
        alone = policy.log_probs(batch.select([row]))[0]
        torch.testing.assert_close(together[row], alone, rtol=0, atol=2e-6)
