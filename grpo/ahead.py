"""Overlap: while the update of one step runs, a thread draws the rollouts of the next (`hardware.overlap`).

They come from the weights before that update and are one version behind when they are trained on. A checkpoint keeps
those that are drawn already, so that a resumed run trains on what it would have trained on.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from threading import Thread

from grpo.types import Drawn


class PhaseClock:
    """Adds up the seconds of phases, and tells nobody: the console shows what the main thread does."""

    def __init__(self) -> None:
        """At zero."""
        self.seconds: dict[str, float] = {}

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """See `grpo.run.recorder.Recorder.phase`."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start


class Ahead:
    """At most one step's rollouts that are drawn before their turn."""

    def __init__(self, draw: Callable[[int, PhaseClock], Drawn], kept: Drawn | None = None) -> None:
        """Takes up where a checkpoint was.

        Args:
            draw: samples and grades a step's groups; runs in a thread.
            kept: what the checkpoint held.
        """
        self._draw = draw
        self._thread: Thread | None = None
        self._failure: BaseException | None = None
        self.drawn = kept

    def take(self, step: int) -> Drawn | None:
        """The step's rollouts, if they are drawn; they are handed out once."""
        drawn, self.drawn = self.drawn, None
        return drawn if drawn is not None and drawn.step == step else None

    def begin(self, step: int) -> None:
        """Starts to draw; nobody else may use the engine until `finish`."""
        # A daemon: a run that ends for another reason does not wait for rollouts that it no longer needs.
        self._thread = Thread(target=self._work, args=(step,), name="grpo-ahead", daemon=True)
        self._thread.start()

    def finish(self) -> None:
        """Waits for what was begun, if anything was; raises what it raised."""
        if self._thread is None:
            return
        self._thread.join()
        self._thread = None
        if self._failure is not None:
            raise self._failure

    def _work(self, step: int) -> None:
        clock = PhaseClock()
        try:
            drawn = self._draw(step, clock)
        except BaseException as error:  # for the main thread, whatever it is
            self._failure = error
        else:
            self.drawn = replace(drawn, seconds=clock.seconds)
