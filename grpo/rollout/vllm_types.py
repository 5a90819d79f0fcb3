"""What vLLM is asked for and what it answers, as plain values: the same in this process and over a pipe to a child.

Axes: V vocabulary, S bytes of a stop string.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np


class VllmError(Exception):
    """vLLM has failed; its own words."""


@dataclass(frozen=True, slots=True)
class VllmSettings:
    """How a vLLM engine is built.

    Attributes:
        config: the model's config.json.
        dtype: "float32" or "bfloat16".
        device: "cpu" or "cuda".
        context: positions that a prompt and its completion may take together.
        cache_bytes: of the key-value cache; None lets vLLM fill `memory_fraction`.
        memory_fraction: share of the GPU's memory.
        sleep: whether its memory can be given back between calls.
        batch_invariant: slower kernels whose results do not depend on the batch.
    """

    config: dict[str, Any]
    dtype: str
    device: str
    context: int
    cache_bytes: int | None
    memory_fraction: float
    sleep: bool = False
    batch_invariant: bool = False


class Wanted(NamedTuple):
    """One completion: its place in the engine's call, its prompt, and the seed of its random numbers."""

    place: int
    prompt: Sequence[int]
    seed: int


class Finished(NamedTuple):
    """One completion that has ended; `stopped` says that a token or a stop string ended it, and not the limit."""

    place: int
    token_ids: list[int]
    log_probs: list[float]
    stopped: bool


@dataclass(frozen=True, slots=True)
class StopTables:
    """Stop strings as automata over tokens, see `grpo.rollout.stopping`.

    Attributes:
        tables: one [S + 1, V] int16 a string: twice the number of bytes matched after the token, plus 1 if the string
            ended in it.
        special_ids: stop strings that are special tokens, which write nothing.
    """

    tables: tuple[np.ndarray, ...]
    special_ids: frozenset[int]


@dataclass(frozen=True, slots=True)
class Draw:
    """How completions are drawn and where they end; see `grpo.types.Sampling`.

    Attributes:
        end_ids: tokens that end a completion, of probability 0 before `min_tokens`.
        stops: None where there are no stop strings.
    """

    temperature: float
    top_p: float
    top_k: int
    min_tokens: int
    max_tokens: int
    end_ids: tuple[int, ...]
    stops: StopTables | None


class Backend(Protocol):
    """A vLLM, here or in a child process."""

    def generate(self, wanted: Sequence[Wanted], draw: Draw) -> Generator[Finished, None, None]:
        """Yields each completion soon after it has ended; closing the generator ends those that have not.

        Raises:
            VllmError: vLLM has failed.
        """
        ...

    def load(self, model: Any) -> None:
        """Takes over the weights of `model`.

        Raises:
            VllmError, RuntimeError, ValueError: it did not; no weights are in use until it does.
        """
        ...

    def sleep(self) -> None:
        """Gives memory back until `wake`; does nothing where vLLM cannot."""
        ...

    def wake(self) -> None:
        """Takes the memory again."""
        ...

    def close(self) -> None:
        """Frees everything."""
        ...
