"""Contract 7: every option of every group composes with every hardware, and every experiment and sweep does."""

import itertools
from collections.abc import Iterator
from dataclasses import fields, replace
from pathlib import Path

import pytest
import yaml
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException

from grpo.config import LaunchConfig, RunConfig, compose_run_config, to_dict

CONF = Path(__file__).resolve().parents[2] / "conf"
GROUPS = ("model", "loss", "data", "reward")
# What an option cannot do without.
NEEDS = {
    "data=jsonl": ("data.train_path=train.jsonl", "data.test_path=test.jsonl"),
    "reward=boxed": ("data.prompt=qwen_boxed",),
}


def options(group: str) -> list[str]:
    return sorted(path.stem for path in (CONF / group).glob("*.yaml"))


def points(sweep: str) -> Iterator[tuple[str, ...]]:
    params = yaml.safe_load((CONF / "sweep" / f"{sweep}.yaml").read_text())["hydra"]["sweeper"]["params"]
    overrides = OverridesParser.create().parse_overrides([f"{key}={value}" for key, value in params.items()])
    values = [
        [f"{o.key_or_group}={value}" for value in o.sweep_string_iterator()]
        if o.is_sweep_override()
        else [o.input_line]
        for o in overrides
    ]
    return itertools.product(*values)


@pytest.mark.parametrize("choice", [f"{group}={option}" for group in GROUPS for option in options(group)])
def test_every_option_composes_with_every_hardware_and_computes_the_same(choice: str) -> None:
    configs = {
        hardware: compose_run_config([choice, f"hardware={hardware}", *NEEDS.get(choice, ())])
        for hardware in options("hardware")
    }
    group, option = choice.split("=")
    chosen = getattr(configs["cpu"], group).name
    assert getattr(chosen, "name", chosen) == option
    assert len({config.hardware.name for config in configs.values()}) == len(configs)
    for config in configs.values():
        assert replace(config, hardware=configs["cpu"].hardware) == configs["cpu"]


@pytest.mark.parametrize("hardware", options("hardware"))
@pytest.mark.parametrize("experiment", options("experiment"))
def test_every_experiment_composes_with_every_hardware(experiment: str, hardware: str) -> None:
    config = compose_run_config([f"experiment={experiment}", f"hardware={hardware}"])
    assert config.hardware.name == hardware
    assert (CONF / "experiment" / f"{experiment}.yaml").read_text().startswith("# @package _global_\n# ")


@pytest.mark.parametrize("launch", options("launch"))
def test_every_launch_composes_and_changes_nothing_else(launch: str) -> None:
    config = compose_run_config([f"launch={launch}"])
    assert config.launch.name == launch
    assert replace(config, launch=LaunchConfig()) == compose_run_config([])
    # The file shows every setting with its default.
    shown = yaml.safe_load((CONF / "launch" / f"{launch}.yaml").read_text()).get("launch")
    assert shown is None or shown == {**to_dict(LaunchConfig()), "name": launch}


def test_the_search_with_optuna_composes() -> None:
    """What it tries is not known before."""
    pytest.importorskip("hydra_plugins.hydra_optuna_sweeper")
    assert compose_run_config(["sweep=optuna", "train.learning_rate=2e-6"]).train.learning_rate == 2e-6


@pytest.mark.parametrize("experiment", [None, "quickstart"])
@pytest.mark.parametrize("sweep", [name for name in options("sweep") if name != "optuna"])
def test_every_point_of_every_sweep_composes(sweep: str, experiment: str | None) -> None:
    base = [f"sweep={sweep}", *([f"experiment={experiment}"] if experiment else [])]
    configs = [compose_run_config([*base, *point]) for point in points(sweep)]
    assert len(configs) > 1
    assert all(first != second for first, second in itertools.combinations(configs, 2))


def test_sweep_over_cliprange_clips() -> None:
    configs = [compose_run_config(["sweep=cliprange", *point]) for point in points("cliprange")]
    assert [config.loss.clip_low for config in configs] == [0.1, 0.2, 0.3]
    assert all(config.loss.clips and config.train.updates_per_step > 1 for config in configs)


def test_losses_are_compared_where_they_differ() -> None:
    """In the first update of a batch the ratio is 1: REINFORCE, whose gradient the clipped losses have too."""
    configs = [compose_run_config(["sweep=loss_type", *point]) for point in points("loss_type")]
    assert all(config.train.updates_per_step > 1 for config in configs)


def test_defaults() -> None:
    config = compose_run_config([])
    assert (config.model.name, config.hardware.name) == ("qwen2_5_math_1_5b", "two_gpu")
    assert (config.loss.name, config.data.name, config.reward.name.value) == (
        "reinforce_with_baseline",
        "math",
        "r1_zero",
    )
    train = config.train
    assert (train.n_grpo_steps, train.learning_rate, train.rollout_batch_size) == (200, 1e-5, 256)
    assert (train.group_size, train.train_batch_size, train.epochs_per_rollout_batch) == (8, 256, 1)
    assert (train.max_grad_norm, train.adam_beta1, train.adam_beta2, train.weight_decay) == (1.0, 0.9, 0.95, 0.0)
    assert train.gradient_accumulation_steps is None
    assert (config.sampling.temperature, config.sampling.min_tokens, config.sampling.max_tokens) == (1.0, 4, 1024)
    assert (config.loss.advantage_eps, config.seed) == (1e-6, 42)
    assert compose_run_config(["loss=grpo_clip"]).loss.cliprange == 0.2


@pytest.mark.parametrize(
    "line",
    [
        "hardware=mps loss=grpo_clip",
        "hardware=cpu",
        "experiment=quickstart seed=3",
        "train.group_size=16 loss=grpo_clip loss.cliprange=0.1",
        "model.path=some/folder hardware=single_gpu",
        "data=jsonl data.train_path=a.jsonl data.test_path=b.jsonl data.problem_field=question",
        "resume=never output_dir=outputs/mine logging.wandb=offline",
        "train.gradient_accumulation_steps=32",
    ],
)
def test_lines_that_people_type(line: str) -> None:
    assert isinstance(compose_run_config(line.split()), RunConfig)


@pytest.mark.parametrize(
    "group", [f.name for f in fields(RunConfig) if hasattr(f.default_factory, "__mro__")] + ["loss"]
)
def test_a_misspelt_key_is_named(group: str) -> None:
    with pytest.raises(HydraException) as failure:
        compose_run_config([f"{group}.misspelt=1"])
    assert "Key 'misspelt' not in" in f"{failure.value} {failure.value.__cause__}"


def test_an_unknown_option_names_the_known_ones() -> None:
    with pytest.raises(HydraException, match="grpo_clip") as failure:
        compose_run_config(["loss=grpo_clap"])
    assert "\tbase\n" not in str(failure.value)


def test_a_wrong_type_names_the_key() -> None:
    with pytest.raises(HydraException) as failure:
        compose_run_config(["train.group_size=many"])
    assert "train.group_size" in f"{failure.value} {failure.value.__cause__}"
