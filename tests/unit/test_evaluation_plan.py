"""What an evaluation is made of: everything that its results depend on is in its settings, and nothing else."""

from __future__ import annotations

from typing import Any

import pytest

from grpo.config import compose_config, to_evaluate_config
from grpo.data.prompts import load_template
from grpo.evaluation_plan import _settings
from grpo.run.evals.results import Item
from grpo.types import Problem

BASE = ("hardware=cpu", "data=arithmetic", "model.path=owner/name", "temperature=0.7", "samples_per_problem=2")
ITEMS = (Item("sums", 0, Problem("p0", "1 + 1", "2"), "ask"),)


def settings(*overrides: str, items: tuple[Item, ...] = ITEMS) -> dict[str, Any]:
    cfg = to_evaluate_config(compose_config([*BASE, *overrides], "evaluate"))
    return _settings(cfg, load_template(cfg.data.prompt, cfg.data.stop), items)


@pytest.fixture(scope="module")
def usual() -> dict[str, Any]:
    return settings()


@pytest.mark.parametrize(
    ("overrides", "keys"),
    [
        ("model.path=owner/other", "weights"),
        ("model.revision=v2", "weights"),
        ("model.tokenizer=owner/other", "tokenizer"),
        ("data.prompt=question_only reward=boxed", "prompt reward stop"),
        ("data.stop=[x]", "stop"),
        ("reward.mode=reference", "reward"),
        ("reward.deadline_s=2", "reward"),
        ("samples_per_problem=3", "samples_per_problem"),
        ("temperature=1", "temperature"),
        ("top_p=0.9", "top_p"),
        ("top_k=5", "top_k"),
        ("min_tokens=1", "min_tokens"),
        ("max_tokens=99", "max_tokens"),
        ("seed=7", "seed"),
        ("backend=vllm", "backend"),
        ("hardware.compute_dtype=bfloat16", "compute_dtype"),
        ("model.master_dtype=bfloat16", "compute_dtype"),
    ],
)
def test_what_results_depend_on_keeps_them_apart(usual: dict[str, Any], overrides: str, keys: str) -> None:
    found = settings(*overrides.split())
    assert {name for name in found if found[name] != usual[name]} == set(keys.split())


@pytest.mark.parametrize(
    "problem", [Problem("p1", "1 + 1", "2"), Problem("p0", "1 + 2", "2"), Problem("p0", "1 + 1", "3")]
)
def test_other_problems_are_kept_apart(usual: dict[str, Any], problem: Problem) -> None:
    assert settings(items=(Item("sums", 0, problem, "ask"),))["problems"] != usual["problems"]


def test_what_only_decides_how_fast_it_goes_may_change(usual: dict[str, Any]) -> None:
    knobs = ("hardware.num_threads=1", "hardware.engine_cache_tokens=4096", "reward.num_workers=1")
    assert settings(*knobs, "logging.console=plain", "output_dir=x") == usual
