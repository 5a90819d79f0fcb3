"""One run of ours, as `grpo.train` does it, in a process of its own: `python -m bench.peers.our_step JOB RESULT`."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import grpo.loop
import grpo.reward.functions
import grpo.rollout.torch_engine
from bench.peers.step_job import StepJob, StepResult, peak_gib, read_job, resident_gib, text_reward
from grpo.config import RewardConfig, compose_run_config
from grpo.run import recorder
from grpo.run.metrics import read_jsonl
from grpo.run.recorder import Recorder
from grpo.train import run_training
from grpo.types import Drawn, Grade, Grader, Outcome, PendingGrade, SampleKey
from hydra_plugins.grpo_launchers.subprocess_launcher import quoted


@dataclass(frozen=True, slots=True)
class _Done:
    """A grade that needs no waiting."""

    grade: Grade

    def result(self) -> Grade:
        """The grade."""
        return self.grade


class TextRewardGrader:
    """Grades as `trl_step.rewards` does, so that no completion's advantage is 0 and both updates do all the work."""

    def submit(self, response: str, gold: str, key: SampleKey) -> PendingGrade:
        """See `grpo.types.Grader`."""
        return _Done(Grade(text_reward(response), 0.0, 0.0, Outcome.graded, "text"))

    def grade(self, responses: Sequence[str], golds: Sequence[str], keys: Sequence[SampleKey]) -> list[Grade]:
        """See `grpo.types.Grader`."""
        return [self.submit(*triple).result() for triple in zip(responses, golds, keys, strict=True)]

    def close(self) -> None:
        """Nothing is held."""


class AnsweringGrader:
    """The run's own grader, given answers that a trained model could have written, since random weights write none.

    Of eight samples four are right, two wrong, and two right as a root, which only the workers see. What `submit` takes
    is noted: the engine calls it in the middle of the rollout.
    """

    def __init__(self, grader: Grader, result: StepResult) -> None:
        """Takes over `grader`."""
        self._grader, self._result = grader, result

    def submit(self, response: str, gold: str, key: SampleKey) -> PendingGrade:
        """See `grpo.types.Grader`."""
        start = time.perf_counter()
        kind = key.sample % 8
        wrong, root = str(int(gold) + 1), rf"\sqrt{{{int(gold) ** 2}}}"
        answer = gold if kind < 4 else wrong if kind < 6 else root
        pending = self._grader.submit(f"{response.replace('<', '')}</think> <answer>{answer}</answer>", gold, key)
        if key.step > 0:
            self._result.add(key.step - 1, "submit", time.perf_counter() - start)
        return pending

    def grade(self, responses: Sequence[str], golds: Sequence[str], keys: Sequence[SampleKey]) -> list[Grade]:
        """See `grpo.types.Grader`."""
        return self._grader.grade(responses, golds, keys)

    def close(self) -> None:
        """Ends the workers."""
        self._grader.close()


def forced_batch(lengths: Sequence[Sequence[int]], end_id: int) -> type:
    """`grpo.rollout.batch.Batch`, but completion i of step s ends at lengths[s][i] and nowhere else.

    Evaluations and the canary, whose steps are none of training's, end where they like.
    """
    import torch  # at the top it would come before `grpo`, which tells OpenMP how to wait before torch loads it

    class ForcedBatch(grpo.rollout.torch_engine.Batch):
        _lengths: Any = None

        def run(self, requests: Any) -> Any:
            step = requests[0].keys[0].step
            self._lengths = torch.tensor(lengths[step - 1]) if 0 < step <= len(lengths) else None
            return super().run(requests)

        def _sample(self, rows: Any) -> Any:
            if self._lengths is not None:
                last = rows.counts + 1 >= self._lengths[rows.places]
                rows.logits[:, end_id] = float("-inf")
                rows.logits[last] = float("-inf")
                rows.logits[last, end_id] = 0.0
            return super()._sample(rows)

    return ForcedBatch


class Stopwatch:
    """Stands around the loop's functions. A step lasts from the first thing it does until its line is written."""

    def __init__(self, result: StepResult) -> None:
        """Writes to `result`."""
        self._result = result
        self._start = 0.0
        self._step: int | None = None  # whose line is being written

    def collect_groups(self, original: Callable[..., Any]) -> Callable[..., Any]:
        """The beginning of a step."""

        def wrapped(run: Any, step: int) -> Any:
            if step == 1:
                self._result.start_gib = resident_gib()
                self._result.num_parameters = sum(parameter.numel() for parameter in run.policy.model.parameters())
            self._start = time.perf_counter()
            drawn = original(run, step)
            self._result.add(step - 1, "collect", time.perf_counter() - self._start)
            self._result.prompt_tokens.append([len(group.prompt_ids) for group in drawn.groups])
            self._result.completion_tokens.append(
                [len(c.token_ids) for group in drawn.groups for c in group.completions]
            )
            return drawn

        return wrapped

    def record_step(self, original: Callable[..., Any]) -> Callable[..., Any]:
        """The end of a step."""

        def wrapped(run: Any, drawn: Drawn, *args: Any) -> None:
            start, self._step, step = time.perf_counter(), drawn.step, drawn.step
            original(run, drawn, *args)
            end, self._step = time.perf_counter(), None
            self._result.add(step - 1, "record", end - start)
            self._result.add(step - 1, "step", end - self._start)
            self._result.end_gib = peak_gib()

        return wrapped

    def draw(self, original: Callable[..., Any]) -> Callable[..., Any]:
        """Drawing the curves, which not every step does."""

        def wrapped(recorder: Any) -> None:
            start = time.perf_counter()
            original(recorder)
            if self._step is not None:
                self._result.add(self._step - 1, "draw", time.perf_counter() - start)

        return wrapped


