"""GRPO, one step after another. READ FIRST.

A step: take problems, sample a group of completions for each, grade them, turn rewards into group-relative advantages,
take policy-gradient steps, hand the new weights to the engine. Around that: evaluate, record, save.

Axes: P problems in a step, G completions per problem, B = P * G.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError

from grpo.ahead import Ahead, PhaseClock
from grpo.config import EngineName, RunConfig
from grpo.data.dataset import step_problems
from grpo.distributed import ONE_RANK, Ranks
from grpo.policy.objective import compute_advantages
from grpo.policy.update import Policy
from grpo.rl.advantages import has_signal, soft_overlong_penalty
from grpo.rollout import canary
from grpo.run import base_evaluation
from grpo.run.checkpoints import TrainState, save_checkpoint
from grpo.run.evaluation import evaluate
from grpo.run.interrupt import Interrupt
from grpo.run.recorder import Recorder
from grpo.run.rollout_metrics import completion_rows, rollout_metrics, time_metrics
from grpo.types import (
    Completion,
    Drawn,
    Engine,
    Grader,
    PendingGrade,
    Problem,
    RolloutGroup,
    RunError,
    SampleKey,
    Sampling,
    TrainBatch,
)


@dataclass(frozen=True)
class Run:
    """What the loop works with; `grpo.train` builds it.

    Attributes:
        cfg: the run config.
        policy, engine, grader: the model in training, what samples from it, what grades.
        tokenizer: saved with checkpoints.
        prompt_ids: token ids of every problem's prompt.
        train, test: problems; no question is in both.
        stop: strings that end a completion.
        compute_dtype: of the policy's and the engine's matrix products.
        recorder: where everything is told.
        interrupt: whether a signal has asked for the end.
        ranks: who trains together. Every rank runs this loop; rollouts and evaluations are shared out.
    """

    cfg: RunConfig
    policy: Policy
    engine: Engine
    grader: Grader
    tokenizer: Any
    prompt_ids: Mapping[Problem, Sequence[int]]
    train: Sequence[Problem]
    test: Sequence[Problem]
    stop: tuple[str, ...]
    compute_dtype: torch.dtype
    recorder: Recorder
    interrupt: Interrupt
    ranks: Ranks = ONE_RANK

    @property
    def sampling(self) -> Sampling:
        """The distribution that rollouts are drawn from."""
        return self.cfg.training_sampling(self.stop)


def train(run: Run, state: TrainState) -> TrainState:
    """Runs the steps after `state.step`, to the last one or until a signal.

    Raises:
        RunError: engine and policy have parted, the grader fails too often, or updates are skipped in a row.
    """
    cfg, recorder = run.cfg, run.recorder
    ahead = Ahead(partial(draw_ahead, run), state.ahead)
    run.engine.sync(run.policy.whole_model, state.step)
    check_canary(run, "at the start")
    if state.step == 0:
        recorder.step({"step": 0, **evaluate_base(run), **recorder.take_timings()})
    saved = state.step
    for step in range(state.step + 1, cfg.train.n_grpo_steps + 1):
        if run.interrupt.noted_by_any(run.ranks):
            break
        drawn = ahead.take(step) or collect_groups(run, step)
        batch, metrics = build_batch(cfg, drawn)
        canary_due = cfg.train.canary_steps > 0 and step % cfg.train.canary_steps == 0
        if canary_due:
            check_canary(run, f"before the update of step {step}")
        metrics |= update_policy(run, batch, step, ahead)
        if canary_due or (cfg.train.canary_steps > 0 and cfg.hardware.engine is EngineName.vllm):  # which has a copy
            check_canary(run, f"after the weight sync of step {step}")
        if is_due(step, cfg.evaluation.eval_steps, cfg.train.n_grpo_steps):
            metrics |= evaluate_policy(run, step)
        record_step(run, drawn, batch, metrics)
        state = TrainState(step, count_skipped(cfg, state, metrics), ahead.drawn)
        if is_due(step, cfg.checkpoint.save_steps, cfg.train.n_grpo_steps) and not state.skipped_in_a_row:
            saved = save(run, state) or saved
    if state.step > saved:
        save(run, state)
    return state


def is_due(step: int, every: int, last: int) -> bool:
    """Whether something that happens every so many steps, and after the last one, happens now."""
    return step == last or (every > 0 and step % every == 0)


def update_policy(run: Run, batch: TrainBatch, step: int, ahead: Ahead) -> dict[str, float]:
    """Trains on the batch while the engine draws the next step's rollouts, or sleeps; then hands it the weights.

    Returns:
        The update's metrics.
    """
    recorder, overlaps = run.recorder, run.cfg.hardware.overlap and step < run.cfg.train.n_grpo_steps
    if overlaps:
        ahead.begin(step + 1)
    else:
        run.engine.sleep()
    with recorder.phase("update"):
        metrics = run.policy.update(batch, step)
    with recorder.phase("rollout"):
        ahead.finish()
    with recorder.phase("sync"):
        if not overlaps:
            run.engine.wake()
        run.engine.sync(run.policy.whole_model, step)
    return metrics


def draw_ahead(run: Run, step: int, clock: PhaseClock) -> Drawn:
    """`collect_groups` in a thread beside the update: the recorder hears of its seconds afterwards."""
    return collect_groups(replace(run, recorder=cast(Any, clock)), step)


def collect_groups(run: Run, step: int) -> Drawn:
    """P graded groups. With dynamic sampling (DAPO, arXiv 2503.14476) groups without signal are drawn again.

    Groups without signal fill up what further rounds could not, so that P never changes.
    """
    num_problems, loss = run.cfg.train.num_problems, run.cfg.loss
    groups: list[RolloutGroup] = []
    spare: list[RolloutGroup] = []
    for sampling_round in range(loss.max_sampling_rounds if loss.dynamic_sampling else 1):
        problems = step_problems(
            run.train,
            num_problems=num_problems - len(groups),
            seed=run.cfg.seed,
            step=step,
            sampling_round=sampling_round,
        )
        for group in sample_groups(run, problems, step, first=sampling_round * num_problems):
            keeps = not loss.dynamic_sampling or bool(has_signal(torch.tensor([group.rewards])))
            (groups if keeps else spare).append(group)
        if len(groups) == num_problems:
            break
    missing = num_problems - len(groups)
    return Drawn(step, groups + spare[:missing], spare[missing:])


def sample_groups(run: Run, problems: Sequence[Problem], step: int, *, first: int) -> list[RolloutGroup]:
    """Samples G completions of each problem and grades each as soon as it has ended, its share of them on every rank.

    `first` numbers the problems' random keys. The phase "grade" is what grading takes beyond sampling.
    """
    size = run.cfg.train.group_size
    keys = run.ranks.share(
        [
            [SampleKey(run.cfg.seed, step, first + place, sample) for sample in range(size)]
            for place in range(len(problems))
        ]
    )
    problems = run.ranks.share(problems)
    prompts = [run.prompt_ids[problem] for problem in problems]
    pending: dict[int, PendingGrade] = {}

    def submit(place: int, completion: Completion) -> None:
        problem, sample = divmod(place, size)
        pending[place] = run.grader.submit(completion.text, problems[problem].answer, keys[problem][sample])

    with run.recorder.phase("rollout"):
        completions = run.engine.generate(prompts, keys, run.sampling, submit)
    with run.recorder.phase("grade"):
        grades = [pending[place].result() for place in range(len(problems) * size)]
        groups = [
            RolloutGroup(problem, tuple(prompt), tuple(group), tuple(grades[place * size : (place + 1) * size]))
            for place, (problem, prompt, group) in enumerate(zip(problems, prompts, completions, strict=True))
        ]
        return run.ranks.collect(groups)


def build_batch(cfg: RunConfig, drawn: Drawn) -> tuple[TrainBatch, dict[str, float]]:
    """Rewards [P, G] become advantages [P, G]; every completion becomes a sequence of the batch.

    The metrics are those of everything that was sampled, but for the advantages.

    Raises:
        RunError: more grader errors than `reward.max_error_share`, or completions of older weights than
            `hardware.max_staleness`.
    """
    groups = drawn.groups
    rewards = torch.tensor([group.rewards for group in groups], dtype=torch.float32)
    shaped = rewards
    if cfg.loss.overlong_buffer is not None:
        lengths = torch.tensor([[len(c.token_ids) for c in group.completions] for group in groups])
        max_tokens = cfg.sampling.max_tokens
        buffer = max(1, round(cfg.loss.overlong_buffer * max_tokens))
        shaped = rewards + soft_overlong_penalty(lengths, max_tokens=max_tokens, buffer_tokens=buffer)
    advantages = compute_advantages(cfg.loss, shaped)
    sequences = [(group.prompt_ids, completion) for group in groups for completion in group.completions]
    batch = TrainBatch(
        token_ids=tuple(torch.tensor([*prompt, *completion.token_ids]) for prompt, completion in sequences),
        prompt_lengths=tuple(len(prompt) for prompt, _ in sequences),
        sampler_log_probs=tuple(torch.tensor(completion.sampler_log_probs) for _, completion in sequences),
        advantages=advantages.flatten(),
        staleness=max_staleness(cfg, drawn),
    )
    return batch, rollout_metrics(cfg, drawn, advantages, has_signal(shaped))


def max_staleness(cfg: RunConfig, drawn: Drawn) -> int:
    """By how many updates the oldest completion's weights are behind those that its step starts from.

    Raises:
        RunError: more than `hardware.max_staleness`.
    """
    found = drawn.step - 1 - min(completion.version for group in drawn.groups for completion in group.completions)
    if found > cfg.hardware.max_staleness:
        raise RunError(
            f"step {drawn.step} would train on completions of weights that are {found} updates behind, more than "
            f"hardware.max_staleness={cfg.hardware.max_staleness}; resume with a larger one"
        )
    return found


def count_skipped(cfg: RunConfig, state: TrainState, metrics: Mapping[str, Any]) -> int:
    """Steps in a row whose update was skipped for a loss or gradient that is not finite.

    Raises:
        RunError: `train.max_skipped_steps` of them.
    """
    skipped = state.skipped_in_a_row + 1 if metrics["policy/skipped_updates"] else 0
    if skipped >= cfg.train.max_skipped_steps:
        raise RunError(
            f"the loss or its gradient was not finite in {skipped} steps in a row (train.max_skipped_steps); the last "
            "checkpoint may be from before: start from it with model.path=<checkpoint> and a lower train.learning_rate"
        )
    return skipped


def check_canary(run: Run, when: str) -> None:
    """Compares engine and policy on the same tokens.

    Raises:
        RunError: they have parted.
    """
    with run.recorder.phase("canary"):
        prompts = [run.prompt_ids[problem] for problem in run.train[:4]]
        mismatch = canary.measure(run.engine, run.policy.log_probs, prompts, run.sampling, run.cfg.seed)
    for rank, each in enumerate(run.ranks.gather(mismatch)):
        where = f" on rank {rank}" if rank else ""
        canary.check(each, compute_dtype=run.compute_dtype, when=f"{when}{where}")


def evaluate_base(run: Run) -> dict[str, float]:
    """Accuracy before training; the points of a sweep that start from the same model share one evaluation."""
    folder = base_evaluation.cache_folder(run.cfg, run.test, run.prompt_ids, run.stop)
    if folder is None:
        return evaluate_policy(run, 0)
    with base_evaluation.take(folder, run.ranks) as kept:
        if kept is not None:
            run.recorder.evaluation(0, kept.rows)
            run.recorder.console.say(f"the evaluation before training is another point's, kept in {folder}")
            return kept.metrics
        metrics = evaluate_policy(run, 0)
        rows = run.recorder.read_evaluation(0)
        if run.ranks.is_first and len(rows) == len(run.test):
            base_evaluation.keep(folder, base_evaluation.BaseEvaluation(rows, metrics))
        return metrics


def evaluate_policy(run: Run, step: int) -> dict[str, float]:
    """Accuracy on held-out problems; their completions go to a file of their own."""
    with run.recorder.phase("evaluate"):
        sampling = run.cfg.evaluation_sampling(run.stop)
        rows, metrics = evaluate(run.engine, run.grader, run.test, run.prompt_ids, sampling, run.cfg.seed, run.ranks)
        run.recorder.evaluation(step, rows)
    return metrics


def record_step(run: Run, drawn: Drawn, batch: TrainBatch, metrics: Mapping[str, Any]) -> None:
    """Writes the step's completions and its line of metrics."""
    step, groups = drawn.step, drawn.groups
    seen = {row: values for part in run.ranks.gather(run.policy.seen_log_probs(batch)) for row, values in part.items()}
    run.recorder.completions(completion_rows(step, groups, batch, run.tokenizer, seen))
    times = time_metrics(drawn, batch, run.recorder.take_timings())
    best = groups[0].rewards.index(max(groups[0].rewards))
    sample = f"{groups[0].problem.question}\n{groups[0].completions[best].text}"
    run.recorder.step({"step": step, **metrics, **times}, sample)


def save(run: Run, state: TrainState) -> int | None:
    """Saves a checkpoint and returns its step; if that fails the run says so and goes on, with the last whole one."""
    folder: Path = run.recorder.folder
    keep_last = run.cfg.checkpoint.keep_last
    try:
        with run.recorder.phase("save"):
            save_checkpoint(
                folder,
                state,
                run.policy.model,
                run.tokenizer,
                run.policy.optimizer,
                keep_last=keep_last,
                ranks=run.ranks,
            )
    except (OSError, SafetensorError) as error:
        run.recorder.console.warn(
            f"the checkpoint of step {state.step} could not be saved ({error}); the last whole one stays, and the run "
            "goes on: make room on the disk"
        )
        return None
    return state.step
