"""The engines that the contract suite runs against, and the tiny models and tokenizers that it runs them on.

Another engine is one entry of `ENGINES`.
"""

from __future__ import annotations

import atexit
import importlib.util
import json
import os
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from grpo.native import vector_lanes
from grpo.rollout.torch_engine import TorchEngine
from grpo.types import Completion, Engine, SampleKey, TrainBatch

EOS, IM_END = "<|endoftext|>", "<|im_end|>"
CONTEXT = 128


@dataclass(frozen=True)
class EngineKind:
    """How to build an engine, and how near its log-probs are to a float32 policy's.

    Attributes:
        build: from model, tokenizer, end-of-sequence ids and the number of cached positions it may hold at once.
        tolerance: nats.
        families: of `FAMILIES`, that it is held to; None is all.
    """

    build: Callable[[Any, Any, Sequence[int], int], Engine]
    tolerance: float
    families: tuple[str, ...] | None = None


def torch_engine(
    model: Any,
    tokenizer: Any,
    end_ids: Sequence[int],
    cache_tokens: int = 4096,
    dtype: torch.dtype = torch.float32,
    device: torch.device | None = None,
    use_kernel: bool = False,
) -> TorchEngine:
    """On the model's device, or with a copy of its weights on another."""
    device = model.device if device is None else device
    sizes = {"cache_tokens": cache_tokens, "use_kernel": use_kernel}
    return TorchEngine(model, tokenizer, end_ids=end_ids, dtype=dtype, device=device, **sizes)


def kernel_engine(model: Any, tokenizer: Any, end_ids: Sequence[int], cache_tokens: int = 4096) -> TorchEngine:
    """With compiled code, as runs have it."""
    return torch_engine(model, tokenizer, end_ids, cache_tokens, use_kernel=True)


def gpu_device() -> torch.device | None:
    """Where tests marked `gpu` run: the GPU, or the CPU where GRPO_GPU_TESTS_ON_CPU=1 asks to see them run."""
    if torch.cuda.is_available():
        return torch.device("cuda", 0)
    return torch.device("cpu") if os.environ.get("GRPO_GPU_TESTS_ON_CPU") == "1" else None


def gpu_engine(model: Any, tokenizer: Any, end_ids: Sequence[int], cache_tokens: int = 4096) -> TorchEngine:
    """With a copy of a model that is on the CPU, as that of a policy on another device has."""
    return torch_engine(model, tokenizer, end_ids, cache_tokens, device=gpu_device())


@dataclass
class Lent:
    """A vLLM that outlives its engine: building one takes seconds, and handing it other weights does not."""

    backend: Any

    def __getattr__(self, name: str) -> Any:
        return getattr(self.backend, name)

    def close(self) -> None:
        """It is closed when the tests end."""


def vllm_settings(model: Any, cache_tokens: int = 4096) -> Any:
    """As `hardware=cpu hardware.engine=vllm` has it."""
    from grpo.config import compose_run_config
    from grpo.rollout.vllm_build import vllm_settings

    overrides = ["hardware=cpu", "hardware.engine=vllm", f"hardware.engine_cache_tokens={cache_tokens}"]
    return vllm_settings(compose_run_config(overrides).hardware, model, torch.float32)


def child_options(**changes: Any) -> Any:
    """A child on the CPU, with buckets so small that these models need several."""
    from grpo.rollout.vllm_child_backend import ChildOptions

    folder = Path(tempfile.mkdtemp(prefix="grpo-vllm-"))
    return ChildOptions(
        **{
            "log": folder / "vllm.log",
            "warn": print,
            "policy_device": torch.device("cpu"),
            "variables": {"OMP_NUM_THREADS": "1", "TORCHDYNAMO_DISABLE": "1"},
            "bucket_bytes": 100_000,
            **changes,
        }
    )


@cache
def _vllm(settings: str, in_child: bool) -> Any:
    from grpo.rollout.vllm_child_backend import VllmChild
    from grpo.rollout.vllm_core import VllmCore
    from grpo.rollout.vllm_types import VllmSettings

    kind = VllmSettings(**json.loads(settings))
    backend = VllmChild(kind, child_options()) if in_child else VllmCore(kind)
    atexit.register(backend.close)
    return backend


def vllm_engine(model: Any, tokenizer: Any, end_ids: Sequence[int], cache_tokens: int = 4096, in_child: bool = False):
    """vLLM in this process or in a child, one for every shape of model."""
    from grpo.rollout.vllm_engine import VllmEngine

    settings = json.dumps(asdict(vllm_settings(model, cache_tokens)))
    return VllmEngine(Lent(_vllm(settings, in_child)), model, tokenizer, end_ids=end_ids)


def vllm_child_engine(model: Any, tokenizer: Any, end_ids: Sequence[int], cache_tokens: int = 4096):
    """All caches alike: starting a child takes a quarter of a minute, and small caches are vLLM's own business."""
    del cache_tokens
    return vllm_engine(model, tokenizer, end_ids, in_child=True)


ENGINES = [pytest.param(EngineKind(torch_engine, tolerance=1e-5), id="torch")]
if vector_lanes():
    ENGINES.append(pytest.param(EngineKind(kernel_engine, tolerance=1e-5), id="torch_kernel"))
if gpu_device() is not None:
    ENGINES.append(pytest.param(EngineKind(gpu_engine, tolerance=1e-4), id="torch_gpu", marks=pytest.mark.gpu))
