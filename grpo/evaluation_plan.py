"""What an evaluation is made of, before weights are loaded: which models, which problems, asked how, kept where."""

from __future__ import annotations

import difflib
import hashlib
import json
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

from hydra import compose
from hydra.core.global_hydra import GlobalHydra
from omegaconf import DictConfig, OmegaConf

from grpo import __version__
from grpo.config import DataConfig, DataSource, DType, EvaluateConfig, RunConfig, check_compared, to_dict
from grpo.data.held_out import held_out_problems
from grpo.data.prompts import PromptTemplate, load_template
from grpo.errors import late_interrupts
from grpo.run.evals.models import NamedModel, find_model, fingerprint, slug, unique_labels
from grpo.run.evals.progress import Progress
from grpo.run.evals.results import Item
from grpo.run.evals.settings import config_of, named_keys, problem_settings
from grpo.types import Problem

FOLDER = Path("outputs/evaluations")
_BASE = "base"
_OWN_DATA = ("data.prompt", "data.stop", "data.train_path", "data.test_path")  # of the command line, not for each file


@dataclass(frozen=True)
class Evaluation:
    """One model on its problems.

    Attributes:
        cfg: of this model; `model.path` is set.
        name: of the model, in tables.
        given: what the command line called it.
        template: the prompt.
        items: all problems of all datasets.
        settings: everything that the results depend on.
        folder: where they go.
    """

    cfg: EvaluateConfig
    name: str
    given: str
    template: PromptTemplate
    items: Sequence[Item]
    settings: Mapping[str, Any]
    folder: Path

    @property
    def headline(self) -> str:
        """The model and how it was asked."""
        cfg, settings = self.cfg, self.settings
        way = (
            f"temperature {cfg.temperature:g}, top_p {cfg.top_p:g}, top_k {cfg.top_k}" if cfg.temperature else "greedy"
        )
        return (
            f"{self.name}: {cfg.model.path}\n"
            f"prompt {self.template.name}, reward {cfg.reward.name.name} ({cfg.reward.mode.name}); {way}, at most "
            f"{cfg.max_tokens} tokens, {cfg.samples_per_problem} sample{'s' * (cfg.samples_per_problem > 1)} a problem"
            f", seed {cfg.seed}; {settings['backend']} engine, {settings['compute_dtype']}"
        )


def plan(cfg: DictConfig, overrides: Sequence[str], progress: Progress) -> list[Evaluation]:
    """The evaluations that a command line asks for, one a model.

    Args:
        cfg: composed.
        overrides: of the command line.
        progress: told what names were taken to mean.

    Raises:
        ValueError: something a user can mend; one sentence.
    """
    named = named_keys(overrides)
    models = _models(cfg, named, progress)
    asked_by = next((model.run_config for model in models if model.run_config), None)
    configs = [config_of(cfg, model, model.run_config or asked_by, named) for model in models]
    datasets = {name: held_out_problems(data) for name, data in _datasets(configs[0], overrides).items()}
    for name, problems in datasets.items():
        if len(problems) < (configs[0].num_samples or 0):
            progress.warn(f"num_samples={cfg.num_samples}, but {name} has {len(problems)} problems; all are used")
    return [
        _evaluation(_built(config, progress), model.given, name, datasets)
        for config, model, name in zip(configs, models, unique_labels(models), strict=True)
    ]


def _models(cfg: DictConfig, named: set[str], progress: Progress) -> list[NamedModel]:
    if cfg.compare is None:
        models = [
            NamedModel(str(cfg.model.name), None)
            if cfg.model.path is None
            else find_model(cfg.model.path, "model.path")
        ]
    else:
        models = _compared(list(cfg.compare), progress)
    for note in (model.note for model in models if model.note):
        progress.say(note)
    asked = [(model, problem_settings(model.run_config)) for model in models if model.run_config is not None]
    other = next((model for model, problems in asked if problems != asked[0][1]), None)
    if other is not None and not named & {"data", "problems", "experiment"}:
        raise ValueError(
            f"{asked[0][0].given} and {other.given} have different held-out problems; say which to compare them on: "
            "data=..., or problems=..."
        )
    return models


def _compared(given: Sequence[str], progress: Progress) -> list[NamedModel]:
    """The models of `compare`; "base" is what the first run among them started from."""
    check_compared(given)
    models = {name: find_model(name, "compare") for name in given if name != _BASE or Path(name).exists()}
    if len(models) < len(given):
        run = next((model.run_config for model in models.values() if model.run_config), None)
        if run is None:
            raise ValueError(
                f"compare={list(given)}: {_BASE} is the model that a run started from, but none of the others is of "
                "a run; name the model itself"
            )
        schema = OmegaConf.structured(RunConfig)
        start = cast(RunConfig, OmegaConf.to_object(OmegaConf.merge(schema, run)))
        models[_BASE] = NamedModel(_BASE, _model_path(start, progress), run, is_path=False)
    return [models[name] for name in given]


