"""Stop strings for vLLM: the torch engine's automaton, a request at a time, over the tokens that vLLM reports.

vLLM's own search runs over its detokenised text, where a stop string that begins before min_tokens, or in half a
character, ends a completion elsewhere than the torch engine and the trainer's text have it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from grpo.rollout.completions import special_stop_ids
from grpo.rollout.stopping import token_transitions
from grpo.rollout.vllm_types import Draw, StopTables

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def stop_tables(tokenizer: PreTrainedTokenizerBase, pieces: Sequence[bytes], stop: Sequence[str]) -> StopTables | None:
    """The automata of some stop strings; None where there are none.

    Args:
        tokenizer: knows which strings are special tokens.
        pieces: V byte strings, what each token writes.
        stop: the strings.
    """
    if not stop:
        return None
    pairs = [token_transitions(pieces, string) for string in stop]
    return StopTables(
        tables=tuple((2 * states + matched).astype(np.int16) for states, matched in pairs),
        special_ids=special_stop_ids(tokenizer, stop),
    )


class Growing:
    """A completion that vLLM is still writing.

    Attributes:
        token_ids, log_probs: [T] so far.
        stopped: a stop string, or a special token that is one, has ended it.
    """

    def __init__(self, draw: Draw) -> None:
        """Empty."""
        self.token_ids: list[int] = []
        self.log_probs: list[float] = []
        self.stopped = False
        self._draw = draw
        self._states = [0] * len(draw.stops.tables) if draw.stops else []

    def add(self, token: int, log_prob: float) -> None:
        """One more token, unless a stop string has ended the completion."""
        if self.stopped:
            return
        self.token_ids.append(token)
        self.log_probs.append(log_prob)
        if self._draw.stops is not None:
            completes = self._advance(token, self._draw.stops)
            self.stopped = completes and len(self.token_ids) >= self._draw.min_tokens

    def _advance(self, token: int, stops: StopTables) -> bool:
        """Moves every automaton; whether the token is, or completes, a stop string."""
        self._states = [int(table[state >> 1, token]) for table, state in zip(stops.tables, self._states, strict=True)]
        return token in stops.special_ids or any(state & 1 for state in self._states)
