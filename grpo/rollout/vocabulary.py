"""What every token of a vocabulary writes, in bytes."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")


def _byte_level_alphabet() -> dict[str, int]:
    """The characters that byte-level BPE (GPT-2) writes bytes with."""
    printable = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + index): byte for index, byte in enumerate(others)}


def token_bytes(tokenizer: PreTrainedTokenizerBase, vocab_size: int) -> list[bytes]:
    """The bytes that each token id adds to a text.

    Byte-level BPE (Qwen, Llama 3) and SentencePiece with byte fallback (Llama 2) are told apart by the vocabulary.

    Args:
        tokenizer: any fast tokenizer of these two kinds.
        vocab_size: of the model, which may have more rows than the tokenizer has tokens.

    Returns:
        `vocab_size` byte strings; special tokens and rows that no token uses write nothing.
    """
    alphabet = _byte_level_alphabet()
    added = tokenizer.added_tokens_decoder
    vocabulary = {index: token for token, index in tokenizer.get_vocab().items() if index not in added}
    sentencepiece = any(_BYTE_TOKEN.fullmatch(token) for token in vocabulary.values())
    pieces = [b""] * vocab_size
    for index, token in vocabulary.items():
        if index >= vocab_size:
            continue
        match = _BYTE_TOKEN.fullmatch(token)
        if match:
            pieces[index] = bytes([int(match[1], 16)])
        elif sentencepiece:
            pieces[index] = token.replace("\u2581", " ").encode()
        else:
            pieces[index] = bytes(alphabet[char] for char in token if char in alphabet)
    for index, token in added.items():
        if index < vocab_size and not token.special:
            pieces[index] = token.content.encode()
    return pieces
