"""Checkpoints of several ranks: whole or absent, and the same on any number of them."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from torch import Tensor

from grpo.config import OptimizerName
from grpo.distributed import ONE_RANK, Ranks
from grpo.policy.sharding import whole_tensor
from grpo.policy.small_tokenizer import build_small_tokenizer
from grpo.run.checkpoints import TrainState, load_checkpoint, save_checkpoint
from tests.ranks import needs_ranks, run_ranks
from tests.unit.policy.batches import grouped_batch, make_policy, tiny_model

pytestmark = needs_ranks
# The last of three ranks holds nothing of a key projection, which has four rows.
SHAPE = {"num_attention_heads": 8, "num_key_value_heads": 1}


def policy_of(ranks: Ranks, optimizer: str, *, tied: bool = True, seed: int = 0) -> Any:
    model = tiny_model(seed=seed, tie_word_embeddings=tied, **SHAPE)
    if optimizer == "adamw_8bit":
        model.to(torch.bfloat16)
    return make_policy(model, optimizer=OptimizerName[optimizer], learning_rate=1e-2, ranks=ranks)


def contents(policy: Any) -> dict[str, Tensor]:
    """Weights and states, whole."""
    found: dict[str, Any] = dict(policy.model.named_parameters())
    for name, parameter in policy.model.named_parameters():
        found |= {f"{key}/{name}": value for key, value in policy.optimizer.state.get(parameter, {}).items()}
    return {name: whole_tensor(value.detach()).clone() for name, value in found.items()}


def save(ranks: Ranks, folder: Path, optimizer: str, tied: bool = True, steps: int = 2) -> dict[str, Tensor]:
    policy = policy_of(ranks, optimizer, tied=tied)
    for step in range(steps):
        policy.update(grouped_batch(), step + 1)
    tokenizer = build_small_tokenizer(["User: "])
    save_checkpoint(folder, TrainState(steps, 1), policy.model, tokenizer, policy.optimizer, keep_last=1, ranks=ranks)
    return contents(policy)


def load(ranks: Ranks, checkpoint: Path, optimizer: str, tied: bool = True) -> tuple[TrainState, dict[str, Tensor]]:
    policy = policy_of(ranks, optimizer, tied=tied, seed=1)
    state = load_checkpoint(checkpoint, policy.model, policy.optimizer)
    found = contents(policy)
    policy.update(grouped_batch(), 3)  # whatever was loaded has the form that a step needs
    return state, found


def on_ranks(num_ranks: int, work: Any, *args: Any) -> list[Any]:
    return [work(ONE_RANK, *args)] if num_ranks == 1 else run_ranks(num_ranks, work, *args)


@functools.cache
def saved(num_ranks: int, folder: Path, optimizer: str, tied: bool) -> dict[str, Tensor]:
    first, *others = on_ranks(num_ranks, save, folder, optimizer, tied)
    assert all(torch.equal(first[name], other[name]) for other in others for name in first)
    return first


@pytest.fixture(scope="module")
def folder_of(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return functools.cache(lambda *of: tmp_path_factory.mktemp("saved"))


@pytest.mark.parametrize(
    ("optimizer", "tied", "by", "on"),
    [
        *(("adamw", True, by, on) for by, on in ((2, 1), (1, 2), (2, 3), (2, 2))),
        ("adamw", False, 2, 1),
        ("adamw", False, 1, 2),
        *(("adamw_8bit", True, by, on) for by, on in ((2, 1), (1, 2), (2, 3))),
    ],
)
def test_what_some_ranks_saved_others_load_bit_by_bit(
    folder_of: Any, optimizer: str, tied: bool, by: int, on: int
) -> None:
    folder = folder_of(optimizer, tied, by)
    expected = saved(by, folder, optimizer, tied)
    assert ("exp_avg_codes/model.embed_tokens.weight" in expected) == (optimizer == "adamw_8bit")
    checkpoint = folder / "checkpoints" / "step_000002"
    for state, found in on_ranks(on, load, checkpoint, optimizer, tied):
        assert state == TrainState(2, 1)
        assert found.keys() == expected.keys()
        for name, value in expected.items():
            assert found[name].dtype == value.dtype
            assert torch.equal(found[name], value), name


def test_a_checkpoint_of_two_ranks_is_a_model_folder(folder_of: Any) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    expected = saved(2, folder := folder_of("adamw", True, 2), "adamw", True)
    checkpoint = folder / "checkpoints" / "step_000002"
    model = AutoModelForCausalLM.from_pretrained(checkpoint)
    assert all(torch.equal(value, expected[name]) for name, value in model.named_parameters())
    assert AutoTokenizer.from_pretrained(checkpoint).eos_token_id == build_small_tokenizer(["User: "]).eos_token_id
    shards = sorted((checkpoint / "optimizer").iterdir())
    assert len(shards) == 2
    sizes = []
    for shard in shards:  # no rank wrote all
        with safe_open(shard, "pt") as file:
            sizes.append(file.get_slice("exp_avg/model.embed_tokens.weight").get_shape()[0])
    assert sorted(sizes) == [131, 132]


def test_an_optimizer_that_has_not_stepped_has_no_state(tmp_path: Path) -> None:
    expected = run_ranks(2, save, tmp_path, "adamw", True, 0)[0]
    checkpoint = tmp_path / "checkpoints" / "step_000000"
    for _, found in (load(ONE_RANK, checkpoint, "adamw"), *run_ranks(2, load, checkpoint, "adamw")):
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[name], value) for name, value in expected.items())


def failing_save(ranks: Ranks, folder: Path, where: str) -> str:
    import torch.distributed.checkpoint as dcp

    def fail(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    policy = policy_of(ranks, "adamw")
    policy.update(grouped_batch(), 1)
    tokenizer: Any = build_small_tokenizer(["User: "])
    if where == "a state on rank 1" and ranks.rank == 1:
        dcp.HuggingFaceStorageWriter.write_data = fail
    if where == "a weight":
        policy.model.save_pretrained = fail
    if where == "the tokenizer":
        tokenizer.save_pretrained = fail
    try:
        save_checkpoint(folder, TrainState(3), policy.model, tokenizer, policy.optimizer, keep_last=1, ranks=ranks)
    except OSError as error:
        return str(error)
    return "saved"


@pytest.mark.parametrize("where", ["a state on rank 1", "a weight", "the tokenizer"])
def test_what_fails_on_one_rank_fails_on_all_and_leaves_what_there_was(tmp_path: Path, where: str) -> None:
    save(ONE_RANK, tmp_path, "adamw")
    sentences = run_ranks(2, failing_save, tmp_path, where)
    assert all("No space left on device" in sentence for sentence in sentences), sentences
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step_000002"]


def refused_load(ranks: Ranks, checkpoint: Path) -> str:
    policy = policy_of(ranks, "adamw", tied=False, seed=1)
    before = contents(policy)
    try:
        load_checkpoint(checkpoint, policy.model, policy.optimizer)
    except ValueError as error:
        assert all(torch.equal(value, before[name]) for name, value in contents(policy).items() if "/" not in name)
        return str(error)
    return "loaded"


def test_a_checkpoint_of_another_model_is_refused(folder_of: Any) -> None:
    saved(2, folder := folder_of("adamw", True, 2), "adamw", True)
    checkpoint = folder / "checkpoints" / "step_000002"
    for sentence in (refused_load(ONE_RANK, checkpoint), *run_ranks(2, refused_load, checkpoint)):
        assert "lm_head.weight is of another shape, or on one side only; resume with the config" in sentence


def refused_blocks(ranks: Ranks) -> str:
    model = tiny_model(hidden_size=16)
    try:
        make_policy(model, optimizer=OptimizerName.adamw_8bit, ranks=ranks)
    except ValueError as error:
        return str(error)
    return "taken"


def test_blocks_of_8_bit_states_that_ranks_would_cut_are_refused() -> None:
    sentence = (
        "train.optimizer=adamw_8bit keeps blocks of 128 weights, and 2 ranks would cut through those of a parameter "
        "of [263, 16]; use a number of ranks that divides 263, or train.optimizer=adamw"
    )
    assert run_ranks(2, refused_blocks) == [sentence] * 2
