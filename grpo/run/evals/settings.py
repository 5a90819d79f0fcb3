"""From one composed config to one config a model: a run's model is asked as the run asks it, unless told otherwise."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import fields
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf, open_dict

from grpo.config import DataConfig, EvaluateConfig, RewardConfig, to_evaluate_config
from grpo.run.evals.models import NamedModel

# What training calls by another name; the rest of these sections has no effect here.
_INSTEAD = {
    "sampling.temperature": "temperature",
    "sampling.top_p": "top_p",
    "sampling.top_k": "top_k",
    "sampling.min_tokens": "min_tokens",
    "sampling.max_tokens": "max_tokens",
    "evaluation.temperature": "temperature",
    "evaluation.max_tokens": "max_tokens",
    "evaluation.num_problems": "num_samples",
    "train.group_size": "samples_per_problem",
}
_IDLE = ("loss", "train", "sampling", "evaluation", "checkpoint")
_ASKING = ("prompt", "stop")  # of `data`: how the model is asked, and not what
_NO_FILE = "(none)"


def named_keys(overrides: Sequence[str]) -> set[str]:
    """The settings and groups that the command line names.

    Raises:
        ValueError: one that has no effect on an evaluation; names the one that has.
    """
    keys = {override.key_or_group for override in OverridesParser.create().parse_overrides(list(overrides))}
    for key in sorted(keys):
        if key.split(".")[0] in _IDLE:
            remedy = f"use {_INSTEAD[key]}=..." if key in _INSTEAD else "leave it out"
            raise ValueError(f"{key} has no effect on an evaluation; {remedy}")
    if "compare" in keys and keys & {"model", "model.path"}:
        raise ValueError("compare and model.path both name models; put them all into compare=[A,B]")
    if {"problems", "data.test_path"} <= keys:
        raise ValueError("problems and data.test_path both name problems; put them all into problems=[A,B]")
    return keys


def config_of(
    cfg: DictConfig, model: NamedModel, asked_by: Mapping[str, Any] | None, named: Collection[str]
) -> EvaluateConfig:
    """The config that a model is evaluated with.

    Prompt, reward and problems are those of a run, unless the command line names others: `data=` names problems,
    `data.prompt=` and `reward=` what they say, and `experiment=` all of them.

    Args:
        cfg: composed from the command line.
        model: see there.
        asked_by: config of the run that settings are taken from; None takes none.
        named: of `named_keys`.

    Raises:
        ValueError: a rule of `EvaluateConfig` is broken.
    """
    own = OmegaConf.create(cfg)  # a copy, with its types
    if asked_by is not None and "experiment" not in named:
        with open_dict(own):
            for key, value in _taken(asked_by, named).items():
                OmegaConf.update(own, key, value)
    if OmegaConf.is_missing(own.data, "train_path") or own.data.train_path is None:
        own.data.train_path = _NO_FILE  # nothing is trained
    if problems_named(own) and (OmegaConf.is_missing(own.data, "test_path") or own.data.test_path is None):
        own.data.test_path = _NO_FILE
    own.model.path = model.path
    if model.path is not None and "model.warm_start.steps" not in named:
        own.model.warm_start.steps = 0
    return to_evaluate_config(own)


def problems_named(cfg: DictConfig) -> bool:
    """Whether `problems` names others than those of `data`."""
    return cfg.problems is not None


def problem_settings(run_config: Mapping[str, Any]) -> dict[str, Any]:
    """What a run's config says about its held-out problems."""
    left_out = (*_ASKING, "name", "train_path", "num_train")
    return {key: value for key, value in run_config.get("data", {}).items() if key not in left_out}


def _taken(run_config: Mapping[str, Any], named: Collection[str]) -> dict[str, Any]:
    """Settings of the run, by their full names, that the command line leaves to it."""
    found: dict[str, Any] = {}
    for section, schema in (("data", DataConfig), ("reward", RewardConfig)):
        known = {item.name for item in fields(schema)}
        for key, value in run_config.get(section, {}).items():
            if key in known and _is_left(section, key, named):
                found[f"{section}.{key}"] = value
    dtype = run_config.get("model", {}).get("master_dtype")
    if dtype is not None and "model.master_dtype" not in named:
        found["model.master_dtype"] = dtype
    return found


def _is_left(section: str, key: str, named: Collection[str]) -> bool:
    if f"{section}.{key}" in named or (section == "reward" and "reward" in named):
        return False
    if section == "reward":
        return True
    if key in _ASKING:
        return "data.prompt" not in named  # a prompt brings its own stop strings
    return not {"data", "problems"} & set(named)
