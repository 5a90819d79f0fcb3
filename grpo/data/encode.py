"""Problems as token ids."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from grpo.data.prompts import PromptTemplate
from grpo.types import Problem

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def encode_prompts(
    problems: Sequence[Problem],
    template: PromptTemplate,
    tokenizer: PreTrainedTokenizerBase,
    *,
    context: int,
    max_tokens: int,
) -> dict[Problem, tuple[int, ...]]:
    """The prompt of every problem, checked to leave room for a completion.

    Args:
        problems: of both sides.
        template: what is wrapped around a question.
        tokenizer: of the model; it may put a beginning-of-sequence token first, as it was trained to.
        context: the model's, in tokens.
        max_tokens: of a completion.

    Raises:
        ValueError: a prompt that is too long or empty; names its problem.
    """
    texts = [template.render(problem.question) for problem in problems]
    ids = tokenizer(texts, return_attention_mask=False).input_ids if texts else []
    for problem, prompt in zip(problems, ids, strict=True):
        if not prompt:
            raise ValueError(f"the prompt of problem {problem.id} is empty; use a data.prompt that writes something")
        if len(prompt) + max_tokens > context:
            room = context - len(prompt)
            remedy = f"use sampling.max_tokens={room} or less, or leave the problem out" if room > 0 else "leave it out"
            raise ValueError(
                f"the prompt of problem {problem.id} has {len(prompt)} tokens, which with {max_tokens} for a "
                f"completion is more than the model's context of {context}; {remedy}"
            )
    return {problem: tuple(prompt) for problem, prompt in zip(problems, ids, strict=True)}
