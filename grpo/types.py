"""What travels between the parts of a run. Everything here is frozen: no stage rewrites what another one made.

Axes: P problems in a batch, G completions per problem, B = P * G, T response tokens. All log-probs are nats.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING, NamedTuple, Protocol

if TYPE_CHECKING:  # commands that need no tensors start without torch, which takes seconds to import
    import torch


class RunError(Exception):
    """Stops a run with one sentence: what was seen, the rule, the remedy."""


class FinishReason(Enum):
    """Why a completion ended."""

    stop = "stop"  # an end-of-sequence token, or a stop string
    length = "length"  # max_tokens reached: the completion is truncated


class Outcome(Enum):
    """What grading a completion led to. A grader error is never the same as a wrong answer."""

    graded = "graded"
    format_failure = "format_failure"
    grader_error = "grader_error"


class SampleKey(NamedTuple):
    """Names one completion for the random number generator: equal keys draw equal numbers, whatever the batch.

    Step 0 belongs to evaluation, so that every evaluation of a run draws the same numbers; training starts at 1.
    """

    seed: int
    step: int
    problem: int  # the problem's place in the step
    sample: int  # the completion's place in its group


@dataclass(frozen=True, slots=True)
class Problem:
    """A question and its gold answer, as the data file has them."""

    id: str
    question: str
    answer: str
    level: str = ""
    subject: str = ""


@dataclass(frozen=True, slots=True)
class Sampling:
    """The distribution that completions are drawn from, and where they end.

    Attributes:
        temperature: 0 means greedy; log-probs are then those of temperature 1.
        top_p: 1 keeps every token.
        top_k: 0 keeps every token.
        min_tokens: an end-of-sequence token has probability 0, and stop strings are not looked for, before the
            completion holds this many tokens.
        max_tokens: where a completion is cut, in tokens.
        stop: strings that end a completion; they stay in it.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_tokens: int = 0
    max_tokens: int = 1024
    stop: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Completion:
    """What the model wrote after the prompt.

    Attributes:
        token_ids: [T], as sampled: the end-of-sequence token and the whole of a token that completes a stop string
            are in it. Never made from `text`.
        sampler_log_probs: [T] nats, of the distribution the tokens were sampled from.
        text: the decoded tokens without special tokens, cut after the stop string.
        finish_reason: why it ended.
        version: of the weights that sampled it.
    """

    token_ids: tuple[int, ...]
    sampler_log_probs: tuple[float, ...]
    text: str
    finish_reason: FinishReason
    version: int


@dataclass(frozen=True, slots=True)
class Grade:
    """The verdict on one completion.

    Attributes:
        reward: what training maximises.
        format_reward: 1 if the answer stands where it should, else 0.
        answer_reward: 1 if the answer is right, else 0.
        outcome: graded, a format failure, or a grader error (all rewards are then 0 and the error is counted).
        reason: short code of the rule that decided, such as "exact" or "no_answer_tag".
        extracted: the answer as it was read, or "".
    """

    reward: float
    format_reward: float
    answer_reward: float
    outcome: Outcome
    reason: str
    extracted: str = ""


@dataclass(frozen=True, slots=True)
class RolloutGroup:
    """G completions of one problem with their grades, in the order of their sample numbers."""

    problem: Problem
    prompt_ids: tuple[int, ...]
    completions: tuple[Completion, ...]
    grades: tuple[Grade, ...]

    @property
    def rewards(self) -> list[float]:
        """[G] rewards."""
        return [grade.reward for grade in self.grades]


@dataclass(frozen=True, slots=True)
class Drawn:
    """Graded rollouts of a step.

    Attributes:
        step: of the loop.
        groups: P of them, to train on.
        discarded: sampled too, and left out by dynamic sampling.
        seconds: by phase, of a thread that drew them beside an update; empty otherwise.
    """

    step: int
    groups: Sequence[RolloutGroup]
    discarded: Sequence[RolloutGroup] = ()
    seconds: dict[str, float] = field(default_factory=dict[str, float])


@dataclass(frozen=True, slots=True)
class TrainBatch:
    """What the update reads: B ragged sequences, prompt then response.

    Attributes:
        token_ids: B tensors [prompt + T_i] int64, on the CPU.
        prompt_lengths: B numbers of prompt tokens.
        sampler_log_probs: B tensors [T_i] float32.
        advantages: [B] float32.
        staleness: by how many updates the weights that sampled the oldest completion are behind the policy's.
    """

    token_ids: tuple[torch.Tensor, ...]
    prompt_lengths: tuple[int, ...]
    sampler_log_probs: tuple[torch.Tensor, ...]
    advantages: torch.Tensor
    staleness: int = 0

    def __len__(self) -> int:
        return len(self.token_ids)

    def response_length(self, row: int) -> int:
        """T of one sequence."""
        return len(self.token_ids[row]) - self.prompt_lengths[row]

    def select(self, rows: Sequence[int]) -> TrainBatch:
        """The same batch with these rows, in this order."""
        return TrainBatch(
            token_ids=tuple(self.token_ids[row] for row in rows),
            prompt_lengths=tuple(self.prompt_lengths[row] for row in rows),
            sampler_log_probs=tuple(self.sampler_log_probs[row] for row in rows),
            advantages=self.advantages[list(rows)],
            staleness=self.staleness,
        )


class Engine(Protocol):
    """What samples completions. `tests/contract/test_engine.py` holds every implementation to it."""

    @property
    def version(self) -> int:
        """Of the weights that are in use."""
        ...

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        keys: Sequence[Sequence[SampleKey]],
        sampling: Sampling,
        on_completion: Callable[[int, Completion], None] | None = None,
    ) -> list[list[Completion]]:
        """Samples len(keys[i]) completions of prompts[i], in that order.

        `on_completion(place, completion)` is called once for each, soon after it has ended and in the caller's thread.
        `place` is its place in the call, counted through all groups.
        """
        ...

    def sync(self, model: torch.nn.Module, version: int) -> None:
        """Takes over the weights of `model`; completions carry `version` from now on."""
        ...

    def sleep(self) -> None:
        """Gives back, until `wake`, what memory it can do without; called before an update."""
        ...

    def wake(self) -> None:
        """Takes the memory again; a sync or a generate may follow."""
        ...

    def close(self) -> None:
        """Frees what the engine holds."""
        ...


class PendingGrade(Protocol):
    """A grade to come."""

    def result(self) -> Grade:
        """Waits for it."""
        ...


class Grader(Protocol):
    """What grades completions. Called from any thread; never raises for what a model wrote."""

    def submit(self, response: str, gold: str, key: SampleKey) -> PendingGrade:
        """Starts grading; `key` is for reward functions that draw random numbers."""
        ...

    def grade(self, responses: Sequence[str], golds: Sequence[str], keys: Sequence[SampleKey]) -> list[Grade]:
        """Submits them all and waits: one grade per response, in order."""
        ...

    def close(self) -> None:
        """Ends the worker processes."""
        ...
