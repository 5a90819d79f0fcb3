"""How many operations an update takes, whatever program does it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from bench.rollout_cases import Size


@dataclass(frozen=True, slots=True)
class Work:
    """What a batch asks of a model.

    Attributes:
        sequence_tokens: of all sequences, each with its own prompt.
        unique_tokens: the same, but for a group's prompt once.
        response_tokens: of all sequences.
        attended: pairs of a unique token and one that it may see.
    """

    sequence_tokens: int
    unique_tokens: int
    response_tokens: int
    attended: int


def work_of(prompt_tokens: int, responses: Sequence[int], group_size: int) -> Work:
    """That of responses in groups, each group with a prompt of its own."""
    num_groups = -(-len(responses) // group_size)
    total, prompts = sum(responses), num_groups * prompt_tokens
    own = sum(length * prompt_tokens + length * (length + 1) // 2 for length in responses)
    attended = num_groups * prompt_tokens * (prompt_tokens + 1) // 2 + own
    return Work(len(responses) * prompt_tokens + total, prompts + total, total, attended)


def model_flops(size: Size, work: Work) -> float:
    """Operations of forward and backward pass that no program can leave out; nothing is counted twice.

    6 N u + 12 L H a + 6 H V r: N matrix parameters of the L layers, u unique tokens, H hidden size, a attended pairs
    (query times key and weight times value, 2 H each, and twice as much backward), V vocabulary, r response tokens.
    """
    head = size.hidden * size.vocabulary
    layers = 6 * (size.num_matrix_parameters - head) * work.unique_tokens
    return layers + 12 * size.layers * size.hidden * work.attended + 6 * head * work.response_tokens


def usual_flops(size: Size, work: Work) -> float:
    """6 N s, as it is usually said: all N parameters, all s tokens of all sequences, no attention."""
    return 6 * size.num_matrix_parameters * work.sequence_tokens
