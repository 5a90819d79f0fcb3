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


_ALPHABET = _byte_level_alphabet()


def token_bytes(tokenizer: PreTrainedTokenizerBase, vocab_size: int) -> list[bytes]:
    """The bytes that each token id adds to a text.

    Byte-level BPE (Qwen, Llama 3) and SentencePiece with byte fallback (Llama 2) are told apart by the vocabulary.

    Args:
        tokenizer: any fast tokenizer of these two kinds.
        vocab_size: of the model, which may have more rows than the tokenizer has tokens.

    Returns:
        `vocab_size` byte strings; special tokens and rows that no token uses write nothing.
    """
    special = {index for index, token in tokenizer.added_tokens_decoder.items() if token.special}
    vocabulary = tokenizer.get_vocab()
    has_byte_tokens = all(f"<0x{byte:02X}>" in vocabulary for byte in range(256))
    write = _sentencepiece_bytes if has_byte_tokens else _byte_level_bytes
    pieces = [b""] * vocab_size
    for token, index in vocabulary.items():
        if index < vocab_size and index not in special:
            pieces[index] = write(token)
    return pieces


def _sentencepiece_bytes(token: str) -> bytes:
    match = _BYTE_TOKEN.fullmatch(token)
    return bytes([int(match[1], 16)]) if match else token.replace("\u2581", " ").encode()


def _byte_level_bytes(token: str) -> bytes:
    """As tokenizers decodes: a token with a character outside the alphabet (an added one) stands for itself."""
    try:
        return bytes(_ALPHABET[char] for char in token)
    except KeyError:
        return token.encode()
