"""A run's model is asked as the run asks it, unless the command line says otherwise."""

from collections.abc import Iterator
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from omegaconf import DictConfig, OmegaConf

from grpo.config import DType, RewardName, compose_run_config, config_path, register, to_dict
from grpo.run.evals.models import NamedModel
from grpo.run.evals.settings import config_of, named_keys, problem_settings

ARITHMETIC = ("data=arithmetic", "data.prompt=qwen_boxed", "data.level=3", "data.seed=5", "data.num_test=40")
RUN: dict[str, Any] = to_dict(
    compose_run_config([*ARITHMETIC, "reward=boxed", "reward.deadline_s=2", "model.master_dtype=bfloat16"])
)
CHECKPOINT = NamedModel("run", "run/checkpoints/step_000001", RUN)


@pytest.fixture(autouse=True)
def hydra() -> Iterator[None]:
    register()
    GlobalHydra.instance().clear()
    with initialize_config_dir(config_path(), version_base="1.3"):
        yield
    GlobalHydra.instance().clear()


def composed(*overrides: str) -> DictConfig:
    return compose("evaluate", overrides=list(overrides))


def config(model: NamedModel, *overrides: str) -> Any:
    overrides = ("hardware=cpu", *overrides)
    return config_of(composed(*overrides), model, model.run_config, named_keys(overrides))


def test_a_run_brings_prompt_reward_problems_and_dtype() -> None:
    cfg = config(CHECKPOINT)
    assert (cfg.data.prompt, cfg.data.source.name, cfg.data.level, cfg.data.seed) == ("qwen_boxed", "arithmetic", 3, 5)
    assert (cfg.data.name, cfg.data.num_test) == ("arithmetic", 40)
    assert (cfg.reward.name, cfg.reward.deadline_s) == (RewardName.boxed, 2)
    assert (cfg.model.path, cfg.model.master_dtype) == ("run/checkpoints/step_000001", DType.bfloat16)
    assert (cfg.max_tokens, cfg.temperature, cfg.seed) == (2048, 0.0, 42)


def test_other_problems_are_asked_with_the_runs_prompt() -> None:
    for overrides in (["data=gsm8k"], ["problems=gsm8k"]):
        cfg = config(CHECKPOINT, *overrides)
        assert (cfg.data.prompt, cfg.reward.name) == ("qwen_boxed", RewardName.boxed)
        assert cfg.data.source.name == "jsonl"


def test_the_command_line_wins_key_by_key() -> None:
    cfg = config(CHECKPOINT, "data.level=1", "reward.deadline_s=9", "model.master_dtype=float32")
    assert (cfg.data.level, cfg.data.seed, cfg.reward.deadline_s) == (1, 5, 9)
    assert cfg.model.master_dtype is DType.float32
    cfg = config(CHECKPOINT, "data.prompt=r1_zero", "reward=r1_zero")
    assert (cfg.data.prompt, cfg.data.stop, cfg.reward.name, cfg.data.level) == ("r1_zero", None, RewardName.r1_zero, 3)


def test_an_experiment_says_all_of_it() -> None:
    cfg = config(CHECKPOINT, "experiment=quickstart", "hardware=cpu")
    assert (cfg.data.prompt, cfg.data.level, cfg.reward.name) == ("r1_zero", 1, RewardName.r1_zero)
    assert cfg.model.warm_start.steps == 0  # of the model that the experiment would build


def test_a_model_of_no_run_is_asked_as_it_says_on_the_command_line() -> None:
    cfg = config(NamedModel("a/b", "a/b"))
    assert (cfg.data.name, cfg.data.prompt, cfg.reward.name) == ("math", "r1_zero", RewardName.r1_zero)
    assert cfg.model.path == "a/b"


def test_a_config_of_another_version_brings_what_is_known() -> None:
    other = {"data": {"prompt": "qwen_boxed", "of_later": 1}, "reward": {"name": "boxed"}, "later": {}}
    cfg = config(NamedModel("run", "run", other))
    assert (cfg.data.prompt, cfg.data.name, cfg.reward.name) == ("qwen_boxed", "math", RewardName.boxed)
    assert config(NamedModel("run", "run", {})).data.prompt == "r1_zero"


def test_no_training_file_is_needed() -> None:
    assert config(NamedModel("a/b", "a/b"), "data=jsonl", "data.test_path=mine.jsonl").data.test_path == "mine.jsonl"
    assert config(NamedModel("a/b", "a/b"), "data=jsonl", "problems=mine.jsonl").problems == "mine.jsonl"
    with pytest.raises(ValueError, match=r"data\.test_path is null; name a JSON Lines file"):
        config(NamedModel("a/b", "a/b"), "data=jsonl")


def test_prompt_and_reward_must_go_together() -> None:
    with pytest.raises(ValueError, match=r"reward=boxed never finds an answer after data\.prompt=r1_zero"):
        config(CHECKPOINT, "data.prompt=r1_zero")


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("sampling.temperature=0.7", "sampling.temperature has no effect on an evaluation; use temperature=..."),
        ("evaluation.num_problems=7", "evaluation.num_problems has no effect on an evaluation; use num_samples=..."),
        ("train.group_size=7", "train.group_size has no effect on an evaluation; use samples_per_problem=..."),
        ("loss=dapo", "loss has no effect on an evaluation; leave it out"),
        ("train.learning_rate=1", "train.learning_rate has no effect on an evaluation; leave it out"),
    ],
)
def test_what_has_no_effect_is_refused(override: str, sentence: str) -> None:
    with pytest.raises(ValueError) as error:  # noqa: PT011
        named_keys(["seed=1", override])
    assert str(error.value) == sentence


def test_models_are_named_once() -> None:
    with pytest.raises(ValueError, match="put them all into compare"):
        named_keys(["compare=[a,b]", "model.path=c"])


def test_two_runs_have_the_same_problems_whatever_they_train_on() -> None:
    other = OmegaConf.to_container(OmegaConf.create(RUN))
    assert isinstance(other, dict)
    other["data"].update(prompt="r1_zero", train_path="x", num_train=7)
    assert problem_settings(other) == problem_settings(RUN)
    other["data"]["level"] = 4
    assert problem_settings(other) != problem_settings(RUN)
