"""The warm start: supervised training, cached by what it depends on, and written as a folder that others can load."""

import copy
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.nn.functional import cross_entropy
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoModelForCausalLM

from grpo import warm_start
from grpo.config import compose_run_config
from grpo.data.prompts import load_template
from grpo.policy.load import build_model, load_tokenizer
from grpo.policy.small_tokenizer import build_small_tokenizer
from grpo.warm_start import built_model_folder

SMALL = ["experiment=quickstart", "model.build.hidden_size=32", "model.build.num_hidden_layers=1"]


def config(tmp_path: Path, *overrides: str):
    return compose_run_config([*SMALL, f"model.warm_start.cache_dir={tmp_path}", *overrides])


def weights(folder: Path):
    return AutoModelForCausalLM.from_pretrained(folder).state_dict()


def losses(said: list[str]) -> list[float]:
    return [float(line.split("loss ")[1].split(",")[0]) for line in said if "loss " in line]


def test_a_step_is_one_of_cross_entropy_over_the_responses(tmp_path):
    cfg = config(tmp_path, "model.warm_start.steps=20", "model.warm_start.batch_size=6")
    template = load_template(cfg.data.prompt, cfg.data.stop)
    tokenizer = build_small_tokenizer(template.text.split("{question}"))
    model = build_model(cfg.model.build, tokenizer, seed=3, dtype=torch.float32)
    other = copy.deepcopy(model)
    batch = next(warm_start._batches(tokenizer, template, cfg))
    assert all(ids[-1] == tokenizer.eos_token_id for ids in batch.token_ids)
    metrics = warm_start._policy(model, cfg, print).update(batch, 1)

    logits = other(pad_sequence(list(batch.token_ids), batch_first=True)).logits
    rows = [
        (logits[row, p - 1 : len(ids) - 1], ids[p:])
        for row, (ids, p) in enumerate(zip(batch.token_ids, batch.prompt_lengths, strict=True))
    ]
    loss = cross_entropy(torch.cat([row for row, _ in rows]), torch.cat([ids for _, ids in rows]))
    loss.backward()
    torch.nn.utils.clip_grad_norm_(other.parameters(), 1.0)
    half = cfg.model.warm_start.learning_rate / 2  # the first of two steps of warm-up
    torch.optim.AdamW(other.parameters(), lr=half, betas=(0.9, 0.95), weight_decay=0).step()
    assert metrics["policy/loss"] == pytest.approx(loss.item(), rel=1e-5)
    assert metrics["policy/learning_rate"] == half
    for (name, mine), hand in zip(model.named_parameters(), other.parameters(), strict=True):
        near = (mine - hand).abs() < 1e-6  # AdamW's first step is the gradient's sign: where that is noise, so is it
        assert near.float().mean() > 0.98, name


def test_it_learns_and_is_made_once(tmp_path):
    said: list[str] = []
    folder = built_model_folder(config(tmp_path, "model.warm_start.steps=30"), said.append)
    assert losses(said)[-1] < 4.5  # log(264) = 5.58 is knowing nothing
    again: list[str] = []
    assert built_model_folder(config(tmp_path, "model.warm_start.steps=30"), again.append) == folder
    assert again == [f"model: {folder}, made earlier"]


@pytest.mark.parametrize(
    "change",
    [
        "seed=1",
        "model.warm_start.steps=4",
        "model.warm_start.format_error_rate=0.1",
        "data.level=2",
        "data.prompt=question_only",
        "model.build.hidden_size=64",
    ],
)
def test_whatever_the_weights_depend_on_makes_another_folder(tmp_path, change):
    overrides = ["model.warm_start.steps=3", "reward=boxed"] if "prompt" in change else ["model.warm_start.steps=3"]
    base = built_model_folder(config(tmp_path, "model.warm_start.steps=3"), lambda _: None)
    assert built_model_folder(config(tmp_path, *overrides, change), lambda _: None) != base


def test_the_same_config_gives_the_same_bits(tmp_path):
    first = weights(built_model_folder(config(tmp_path / "a", "model.warm_start.steps=5"), lambda _: None))
    second = weights(built_model_folder(config(tmp_path / "b", "model.warm_start.steps=5"), lambda _: None))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_zero_steps_keeps_random_weights_of_the_seed(tmp_path):
    folders = [
        built_model_folder(config(tmp_path, "model.warm_start.steps=0", f"seed={seed}"), lambda _: None)
        for seed in (0, 1)
    ]
    first, second = map(weights, folders)
    assert not torch.equal(first["lm_head.weight"], second["lm_head.weight"])


def test_the_tokenizer_survives_saving(tmp_path):
    cfg = config(tmp_path, "model.warm_start.steps=0")
    folder = built_model_folder(cfg, lambda _: None)
    tokenizer = load_tokenizer(replace(cfg.model, path=str(folder)))
    text = "What is 47 + 85?\nπ ≈ 3.14 <think> 7+5=12 </think> <answer>132</answer>"
    ids = tokenizer(text).input_ids
    assert tokenizer.decode(ids) == text
    assert len(tokenizer("47").input_ids) == 2
    assert len(tokenizer("</answer>").input_ids) == 1
