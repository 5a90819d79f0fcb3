"""The evaluation before training, which the points of a sweep share: the first to come makes it for all.

<cache>/<hash of everything that it depends on>/evaluation.json
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from grpo import __version__
from grpo.config import ModelConfig, RewardName, RunConfig, to_dict
from grpo.run.files import hold_folder, write_atomic
from grpo.types import Problem

if TYPE_CHECKING:
    from grpo.distributed import Ranks

_NAME = "evaluation.json"


class BaseEvaluation(NamedTuple):
    """What an evaluation found: a row a problem, and the metrics `eval/...`."""

    rows: list[dict[str, Any]]
    metrics: dict[str, float]


def cache_folder(
    cfg: RunConfig, problems: Sequence[Problem], prompt_ids: Mapping[Problem, Sequence[int]], stop: Sequence[str]
) -> Path | None:
    """Where this run's evaluation before training is kept; None if the config names no place.

    Args:
        cfg: with the folder or Hub id of the weights in `model.path`.
        problems: held out.
        prompt_ids: token ids of each problem's prompt.
        stop: strings that end a completion.
    """
    if cfg.evaluation.base_cache_dir is None:
        return None
    ingredients = _ingredients(cfg, problems, prompt_ids, stop)
    name = hashlib.sha256(json.dumps(ingredients, sort_keys=True).encode()).hexdigest()[:16]
    return Path(cfg.evaluation.base_cache_dir) / name


@contextmanager
def take(folder: Path, ranks: Ranks) -> Iterator[BaseEvaluation | None]:
    """What is kept in the folder, or None if nothing is; others who want it wait until the block ends."""
    with ExitStack() as held:

        def read() -> BaseEvaluation | None:
            with suppress(OSError):  # a full disk: everybody makes their own
                held.enter_context(hold_folder(folder, wait=True))
            path = folder / _NAME
            return BaseEvaluation(**json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else None

        yield ranks.from_first(read)


def keep(folder: Path, evaluation: BaseEvaluation) -> None:
    """Keeps an evaluation for the others; on a full disk they make their own."""
    with suppress(OSError):
        write_atomic(folder / _NAME, json.dumps(evaluation._asdict()))


def _ingredients(
    cfg: RunConfig, problems: Sequence[Problem], prompt_ids: Mapping[Problem, Sequence[int]], stop: Sequence[str]
) -> dict[str, Any]:
    """Everything that the completions and their grades depend on."""
    import torch

    sampling = cfg.evaluation_sampling(stop)
    # Greedy completions draw no numbers, and neither does grading that compares.
    draws = sampling.temperature > 0 or cfg.reward.name is RewardName.random
    reward = {key: value for key, value in to_dict(cfg.reward).items() if key != "num_workers"}
    hardware = cfg.hardware
    return {
        "model": _weights(cfg.model),
        "problems": [[p.id, p.level, p.subject, p.question, p.answer, list(prompt_ids[p])] for p in problems],
        "sampling": asdict(sampling),
        "reward": reward,
        "seed": cfg.seed if draws else None,
        "engine": [hardware.engine.name, hardware.compute_dtype.name, hardware.engine_device.split(":")[0]],
        "versions": [__version__, torch.__version__],
    }


def _weights(model: ModelConfig) -> dict[str, Any]:
    """The weights by name; those in a folder also by their files, which somebody may replace."""
    folder = Path(model.path or "")
    files = sorted(folder.glob("*")) if model.path and folder.is_dir() else []
    stats = [(file.name, file.stat()) for file in files if file.is_file()]
    return {
        "path": str(folder.resolve()) if files else model.path,
        "revision": model.revision,
        "tokenizer": model.tokenizer,
        "dtype": model.master_dtype.name,
        "files": [[name, stat.st_size, stat.st_mtime_ns] for name, stat in stats],
    }
