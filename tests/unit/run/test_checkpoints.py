from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from grpo.config import BuildConfig
from grpo.policy.load import build_model
from grpo.policy.small_tokenizer import build_small_tokenizer
from grpo.run.checkpoints import TrainState, checkpoints_in, load_checkpoint, save_checkpoint, step_of

SHAPE: dict[str, Any] = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "max_position_embeddings": 64,
}
TOKENIZER: Any = build_small_tokenizer(["Question: ", " Answer:"])


def trained(*, tied: bool = True, seed: int = 0, steps: int = 3) -> tuple[Any, torch.optim.AdamW]:
    """A model and its optimiser after a few steps."""
    model: Any = build_model(BuildConfig(tie_word_embeddings=tied, **SHAPE), TOKENIZER, seed=seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, fused=True)
    for _ in range(steps):
        train_step(model, optimizer)
    return model, optimizer


def train_step(model: Any, optimizer: torch.optim.AdamW) -> None:
    ids = torch.tensor([[1, 5, 9, 2, 7]])
    model(input_ids=ids, labels=ids).loss.backward()
    optimizer.step()
    optimizer.zero_grad()


def save(folder: Path, step: int, model: Any, optimizer: torch.optim.AdamW, keep_last: int = 2) -> Path:
    return save_checkpoint(folder, TrainState(step, 1), model, TOKENIZER, optimizer, keep_last=keep_last)


@pytest.mark.parametrize("tied", [True, False])
def test_what_was_saved_goes_on_as_if_nothing_had_happened(tmp_path: Path, tied: bool) -> None:
    model, optimizer = trained(tied=tied)
    checkpoint = save(tmp_path, 3, model, optimizer)
    other, others_optimizer = trained(tied=tied, seed=1, steps=0)
    assert load_checkpoint(checkpoint, other, others_optimizer) == TrainState(3, 1)
    for _ in range(2):
        train_step(model, optimizer)
        train_step(other, others_optimizer)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters(), strict=True))
    state, others = optimizer.state_dict()["state"], others_optimizer.state_dict()["state"]
    assert state.keys() == others.keys()
    for number, values in state.items():
        assert all(torch.equal(value, others[number][key]) for key, value in values.items())
        assert values["step"] == 5
    assert (other.lm_head.weight is other.model.embed_tokens.weight) == tied


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("tied", [True, False])
def test_transformers_loads_the_same_model_and_tokenizer(tmp_path: Path, tied: bool, dtype: torch.dtype) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model, optimizer = trained(tied=tied)
    model.to(dtype)
    checkpoint = save(tmp_path, 3, model, optimizer)
    loaded = AutoModelForCausalLM.from_pretrained(checkpoint)
    ids = torch.tensor([[3, 1, 4, 1, 5]])
    with torch.no_grad():
        assert loaded.dtype == dtype
        assert torch.equal(loaded(input_ids=ids).logits, model(input_ids=ids).logits)
    text = "Question: What is 1 + 2? Answer: <think> 3 </think> é\n"
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    assert tokenizer(text).input_ids == TOKENIZER(text).input_ids
    assert tokenizer.decode(tokenizer(text).input_ids) == text
    assert tokenizer.eos_token_id == TOKENIZER.eos_token_id


def test_the_last_ones_stay(tmp_path: Path) -> None:
    model, optimizer = trained()
    for step in (2, 10, 1_000_000, 3):
        save(tmp_path, step, model, optimizer, keep_last=3)
    assert [step_of(path) for path in checkpoints_in(tmp_path)] == [3, 10, 1_000_000]
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == [
        "step_000003",
        "step_000010",
        "step_1000000",
    ]


def test_only_checkpoints_are_checkpoints(tmp_path: Path) -> None:
    assert checkpoints_in(tmp_path) == []
    for name in ("step_000002", ".tmp-step_000004-1", "step_12", "step_000003.bak", "notes"):
        (tmp_path / "checkpoints" / name).mkdir(parents=True)
    assert [path.name for path in checkpoints_in(tmp_path)] == ["step_000002"]


def test_an_optimizer_that_has_not_stepped_has_no_state(tmp_path: Path) -> None:
    model, optimizer = trained(steps=0)
    checkpoint = save(tmp_path, 1, model, optimizer)
    assert load_file(checkpoint / "optimizer.safetensors") == {}
    other, others_optimizer = trained(steps=0, seed=1)
    load_checkpoint(checkpoint, other, others_optimizer)
    train_step(model, optimizer)
    train_step(other, others_optimizer)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters(), strict=True))


@pytest.mark.parametrize(("saved", "asked"), [(True, False), (False, True)])
def test_a_checkpoint_of_another_model_is_refused(tmp_path: Path, saved: bool, asked: bool) -> None:
    checkpoint = save(tmp_path, 1, *trained(tied=saved))
    other, optimizer = trained(tied=asked, seed=1, steps=0)
    before = [parameter.clone() for parameter in other.parameters()]
    with pytest.raises(
        ValueError, match=r"does not fit the model: lm_head\.weight is of another shape, or on one side"
    ):
        load_checkpoint(checkpoint, other, optimizer)
    assert all(torch.equal(a, b) for a, b in zip(before, other.parameters(), strict=True))


def test_a_checkpoint_of_another_shape_is_refused(tmp_path: Path) -> None:
    checkpoint = save(tmp_path, 1, *trained())
    other: Any = build_model(BuildConfig(**{**SHAPE, "intermediate_size": 32}), TOKENIZER, seed=0)
    with pytest.raises(ValueError, match=r"model\.layers\.0\.mlp\.down_proj\.weight is of another shape"):
        load_checkpoint(checkpoint, other, torch.optim.AdamW(other.parameters()))


def test_a_failed_save_keeps_what_there_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, optimizer = trained()
    save(tmp_path, 1, model, optimizer, keep_last=1)

    def fail(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(TOKENIZER, "save_pretrained", fail)  # by then the weights are written
    with pytest.raises(OSError, match="No space"):
        save(tmp_path, 2, model, optimizer, keep_last=1)
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step_000001"]
