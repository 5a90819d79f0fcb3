"""Waits for the jobs of a sweep, and finds out how each went and why."""

from __future__ import annotations

import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hydra_plugins.grpo_launchers._local import StopRequest
from hydra_plugins.grpo_launchers._points import OK, Point, last_lines, say, varying, write_result
from hydra_plugins.grpo_launchers._record import Submission
from hydra_plugins.grpo_launchers._slurm_task import read_note

_POLL_S = 0.25
_SLOWEST_POLL_S = 15.0  # between two calls of squeue; what the jobs themselves write is looked at more often
# A result may be seen later than the state that followed it.
_GRACE_S = 3.0
_GONE = "gone from the queue"
_ENDED = {
    *("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY", "BOOT_FAIL", "DEADLINE"),
    *("PREEMPTED", "REVOKED", "SPECIAL_EXIT", _GONE),
}
_FAILED = {"FAILED", "OUT_OF_MEMORY", "NODE_FAIL"}


@dataclass
class _Job:
    """A point's job as it was last seen.

    Attributes:
        job_id: as squeue shows it.
        state: Slurm's, or that squeue no longer knows it.
        reason: why it waits, or where it runs.
        ended_at: when it was first seen to have ended, on the clock of `time.monotonic`.
    """

    job_id: str
    state: str = "PENDING"
    reason: str = ""
    ended_at: float | None = None
    shown: str = field(default="", repr=False)


def collect(submission: Submission, points: Sequence[Point], folder: Path, stop: StopRequest, *, wait: bool) -> bool:
    """Follows the jobs until they have ended, telling what changes.

    Args:
        submission: what was submitted.
        points: of this start; those in the submission get their status.
        folder: of the sweep.
        stop: ends the waiting; the jobs stay in the queue.
        wait: else one look is taken.

    Returns:
        Whether all of them have ended.
    """
    known = {point.number: point for point in points}
    live = {number: _Job(job) for number, job in submission.jobs.items() if number in known and not known[number].done}
    pause, next_look = _POLL_S, 0.0
    while live:
        changed = False
        if time.monotonic() >= next_look:
            changed = _look(list(live.values()))
            pause = _POLL_S if changed else min(pause * 1.5, _SLOWEST_POLL_S)
            next_look = time.monotonic() + pause
        for number, job in list(live.items()):
            point = known[number]
            if _settle(point, job, submission.num_ranks, folder):
                del live[number]
                changed = True
                _write(point)
                say(f"[{number + 1}/{len(points)}] end    {varying(point, points)}  {point.status}")
        if changed:
            _tell(live, known, points)
        if stop.signum is not None or (not wait and all(job.ended_at is None for job in live.values())):
            break
        if live:
            time.sleep(_POLL_S)
    for number, job in live.items():
        known[number].status = f"in the queue: job {job.job_id} {job.state}"
    return not live


def _tell(live: Mapping[int, _Job], known: Mapping[int, Point], points: Sequence[Point]) -> None:
    """A line for each job whose state is another than the one told last."""
    for number, job in live.items():
        line = f"job {job.job_id} {job.state}{f' ({job.reason})' if job.reason else ''}"
        if line != job.shown:
            job.shown = line
            say(f"[{number + 1}/{len(points)}] {job.state.lower():<10} {varying(known[number], points)}  {line}")


def _look(jobs: Sequence[_Job]) -> bool:
    """Asks squeue; whether anything has changed. A controller that does not answer changes nothing."""
    arrays = ",".join(sorted({job.job_id.split("_")[0] for job in jobs}))
    command = ["squeue", "-h", "-r", "-t", "all", "-j", arrays, "-o", "%i|%T|%R"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    except subprocess.TimeoutExpired:
        return False
    if done.returncode != 0 and "Invalid job id" not in done.stderr:
        return False
    seen = {}
    for line in done.stdout.splitlines():
        job_id, state, reason = line.split("|", 2)
        seen[job_id] = (state, reason.strip().strip("()"))
    changed = False
    for job in jobs:
        state, reason = seen.get(job.job_id, (_GONE, ""))
        if (state, reason) != (job.state, job.reason):
            job.state, job.reason, changed = state, reason, True
        if state not in _ENDED:
            job.ended_at = None
        elif job.ended_at is None:
            job.ended_at = time.monotonic()
    return changed


def _settle(point: Point, job: _Job, num_ranks: int, folder: Path) -> bool:
    """Gives the point its status if the job has ended; whether it has."""
    notes = {rank: note for rank in range(num_ranks) if (note := read_note(point.folder, rank, job.job_id))}
    if len(notes) == num_ranks and all(note["status"] == OK for note in notes.values()):
        point.status, point.seconds = OK, _seconds(notes)
        return True
    if job.ended_at is None or time.monotonic() < job.ended_at + _GRACE_S:
        return False
    point.seconds = _seconds(notes)
    point.status, point.details = _explain(job, notes, folder)
    return True


def _explain(job: _Job, notes: Mapping[int, Mapping[str, Any]], folder: Path) -> tuple[str, tuple[str, ...]]:
    """Status and details of a job without a result: the rank that was the first to fail, else to be stopped.

    A rank that left no word when its job failed was killed: the others were stopped because of it.
    """
    status = f"{job.state}, job {job.job_id}"
    stopped, silent = ("stopped", "requeued"), ("running",)
    for wanted in (("failed",), silent, stopped) if job.state in _FAILED else (("failed",), stopped, silent):
        if found := [(note["time"], rank, note) for rank, note in notes.items() if note["status"] in wanted]:
            _, rank, note = min(found, key=lambda item: item[:2])
            first = " was the first to fail" if len(found) > 1 and wanted == ("failed",) else ""
            log = Path(note["log"])
            details = (f"rank {rank} on {note['host']}{first}: {_how(note)}", f"log: {log}", *last_lines(log))
            return status, details if note["status"] != "running" else (*details, *_from_slurm(job, rank, folder))
    reason = f" ({job.reason})" if job.reason else ""
    return status, (f"it never started the program{reason}", *_from_slurm(job, 0, folder))


def _from_slurm(job: _Job, rank: int, folder: Path) -> tuple[str, ...]:
    """What Slurm and submitit have to say of a task that said nothing itself."""
    log = folder / "slurm" / f"{job.job_id}_{rank}_log.err"
    return (f"log: {log}", *last_lines(log)) if log.is_file() else ()


def _how(note: Mapping[str, Any]) -> str:
    """How a rank ended, in words."""
    if note["status"] == "running":
        return "ended from outside, or could not write its result"
    code = note["code"]
    words = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit status {code}"
    if note["status"] != "failed":
        words += "; it has saved, and the next start goes on from there"
    return f"{words}, {note['reason']}" if note["reason"] else words


def _seconds(notes: Mapping[int, Mapping[str, Any]]) -> float:
    """From the job's first start to its end: without the queue before it, with the pauses after a requeue."""
    starts = [note["started"] for note in notes.values()]
    return max(0.0, max(note["time"] for note in notes.values()) - min(starts)) if starts else 0.0


def _write(point: Point) -> None:
    try:
        write_result(point)
    except OSError as error:
        say(f"{point.folder / 'result.json'}: {error.strerror}; the next start will run point {point.number} again")
