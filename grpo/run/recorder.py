"""Everything a run tells, in one place: its files, the console, Weights & Biases."""

from __future__ import annotations

import json
import resource
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from grpo.config import LoggingConfig
from grpo.run.console import RunConsole
from grpo.run.files import write_atomic
from grpo.run.metrics import JsonlLog, WandbSink, read_jsonl
from grpo.run.plots import draw_curves

_DRAW_SHARE = 0.02  # of a run's time, at most; one drawing takes a second or two


class Recorder:
    """Writes what the loop hands over; a disk that is full costs lines, never the run."""

    def __init__(self, folder: Path, console: RunConsole, cfg: LoggingConfig, config: Mapping[str, Any]):
        """Opens the logs.

        Args:
            folder: of the run.
            console: what a person sees.
            cfg: `logging` of the run config.
            config: the whole run config, for Weights & Biases.
        """
        self.folder, self.console = folder, console
        self._cfg = cfg
        self._metrics = JsonlLog(folder / "metrics.jsonl")
        self._completions = JsonlLog(folder / "completions.jsonl")
        self._wandb = WandbSink(cfg.wandb, folder, project=cfg.wandb_project, config=config, say=console.say)
        self.seconds: dict[str, float] = {}
        self._draw_from = 0.0  # on the clock of `time.perf_counter`

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Names what the run does, and adds its seconds to the step's."""
        self.console.phase(name)
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start

    def take_timings(self) -> dict[str, float]:
        """Seconds by phase since the last call, as metrics."""
        timings = {f"time/{name}_s": seconds for name, seconds in self.seconds.items()}
        self.seconds = {}
        return {**timings, "memory/peak_gib": _peak_gib()}

    def step(self, metrics: Mapping[str, Any], sample: str | None = None) -> None:
        """One step's line."""
        step = int(metrics["step"])
        with self._disk_may_be_full("metrics.jsonl"):
            self._metrics.append(metrics)
        if "eval/accuracy" in metrics:
            self.console.evaluation(metrics)
        if step > 0:
            self.console.step(metrics, sample)
        self._wandb.log(metrics, step)
        every = self._cfg.plot_steps
        if every and step > 0 and step % every == 0 and time.perf_counter() >= self._draw_from:
            self.draw()

    def completions(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """One line a group."""
        if self._cfg.completions:
            with self._disk_may_be_full("completions.jsonl"):
                self._completions.extend(rows)

    def evaluation(self, step: int, rows: Sequence[Mapping[str, Any]]) -> None:
        """One line a held-out problem, in a file of its own."""
        path = self._evaluation_path(step)
        with self._disk_may_be_full(str(path.name)):
            path.parent.mkdir(exist_ok=True)
            write_atomic(path, "".join(json.dumps(row) + "\n" for row in rows))

    def read_evaluation(self, step: int) -> list[dict[str, Any]]:
        """What `evaluation` wrote; empty if nothing is there."""
        path = self._evaluation_path(step)
        return read_jsonl(path) if path.exists() else []

    def read_metrics(self) -> list[dict[str, Any]]:
        """Every line so far."""
        return read_jsonl(self._metrics.path) if self._metrics.path.exists() else []

    def draw(self) -> None:
        """Draws curves.png again."""
        start = time.perf_counter()
        with self._disk_may_be_full("curves.png"):
            draw_curves(self.read_metrics(), self.folder / "curves.png", self.folder.name)
        end = time.perf_counter()
        self._draw_from = end + (end - start) / _DRAW_SHARE

    def close(self) -> None:
        """Draws the last curves and sends what Weights & Biases still holds."""
        self.draw()
        self._wandb.finish()

    def _evaluation_path(self, step: int) -> Path:
        return self.folder / "evaluations" / f"step_{step:06d}.jsonl"

    @contextmanager
    def _disk_may_be_full(self, name: str) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            self.console.warn(f"{name} could not be written ({error.strerror or error}); the run goes on without it")


def _peak_gib() -> float:
    """Peak memory so far, of the GPU if there is one, else of this process; Metal tells what is allocated now only."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**30
    if torch.backends.mps.is_available():
        return torch.mps.driver_allocated_memory() / 2**30
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30
