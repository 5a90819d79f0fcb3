import math
from collections.abc import Callable, Sequence
from concurrent.futures import Future

import pytest

from grpo.run.evaluation import evaluate
from grpo.types import Completion, FinishReason, Grade, Outcome, Problem, SampleKey, Sampling

PROBLEMS = [Problem(f"p{n}", f"question {n}", str(n), "1", "sums") for n in range(4)]
PROMPTS = {problem: (n, 7) for n, problem in enumerate(PROBLEMS)}
GREEDY = Sampling(0.0, 1.0, 0, 0, 8, ())
OUTCOMES = [Outcome.graded, Outcome.graded, Outcome.format_failure, Outcome.grader_error]


class CountingEngine:
    """Answers the n-th prompt with n + 1 tokens and the text "n", and keeps what it was asked."""

    def __init__(self) -> None:
        self.asked: list[tuple[Sequence[Sequence[int]], Sequence[Sequence[SampleKey]]]] = []

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        keys: Sequence[Sequence[SampleKey]],
        sampling: Sampling,
        on_completion: Callable[[int, Completion], None],
    ) -> list[list[Completion]]:
        assert sampling is GREEDY
        self.asked.append((prompts, keys))
        completions = [completion(prompt[0]) for prompt in prompts]
        for place in (2, 0, 3, 1):  # as they end, in whatever order
            on_completion(place, completions[place])
        return [[one] for one in completions]


def completion(n: int) -> Completion:
    reason = FinishReason.length if n == 3 else FinishReason.stop
    return Completion(
        token_ids=(1,) * (n + 1), text=str(n), sampler_log_probs=(-0.5,) * (n + 1), finish_reason=reason, version=0
    )


class FixedGrader:
    """Right, wrong, no format, an error of the grader."""

    def submit(self, response: str, gold: str, key: SampleKey) -> Future[Grade]:
        assert response == gold == str(key.problem)
        n = key.problem
        grade: Future[Grade] = Future()
        grade.set_result(
            Grade(
                reward=float(n == 0),
                format_reward=float(n < 2),
                answer_reward=float(n == 0),
                outcome=OUTCOMES[n],
                extracted=f"x{n}",
                reason="why",
            )
        )
        return grade


def test_an_evaluation_counts_what_was_right_and_what_was_not() -> None:
    engine = CountingEngine()
    rows, metrics = evaluate(engine, FixedGrader(), PROBLEMS, PROMPTS, GREEDY, seed=5)  # type: ignore[arg-type]
    # Wilson, 1 of 4, z = 1.959964: centre (0.25 + z²/8) / (1 + z²/4) = 0.372449, half width 0.326868.
    z = 1.959964
    centre, half = (0.25 + z * z / 8) / (1 + z * z / 4), z * math.sqrt(0.1875 / 4 + z * z / 64) / (1 + z * z / 4)
    assert metrics == {
        "eval/num_problems": 4,
        "eval/accuracy": 0.25,
        "eval/accuracy_low": pytest.approx(centre - half, abs=1e-6),
        "eval/accuracy_high": pytest.approx(centre + half, abs=1e-6),
        "eval/format_rate": 0.5,
        "eval/grader_errors": 1,
        "eval/length_mean": 2.5,
        "eval/truncated_share": 0.25,
    }
    assert [row["problem"] for row in rows] == ["p0", "p1", "p2", "p3"]
    assert rows[3] == {
        "problem": "p3",
        "level": "1",
        "subject": "sums",
        "question": "question 3",
        "gold": "3",
        "completion": "3",
        "num_tokens": 4,
        "finish_reason": "length",
        "extracted": "x3",
        "answer_reward": 0.0,
        "format_reward": 0.0,
        "outcome": "grader_error",
        "reason": "why",
    }


def test_all_problems_go_in_one_call_with_keys_of_their_own() -> None:
    engine = CountingEngine()
    for _ in range(2):
        evaluate(engine, FixedGrader(), PROBLEMS, PROMPTS, GREEDY, seed=5)  # type: ignore[arg-type]
    (prompts, keys), again = engine.asked
    assert prompts == [(0, 7), (1, 7), (2, 7), (3, 7)]
    assert keys == [[SampleKey(5, 0, place, 0)] for place in range(4)]
    assert again == (prompts, keys)  # the same random numbers at every step
