"""What a run config refuses, and what it says of settings that have no effect: one sentence, with the remedy."""

import re
from dataclasses import fields, is_dataclass
from typing import Any

import pytest

from grpo import config
from grpo.config import compose_run_config

HEAD_SIZE = "is not a multiple of twice model.build.num_attention_heads=5 (rotary positions pair the numbers of a head)"
REFUSED = {
    ("+train.foo=1",): "+train.foo: no such setting; `python -m grpo.train --cfg job` prints them all",
    ("++train.foo=1", "+model.build.bar=2"): "+model.build.bar, +train.foo: no such setting; ",
    ("+foo.bar=1",): "+foo: no such setting; ",
    ("model.build.num_attention_heads=0",): "model.build.num_attention_heads=0 is not positive; use a number above 0",
    ("model.build.num_key_value_heads=0",): "model.build.num_key_value_heads=0 is not positive; ",
    ("model.build.hidden_size=-96",): "model.build.hidden_size=-96 is not positive; ",
    ("model.build.num_hidden_layers=0",): "model.build.num_hidden_layers=0 is not positive; ",
    ("model.build.intermediate_size=0",): "model.build.intermediate_size=0 is not positive; ",
    ("model.build.max_position_embeddings=0",): "model.build.max_position_embeddings=0 is not positive; ",
    ("model.build.rope_theta=-1",): "model.build.rope_theta=-1.0 is not positive; ",
    ("model.build.vocab_size=-3",): "model.build.vocab_size=-3 is not positive; ",
    (
        "model.build.hidden_size=95",
        "model.build.num_attention_heads=5",
        "model.build.num_key_value_heads=1",
    ): f"model.build.hidden_size=95 {HEAD_SIZE}; use 90 or 100",
    (
        "model.build.hidden_size=97",
        "model.build.num_attention_heads=5",
        "model.build.num_key_value_heads=1",
    ): f"model.build.hidden_size=97 {HEAD_SIZE}; use 90 or 100",
    (
        "model.build.num_attention_heads=4",
        "model.build.num_key_value_heads=3",
    ): "model.build.num_attention_heads=4 is not a multiple of model.build.num_key_value_heads=3; use a divisor of it",
    ("train.learning_rate=inf",): "train.learning_rate=inf is not finite; use a number",
    ("train.learning_rate=nan",): "train.learning_rate=nan is not positive; ",
    ("train.weight_decay=inf",): "train.weight_decay=inf is not finite; ",
    ("train.adam_eps=inf",): "train.adam_eps=inf is not finite; ",
    ("sampling.temperature=inf",): "sampling.temperature=inf is not finite; ",
    ("evaluation.temperature=inf",): "evaluation.temperature=inf is not finite; ",
    ("loss.kl_estimator=k3", "loss.kl_coef=inf"): "loss.kl_coef=inf is not finite; ",
    ("logging.plot_steps=-5",): "logging.plot_steps=-5 is negative; use 0 to draw at the end only",
    (
        "reward=format_only",
        "data.prompt=qwen_boxed",
    ): "reward=format_only never finds its tags after data.prompt=qwen_boxed; use reward=boxed, or data.prompt=r1_zero",
    (
        "reward=boxed",
    ): "reward=boxed never finds an answer after data.prompt=r1_zero; use reward=r1_zero, or data.prompt=qwen_boxed",
    (
        "data.prompt=question_only",
    ): "reward=r1_zero never finds an answer after data.prompt=question_only; use reward=boxed, or data.prompt=r1_zero",
}


@pytest.mark.parametrize("overrides", REFUSED, ids=" ".join)
def test_what_cannot_be_is_refused(overrides: tuple[str, ...]) -> None:
    with pytest.raises(ValueError) as error:  # noqa: PT011
        compose_run_config(["experiment=quickstart", *overrides])
    assert REFUSED[overrides] in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "override",
    [
        "+launch.additional_parameters.gres=gpu:1",
        "train.max_grad_norm=inf",  # does not clip
        "loss.cliprange_high=inf",  # nor does this, upwards
        "reward=random data.prompt=qwen_boxed",
        "model.build.hidden_size=40 model.build.num_attention_heads=5 model.build.num_key_value_heads=1",
    ],
)
def test_what_looks_odd_and_is_fine(override: str) -> None:
    compose_run_config(["experiment=quickstart", *override.split()])


NO_CLIPPING = "has no effect: loss.objective=reinforce does not clip"
NOTES = {
    (): [],
    ("loss=reinforce_with_baseline", "loss.cliprange=0.1"): [f"loss.cliprange=0.1 {NO_CLIPPING}"],
    ("loss=reinforce_with_baseline", "loss.cliprange_high=0.3"): [f"loss.cliprange_high=0.3 {NO_CLIPPING}"],
    ("loss=rloo", "loss.cliprange=0.1", "loss.cliprange_high=0.3"): [
        f"loss.cliprange=0.1 {NO_CLIPPING}",
        f"loss.cliprange_high=0.3 {NO_CLIPPING}",
    ],
    ("train.warmup_steps=100",): [],
    ("train.warmup_steps=101",): [
        "train.warmup_steps=101 is more than train.n_grpo_steps=100: the learning rate never reaches "
        "train.learning_rate; use train.warmup_steps=100 or fewer"
    ],
    ("train.n_grpo_steps=0", "train.warmup_steps=5"): [],
}


@pytest.mark.parametrize("overrides", NOTES, ids=" ".join)
def test_what_has_no_effect_leaves_a_note(overrides: tuple[str, ...]) -> None:
    assert compose_run_config(["experiment=quickstart", *overrides]).notes() == NOTES[overrides]


ONE_UPDATE = (
    "has no effect on the only update of a rollout batch, whose ratio is 1; use train.epochs_per_rollout_batch=2"
)


@pytest.mark.parametrize(
    ("overrides", "is_noted"),
    [
        (("loss.cliprange=0.3",), True),
        (("loss.cliprange=0.3", "train.epochs_per_rollout_batch=2"), False),
        (("loss.cliprange=0.3", "train.train_batch_size=128"), False),
        (("loss.cliprange=0.3", "hardware.overlap=true"), False),
    ],
)
def test_a_clip_range_of_the_command_line_that_has_no_effect_leaves_a_note(
    overrides: tuple[str, ...], is_noted: bool
) -> None:
    config = compose_run_config(["experiment=quickstart", *overrides])
    assert config.notes() == []  # the loss's own clip range is no surprise
    assert config.notes({"loss.cliprange"}) == [f"loss.cliprange=0.3 {ONE_UPDATE}"] * is_noted


CONFIGS = [cls for cls in vars(config).values() if is_dataclass(cls) and cls.__module__ == config.__name__]


@pytest.mark.parametrize("cls", CONFIGS, ids=lambda cls: cls.__name__)
def test_every_setting_is_explained_at_its_class(cls: Any) -> None:
    _, _, attributes = cls.__doc__.partition("    Attributes:\n")
    explained = re.findall(r"^ {8}(\w+(?:, \w+)*): .", attributes, re.MULTILINE)
    assert sorted(name for names in explained for name in names.split(", ")) == sorted(f.name for f in fields(cls))
