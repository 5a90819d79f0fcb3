"""The automaton of `grpo.rollout.stopping` against a plain search in the text."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from grpo.rollout.stopping import StopRules, cut_after_stop, token_transitions

CPU = torch.device("cpu")
# Few letters, so that near misses are common; one of them is two bytes long.
LETTERS = st.sampled_from(["a", "b", "é"])
STRINGS = st.lists(LETTERS, min_size=1, max_size=5).map("".join)


@st.composite
def pieces_and_tokens(draw: st.DrawFn) -> tuple[list[bytes], list[int]]:
    """A vocabulary, some of it halves of characters, and tokens that together write whole characters."""
    text = "".join(draw(st.lists(LETTERS, min_size=1, max_size=30))).encode()
    cuts = sorted(draw(st.sets(st.integers(1, max(1, len(text) - 1)), max_size=len(text))))
    written = [text[start:end] for start, end in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    written = [piece for piece in written if piece]
    for place in draw(st.lists(st.integers(0, len(written)), max_size=3)):
        written.insert(place, b"")  # a special token
    pieces = sorted({*written, b"", b"c"})
    return pieces, [pieces.index(piece) for piece in written]


def matches(rules: StopRules, tokens: list[int]) -> list[bool]:
    states, found = rules.start(1), []
    for token in tokens:
        states, _, matched = rules.advance(states, torch.tensor([token]))
        found.append(bool(matched))
    return found


def ends_in(before: bytes, piece: bytes, pattern: bytes) -> bool:
    """Whether an occurrence of the pattern ends in the piece, by trying every place."""
    text = before + piece
    return any(text[:end].endswith(pattern) for end in range(len(before) + 1, len(text) + 1))


@settings(max_examples=300, deadline=None)
@given(case=pieces_and_tokens(), stop=st.lists(STRINGS, min_size=1, max_size=3))
def test_a_match_is_reported_at_every_token_in_which_a_stop_string_ends(
    case: tuple[list[bytes], list[int]], stop: list[str]
) -> None:
    pieces, tokens = case
    found = matches(StopRules(pieces, [], stop, CPU), tokens)
    written = [pieces[token] for token in tokens]
    expected = [
        any(ends_in(b"".join(written[:place]), written[place], string.encode()) for string in stop)
        for place in range(len(tokens))
    ]
    assert found == expected


@settings(max_examples=300, deadline=None)
@given(case=pieces_and_tokens(), stop=st.lists(STRINGS, min_size=1, max_size=3))
def test_the_text_ends_with_the_first_stop_string_that_ends_in_the_last_token(
    case: tuple[list[bytes], list[int]], stop: list[str]
) -> None:
    written = [case[0][token] for token in case[1]]
    text = b"".join(written).decode()
    # By trying every end in the last token, which holds `last` bytes.
    size, last = len(text.encode()), len(written[-1])
    ends = [
        end
        for end in range(size - last + 1, size + 1)
        if any(text.encode()[:end].endswith(string.encode()) for string in stop)
    ]
    expected = text.encode()[: min(ends, default=size)].decode()
    assert cut_after_stop(text, written, stop) == expected


def test_rows_move_independently_and_end_tokens_are_told_apart() -> None:
    rules = StopRules([b"", b"a", b"b", b"ab"], [0, 2], ["ab"], CPU)
    states, ended, matched = rules.advance(rules.start(4), torch.tensor([1, 1, 3, 0]))
    assert ended.tolist() == [False, False, False, True]
    assert matched.tolist() == [False, False, True, False]
    _, ended, matched = rules.advance([state[[0, 1, 3]] for state in states], torch.tensor([2, 1, 2]))
    assert ended.tolist() == [True, False, True]
    assert matched.tolist() == [True, False, False]


def test_token_transitions_golden() -> None:
    # "aab" over the tokens "a", "ab", "aabx", "": from 0, 1, 2 and 3 bytes matched.
    states, matched = token_transitions([b"a", b"ab", b"aabx", b""], "aab")
    assert states.tolist() == [[1, 0, 0, 0], [2, 3, 0, 1], [2, 3, 0, 2], [1, 0, 0, 3]]
    assert matched[:, :3].tolist() == [
        [False, False, True],
        [False, True, True],
        [False, True, True],
        [False, False, True],
    ]
    assert not matched[:, 3].any()  # a token that writes nothing completes nothing


def test_without_stop_strings_only_end_tokens_end() -> None:
    rules = StopRules([b"a", b"b"], [1], [], CPU)
    states, ended, matched = rules.advance(rules.start(2), torch.tensor([0, 1]))
    assert states == []
    assert ended.tolist() == [False, True]
    assert matched.tolist() == [False, False]
    assert cut_after_stop("ab", [b"a", b"b"], []) == "ab"
