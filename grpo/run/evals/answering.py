"""Has the engine answer what is not answered yet: everything in one call, graded and kept as it comes."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from queue import SimpleQueue
from types import FrameType

from grpo.run.evals.results import Item, Place, Row
from grpo.types import Completion, Engine, Grade, Grader, Outcome, PendingGrade, SampleKey, Sampling

Keep = Callable[[Sequence[tuple[Place, Row]]], None]


@dataclass(frozen=True)
class Graders:
    """Two readings of a completion.

    Attributes:
        strict: as the run rewards it.
        anywhere: an answer counts wherever it stands; see `grpo.reward.lenient`.
    """

    strict: Grader
    anywhere: Grader


@dataclass(frozen=True, slots=True)
class _Ended:
    """A completion that has ended, and its grade to come."""

    place: Place
    key: SampleKey
    gold: str
    completion: Completion
    grade: PendingGrade


def answer(
    engine: Engine,
    graders: Graders,
    items: Sequence[Item],
    prompt_ids: Sequence[Sequence[int]],
    sampling: Sampling,
    *,
    wanted: Mapping[int, Sequence[int]],
    seed: int,
    keep: Keep,
) -> None:
    """Samples and grades what is wanted, in one call of the engine, so that no batch waits for its longest member.

    A completion's random numbers are named by the seed, its problem's place in its dataset and its number: those of an
    evaluation that goes on are those of one that was never interrupted, and those of `grpo.run.evaluation`.

    Args:
        engine: has the weights.
        graders: see there.
        items: all problems.
        prompt_ids: of each item.
        sampling: temperature 0 is greedy.
        wanted: numbers of the samples that are missing, by the item's number.
        seed: of the evaluation.
        keep: is handed rows as they are graded, in a thread of its own.

    Raises:
        KeyboardInterrupt: a signal came; what had ended by then has been kept.
        OSError: results could not be kept.
    """
    numbers = [number for number in wanted if wanted[number]]
    keys = [[SampleKey(seed, 0, items[number].place, sample) for sample in wanted[number]] for number in numbers]
    flat = [(number, sample) for number in numbers for sample in wanted[number]]
    with _Keeper(graders.anywhere, keep) as keeper:

        def submit(index: int, completion: Completion) -> None:
            number, sample = flat[index]
            item = items[number]
            place, key = Place(item.dataset, item.place, sample), SampleKey(seed, 0, item.place, sample)
            grade = graders.strict.submit(completion.text, item.problem.answer, key)
            keeper.add(_Ended(place, key, item.problem.answer, completion, grade))

        engine.generate([prompt_ids[number] for number in numbers], keys, sampling, submit)


class _Keeper:
    """Waits for grades and keeps rows, in a thread of its own: sampling waits for neither grader nor disk."""

    def __init__(self, anywhere: Grader, keep: Keep) -> None:
        self._anywhere, self._keep = anywhere, keep
        self._queue: SimpleQueue[_Ended | None] = SimpleQueue()
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._work, name="results", daemon=True)

    def __enter__(self) -> _Keeper:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Returns when all that was added is kept; a second signal ends the waiting."""
        self._queue.put(None)
        self._thread.join()
        if kind is None:
            self._raise()

    def add(self, ended: _Ended) -> None:
        """Returns at once.

        Raises:
            OSError: what was added before could not be kept.
        """
        self._raise()
        self._queue.put(ended)

    def _raise(self) -> None:
        if self._error is not None:
            raise self._error

    def _work(self) -> None:
        try:
            while (first := self._queue.get()) is not None:
                batch, is_last = [first], False
                while not self._queue.empty() and not is_last:
                    following = self._queue.get()
                    is_last = following is None
                    batch += [] if following is None else [following]
                self._keep(self._rows(batch))
                if is_last:
                    return
        except BaseException as error:  # the thread that samples raises it
            self._error = error

    def _rows(self, batch: Sequence[_Ended]) -> list[tuple[Place, Row]]:
        grades = [ended.grade.result() for ended in batch]
        second = [
            None if grade.answer_reward else self._anywhere.submit(ended.completion.text, ended.gold, ended.key)
            for ended, grade in zip(batch, grades, strict=True)
        ]
        return [
            (ended.place, _row(ended, grade, grade if pending is None else pending.result()))
            for ended, grade, pending in zip(batch, grades, second, strict=True)
        ]


def _row(ended: _Ended, grade: Grade, anywhere: Grade) -> Row:
    return {
        "sample": ended.place.sample,
        "text": ended.completion.text,
        "num_tokens": len(ended.completion.token_ids),
        "finish_reason": ended.completion.finish_reason.value,
        "extracted": grade.extracted,
        "verdict": verdict(grade),
        "rule": grade.reason,
        "outcome": grade.outcome.value,
        "reward": grade.reward,
        "format_reward": grade.format_reward,
        "answer_reward": grade.answer_reward,
        "anywhere_extracted": anywhere.extracted,
        "anywhere_reward": anywhere.answer_reward,
        "anywhere_rule": anywhere.reason,
    }


def verdict(grade: Grade) -> str:
    """A grade in a word: right, wrong, no_answer (where it should stand), or grader_error."""
    words = {Outcome.format_failure: "no_answer", Outcome.grader_error: "grader_error"}
    return words.get(grade.outcome, "right" if grade.answer_reward else "wrong")


@contextmanager
def sigterm_interrupts() -> Iterator[Callable[[], int]]:
    """SIGTERM acts as Ctrl-C does: it raises KeyboardInterrupt in the main thread.

    Yields:
        Gives the signal that came last, SIGINT if it was not SIGTERM.
    """
    received = [int(signal.SIGINT)]

    def interrupt(number: int, frame: FrameType | None) -> None:
        received.append(number)
        raise KeyboardInterrupt

    previous = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield lambda: received[-1]
    finally:
        signal.signal(signal.SIGTERM, previous)
