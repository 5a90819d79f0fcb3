"""What the ranks other than the first have in place of a console and of files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from grpo.run.recorder import Recorder


class SilentConsole:
    """Shows nothing: the first rank says the same."""

    def start(self) -> None:
        """Nothing to set up."""

    def say(self, text: str) -> None:
        """Not shown."""

    def warn(self, text: str) -> None:
        """Not shown."""

    def phase(self, name: str) -> None:
        """Not shown."""

    def step(self, metrics: Mapping[str, Any], sample: str | None = None) -> None:
        """Not shown."""

    def evaluation(self, metrics: Mapping[str, Any]) -> None:
        """Not shown."""

    def finish(self) -> None:
        """Nothing to take down."""


class SilentRecorder(Recorder):
    """Keeps time, and writes nothing."""

    def __init__(self, folder: Path) -> None:
        """Names the run's folder."""
        self.folder, self.console = folder, SilentConsole()
        self.seconds: dict[str, float] = {}

    def step(self, metrics: Mapping[str, Any], sample: str | None = None) -> None:
        """Not written."""

    def completions(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Not written."""

    def evaluation(self, step: int, rows: Sequence[Mapping[str, Any]]) -> None:
        """Not written."""

    def draw(self) -> None:
        """Not drawn."""

    def close(self) -> None:
        """Nothing is open."""