def overrides(job: StepJob) -> list[str]:
    """The run of a job: GRPO as TRL's `loss_type="grpo"`, without checkpoints, evaluations or drawings in its steps."""
    min_tokens = job.max_tokens if job.lengths is None else 0
    return [
        "model=tiny",
        "model.name=bench",
        f"model.path={quoted(job.model)}",
        "hardware=cpu",
        f"hardware.compute_dtype={'bfloat16' if job.bf16 else 'float32'}",
        f"hardware.num_threads={job.threads}",
        "loss=grpo_clip",
        "data=jsonl",
        f"data.train_path={quoted(job.problems)}",
        f"data.test_path={quoted(job.held_out)}",
        f"data.prompt={job.template}",
        "data.stop=[]",
        "reward=r1_zero",
        f"seed={job.seed}",
        f"train.n_grpo_steps={job.num_steps}",
        f"train.rollout_batch_size={job.batch_size}",
        f"train.train_batch_size={job.batch_size}",
        f"train.group_size={job.group_size}",
        "train.learning_rate=1e-6",
        "train.canary_steps=0",
        f"sampling.max_tokens={job.max_tokens}",
        f"sampling.min_tokens={min_tokens}",
        "evaluation.eval_steps=0",
        "evaluation.max_tokens=1",
        "checkpoint.save_steps=0",
        "logging.console=plain",
        f"logging.plot_steps={int(job.graded)}",
        *job.settings,
    ]


def train(job: StepJob, folder: Path) -> StepResult:
    """Runs the job in a folder and returns what was measured."""
    result = StepResult()
    cfg = compose_run_config(overrides(job))
    watch, loop, build = Stopwatch(result), grpo.loop, grpo.reward.functions.build_grader

    def build_grader(cfg: RewardConfig) -> Grader:
        return AnsweringGrader(build(cfg), result) if job.graded else TextRewardGrader()

    with ExitStack() as stack:
        stack.enter_context(patch.object(loop, "collect_groups", watch.collect_groups(loop.collect_groups)))
        stack.enter_context(patch.object(loop, "record_step", watch.record_step(loop.record_step)))
        stack.enter_context(patch.object(loop, "save", lambda run, state: state.step))  # TRL saves nothing either
        stack.enter_context(patch.object(Recorder, "draw", watch.draw(Recorder.draw)))
        stack.enter_context(patch.object(recorder, "_DRAW_SHARE", math.inf))  # in every step, however short
        stack.enter_context(patch.object(grpo.reward.functions, "build_grader", build_grader))
        if job.lengths is not None:
            batch = forced_batch(job.lengths, end_id=0)  # the small tokenizer's first token
            stack.enter_context(patch.object(grpo.rollout.torch_engine, "Batch", batch))
        run_training(cfg, folder)
    add_phases(result, read_jsonl(folder / "metrics.jsonl"))
    result.peak_gib = peak_gib()
    return result


def add_phases(result: StepResult, rows: Sequence[dict[str, Any]]) -> None:
    """Puts the run's own phases into the result, and takes out of each step what belongs to none of its parts.

    Args:
        result: has "collect", "record", "step", and perhaps "draw" and "submit".
        rows: the lines of metrics.jsonl.
    """
    for row in (row for row in rows if row["step"] > 0):
        step = row["step"] - 1
        seconds = {name: row.get(f"time/{name}_s", 0.0) for name in ("rollout", "grade", "update", "sync")}
        draw, submit = (dict(enumerate(result.parts.get(name, []))).get(step, 0.0) for name in ("draw", "submit"))
        aside = sum(row.get(f"time/{name}_s", 0.0) for name in ("evaluate", "canary", "save"))
        result.parts["step"][step] -= aside + draw
        result.add(step, "rollout", seconds["rollout"] - submit)
        result.add(step, "update", seconds["update"])
        result.add(step, "grading", seconds["grade"] + submit)
        result.add(step, "sync", seconds["sync"])
        result.add(step, "logging", result.parts["record"][step] - draw)
        known = ("rollout", "update", "grading", "sync", "logging")
        rest = result.parts["step"][step] - sum(result.parts[name][step] for name in known)
        result.add(step, "data and advantages", rest)


def main() -> None:
    """Trains and writes what was measured."""
    job = read_job(sys.argv[1])
    train(job, Path(job.folder)).write(Path(sys.argv[2]))


if __name__ == "__main__":
    main()
