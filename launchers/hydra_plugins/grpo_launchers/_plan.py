"""From a sweep's overrides to its points.

All are composed when the sweep is started, and frozen: an option of conf/ that is edited while the first ones run does
not come between them and the last ones.
"""

from __future__ import annotations

import copy
import hashlib
import json
import re
import shlex
import sys
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from hydra.core.config_store import ConfigNode, ConfigStore
from hydra.errors import ConfigCompositionException
from hydra.types import HydraContext
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from hydra_plugins.grpo_launchers._points import FROZEN, Point, varying


def plan(
    context: HydraContext,
    config: DictConfig,
    job_overrides: Sequence[Sequence[str]],
    first: int,
    command: Sequence[str],
) -> list[tuple[Point, DictConfig]]:
    """Composes every point.

    Args:
        context: Hydra's.
        config: of the sweep.
        job_overrides: of each point.
        first: number of the first of them.
        command: the program, which a point's config is handed to.

    Raises:
        hydra.errors.HydraException: an override that does not compose.
    """
    folder = Path(str(config.hydra.sweep.dir))
    return [
        _plan(context, config, list(overrides), number, folder, command)
        for number, overrides in enumerate(job_overrides, start=first)
    ]


def _plan(
    context: HydraContext, config: DictConfig, overrides: list[str], number: int, folder: Path, command: Sequence[str]
) -> tuple[Point, DictConfig]:
    composed = context.config_loader.load_sweep_config(config, overrides)
    with open_dict(composed):
        composed.hydra.job.id = str(number)
        composed.hydra.job.num = number
    own = composed.get("output_dir")
    place = folder / str(composed.hydra.sweep.subdir) if own == config.get("output_dir") else Path(own)
    _settle(composed, folder, place)
    flags = ["--config-path", str(place.resolve()), "--config-name", FROZEN]
    typed = [text for text in overrides if not text.startswith(("output_dir=", "resume="))]
    point = Point(number, tuple(overrides), place, (*command, *flags))
    words = [*config_flags(context, config), *typed, f"output_dir={quoted(str(place))}"]
    point.typed = " ".join([typed_program(command), *map(shlex.quote, words)])
    return point, composed


def config_flags(context: HydraContext, config: DictConfig) -> list[str]:
    """The flags that name another config than the program's own."""
    from grpo.config import config_path

    flags: list[str] = []
    for source in context.config_loader.get_search_path().get_path():
        if source.provider == "main" and source.path != config_path():
            flags += ["--config-path", str(source.path)]
        elif source.provider == "command-line":
            flags += ["--config-dir", str(source.path).removeprefix("file://")]
    name = str(config.hydra.job.config_name)
    return flags if name == "config" else [*flags, "--config-name", name]


def typed_again(context: HydraContext, config: DictConfig, command: Sequence[str]) -> str:
    """The command that goes on with this sweep."""
    task = [text for text in config.hydra.overrides.task if not text.startswith(("output_dir=", "resume="))]
    mode = ["--multirun"] if "hydra.mode=MULTIRUN" in config.hydra.overrides.hydra else []
    own = [text for text in config.hydra.overrides.hydra if not text.startswith("hydra.mode=")]
    place = f"output_dir={quoted(str(config.hydra.sweep.dir))}"
    words = [*mode, *config_flags(context, config), *task, *own, place]
    return " ".join([typed_program(command), *map(shlex.quote, words)])


def _settle(composed: DictConfig, folder: Path, place: Path) -> None:
    """Sets what the place in the sweep decides, where the config has such keys."""
    with open_dict(composed):
        composed.hydra.run.dir = str(place)
        for key, value in (("output_dir", str(place)), ("resume", "auto")):
            if key in composed:
                composed[key] = value
        evaluation = composed.get("evaluation")
        if evaluation is not None and evaluation.get("base_cache_dir", "") is None:
            evaluation.base_cache_dir = str(folder / "base_evaluations")


def freeze(planned: Sequence[tuple[Point, DictConfig]]) -> None:
    """Resolves every point's config into `point.config` and its digest; nothing is written yet."""
    from grpo.run.flat import bound

    for point, composed in planned:
        settings: Any = OmegaConf.to_container(task_config(composed), resolve=True, enum_to_str=True)
        point.config = settings
        text = json.dumps(bound(settings), sort_keys=True, default=str)
        point.digest = hashlib.sha256(text.encode()).hexdigest()[:16]


