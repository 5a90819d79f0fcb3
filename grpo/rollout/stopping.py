"""Where a completion ends: end-of-sequence tokens and stop strings, found on tokens as they are sampled.

A stop string may begin in one token and end in another, or begin inside one. So it is looked for in the bytes that
tokens write, by the automaton of Knuth, Morris and Pratt (SIAM J. Comput. 6(2), 1977) run over whole tokens at once: a
table says for every number of bytes matched so far and every token how many are matched afterwards. One indexing
operation then moves every row of a batch, without Python work per row.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor


def _byte_transitions(pattern: bytes) -> np.ndarray:
    """[S + 1, 256] bytes matched after one more byte; after a whole match it goes on with the longest border."""
    size = len(pattern)
    table = np.zeros((size + 1, 256), dtype=np.int64)
    table[0, pattern[0]] = 1
    border = 0
    for state in range(1, size + 1):
        table[state] = table[border]
        if state < size:
            table[state, pattern[state]] = state + 1
            border = int(table[border, pattern[state]])
    return table


def token_transitions(pieces: Sequence[bytes], stop: str) -> tuple[np.ndarray, np.ndarray]:
    """The automaton over tokens.

    Args:
        pieces: V byte strings, what each token writes.
        stop: the string, S bytes long, not empty.

    Returns:
        [S + 1, V] int16, bytes matched after the token; [S + 1, V] bool, whether the stop string ends in the token,
        be it before the token's last byte.
    """
    pattern = stop.encode()
    size = len(pattern)
    bytewise = _byte_transitions(pattern)
    lengths = np.array([len(piece) for piece in pieces])
    order = np.argsort(-lengths, kind="stable")
    longest = int(lengths.max(initial=0))
    text = np.zeros((len(pieces), longest), dtype=np.uint8)
    for index, piece in enumerate(pieces):
        text[index, : len(piece)] = np.frombuffer(piece, dtype=np.uint8)
    states = np.repeat(np.arange(size + 1)[:, None], len(pieces), axis=1)
    matched = np.zeros_like(states, dtype=bool)
    for place in range(longest):
        alive = order[: int((lengths > place).sum())]
        states[:, alive] = bytewise[states[:, alive], text[alive, place][None, :]]
        matched[:, alive] |= states[:, alive] == size
    return states.astype(np.int16), matched


class StopRules:
    """End-of-sequence tokens and stop strings of one vocabulary, on one device.

    Every row has one int16 per stop string: twice the number of bytes matched, plus 1 if the string ended in the last
    token. The two are not the same: after "abx" nothing of "ab" is matched.

    Attributes:
        tables: per stop string [states, V] int16, the state after a token for every number of bytes matched before.
        is_end: [V] bool, the tokens that end a sequence.
    """

    def __init__(self, pieces: Sequence[bytes], end_ids: Sequence[int], stop: Sequence[str], device: torch.device):
        tables = [2 * states + matched for states, matched in (token_transitions(pieces, string) for string in stop)]
        self.tables = [torch.from_numpy(table.astype(np.int16)).to(device) for table in tables]
        self.is_end = torch.zeros(len(pieces), dtype=torch.bool, device=device)
        self.is_end[list(end_ids)] = True

    def start(self, rows: int) -> list[Tensor]:
        """Nothing matched yet: one [rows] state per stop string."""
        return [torch.zeros(rows, dtype=torch.int16, device=table.device) for table in self.tables]

    def advance(self, states: Sequence[Tensor], tokens: Tensor) -> tuple[list[Tensor], Tensor, Tensor]:
        """Moves every row by one token.

        Args:
            states: of `start` or the previous call.
            tokens: [rows] sampled ids.

        Returns:
            The new states; [rows] bool, whether the token ends the sequence; [rows] bool, whether it completes a stop
            string.
        """
        moved = [table[(state >> 1).long(), tokens] for table, state in zip(self.tables, states, strict=True)]
        ended = self.is_end[tokens]
        stopped = torch.zeros_like(ended)
        for state in moved:
            stopped = stopped | (state & 1).bool()
        return moved, ended, stopped


def cut_after_stop(text: str, written: Sequence[bytes], stop: Sequence[str]) -> str:
    """The text up to and including the first stop string that ends in its last token.

    Occurrences that end before the last token came before min_tokens, and are none of a stop string's business.

    Args:
        text: the decoded tokens.
        written: what each token writes.
        stop: the strings.

    Returns:
        A beginning of the text; all of it if no stop string ends in the last token. What follows a stop string starts
        at a character's first byte, so that its length in characters is known without the rest of the text.
    """
    before = b"".join(written[:-1])
    rests: list[bytes] = []
    for pattern in (string.encode() for string in stop):
        overlap = before[max(0, len(before) - len(pattern) + 1) :]  # a whole pattern cannot stand before the token
        _, found, rest = (overlap + written[-1]).partition(pattern)
        if found:
            rests.append(rest)
    surplus = max(rests, key=len, default=b"").decode(errors="replace")
    return text[: len(text) - len(surplus)]
