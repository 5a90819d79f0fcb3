"""The numbers of a run: metrics.jsonl, which is the record, and Weights & Biases, which is a view of it."""

from __future__ import annotations

import json
import math
import secrets
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from grpo.config import WandbMode
from grpo.run.files import append_lines, write_atomic


def is_timing(key: str) -> bool:
    """Whether a metric depends on the machine's speed and memory, and so may differ after a resume."""
    return key.startswith(("time/", "overlap/", "memory/")) or key.endswith("_per_s")


class JsonlLog:
    """A file of one JSON object a line, each with its `step`."""

    def __init__(self, path: Path) -> None:
        """Names the file; the first `append` makes it."""
        self.path = path

    def append(self, row: Mapping[str, Any]) -> None:
        """Adds one whole line. Numbers that JSON lacks (NaN and infinities) become null."""
        self.extend([row])

    def extend(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Adds whole lines, in one write."""
        assert all("step" in row for row in rows)
        append_lines(self.path, [json.dumps(_plain(row), allow_nan=False) for row in rows])

    def keep_until(self, step: int) -> None:
        """Drops the lines after `step`, and a torn last line, as a run does that goes on from there.

        Args:
            step: of the checkpoint; -1 drops every line.

        Raises:
            ValueError: a line other than the last is not JSON.
        """
        if self.path.exists():
            kept = [line + b"\n" for line, row in _whole_lines(self.path) if row["step"] <= step]
            write_atomic(self.path, b"".join(kept))


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    """The objects of a JSON Lines file, without a last line that was cut off while being written.

    Raises:
        ValueError: a line other than the last is not a JSON object; names it.
        FileNotFoundError: no such file.
    """
    return [row for _, row in _whole_lines(path)]


def _whole_lines(path: Path) -> list[tuple[bytes, dict[str, Any]]]:
    """Each line as written, without its newline, and what it holds."""
    lines = path.read_bytes().split(b"\n")
    last = len(lines) if lines[-1] else len(lines) - 1
    whole = []
    for number, line in enumerate(lines[:last], start=1):
        try:
            row = json.loads(line)
        except ValueError:
            row = None
        if isinstance(row, dict):
            whole.append((line, row))
        elif number < last:
            raise ValueError(f"{path}: line {number} is not a JSON object; repair or remove it")
    return whole


def _plain(value: Any) -> Any:
    """The value as JSON can hold it; scalars of torch and numpy as Python numbers."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if hasattr(value, "item"):
        return _plain(value.item())
    return None if isinstance(value, float) and not math.isfinite(value) else value


class WandbSink:
    """Shows the metrics on Weights & Biases, if it can; a run never fails, waits long or asks because of it."""

    def __init__(
        self,
        mode: WandbMode,
        folder: Path,
        *,
        project: str,
        config: Mapping[str, Any],
        say: Callable[[str], None],
        patience_s: float = 15.0,
    ) -> None:
        """Starts, or takes up again, the run whose id `folder` keeps.

        Args:
            mode: disabled does not even import wandb; offline writes below `folder` for `wandb sync`.
            folder: the run's folder, which also gives the run its name.
            project: of Weights & Biases.
            config: shown with the run.
            say: told in one line why nothing is logged, if so.
            patience_s: how long the server may take to answer, at the start and at the end.
        """
        self._say = say
        self._run: Any = None
        if mode is WandbMode.disabled:
            return
        try:
            self._run = _init_wandb(mode, folder, project, config, patience_s)
        except Exception as error:  # a missing package, account or network, and whatever else wandb raises
            self._disable(error)
        else:
            self._say(f"Weights & Biases: {self._run.url or f'offline; later: wandb sync {self._run.dir}/..'}")

    @property
    def active(self) -> bool:
        """Whether metrics still go anywhere."""
        return self._run is not None

    def log(self, metrics: Mapping[str, Any], step: int) -> None:
        """Shows one step's numbers. wandb itself ignores steps that it already has, as after a resume."""
        if self._run is None:
            return
        numbers = {key: value for key, value in metrics.items() if isinstance(value, int | float)}
        try:
            self._run.log(numbers, step=step, commit=True)
        except Exception as error:
            self._disable(error)

    def finish(self) -> None:
        """Sends what is left."""
        if self._run is None:
            return
        try:
            self._run.finish()
        except Exception as error:
            self._disable(error)
        self._run = None

    def _disable(self, error: Exception) -> None:
        self._run = None
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        self._say(f"logging.wandb is off from here on, and the run goes on: {reason}")


def _init_wandb(mode: WandbMode, folder: Path, project: str, config: Mapping[str, Any], patience_s: float) -> Any:
    """A run of wandb, without a prompt, a banner or a capture of the terminal."""
    import wandb  # pyright: ignore[reportMissingImports]

    quiet = wandb.Settings(
        silent=True, console="off", init_timeout=patience_s, finish_timeout=patience_s, login_timeout=patience_s
    )
    wandb.setup(quiet)
    if mode is WandbMode.online and not wandb.login(prompt=False):
        raise RuntimeError("no account of Weights & Biases; run `wandb login`, or use logging.wandb=offline")
    return wandb.init(
        mode=mode.value,
        project=project,
        config=dict(config),
        dir=folder,
        name=folder.name,
        id=_run_id(folder / "wandb_id.txt"),
        resume="allow",
        settings=quiet,
    )


def _run_id(path: Path) -> str:
    """The id in the file, or a new one, kept there."""
    if not path.exists():
        write_atomic(path, secrets.token_hex(4))
    return path.read_text()
