"""What a step's rollouts say about themselves."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from grpo.config import RunConfig
from grpo.types import Completion, Drawn, FinishReason, Grade, Outcome, RolloutGroup, RunError, TrainBatch

# Groups of a step whose tokens are written one by one, at about 16 bytes a token, or 23 with ratios.
_NUM_WITH_TOKENS = 4


def rollout_metrics(cfg: RunConfig, drawn: Drawn, advantages: Tensor, signal: Tensor) -> dict[str, float]:
    """The rollouts' part of a step's line: of all that were sampled, whether or not they are trained on.

    Args:
        cfg: the run config.
        drawn: of a step; version step - 1 of the weights is the newest.
        advantages: [P, G] of the groups to train on.
        signal: [P] bool, groups whose rewards differ. Of those that were discarded none has a signal.

    Raises:
        RunError: more grader errors than `reward.max_error_share`.
    """
    groups = [*drawn.groups, *drawn.discarded]
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
        "signal/share": int(signal.sum()) / len(groups),
        "signal/groups_without": len(groups) - int(signal.sum()),
        "advantage/mean": float(advantages.mean()),
        "advantage/std": float(advantages.std()),
        "completion/length_mean": _mean([len(c.token_ids) for c in completions]),
        "completion/length_max": max(len(c.token_ids) for c in completions),
        "rollout/staleness_mean": _mean([drawn.step - 1 - c.version for c in completions]),
        "completion/truncated_share": _mean([c.finish_reason is FinishReason.length for c in completions]),
    }


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def time_metrics(drawn: Drawn, batch: TrainBatch, timings: Mapping[str, float]) -> dict[str, float]:
    """Seconds by phase and tokens a second.

    Args:
        drawn: the step's rollouts; `overlap/...` is what they took beside the update before.
        batch: made of them.
        timings: `time/<phase>_s` of the step, and memory.
    """
    hidden = {f"overlap/{name}_s": seconds for name, seconds in drawn.seconds.items()}
    groups = [*drawn.groups, *drawn.discarded]
    num_sampled = sum(len(completion.token_ids) for group in groups for completion in group.completions)
    return {
        **timings,
        **hidden,
        "rollout/tokens_per_s": num_sampled / hidden.get("overlap/rollout_s", timings["time/rollout_s"]),
        "update/tokens_per_s": sum(map(len, batch.token_ids)) / timings["time/update_s"],
        "time/step_s": sum(value for key, value in timings.items() if key.startswith("time/")),
    }


def completion_rows(
    step: int,
    groups: Sequence[RolloutGroup],
    batch: TrainBatch,
    tokenizer: Any = None,
    policy_log_probs: Mapping[int, Tensor] | None = None,
) -> list[dict[str, Any]]:
    """A line of completions.jsonl for each group.

    A few groups, those with a signal first, have `tokens`, the text of each, and `token_log_probs`, the engine's. Their
    `token_ratios`, of the policy to the engine, are there where the policy's log-probs are known.

    Args:
        step: of the groups.
        groups: P groups.
        batch: made of them.
        tokenizer: None writes no tokens.
        policy_log_probs: [T_i] nats by row of the batch, as the update last saw them.
    """
    by_signal = sorted(range(len(groups)), key=lambda place: (len(set(groups[place].rewards)) == 1, place))
    detailed = set(by_signal[:_NUM_WITH_TOKENS]) if tokenizer is not None else set()
    texts = token_texts(tokenizer, [i for place in detailed for c in groups[place].completions for i in c.token_ids])
    rows, sequence = [], 0
    for place, group in enumerate(groups):
        entries = []
        for completion, grade in zip(group.completions, group.grades, strict=True):
            entry = _completion_row(completion, grade, float(batch.advantages[sequence]))
            entry["staleness"] = step - 1 - completion.version
            if place in detailed:
                entry |= _token_entries(completion, texts, (policy_log_probs or {}).get(sequence))
            entries.append(entry)
            sequence += 1
        about = {"problem": group.problem.id, "question": group.problem.question, "gold": group.problem.answer}
        rows.append({"step": step, **about, "completions": entries})
    return rows


def token_texts(tokenizer: Any, token_ids: Iterable[int]) -> dict[int, str]:
    """What each token writes; a token that ends within a character has \ufffd for the part."""
    ids = sorted(set(token_ids))
    names = tokenizer.convert_ids_to_tokens(ids) if ids else []
    texts = {}
    for token_id, name in zip(ids, names, strict=True):
        text = tokenizer.decode([token_id]) if name is not None else f"<{token_id}>"
        # SentencePiece writes a word's space as U+2581 and drops it at the start of a text.
        starts_word = name is not None and name.startswith("\u2581") and not text.startswith(" ")
        texts[token_id] = f" {text}" if starts_word else text
    return texts


def _token_entries(completion: Completion, texts: Mapping[int, str], policy: Tensor | None) -> dict[str, Any]:
    entries: dict[str, Any] = {
        "tokens": [texts[token_id] for token_id in completion.token_ids],
        "token_log_probs": [round(value, 3) for value in completion.sampler_log_probs],
    }
    if policy is not None:
        ratios = (policy.cpu() - torch.tensor(completion.sampler_log_probs)).exp()
        entries["token_ratios"] = [round(value, 3) for value in ratios.tolist()]
    return entries


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
