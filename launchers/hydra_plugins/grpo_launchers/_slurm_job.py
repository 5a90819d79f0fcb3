"""What runs on the nodes: one of these in every task of a point starts the point's program, and waits.

On SIGUSR1, which Slurm sends ahead of a time limit or a preemption, the program is asked to finish its step and save.
When it has, rank 0 requeues the job, last of all, and Slurm starts it again with the same config: the program goes on.
On SIGTERM, which Slurm sends to every process of a job that it ends, the program saves too, and nothing is requeued.
"""

from __future__ import annotations

import os
import signal
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

from hydra_plugins.grpo_launchers._slurm_task import PATIENCE_S, POLL_S, PointFailed, Task

_STOPPED = {128 + signal.SIGTERM, -signal.SIGTERM, 128 + signal.SIGINT, -signal.SIGINT}


@dataclass
class PointJob:
    """A point, as every one of its tasks gets it.

    Attributes:
        command: the program with its frozen config.
        folder: of the point.
        typed: the command that a person would type.
        cwd: where the sweep was started.
        max_requeues: how often the job may be requeued.
    """

    command: list[str]
    folder: str
    typed: str
    cwd: str
    max_requeues: int

    def __call__(self) -> str:
        """Runs this task's rank to its end.

        Returns:
            How it went: ok.

        Raises:
            PointFailed: it went wrong, or was ended from outside.
        """
        place = Task.here(Path(self.folder))
        signals = _Signals()
        place.note("running")
        process = self._start(place)
        told = False
        while process.poll() is None:
            time.sleep(POLL_S)
            # SIGTERM is not passed on: Slurm has sent it to the program too, which may take another one for an order.
            if signals.leave and not told:
                told = True
                process.send_signal(signal.SIGTERM)
        code = process.returncode
        if code == 0:
            place.note("ok", code)
            return "ok"
        if code not in _STOPPED or not (signals.leave or signals.ended):
            place.note("failed", code)
            raise PointFailed(f"rank {place.rank}: the program ended with {_code_in_words(code)}")
        self._leave(place, signals, code)
        raise PointFailed(f"rank {place.rank} was stopped, and saved: start the sweep again to go on")

    def _start(self, place: Task) -> subprocess.Popen[bytes]:
        place.log_path.parent.mkdir(parents=True, exist_ok=True)
        environment = {**os.environ, **place.environment(), "GRPO_TYPED_COMMAND": self.typed, "PYTHONUNBUFFERED": "1"}
        with place.log_path.open("ab") as log:
            log.write(f"$ {self.typed}  # as frozen, job {place.job_id} on {place.host}\n".encode())
            log.flush()
            return subprocess.Popen(
                self.command,
                cwd=self.cwd,
                stdin=subprocess.DEVNULL,
                stdout=log.fileno(),
                stderr=subprocess.STDOUT,
                env=environment,
                # Slurm sends SIGUSR1 to all processes of a task, and its default is to end one.
                preexec_fn=lambda: signal.signal(signal.SIGUSR1, signal.SIG_IGN),
            )

    def _leave(self, place: Task, signals: _Signals, code: int) -> None:
        """Requeues the job if that is what the signal was for; does not return if it did."""
        if not signals.leave:
            place.note("stopped", code)
            return
        if place.restarts >= self.max_requeues:
            place.note("failed", code, f"requeued {place.restarts} times already (launch.max_requeues)")
            return
        place.note("requeued", code)
        if place.rank == 0:
            place.wait_for_others()
            words = _requeue(place.job_id)
            if words:
                place.note("failed", code, f"saved, but could not be requeued: {words}")
                return
        # Until Slurm ends this: a task that left by itself could end the job before it is requeued.
        end = time.monotonic() + PATIENCE_S
        while not signals.ended and time.monotonic() < end:
            time.sleep(POLL_S)
        raise SystemExit(0)


class _Signals:
    """Which signals have come; the handlers only take note."""

    def __init__(self) -> None:
        self.leave = self.ended = False
        signal.signal(signal.SIGUSR1, self._note)
        signal.signal(signal.SIGTERM, self._note)

    def _note(self, number: int, frame: object) -> None:
        if number == signal.SIGUSR1:
            self.leave = True
        else:
            self.ended = True


def _requeue(job_id: str) -> str:
    """Slurm's words if it refused."""
    done = subprocess.run(["scontrol", "requeue", job_id], capture_output=True, text=True, timeout=120, check=False)
    return " ".join(done.stderr.split()) if done.returncode else ""


def _code_in_words(code: int) -> str:
    return f"signal {signal.Signals(-code).name}" if code < 0 else f"exit status {code}"