if importlib.util.find_spec("vllm") is not None or os.environ.get("REQUIRE_VLLM") == "1":
    _TIED_AND_UNTIED = ("qwen2", "qwen2_tied")
    ENGINES += [
        pytest.param(EngineKind(vllm_engine, tolerance=1e-5), id="vllm", marks=pytest.mark.vllm),
        pytest.param(
            EngineKind(vllm_child_engine, tolerance=1e-5, families=_TIED_AND_UNTIED),
            id="vllm_child",
            marks=pytest.mark.vllm,
        ),
    ]

_SIZES: Mapping[str, Any] = {
    "vocab_size": 320,
    "hidden_size": 64,  # two heads of 32: vLLM on a CPU has no smaller ones
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": CONTEXT,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": None,
}
_LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
_YARN = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 32}
FAMILIES: Mapping[str, Callable[[], Any]] = {
    "qwen2": lambda: Qwen2ForCausalLM(Qwen2Config(**_SIZES)),
    "qwen2_tied": lambda: Qwen2ForCausalLM(Qwen2Config(**_SIZES, tie_word_embeddings=True)),
    "qwen2_yarn": lambda: Qwen2ForCausalLM(Qwen2Config(**_SIZES, rope_parameters=_YARN)),
    "qwen3": lambda: Qwen3ForCausalLM(Qwen3Config(**_SIZES, head_dim=48)),
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**_SIZES)),
    "llama3": lambda: LlamaForCausalLM(LlamaConfig(**_SIZES, rope_parameters=_LLAMA3_ROPE)),
    "llama_bias": lambda: LlamaForCausalLM(LlamaConfig(**_SIZES, attention_bias=True, mlp_bias=True)),
}


KINDS_AND_FAMILIES = [
    pytest.param(kind, family, id=f"{param.id}-{family}", marks=param.marks)
    for param in ENGINES
    for kind in param.values
    for family in kind.families or FAMILIES
]


def tiny_model(family: str = "qwen2", seed: int = 0) -> Any:
    """Two layers with random weights, biases and norms, large enough that no two tokens are equally likely."""
    model = FAMILIES[family]().eval().requires_grad_(False)
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        parameter.normal_(std=0.12, generator=generator)
        if "norm" in name:
            parameter += 1
    return model


def merged_tokenizer(pieces: Iterable[bytes | str] = ()) -> PreTrainedTokenizerFast:
    """Byte-level BPE with the 256 bytes, these pieces as merged tokens, and two special tokens."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: index for index, token in enumerate([EOS, IM_END, *alphabet])}
    merges: list[tuple[str, str]] = []
    for piece in pieces:
        chars = byte_level(piece)
        for end in range(1, len(chars)):
            if chars[: end + 1] not in vocabulary:
                vocabulary[chars[: end + 1]] = len(vocabulary)
                merges.append((chars[:end], chars[end]))
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in (EOS, IM_END)])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=EOS, clean_up_tokenization_spaces=False)


def byte_level(piece: bytes | str) -> str:
    """The piece in the characters that byte-level BPE writes bytes with (GPT-2)."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    table = {byte: chr(byte) for byte in printable} | {byte: chr(256 + place) for place, byte in enumerate(others)}
    return "".join(table[byte] for byte in (piece.encode() if isinstance(piece, str) else piece))


def token_ids(tokenizer: PreTrainedTokenizerFast, pieces: Iterable[bytes | str]) -> list[int]:
    """One id per piece; `EOS` and `IM_END` are the special tokens."""
    vocabulary = tokenizer.get_vocab()
    return [vocabulary[piece if piece in (EOS, IM_END) else byte_level(piece)] for piece in pieces]  # type: ignore[index]


def scripted_model(tokenizer: PreTrainedTokenizerFast, script: Sequence[int]) -> Any:
    """A model that goes from every token of the script to the next with probability 1; no token may occur twice.

    Its layers add nothing; embeddings are one-hot, and the head maps each to its successor with a logit of about 100.
    """
    assert len(set(script)) == len(script)
    size = _SIZES["vocab_size"]  # all models of one shape, for the sake of vLLM
    assert len(tokenizer) <= size
    sizes = {**_SIZES, "hidden_size": size, "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 2}
    model: Any = Qwen2ForCausalLM(Qwen2Config(**sizes)).eval().requires_grad_(False)
    for name, parameter in model.named_parameters():
        parameter.fill_(1.0 if "norm" in name else 0.0)
    model.model.embed_tokens.weight.copy_(torch.eye(size))
    for token, successor in pairwise(script):
        model.lm_head.weight[successor, token] = 6.0
    return model


def keys_of(num_prompts: int, group_size: int, *, seed: int = 0, step: int = 1) -> list[list[SampleKey]]:
    return [[SampleKey(seed, step, place, sample) for sample in range(group_size)] for place in range(num_prompts)]


def train_batch(prompts: Sequence[Sequence[int]], groups: Sequence[Sequence[Completion]]) -> TrainBatch:
    """What the trainer would get of these completions."""
    pairs = [(prompt, completion) for prompt, group in zip(prompts, groups, strict=True) for completion in group]
    return TrainBatch(
        token_ids=tuple(torch.tensor([*prompt, *completion.token_ids]) for prompt, completion in pairs),
        prompt_lengths=tuple(len(prompt) for prompt, _ in pairs),
        sampler_log_probs=tuple(torch.tensor(completion.sampler_log_probs) for _, completion in pairs),
        advantages=torch.zeros(len(pairs)),
    )