def write_frozen(point: Point, composed: DictConfig) -> None:
    """Writes point.yaml: a config of its own, with the schema of the sweep's and all values in place.

    Raises:
        OSError: no room.
    """
    from grpo.run.files import write_atomic

    hydra = composed.hydra
    kept: dict[str, Any] = {
        "run": {"dir": str(hydra.run.dir)},
        "mode": "RUN",
        "output_subdir": hydra.output_subdir,
        "verbose": OmegaConf.to_object(hydra.verbose) if OmegaConf.is_config(hydra.verbose) else hydra.verbose,
        "job": {"num": point.number, "id": str(point.number)},
    }
    for name in ("job_logging", "hydra_logging", "callbacks"):
        kept[name] = OmegaConf.to_container(hydra[name], resolve=False)
    for name in ("chdir", "env_set", "env_copy"):
        value = hydra.job[name]
        kept["job"][name] = OmegaConf.to_container(value) if OmegaConf.is_config(value) else value
    schema = _schema_of(composed)
    defaults = [*([f"{schema}@_here_"] if schema else []), "_self_"]
    contents = {"defaults": defaults, **_literal(point.config), "hydra": kept}
    point.folder.mkdir(parents=True, exist_ok=True)
    head = f"# Point {point.number} of a sweep, as composed when the sweep was started: {point.typed}\n"
    write_atomic(point.folder / f"{FROZEN}.yaml", head + OmegaConf.to_yaml(OmegaConf.create(contents)))


def _schema_of(composed: DictConfig) -> str | None:
    """The schema/... that the whole config has the type of."""
    wanted = OmegaConf.get_type(composed)
    nodes: Mapping[str, Any] = ConfigStore.instance().repo.get("schema", {})
    for name, node in nodes.items():
        if isinstance(node, ConfigNode) and OmegaConf.get_type(node.node) is wanted and wanted is not dict:
            return f"schema/{name.removesuffix('.yaml')}"
    return None


def _literal(value: Any) -> Any:
    """The value with texts that look like interpolations written so that they stay texts."""
    if isinstance(value, dict):
        return {key: _literal(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_literal(item) for item in value]
    return value.replace("${", "\\${") if isinstance(value, str) else value


def task_config(composed: DictConfig) -> DictConfig:
    """The config without Hydra's own part."""
    task = copy.deepcopy(composed)
    with open_dict(task):
        del task["hydra"]
    return task


def require_valid(planned: Sequence[tuple[Point, DictConfig]], check: Callable[[Any], None]) -> None:
    """Every point keeps the rules of its schema and those of `check`, before the first one starts.

    Args:
        planned: all points.
        check: told each config as its frozen dataclass; raises ValueError.

    Raises:
        ConfigCompositionException: names the points that cannot run, and why.
    """
    from grpo.config import RunConfig, to_run_config

    broken: dict[str, list[str]] = {}
    points = [point for point, _ in planned]
    for point, composed in planned:
        try:
            if OmegaConf.get_type(composed) is RunConfig:
                check(to_run_config(task_config(composed)))
        except (ValueError, OmegaConfBaseException) as error:
            broken.setdefault(str(error), []).append(f"point {point.number} ({varying(point, points)})")
    if broken:
        number = sum(map(len, broken.values()))
        heading = f"nothing was started: {number} of the sweep's {len(planned)} points cannot run"
        reasons = [f"{', '.join(names)}: {reason}" for reason, names in broken.items()]
        raise ConfigCompositionException("\n  ".join([heading, *reasons]))


def require_own_folders(points: Sequence[Point]) -> None:
    """No two points write to one folder.

    Raises:
        ConfigCompositionException: names it.
    """
    folder, times = Counter(point.folder.resolve() for point in points).most_common(1)[0]
    if times > 1:
        raise ConfigCompositionException(
            f"nothing was started: {times} points would write to {folder}; leave output_dir to the sweep, and let "
            "hydra.sweep.subdir hold ${hydra.job.num}"
        )


def this_program() -> list[str]:
    """The command that started this process, without its arguments."""
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    if spec is None:
        return [sys.executable, str(Path(sys.argv[0]).absolute())]
    return [sys.executable, "-m", spec.name.removesuffix(".__main__")]


def typed_program(command: Sequence[str]) -> str:
    """The program as a person calls it."""
    return " ".join("python" if word == sys.executable else shlex.quote(word) for word in command)


def quoted(text: str) -> str:
    r"""A string as Hydra's override grammar reads it back.

    >>> print(quoted("outputs/0"), quoted("it's, say, a=b"))
    outputs/0 'it\'s, say, a=b'
    """
    if re.fullmatch(r"[\w./-]+", text, flags=re.ASCII):
        return text
    escaped = text.replace("\\'", "\\\\'").replace("'", "\\'")
    return f"'{escaped}'"
