"""What the rollout bench samples from: models with random weights, prompts and lengths, by rule from a seed."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass
from itertools import islice, product
from pathlib import Path
from string import ascii_letters, digits
from typing import Any

import torch

SEED = 1
VLLM_BLOCK_TOKENS = 128  # what vLLM-CPU allots key-value memory in


@dataclass(frozen=True, slots=True)
class Size:
    """A Qwen2 model with tied embeddings.

    Attributes:
        name: about how many parameters it has.
        hidden, layers, mlp, heads, kv_heads, vocabulary: its dimensions.
    """

    name: str
    hidden: int
    layers: int
    mlp: int
    heads: int
    kv_heads: int
    vocabulary: int

    @property
    def kv_width(self) -> int:
        """Numbers that a position's keys hold in one layer, and its values too."""
        return self.hidden // self.heads * self.kv_heads

    @property
    def num_matrix_parameters(self) -> int:
        """Of the matrices that every token is multiplied with, the output's included."""
        attention = 2 * self.hidden * (self.hidden + self.kv_width)
        return self.layers * (attention + 3 * self.hidden * self.mlp) + self.hidden * self.vocabulary


SMALL = Size("1M", 128, 4, 384, 4, 2, 320)
LARGE = Size("53M", 512, 10, 1984, 8, 2, 32_000)
TINY = Size("tiny", 64, 2, 96, 2, 1, 160)  # vLLM-CPU has no attention for heads below 32
SIZES = (
    SMALL,
    Size("5M", 256, 6, 768, 4, 2, 2048),
    Size("20M", 384, 8, 1152, 6, 2, 16_000),
    LARGE,
    Size("150M", 768, 17, 2560, 12, 2, 32_000),
    Size("500M", 1280, 22, 4480, 20, 4, 32_000),
)


def build_model(size: Size, context: int) -> Any:
    """The model in float32, its weights a function of `SEED` alone."""
    from transformers import Qwen2Config, Qwen2ForCausalLM

    torch.manual_seed(SEED)
    return Qwen2ForCausalLM(
        Qwen2Config(
            vocab_size=size.vocabulary,
            hidden_size=size.hidden,
            intermediate_size=size.mlp,
            num_hidden_layers=size.layers,
            num_attention_heads=size.heads,
            num_key_value_heads=size.kv_heads,
            max_position_embeddings=context,
            tie_word_embeddings=True,
            bos_token_id=None,
            eos_token_id=0,
            pad_token_id=0,
        )
    )


def build_tokenizer(num_tokens: int) -> Any:
    """A byte-level tokenizer whose every token is text, as a language model's mostly are.

    Bytes at random would be broken characters, over which incremental detokenisers stumble.
    """
    from tokenizers import AddedToken, Tokenizer, decoders, models
    from transformers import PreTrainedTokenizerFast

    words = ("".join(word) for width in (1, 2, 3) for word in product(ascii_letters + digits, repeat=width))
    tokens = ["<end>", *islice(words, num_tokens - 1)]
    tokenizer = Tokenizer(models.BPE(vocab={token: index for index, token in enumerate(tokens)}, merges=[]))
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken("<end>", special=True, normalized=False)])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<end>", clean_up_tokenization_spaces=False)


def save_folder(size: Size, folder: Path, context: int = 512) -> Path:
    """Model and tokenizer as a folder that every engine loads."""
    if not (folder / "config.json").is_file():
        build_model(size, context).save_pretrained(folder)
        build_tokenizer(size.vocabulary).save_pretrained(folder)
    return folder


def make_prompts(number: int, low: int, high: int, vocabulary: int) -> list[list[int]]:
    """Prompts of low to high tokens, the end of sequence not among them."""
    rng = random.Random(SEED)
    return [[rng.randrange(1, vocabulary) for _ in range(rng.randint(low, high))] for _ in range(number)]


def varying_lengths(number: int, cap: int) -> list[int]:
    """Exponential with a mean of a third of the cap, from 1 to the cap."""
    rng = random.Random(SEED + 1)
    return [min(cap, max(1, round(rng.expovariate(3 / cap)))) for _ in range(number)]


def vllm_cache_bytes(size: Size, num_rows: int, longest: int, bytes_per_number: int) -> int:
    """Key-value memory with which all rows run at once, and a few blocks to spare."""
    blocks = num_rows * math.ceil(longest / VLLM_BLOCK_TOKENS) + 8
    return blocks * VLLM_BLOCK_TOKENS * 2 * size.layers * size.kv_width * bytes_per_number
