"""The tokenizer of built models: bytes, and a few longer pieces so that a prompt takes about ten tokens."""

from __future__ import annotations

from collections.abc import Sequence

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

END_OF_TEXT = "<|endoftext|>"
_TAGS = ("<think>", "</think>", "<answer>", "</answer>", "What is ")


def build_small_tokenizer(pieces: Sequence[str] = ()) -> PreTrainedTokenizerFast:
    """A byte-level tokenizer without merges: any text can be written, digits are single tokens.

    Args:
        pieces: strings that become one token each wherever they occur, such as the fixed parts of a prompt.

    Returns:
        A tokenizer whose end-of-sequence and padding token is `<|endoftext|>`.
    """
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: index for index, token in enumerate([END_OF_TEXT, *alphabet])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(END_OF_TEXT, special=True, normalized=False)])
    longest_first = sorted({*_TAGS, *filter(None, pieces)}, key=lambda piece: (-len(piece), piece))
    tokenizer.add_tokens([AddedToken(piece, special=False, normalized=False) for piece in longest_first])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=END_OF_TEXT,
        pad_token=END_OF_TEXT,
        clean_up_tokenization_spaces=False,
    )
