"""What every engine does alike, before and after it samples: it looks at prompts, and makes completions of tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from grpo.rollout.stopping import cut_after_stop
from grpo.rollout.vocabulary import token_bytes
from grpo.types import Completion, FinishReason

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def check_prompts(prompts: Sequence[Sequence[int]], max_tokens: int, context: int) -> None:
    """Compares prompts with the room that there is for them.

    Raises:
        ValueError: one is empty, or leaves no room for `max_tokens` in the context.
    """
    for place, prompt in enumerate(prompts):
        if not prompt:
            raise ValueError(f"prompt {place} is empty; give it at least one token")
        room = context - len(prompt)
        if max_tokens > room:
            remedy = f"use max_tokens={room} or less" if room > 0 else "use a shorter prompt"
            raise ValueError(
                f"prompt {place} has {len(prompt)} tokens, which with max_tokens={max_tokens} is more than the model's "
                f"context of {context}; {remedy}"
            )


def special_stop_ids(tokenizer: PreTrainedTokenizerBase, stop: Sequence[str]) -> frozenset[int]:
    """The stop strings that are special tokens, such as `<|im_end|>`: these write nothing that could be searched."""
    special = {token.content: index for index, token in tokenizer.added_tokens_decoder.items() if token.special}
    return frozenset(special[string] for string in stop if string in special)


class CompletionBuilder:
    """Makes completions of what was sampled.

    Attributes:
        pieces: what each token of the vocabulary writes.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, vocab_size: int, end_ids: Sequence[int]) -> None:
        """`end_ids` are the tokens that end a completion; they are no part of its text."""
        self._tokenizer, self._end_ids = tokenizer, frozenset(end_ids)
        self.pieces = token_bytes(tokenizer, vocab_size)

    def build(
        self,
        token_ids: Sequence[list[int]],
        log_probs: Sequence[Sequence[float]],
        stopped: Sequence[bool],
        *,
        stop: Sequence[str],
        version: int,
    ) -> list[Completion]:
        """One completion a row.

        Args:
            token_ids: tokens of each.
            log_probs: of the tokens, nats; numbers beyond the last token are ignored.
            stopped: whether its last token, or a stop string in it, has ended it.
            stop: the stop strings.
            version: of the weights that sampled them.
        """
        texts = self._texts(token_ids, stopped, stop)
        return [
            Completion(
                token_ids=tuple(row),
                sampler_log_probs=tuple(scores[: len(row)]),
                text=text,
                finish_reason=FinishReason.stop if has_stopped else FinishReason.length,
                version=version,
            )
            for row, scores, text, has_stopped in zip(token_ids, log_probs, texts, stopped, strict=True)
        ]

    def _texts(self, token_ids: Sequence[list[int]], stopped: Sequence[bool], stop: Sequence[str]) -> list[str]:
        """Without an end-of-sequence token, and without what follows a stop string."""
        ended = [flag and row[-1] in self._end_ids for row, flag in zip(token_ids, stopped, strict=True)]
        kept = [row[:-1] if end else row for row, end in zip(token_ids, ended, strict=True)]
        texts = self._tokenizer.batch_decode(kept, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return [
            cut_after_stop(text, [self.pieces[token] for token in row], stop) if flag and not end else text
            for text, row, flag, end in zip(texts, token_ids, stopped, ended, strict=True)
        ]
