from dataclasses import replace

import pytest
import torch

from grpo.config import compose_run_config
from grpo.run.rollout_metrics import completion_rows, rollout_metrics
from grpo.types import Completion, FinishReason, Grade, Outcome, Problem, RolloutGroup, RunError, TrainBatch

CONFIG = compose_run_config(["experiment=quickstart", "reward.max_error_share=0.25"])


def completion(num_tokens: int, reason: FinishReason = FinishReason.stop) -> Completion:
    return Completion(
        token_ids=(3,) * num_tokens,
        text=f"{num_tokens} tokens",
        sampler_log_probs=(-0.25,) * num_tokens,
        finish_reason=reason,
        version=6,
    )


def grade(reward: float, outcome: Outcome = Outcome.graded) -> Grade:
    is_graded = outcome is Outcome.graded
    return Grade(
        reward=reward,
        format_reward=float(is_graded),
        answer_reward=reward,
        outcome=outcome,
        extracted="7",
        reason="because",
    )


GROUPS = [
    RolloutGroup(
        Problem("a", "1 + 1?", "2", "", ""),
        (1, 2),
        (completion(1), completion(2)),
        (grade(1.0), grade(0.0, Outcome.format_failure)),
    ),
    RolloutGroup(
        Problem("b", "2 + 2?", "4", "", ""),
        (1, 2, 3),
        (completion(3), completion(6, FinishReason.length)),
        (grade(0.0), grade(0.0, Outcome.grader_error)),
    ),
]
ADVANTAGES = torch.tensor([[1.0, -1.0], [0.0, 0.0]])


def test_every_number_by_hand() -> None:
    metrics = rollout_metrics(CONFIG, GROUPS, ADVANTAGES, torch.tensor([True, False]))
    assert metrics == {
        "reward/mean": 0.25,
        "reward/std": 0.5,  # sqrt((0.75² + 3 * 0.25²) / 3)
        "reward/format": 0.5,
        "reward/answer": 0.25,
        "grade/format_failures": 1,
        "grade/errors": 1,
        "signal/share": 0.5,
        "signal/groups_without": 1,
        "advantage/mean": 0.0,
        "advantage/std": pytest.approx((2 / 3) ** 0.5, abs=1e-6),
        "completion/length_mean": 3.0,
        "completion/length_max": 6,
        "completion/truncated_share": 0.25,
    }


def test_more_grader_errors_than_allowed_stop_the_run() -> None:
    strict = replace(CONFIG, reward=replace(CONFIG.reward, max_error_share=0.24))
    with pytest.raises(
        RunError, match=r"1 of 4 answers could not be graded \(the first: because, '7'\), more than rew"
    ):
        rollout_metrics(strict, GROUPS, ADVANTAGES, torch.tensor([True, False]))


def test_a_line_a_group_and_an_entry_a_completion() -> None:
    sequences = [(group.prompt_ids, c) for group in GROUPS for c in group.completions]
    batch = TrainBatch(
        token_ids=tuple(torch.tensor([*prompt, *c.token_ids]) for prompt, c in sequences),
        prompt_lengths=tuple(len(prompt) for prompt, _ in sequences),
        sampler_log_probs=tuple(torch.tensor(c.sampler_log_probs) for _, c in sequences),
        advantages=ADVANTAGES.flatten(),
    )
    rows = completion_rows(7, GROUPS, batch)
    assert [(row["step"], row["problem"], row["question"], row["gold"]) for row in rows] == [
        (7, "a", "1 + 1?", "2"),
        (7, "b", "2 + 2?", "4"),
    ]
    assert [entry["advantage"] for row in rows for entry in row["completions"]] == [1.0, -1.0, 0.0, 0.0]
    assert rows[1]["completions"][1] == {
        "text": "6 tokens",
        "num_tokens": 6,
        "finish_reason": "length",
        "log_prob": -1.5,
        "reward": 0.0,
        "format_reward": 0.0,
        "answer_reward": 0.0,
        "outcome": "grader_error",
        "reason": "because",
        "extracted": "7",
        "advantage": 0.0,
        "version": 6,
    }
