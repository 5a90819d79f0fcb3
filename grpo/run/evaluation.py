"""Held-out problems: one completion each, with intervals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from grpo.run.statistics import wilson_interval
from grpo.types import (
    Completion,
    Engine,
    FinishReason,
    Grade,
    Grader,
    Outcome,
    PendingGrade,
    Problem,
    SampleKey,
    Sampling,
)


def evaluate(
    engine: Engine,
    grader: Grader,
    problems: Sequence[Problem],
    prompt_ids: Mapping[Problem, Sequence[int]],
    sampling: Sampling,
    seed: int,
) -> tuple[list[dict[str, Any]], dict[str, float]]:
    """Samples one completion of every problem in one call, and grades each as soon as it has ended.

    Args:
        engine: of the run.
        grader: of the run.
        problems: held out.
        prompt_ids: of each problem.
        sampling: temperature 0 is greedy.
        seed: of the run. The random numbers are the same at every step, so that differences are the weights'.

    Returns:
        A row for each problem, and the metrics `eval/...`. Grader errors are not right, and are counted.
    """
    keys = [SampleKey(seed, 0, place, 0) for place in range(len(problems))]
    prompts = [prompt_ids[problem] for problem in problems]
    pending: dict[int, PendingGrade] = {}

    def submit(place: int, completion: Completion) -> None:
        pending[place] = grader.submit(completion.text, problems[place].answer, keys[place])

    completions = [group[0] for group in engine.generate(prompts, [[key] for key in keys], sampling, submit)]
    grades = [pending[place].result() for place in range(len(problems))]
    rows = [_row(*triple) for triple in zip(problems, completions, grades, strict=True)]
    return rows, _metrics(completions, grades)


def _row(problem: Problem, completion: Completion, grade: Grade) -> dict[str, Any]:
    return {
        "problem": problem.id,
        "level": problem.level,
        "subject": problem.subject,
        "question": problem.question,
        "gold": problem.answer,
        "completion": completion.text,
        "num_tokens": len(completion.token_ids),
        "finish_reason": completion.finish_reason.value,
        "extracted": grade.extracted,
        "answer_reward": grade.answer_reward,
        "format_reward": grade.format_reward,
        "outcome": grade.outcome.value,
        "reason": grade.reason,
    }


def _metrics(completions: Sequence[Completion], grades: Sequence[Grade]) -> dict[str, float]:
    n = len(grades)
    num_right = sum(int(grade.answer_reward) for grade in grades)
    low, high = wilson_interval(num_right, n)
    return {
        "eval/num_problems": n,
        "eval/accuracy": num_right / n,
        "eval/accuracy_low": low,
        "eval/accuracy_high": high,
        "eval/format_rate": sum(grade.format_reward for grade in grades) / n,
        "eval/grader_errors": sum(grade.outcome is Outcome.grader_error for grade in grades),
        "eval/length_mean": sum(len(c.token_ids) for c in completions) / n,
        "eval/truncated_share": sum(c.finish_reason is FinishReason.length for c in completions) / n,
    }
