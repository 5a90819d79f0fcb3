"""conf/evaluate.yaml: every option of every group composes, and what cannot be is refused with its remedy."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException

from grpo.config import EngineName, EvaluateConfig, compose_run_config, config_path, register, to_evaluate_config
from grpo.types import Sampling

CONF = Path(__file__).resolve().parents[2] / "conf"
NEEDS = {
    "data=jsonl": ("data.train_path=train.jsonl", "data.test_path=test.jsonl"),
    "reward=boxed": ("data.prompt=qwen_boxed",),
}


def options(group: str) -> list[str]:
    return sorted(path.stem for path in (CONF / group).glob("*.yaml"))


@pytest.fixture(autouse=True)
def hydra() -> Iterator[None]:
    register()
    GlobalHydra.instance().clear()
    with initialize_config_dir(config_path(), version_base="1.3"):
        yield
    GlobalHydra.instance().clear()


def config(*overrides: str) -> EvaluateConfig:
    return to_evaluate_config(compose("evaluate", overrides=list(overrides)))


@pytest.mark.parametrize("choice", [f"{group}={o}" for group in ("model", "data", "reward") for o in options(group)])
def test_every_option_composes(choice: str) -> None:
    group, option = choice.split("=")
    chosen = getattr(config(choice, "hardware=cpu", *NEEDS.get(choice, ())), group).name
    assert getattr(chosen, "name", chosen) == option


@pytest.mark.parametrize("hardware", options("hardware"))
def test_hardware_changes_nothing_that_is_asked(hardware: str) -> None:
    one, cpu = config(f"hardware={hardware}"), config("hardware=cpu")
    assert one.backend is one.hardware.engine
    assert replace(one, hardware=cpu.hardware, backend=cpu.backend) == cpu


@pytest.mark.parametrize("experiment", options("experiment"))
def test_every_experiment_composes_and_asks_as_in_training(experiment: str) -> None:
    ours, theirs = config(f"experiment={experiment}"), compose_run_config([f"experiment={experiment}"])
    assert (ours.model, ours.data, ours.reward, ours.hardware) == (
        theirs.model,
        theirs.data,
        theirs.reward,
        theirs.hardware,
    )


def test_defaults() -> None:
    cfg = config()
    assert (cfg.num_samples, cfg.samples_per_problem, cfg.temperature, cfg.max_tokens) == (None, 1, 0.0, 2048)
    assert (cfg.problems, cfg.compare, cfg.pass_at, cfg.output_dir, cfg.seed) == (None, None, None, None, 42)
    assert cfg.sampling_of(["</answer>"]) == Sampling(0.0, 1.0, 0, 4, 2048, ("</answer>",))
    theirs = compose_run_config([])
    assert (cfg.model, cfg.data, cfg.reward, cfg.seed) == (theirs.model, theirs.data, theirs.reward, theirs.seed)


def test_the_backend_is_the_hardwares_engine_unless_it_is_named() -> None:
    assert config("hardware=cpu").backend is EngineName.torch
    assert config("hardware=single_gpu").backend is EngineName.vllm
    assert config("hardware=single_gpu", "hardware.engine=torch").backend is EngineName.torch
    assert config("hardware=single_gpu", "backend=torch").backend is EngineName.torch


@pytest.mark.parametrize(("n", "ks"), [(1, [1]), (2, [1, 2]), (7, [1, 2, 4]), (8, [1, 2, 4, 8])])
def test_k_are_the_powers_of_two(n: int, ks: list[int]) -> None:
    assert config(f"samples_per_problem={n}", "temperature=1").num_pass_at == ks
    assert config(f"samples_per_problem={n}", "temperature=1", f"pass_at=[{n},1]").num_pass_at == sorted({n, 1})


@pytest.mark.parametrize(
    ("override", "names"), [("problems=math", ["math"]), ("problems=[a,b]", ["a", "b"]), ("seed=1", [])]
)
def test_problems_are_one_or_several(override: str, names: list[str]) -> None:
    assert config(override).problem_names == names


REFUSED = {
    (
        "samples_per_problem=4",
    ): "samples_per_problem=4 with temperature=0.0 would give the same completion 4 times; use",
    ("samples_per_problem=4", "temperature=1", "pass_at=[1,8]"): (
        "pass_at=[1, 8] holds 8, but samples_per_problem=4; use k from 1 to 4, or more samples"
    ),
    ("pass_at=[0]",): "pass_at=[0] holds 0, but samples_per_problem=1; use k from 1 to 1",
    ("num_samples=0",): "num_samples=0 is not positive; use a number above 0",
    ("max_tokens=0",): "max_tokens=0 is not positive",
    ("max_tokens=2",): "min_tokens=4 is not between 0 and max_tokens=2; use 2",
    ("temperature=-1",): "temperature=-1.0 is negative; use 0 for greedy decoding",
    ("top_p=0.9",): "top_p=0.9 and top_k=0 have no effect on greedy decoding; use temperature=1.0",
    ("top_p=0", "temperature=1"): "top_p=0.0 is outside (0, 1]; use 1.0",
    ("top_k=-1", "temperature=1"): "top_k=-1 is negative; use 0",
    ("compare=[a/b]",): "compare=['a/b'] does not name two models or more, each once; use compare=[A,B]",
    ("compare=[a/b,a/b]",): "compare=['a/b', 'a/b'] does not name two models or more, each once",
    ("problems=[]",): "problems=[] names no problems; use problems=math",
    ("problems=5",): "problems=5 names no problems",
    ("+unknown=1",): "+unknown: no such setting; `python -m grpo.evaluate --cfg job` prints them all",
    ("++data.x=1",): "+data.x: no such setting; `python -m grpo.evaluate --cfg job` prints them all",
    ("temperature=inf",): "temperature=inf is not finite; use a number",
    ("seed=-1",): "seed=-1 is outside [0, 2**32)",
    ("reward=boxed",): "reward=boxed never finds an answer after data.prompt=r1_zero",
}


@pytest.mark.parametrize("overrides", REFUSED, ids=" ".join)
def test_what_cannot_be_is_refused(overrides: tuple[str, ...]) -> None:
    with pytest.raises(ValueError) as error:  # noqa: PT011
        config(*overrides)
    assert REFUSED[overrides] in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "override", ["num_sample=1", "compare=A", "temperature=hot", "backend=jax", "sweep=group_size"]
)
def test_what_does_not_compose(override: str) -> None:
    with pytest.raises(HydraException):
        config(override)