def _model_path(cfg: RunConfig, progress: Progress) -> str:
    """Where the model is; one that is to be built is built first."""
    if cfg.model.path is not None:
        return cfg.model.path
    with late_interrupts():
        from grpo.policy.load import quiet_transformers
        from grpo.warm_start import built_model_folder

    quiet_transformers()
    return str(built_model_folder(cfg, progress.say))


def _built(cfg: EvaluateConfig, progress: Progress) -> EvaluateConfig:
    path = _model_path(cfg.as_run(), progress)
    warm_start = replace(cfg.model.warm_start, steps=0)
    return replace(cfg, model=replace(cfg.model, path=path, warm_start=warm_start))


def _datasets(cfg: EvaluateConfig, overrides: Sequence[str]) -> dict[str, DataConfig]:
    """Where the problems come from, by a name that is none other's."""
    if not cfg.problem_names:
        return {cfg.data.name: cfg.data}
    found = [_dataset(name, cfg, overrides) for name in cfg.problem_names]
    times = Counter(one.name for one in found)
    names = [one.name if times[one.name] == 1 else given for one, given in zip(found, cfg.problem_names, strict=True)]
    if len(set(names)) < len(names):
        raise ValueError(f"problems={cfg.problem_names} names some problems twice; name each once")
    return dict(zip(names, found, strict=True))


def _dataset(name: str, cfg: EvaluateConfig, overrides: Sequence[str]) -> DataConfig:
    """An option of `data`, or a file in the format that `data` has on the command line."""
    options = GlobalHydra.instance().config_loader().get_group_options("data")
    file = Path(os.path.expanduser(name))
    if name in options:
        kept = [item for item in overrides if item.startswith("data.") and item.split("=")[0] not in _OWN_DATA]
        data = compose(config_name="evaluate", overrides=[f"data={name}", *kept]).data
        if data.source is DataSource.arithmetic or data.get("test_path"):
            return cast(DataConfig, OmegaConf.to_object(data))
    elif file.is_file():
        return replace(
            cfg.data, name=file.stem, source=DataSource.jsonl, test_path=name, train_path="(none)", num_test=None
        )
    near = difflib.get_close_matches(name, options, n=1)
    raise ValueError(
        f"problems={name} is no file under {Path.cwd()} and no problems that data= knows"
        f"{f' (did you mean {near[0]}?)' if near and near[0] != name else ''}; name a JSON Lines file, or one of "
        f"{', '.join(option for option in options if option != 'jsonl')}"
    )


def _evaluation(cfg: EvaluateConfig, given: str, name: str, datasets: Mapping[str, Sequence[Problem]]) -> Evaluation:
    template = load_template(cfg.data.prompt, cfg.data.stop)
    items = [
        Item(dataset, place, problem, template.render(problem.question))
        for dataset, problems in datasets.items()
        for place, problem in enumerate(problems[: cfg.num_samples])
    ]
    settings = _settings(cfg, template, items)
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:8]
    own = FOLDER if cfg.output_dir is None else Path(cfg.output_dir)
    folder = own if cfg.output_dir is not None and cfg.compare is None else own / f"{slug(name)}-{digest}"
    return Evaluation(cfg, name, given, template, items, settings, folder)


def _settings(cfg: EvaluateConfig, template: PromptTemplate, items: Sequence[Item]) -> dict[str, Any]:
    """Everything that the results depend on. The engine and its arithmetic too: two of them never mix in one file."""
    assert cfg.model.path is not None
    reward, datasets = to_dict(cfg.reward), dict.fromkeys(item.dataset for item in items)
    return {
        "version": __version__,
        "weights": fingerprint(cfg.model.path, cfg.model.revision),
        "tokenizer": cfg.model.tokenizer,
        "prompt": template.text,
        "stop": list(template.stop),
        "reward": {key: reward[key] for key in ("name", "mode", "deadline_s")},
        "problems": {name: _problems_hash([item for item in items if item.dataset == name]) for name in datasets},
        **{key: getattr(cfg, key) for key in ("samples_per_problem", "temperature", "top_p", "top_k", "min_tokens")},
        **{key: getattr(cfg, key) for key in ("max_tokens", "seed")},
        "backend": cfg.backend.name,
        "compute_dtype": compute_dtype(cfg).name,
    }


def _problems_hash(items: Sequence[Item]) -> str:
    asked = [(item.problem.id, item.problem.question, item.problem.answer) for item in items]
    return f"{len(items)} problems, {hashlib.sha256(json.dumps(asked).encode()).hexdigest()[:16]}"


def compute_dtype(cfg: EvaluateConfig) -> DType:
    """The narrower of master weights and `hardware.compute_dtype`, as in training."""
    dtypes = (cfg.model.master_dtype, cfg.hardware.compute_dtype)
    return DType.bfloat16 if DType.bfloat16 in dtypes else DType.float32
