"""Held-out problems: one completion each, with intervals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from grpo.distributed import ONE_RANK, Ranks
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
    ranks: Ranks = ONE_RANK,
) -> tuple[list[dict[str, Any]], dict[str, float]]:
    """Samples one completion of every problem, in one call on every rank, and grades each as soon as it has ended.

    Args:
        engine: of the run.
        grader: of the run.
        problems: held out.
        prompt_ids: of each problem.
        sampling: temperature 0 is greedy.
        seed: of the run. The random numbers are the same at every step, so that differences are the weights'.
        ranks: who shares the problems out among them.

    Returns:
        A row for each problem, and the metrics `eval/...`. Grader errors are not right, and are counted.
    """
    own = ranks.share(problems)
    keys = ranks.share([SampleKey(seed, 0, place, 0) for place in range(len(problems))])
    prompts = [prompt_ids[problem] for problem in own]
    pending: dict[int, PendingGrade] = {}

    def submit(place: int, completion: Completion) -> None:
        pending[place] = grader.submit(completion.text, own[place].answer, keys[place])

    drawn = [group[0] for group in engine.generate(prompts, [[key] for key in keys], sampling, submit)]
    answers = ranks.collect([(completion, pending[place].result()) for place, completion in enumerate(drawn)])
    completions, grades = [answer[0] for answer in answers], [answer[1] for answer in answers]
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
