"""What a step's rollouts say about themselves."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from grpo.config import RunConfig
from grpo.types import Completion, FinishReason, Grade, Outcome, RolloutGroup, RunError, TrainBatch


def rollout_metrics(
    cfg: RunConfig, groups: Sequence[RolloutGroup], advantages: Tensor, signal: Tensor
) -> dict[str, float]:
    """The rollouts' part of a step's line.

    Args:
        cfg: the run config.
        groups: P groups.
        advantages: [P, G].
        signal: [P] bool, groups whose rewards differ.

    Raises:
        RunError: more grader errors than `reward.max_error_share`.
    """
    grades = [grade for group in groups for grade in group.grades]
    completions = [completion for group in groups for completion in group.completions]
    rewards = torch.tensor([grade.reward for grade in grades])
    num_errors = sum(grade.outcome is Outcome.grader_error for grade in grades)
    if num_errors > cfg.reward.max_error_share * len(grades):
        first = next(grade for grade in grades if grade.outcome is Outcome.grader_error)
        raise RunError(
            f"{num_errors} of {len(grades)} answers could not be graded (the first: {first.reason}, "
            f"{first.extracted[:80]!r}), more than reward.max_error_share={cfg.reward.max_error_share}; raise "
            "reward.deadline_s or reward.num_workers, or that share"
        )
    return {
        "reward/mean": float(rewards.mean()),
        "reward/std": float(rewards.std()),
        "reward/format": _mean([grade.format_reward for grade in grades]),
        "reward/answer": _mean([grade.answer_reward for grade in grades]),
        "grade/format_failures": sum(grade.outcome is Outcome.format_failure for grade in grades),
        "grade/errors": num_errors,
        "signal/share": float(signal.float().mean()),
        "signal/groups_without": int((~signal).sum()),
        "advantage/mean": float(advantages.mean()),
        "advantage/std": float(advantages.std()),
        "completion/length_mean": _mean([len(c.token_ids) for c in completions]),
        "completion/length_max": max(len(c.token_ids) for c in completions),
        "completion/truncated_share": _mean([c.finish_reason is FinishReason.length for c in completions]),
    }


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def completion_rows(step: int, groups: Sequence[RolloutGroup], batch: TrainBatch) -> list[dict[str, Any]]:
    """A line of completions.jsonl for each group."""
    advantages = iter(batch.advantages.tolist())
    return [
        {
            "step": step,
            "problem": group.problem.id,
            "question": group.problem.question,
            "gold": group.problem.answer,
            "completions": [
                _completion_row(completion, grade, next(advantages))
                for completion, grade in zip(group.completions, group.grades, strict=True)
            ],
        }
        for group in groups
    ]


def _completion_row(completion: Completion, grade: Grade, advantage: float) -> dict[str, Any]:
    return {
        "text": completion.text,
        "num_tokens": len(completion.token_ids),
        "finish_reason": completion.finish_reason.value,
        "log_prob": sum(completion.sampler_log_probs),
        "reward": grade.reward,
        "format_reward": grade.format_reward,
        "answer_reward": grade.answer_reward,
        "outcome": grade.outcome.value,
        "reason": grade.reason,
        "extracted": grade.extracted,
        "advantage": advantage,
        "version": completion.version,
    }
