from dataclasses import replace

import pytest
import torch

from grpo.config import compose_run_config
from grpo.policy.small_tokenizer import build_small_tokenizer
from grpo.run.rollout_metrics import completion_rows, rollout_metrics, time_metrics, token_texts
from grpo.types import Completion, Drawn, FinishReason, Grade, Outcome, Problem, RolloutGroup, RunError, TrainBatch

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
    metrics = rollout_metrics(CONFIG, Drawn(8, GROUPS), ADVANTAGES, torch.tensor([True, False]))
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
        "rollout/staleness_mean": 1.0,
        "completion/truncated_share": 0.25,
    }


def test_more_grader_errors_than_allowed_stop_the_run() -> None:
    strict = replace(CONFIG, reward=replace(CONFIG.reward, max_error_share=0.24))
    with pytest.raises(
        RunError, match=r"1 of 4 answers could not be graded \(the first: because, '7'\), more than rew"
    ):
        rollout_metrics(strict, Drawn(8, GROUPS), ADVANTAGES, torch.tensor([True, False]))


def test_what_dynamic_sampling_discards_counts() -> None:
    strict = replace(CONFIG, reward=replace(CONFIG.reward, max_error_share=0.2))
    drawn = Drawn(8, GROUPS[:1], GROUPS[1:])
    signal = torch.tensor([True])
    whole = rollout_metrics(CONFIG, Drawn(8, GROUPS), ADVANTAGES, torch.tensor([True, False]))
    of_all = {key: value for key, value in whole.items() if not key.startswith("advantage/")}
    assert of_all.items() <= rollout_metrics(CONFIG, drawn, ADVANTAGES[:1], signal).items()
    with pytest.raises(RunError, match="1 of 4 answers could not be graded"):
        rollout_metrics(strict, drawn, ADVANTAGES[:1], signal)
    timings = {"time/rollout_s": 4.0, "time/update_s": 1.0}
    assert time_metrics(drawn, batch_of(GROUPS[:1], ADVANTAGES[:1]), timings)["rollout/tokens_per_s"] == 12 / 4


def batch_of(groups: list[RolloutGroup], advantages: torch.Tensor) -> TrainBatch:
    sequences = [(group.prompt_ids, c) for group in groups for c in group.completions]
    return TrainBatch(
        token_ids=tuple(torch.tensor([*prompt, *c.token_ids]) for prompt, c in sequences),
        prompt_lengths=tuple(len(prompt) for prompt, _ in sequences),
        sampler_log_probs=tuple(torch.tensor(c.sampler_log_probs) for _, c in sequences),
        advantages=advantages.flatten(),
    )


def test_a_line_a_group_and_an_entry_a_completion() -> None:
    rows = completion_rows(7, GROUPS, batch_of(GROUPS, ADVANTAGES))
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
        "staleness": 0,
    }


def test_the_first_groups_with_a_signal_have_their_tokens() -> None:
    tokenizer = build_small_tokenizer()
    ids = (*tokenizer.encode("1 </think>é"), tokenizer.eos_token_id)
    log_probs = tuple(-0.0004 - 0.25 * place for place in range(len(ids)))
    one = Completion(ids, log_probs, "1 </think>é", FinishReason.stop, 6)
    keen = RolloutGroup(Problem("k", "?", "1"), (1,), (one, one), (grade(1.0), grade(0.0)))
    dull = RolloutGroup(Problem("d", "?", "1"), (1,), (one, one), (grade(1.0), grade(1.0)))
    groups = [dull, keen, dull, keen, keen]
    batch = batch_of(groups, torch.zeros(5, 2))
    policy = {2: torch.tensor(log_probs) + torch.log(torch.tensor(1.5)), 0: torch.tensor(log_probs)}
    rows = completion_rows(7, groups, batch, tokenizer, policy)

    assert [["tokens" in entry for entry in row["completions"]] for row in rows] == [
        [True, True],  # the first without a signal: of four places three have one
        [True, True],
        [False, False],
        [True, True],
        [True, True],
    ]
    entry = rows[1]["completions"][0]
    # é is two tokens, of a byte each.
    assert entry["tokens"] == ["1", " ", "</think>", "\ufffd", "\ufffd", "<|endoftext|>"]
    assert entry["token_log_probs"] == [-0.0, -0.25, -0.5, -0.75, -1.0, -1.25]
    assert entry["token_ratios"] == [1.5] * 6
    assert rows[0]["completions"][0]["token_ratios"] == [1.0] * 6
    assert "token_ratios" not in rows[1]["completions"][1]
    plain = completion_rows(7, groups, batch)
    assert all("tokens" not in entry for row in plain for entry in row["completions"])


def test_a_sentencepiece_token_keeps_the_space_before_its_word() -> None:
    class Tokenizer:
        def convert_ids_to_tokens(self, ids: list[int]) -> list[str | None]:
            return [{1: "\u2581the", 2: "re", 3: "\u2581"}.get(token_id) for token_id in ids]

        def decode(self, ids: list[int]) -> str:
            return {1: "the", 2: "re", 3: ""}[ids[0]]

    # 9 is a row of the embedding that no token uses
    assert token_texts(Tokenizer(), [2, 1, 3, 9, 1]) == {1: " the", 2: "re", 3: " ", 9: "<9>"}
