"""What is missing goes through the engine in one call, and is graded and kept as it comes."""

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from typing import Any

import pytest

from grpo.run.evals.answering import Graders, answer
from grpo.run.evals.results import Item, Place
from grpo.types import Completion, FinishReason, Grade, Outcome, Problem, SampleKey, Sampling

SAMPLING = Sampling(1.0, 1.0, 0, 0, 8, ())
ITEMS = [
    Item(name, place, Problem(f"{name}{place}", "q", str(place)), "ask") for name in ("a", "b") for place in range(3)
]
PROMPTS = [(number,) for number in range(len(ITEMS))]


class Engine:
    """Answers the n-th prompt's sample s with the text "n.s", last ones first, and keeps what it was asked."""

    def __init__(self, fail_after: int | None = None) -> None:
        self.asked: list[tuple[list[Sequence[int]], list[Sequence[SampleKey]]]] = []
        self.fail_after = fail_after

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        keys: Sequence[Sequence[SampleKey]],
        sampling: Sampling,
        on_completion: Callable[[int, Completion], None],
    ) -> None:
        assert sampling is SAMPLING
        self.asked.append((list(prompts), list(keys)))
        flat = [(prompt[0], key.sample) for prompt, group in zip(prompts, keys, strict=True) for key in group]
        for count, place in enumerate(reversed(range(len(flat)))):
            if count == self.fail_after:
                raise KeyboardInterrupt
            on_completion(place, completion("{}.{}".format(*flat[place])))


def completion(text: str) -> Completion:
    return Completion((1, 2), (-0.5, -0.5), text, FinishReason.stop, 0)


class Grader:
    """Right if the text starts with the given digit, once the event has come; keeps what it was asked."""

    def __init__(self, right: str, after: threading.Event | None = None) -> None:
        self.right, self.after = right, after
        self.asked: list[tuple[str, str, SampleKey]] = []

    def submit(self, response: str, gold: str, key: SampleKey) -> Any:
        self.asked.append((response, gold, key))
        is_right = response.startswith(self.right)
        grade = Grade(float(is_right), 1.0, float(is_right), Outcome.graded, "why", response)
        return Slow(grade, self.after)


class Slow(Future[Grade]):
    def __init__(self, grade: Grade, after: threading.Event | None) -> None:
        super().__init__()
        self.set_result(grade)
        self.after = after

    def result(self, timeout: float | None = None) -> Grade:
        assert self.after is None or self.after.wait(30), "sampling waits for the grader"
        return super().result(timeout)


def ask(engine: Engine, keep: Any, wanted: dict[int, list[int]], graders: Graders | None = None) -> None:
    graders = graders or Graders(Grader("4"), Grader("5"))  # type: ignore[arg-type]
    answer(engine, graders, ITEMS, PROMPTS, SAMPLING, wanted=wanted, seed=7, keep=keep)  # type: ignore[arg-type]


def test_one_call_for_everything_with_keys_of_the_problems_place_in_its_dataset() -> None:
    engine, kept = Engine(), []
    ask(engine, kept.extend, {number: [0, 1] for number in range(6)})
    ((prompts, keys),) = engine.asked
    assert prompts == PROMPTS
    assert keys == [[SampleKey(7, 0, number % 3, sample) for sample in (0, 1)] for number in range(6)]
    found = {place: row["text"] for place, row in kept}
    assert found == {Place("ab"[n // 3], n % 3, sample): f"{n}.{sample}" for n in range(6) for sample in (0, 1)}
    assert len(kept) == 12


def test_only_what_is_missing_is_asked_for() -> None:
    engine, kept = Engine(), []
    ask(engine, kept.extend, {0: [], 1: [1], 2: [0, 1], 3: [], 4: [], 5: [0]})
    assert engine.asked == [
        (
            [(1,), (2,), (5,)],
            [[SampleKey(7, 0, 1, 1)], [SampleKey(7, 0, 2, 0), SampleKey(7, 0, 2, 1)], [SampleKey(7, 0, 2, 0)]],
        )
    ]
    assert {place for place, _ in kept} == {Place("a", 1, 1), Place("a", 2, 0), Place("a", 2, 1), Place("b", 2, 0)}


def test_what_is_wrong_is_read_a_second_time_wherever_its_answer_stands() -> None:
    graders = Graders(Grader("4"), Grader("5"))  # type: ignore[arg-type]
    kept: list[Any] = []
    ask(Engine(), kept.extend, {number: [0] for number in range(6)}, graders)
    rows = {row["text"]: row for _, row in kept}
    assert [rows[f"{n}.0"]["answer_reward"] for n in range(6)] == [0, 0, 0, 0, 1, 0]
    assert [rows[f"{n}.0"]["anywhere_reward"] for n in range(6)] == [0, 0, 0, 0, 1, 1]
    assert "4.0" not in {text for text, _, _ in graders.anywhere.asked}  # type: ignore[attr-defined]
    assert {(gold, key) for _, gold, key in graders.strict.asked} == {  # type: ignore[attr-defined]
        (str(n % 3), SampleKey(7, 0, n % 3, 0)) for n in range(6)
    }
    assert rows["4.0"] == {
        "sample": 0,
        "text": "4.0",
        "num_tokens": 2,
        "finish_reason": "stop",
        "extracted": "4.0",
        "verdict": "right",
        "rule": "why",
        "outcome": "graded",
        "reward": 1.0,
        "format_reward": 1.0,
        "answer_reward": 1.0,
        "anywhere_extracted": "4.0",
        "anywhere_reward": 1.0,
        "anywhere_rule": "why",
    }


def test_sampling_waits_for_neither_grader_nor_disk() -> None:
    kept: list[Any] = []
    sampled = threading.Event()

    class Telling(Engine):
        def generate(self, *arguments: Any) -> None:
            super().generate(*arguments)
            sampled.set()

    def keep(rows: Sequence[Any]) -> None:
        assert sampled.wait(30), "sampling waits for the disk"
        kept.extend(rows)

    slow = Graders(Grader("4", sampled), Grader("5", sampled))  # type: ignore[arg-type]
    ask(Telling(), keep, {number: [0, 1, 2] for number in range(6)}, slow)
    assert len(kept) == 18


def test_an_interrupt_keeps_what_had_ended() -> None:
    kept: list[Any] = []
    with pytest.raises(KeyboardInterrupt):
        ask(Engine(fail_after=4), kept.extend, {number: [0] for number in range(6)})
    assert sorted(row["text"] for _, row in kept) == ["2.0", "3.0", "4.0", "5.0"]


def test_a_disk_that_is_full_ends_the_sampling() -> None:
    def keep(rows: Sequence[Any]) -> None:
        raise OSError("no room")

    with pytest.raises(OSError, match="no room"):
        ask(Engine(), keep, {number: [0] for number in range(6)})


@pytest.fixture(autouse=True)
def no_thread_stays() -> Iterator[None]:
    yield
    assert "results" not in {thread.name for thread in threading.enumerate()}
