"""Contract 1 over ranks: gradients, weights and metrics do not depend on how many processes share the work."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch
from torch import Tensor

from grpo.config import LossConfig, Packing, compose_run_config
from grpo.distributed import ONE_RANK, Ranks
from grpo.policy.sharding import whole_tensor
from grpo.rollout.torch_engine import TorchEngine
from grpo.types import Sampling, TrainBatch
from tests.contract import engines
from tests.ranks import needs_ranks, run_ranks
from tests.unit.policy.batches import (
    gradients_of_update,
    grouped_batch,
    make_policy,
    ragged_batch,
    tiny_model,
    with_advantages,
)

pytestmark = needs_ranks
ONE_ROW = [0.0] * 5 + [1.5] + [0.0] * 6
NO_FIRST_GRADIENT = ("no_row", "one_row_of_several_steps")  # of the last, the row is in a later optimiser step
OF_THREE = ("many_micro_batches", "untied", "one_row", "dapo")
# Losses, hardware and train settings; where there are several optimiser steps they need old log-probs.
CASES: dict[str, dict[str, Any]] = {
    "reinforce": {},
    "many_micro_batches": {"hardware": {"micro_batch_tokens": 1}},
    "padded": {"hardware": {"packing": Packing.padded, "micro_batch_tokens": 60}},
    "checkpointing": {"hardware": {"activation_checkpointing": True, "micro_batch_tokens": 60}},
    "accumulation": {"train": {"gradient_accumulation_steps": 4}},
    "clipping": {"train": {"max_grad_norm": 0.01}},
    "untied": {"model": {"tie_word_embeddings": False}},
    "one_row": {"advantages": ONE_ROW},  # the others have nothing to do
    "one_row_of_several_steps": {
        "loss": ("loss=grpo_clip",),
        "train": {"epochs_per_rollout_batch": 2, "train_batch_size": 4},
        "advantages": ONE_ROW,
    },
    "no_row": {"advantages": [0.0] * 12, "train": {"weight_decay": 0.1}},
    "dapo": {"loss": ("loss=dapo",), "train": {"epochs_per_rollout_batch": 2, "train_batch_size": 6}},
    "kl": {
        "loss": ("loss=gspo", "loss.kl_estimator=k3", "loss.kl_coef=0.1", "loss.importance_cap=1.2"),
        "train": {"epochs_per_rollout_batch": 2, "train_batch_size": 4},
        "hardware": {"micro_batch_tokens": 30},
    },
}


def loss_of(case: dict[str, Any]) -> LossConfig:
    return compose_run_config(list(case.get("loss", ("loss=reinforce_with_baseline",)))).loss


def policy_of(case: dict[str, Any], loss: LossConfig, ranks: Ranks) -> Any:
    """Ranks other than the first have other weights, which must not count."""
    shape, seed = case.get("model", {}), ranks.rank
    reference = tiny_model(seed=seed + 5, **shape).requires_grad_(False) if loss.kl_coef else None
    # Adam divides by the gradient's size: with an eps above their errors, gradients near 0 give equal steps.
    train = {"learning_rate": 1e-2, "adam_eps": 1e-3, **case.get("train", {})}
    model = tiny_model(seed=seed, **shape)
    return make_policy(model, loss=loss, hardware=case.get("hardware"), reference=reference, ranks=ranks, **train)


def batch_of(case: dict[str, Any]) -> TrainBatch:
    batch = grouped_batch()
    return with_advantages(batch, torch.tensor(case["advantages"])) if "advantages" in case else batch


def outcome(case: dict[str, Any], loss: LossConfig, ranks: Ranks) -> dict[str, Any]:
    gradients = gradients_of_update(policy_of(case, loss, ranks), batch_of(case))
    policy = policy_of(case, loss, ranks)
    metrics = [policy.update(batch_of(case), step) for step in (1, 2)]
    weights = {name: whole_tensor(p.detach()).clone() for name, p in policy.model.named_parameters()}
    return {"gradients": gradients, "metrics": metrics, "weights": weights}


def outcomes(ranks: Ranks, losses: dict[str, LossConfig]) -> dict[str, Any]:
    return {name: outcome(CASES[name], loss, ranks) for name, loss in losses.items()}


@functools.cache
def outcomes_of(num_ranks: int) -> list[dict[str, Any]]:
    losses = {name: loss_of(case) for name, case in CASES.items() if num_ranks < 3 or name in OF_THREE}
    return [outcomes(ONE_RANK, losses)] if num_ranks == 1 else run_ranks(num_ranks, outcomes, losses)


def assert_close(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    scale = max(float(value.abs().max()) for value in expected.values())
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-5, atol=1e-5 * scale, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize(("name", "num_ranks"), [*((name, 2) for name in CASES), *((name, 3) for name in OF_THREE)])
def test_as_on_one_rank(name: str, num_ranks: int) -> None:
    (expected,) = outcomes_of(1)
    largest = max(float(grad.abs().max()) for grad in expected[name]["gradients"].values())
    assert (largest > 1e-4) == (name not in NO_FIRST_GRADIENT), "no gradient to compare"
    for rank, found in enumerate(outcomes_of(num_ranks)):
        assert_close(found[name]["gradients"], expected[name]["gradients"])
        assert_close(found[name]["weights"], expected[name]["weights"])
        assert found[name]["metrics"] == outcomes_of(num_ranks)[0][name]["metrics"], f"rank {rank} says otherwise"
        for metrics, one in zip(found[name]["metrics"], expected[name]["metrics"], strict=True):
            assert metrics == pytest.approx(one, rel=1e-5, abs=1e-7)


PROMPTS = [[5, 6, 7, 8], [9], list(range(30, 60))]
SAMPLING = Sampling(temperature=0.8, min_tokens=2, max_tokens=16)


def sampled(policy: Any, version: int) -> tuple[Any, TrainBatch]:
    """An engine on the policy's weights after they were changed, and what it samples."""
    model = policy.whole_model
    engine = TorchEngine(
        model,
        engines.merged_tokenizer(),
        end_ids=[0],
        dtype=torch.float32,
        device=torch.device("cpu"),
        cache_tokens=4096,
    )
    policy.update(with_advantages(ragged_batch(), torch.linspace(-1, 1, 12)), version)
    engine.sync(policy.whole_model, version)
    groups = engine.generate(PROMPTS, engines.keys_of(3, 2), SAMPLING)
    return groups, engines.train_batch(PROMPTS, groups)


def rollouts(ranks: Ranks) -> tuple[Any, list[Tensor], list[Tensor]]:
    """Completions after an update, and log-probs of another number of them on every rank."""
    model = engines.tiny_model("qwen2_tied", seed=ranks.rank).requires_grad_(True)
    policy = make_policy(model, learning_rate=0.01, hardware={"micro_batch_tokens": 40}, ranks=ranks)
    groups, batch = sampled(policy, 1)
    own = batch.select(range(6 - 3 * ranks.rank))
    return groups, policy.log_probs(own), list(own.sampler_log_probs)


def test_every_ranks_engine_samples_what_one_ranks_does_and_agrees_with_the_policy() -> None:
    expected, _, _ = rollouts(ONE_RANK)
    for found, log_probs, sampler_log_probs in run_ranks(2, rollouts):
        assert [[c.token_ids for c in group] for group in found] == [[c.token_ids for c in group] for group in expected]
        assert all(completion.version == 1 for group in found for completion in group)
        assert len(log_probs) in (6, 3)
        torch.testing.assert_close(torch.cat(log_probs), torch.cat(sampler_log_probs), rtol=0, atol=1e-5)
