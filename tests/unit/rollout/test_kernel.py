"""The compiled code against torch's operations, number by number; what it is not for; machines that cannot compile it.

Whole completions are compared in tests/contract/test_engine.py, whose engine `torch_kernel` this is.
"""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path
from threading import Event
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM, Qwen3Config, Qwen3ForCausalLM

from grpo import native
from grpo.config import compose_run_config
from grpo.native import KernelUnavailable, vector_lanes
from grpo.rl.log_probs import TokenDistribution
from grpo.rollout import kernel
from grpo.rollout.batch import Batch, Rows
from grpo.rollout.build import build_engine
from grpo.rollout.decoder import Decoder, KeyValueCache
from grpo.rollout.kernel import CacheAttention
from grpo.rollout.sampling import sample_tokens, uniforms
from grpo.rollout.stopping import StopRules
from grpo.types import SampleKey, Sampling
from tests.contract.engines import kernel_engine, keys_of, merged_tokenizer, tiny_model, torch_engine

pytestmark = pytest.mark.skipif(not vector_lanes(), reason="the kernel is for x86 CPUs with AVX2")

TOKENIZER = merged_tokenizer()
CPU = torch.device("cpu")
SHAPE: dict[str, Any] = {"num_hidden_layers": 2, "max_position_embeddings": 512}
MODELS = {
    # Query heads a key-value head: 1, 2, 3 and 7. Vocabularies that 4 does not divide. Head sizes in and out of fours
    # of registers.
    "one": lambda: Qwen2ForCausalLM(
        Qwen2Config(
            **SHAPE,
            vocab_size=317,
            hidden_size=64,
            intermediate_size=40,
            num_attention_heads=2,
            num_key_value_heads=2,
        )
    ),
    "two": lambda: LlamaForCausalLM(
        LlamaConfig(
            **SHAPE,
            vocab_size=320,
            hidden_size=96,
            intermediate_size=200,
            num_attention_heads=4,
            num_key_value_heads=2,
            attention_bias=True,
            mlp_bias=True,
        )
    ),
    "three": lambda: Qwen3ForCausalLM(
        Qwen3Config(
            **SHAPE,
            vocab_size=1030,
            hidden_size=48,
            intermediate_size=64,
            num_attention_heads=3,
            num_key_value_heads=1,
            head_dim=80,
        )
    ),
    "seven": lambda: Qwen2ForCausalLM(
        Qwen2Config(
            **SHAPE,
            vocab_size=303,
            hidden_size=896,
            intermediate_size=72,
            num_attention_heads=14,
            num_key_value_heads=2,
        )
    ),
}
# The same of sizes that vectors of 16 divide, too.
MODELS["one, wide"] = lambda: _with_sizes("one", hidden_size=64, intermediate_size=80)
MODELS["two, wide"] = lambda: _with_sizes("two", hidden_size=192, intermediate_size=208)
MODELS["deep, wide"] = lambda: _with_sizes("one", hidden_size=64, intermediate_size=1504)  # in bfloat16, too
MODELS["seven, wide"] = lambda: _with_sizes("seven", hidden_size=896, intermediate_size=144)
every_model = pytest.mark.parametrize("name", MODELS)


def _with_sizes(name: str, **sizes: int) -> Any:
    model = MODELS[name]()
    known = {key: value for key, value in model.config.to_dict().items() if key != "head_dim"}
    return type(model)(type(model.config)(**{**known, **sizes}))


def random_model(name: str) -> Any:
    model = MODELS[name]().eval().requires_grad_(False)
    generator = torch.Generator().manual_seed(0)
    for key, parameter in model.named_parameters():
        parameter.normal_(std=0.08, generator=generator)
        if "norm" in key:
            parameter += 1
    return model


def new_rows(decoder: Decoder, num_rows: int, sampling: Sampling, stop: Sequence[str] = ()) -> tuple[Rows, StopRules]:
    """Rows of a batch that all wait for their first token, and its stop rules; tokens 3 and 30 end a sequence."""
    pieces = [bytes([97 + token % 26]) for token in range(decoder.vocab_size)]
    rules = StopRules(pieces, [3, 30], stop, CPU)
    rows = Rows(num_rows, 300, decoder, rules, sampling)
    generator = torch.Generator().manual_seed(1)
    for layer in (*rows.cache.keys, *rows.cache.values):
        layer.normal_(generator=generator)
    rows.logits.normal_(std=3, generator=generator)
    rows.finished[:] = False
    rows.open, rows.free = list(range(num_rows)), []
    if rows.uniform is not None:
        rows.uniform[:] = uniforms([SampleKey(5, 1, 0, row) for row in range(num_rows)], rows.uniform.shape[1])
    return rows, rules


# --- Through the layers ---------------------------------------------------------------------------------------------


@every_model
@pytest.mark.parametrize("num_rows", [1, 2, 3, 4, 7])
@pytest.mark.parametrize("column", [0, 2, 3, 8, 131])
def test_logits_and_cache_are_those_of_the_decoder(name: str, num_rows: int, column: int) -> None:
    decoder = Decoder(random_model(name), dtype=torch.float32, device=CPU, use_kernel=True)
    sampling = Sampling(max_tokens=20)
    rows, rules = new_rows(decoder, num_rows, sampling)
    rows.starts[:] = torch.arange(num_rows).clamp_max(column)  # rows that begin at different columns
    rows.sampled[:] = torch.arange(num_rows) * 37 % 303
    cos, sin = decoder.rotary_table(300)
    cache = rows.cache
    valid = torch.arange(300) >= rows.starts.unsqueeze(1)
    expected = KeyValueCache(tuple(k.clone() for k in cache.keys), tuple(v.clone() for v in cache.values), valid)
    at = column - rows.starts
    rotation = cos[at].unsqueeze(1), sin[at].unsqueeze(1)
    logits = decoder.logits(decoder.forward(rows.sampled.unsqueeze(1), rotation, expected, column))
    assert decoder.kernel is not None
    decoder.kernel.bind(rows, rules, sampling, ()).decode((cos, sin), column)
    torch.testing.assert_close(rows.logits, logits, rtol=1e-5, atol=1e-5 * float(logits.abs().max()))
    for ours, theirs in zip((*cache.keys, *cache.values), (*expected.keys, *expected.values), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=2e-5)  # of keys up to 10


@every_model
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_row_does_not_depend_on_the_others_to_the_last_bit(name: str, dtype: torch.dtype) -> None:
    decoder = Decoder(random_model(name), dtype=dtype, device=CPU, use_kernel=True)
    sampling = Sampling(max_tokens=20)
    rotary = decoder.rotary_table(300)
    assert decoder.kernel is not None
    results: list[Tensor] = []
    for open_rows in ([0, 1, 2, 3, 4, 5, 6], [2], [1, 2], [2, 5, 6]):
        rows, rules = new_rows(decoder, 7, sampling)
        rows.finished[:] = True
        rows.finished[open_rows] = False
        before = rows.logits.clone()
        decoder.kernel.bind(rows, rules, sampling, ()).decode(rotary, 50)
        results.append(rows.logits[2])
        closed = [row for row in range(7) if row not in open_rows]
        assert torch.equal(rows.logits[closed], before[closed])
    assert all(torch.equal(result, results[0]) for result in results)


# --- Attention over a bfloat16 cache --------------------------------------------------------------------------------


def random_cache(kv_heads: int, group: int, size: int, columns: int) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values of 5 rows."""
    generator = torch.Generator().manual_seed(4)

    def random(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).bfloat16()

    return random(5, kv_heads, group, size) * 3, *(random(5, kv_heads, columns, size) for _ in range(2))


@pytest.mark.parametrize("lanes", vector_lanes())
@pytest.mark.parametrize("shape", [(1, 1, 32), (2, 3, 96), (2, 4, 64), (3, 7, 128)])
@pytest.mark.parametrize("columns", [slice(0, 1), slice(0, 40), slice(3, 131), slice(12, 300)])
@pytest.mark.parametrize("is_padded", [False, True])
def test_attention_is_exact_but_for_one_rounding(
    lanes: int, shape: tuple[int, int, int], columns: slice, is_padded: bool
) -> None:
    query, keys, values = random_cache(*shape, columns=300)
    starts = torch.tensor([0, columns.stop - 1, columns.stop // 2, columns.start, 5]).clamp_max(columns.stop - 1)
    valid = torch.arange(300) >= starts.unsqueeze(1) if is_padded else None
    keys[:, :, columns.stop :] = values[:, :, columns.stop :] = float("nan")  # what nobody has written
    found = CacheAttention(lanes)(query, keys, values, valid, columns).double()
    keys, values = keys[:, :, columns].double(), values[:, :, columns].double()
    scores = query.double() @ keys.transpose(2, 3) / shape[2] ** 0.5
    if valid is not None:
        scores.masked_fill_(~valid[:, None, None, columns], float("-inf"))
    expected = (scores.softmax(dim=3) @ values).flatten(1)
    half_a_digit = 2**-8
    assert bool(((found - expected).abs() <= half_a_digit * expected.abs() * 1.01 + 1e-6).all())
    assert float((found == expected.bfloat16().double()).double().mean()) > 0.99


@pytest.mark.parametrize("lanes", vector_lanes())
def test_attention_of_a_row_depends_on_neither_threads_nor_other_rows(lanes: int) -> None:
    query, keys, values = random_cache(2, 4, 64, columns=100)
    valid = torch.arange(100) >= torch.tensor([0, 7, 30, 2, 80]).unsqueeze(1)
    attention, columns = CacheAttention(lanes), slice(1, 90)
    expected = attention(query, keys, values, valid, columns)
    alone = [
        attention(query[r : r + 1], keys[r : r + 1], values[r : r + 1], valid[r : r + 1], columns) for r in range(5)
    ]
    assert torch.equal(torch.cat(alone), expected)
    threads = torch.get_num_threads()
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            assert torch.equal(attention(query, keys, values, valid, columns), expected)
    finally:
        torch.set_num_threads(threads)


@every_model
@pytest.mark.parametrize("num_rows", [1, 3, 5, 6])
@pytest.mark.parametrize("column", [0, 3, 40])
def test_a_bfloat16_step_is_that_of_torch_operations(name: str, num_rows: int, column: int) -> None:
    """They are as far from each other as rounding has both from float32; first keys and values hardly round otherwise.

    With the same attention they are nearer: both round in the same places.
    """
    model, starts = random_model(name), (torch.arange(num_rows) * 8).clamp_max(column)
    found: dict[str, tuple[Tensor, KeyValueCache]] = {}
    for code in ("float32", "torch", "attention", "kernel"):
        dtype = torch.float32 if code == "float32" else torch.bfloat16
        decoder = Decoder(model, dtype=dtype, device=CPU, use_kernel=code in ("attention", "kernel"))
        assert (decoder._cache_attention is not None) == (code in ("attention", "kernel"))
        sampling = Sampling(max_tokens=20)
        rows, rules = new_rows(decoder, num_rows, sampling)
        rows.starts[:] = starts
        rows.sampled[:] = torch.arange(num_rows) * 37 % 303
        cache = KeyValueCache(rows.cache.keys, rows.cache.values, torch.arange(300) >= starts.unsqueeze(1))
        cos, sin = decoder.rotary_table(300)
        if code == "kernel":
            assert decoder.kernel is not None
            decoder.kernel.bind(rows, rules, sampling, ()).decode((cos, sin), column)
        else:
            rotation = cos[column - starts].unsqueeze(1), sin[column - starts].unsqueeze(1)
            rows.logits = decoder.logits(decoder.forward(rows.sampled.unsqueeze(1), rotation, cache, column))
        assert rows.logits.dtype == dtype
        found[code] = rows.logits.float(), cache

    def distance(one: Tensor, other: Tensor) -> float:
        return float((one.float() - other.float()).norm() / other.float().norm())

    expected, reference = found["torch"]
    rounding = distance(expected, found["float32"][0])
    assert 0.001 < rounding < 0.05
    assert distance(found["kernel"][0], found["attention"][0]) < 0.7 * rounding  # 0 where no sum is near an edge
    for code in ("attention", "kernel"):
        logits, cache = found[code]
        assert distance(logits, expected) < 1.4 * rounding, code
        assert distance(logits, found["float32"][0]) < 1.6 * rounding, code
        for ours, theirs in zip((cache.keys, cache.values), (reference.keys, reference.values), strict=True):
            assert float((ours[0] == theirs[0]).double().mean()) > 0.999, code  # of the first layer, all columns
            assert all(distance(one, other) < 0.01 for one, other in zip(ours, theirs, strict=True)), code


# --- Sampling -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(max_tokens=20),
        Sampling(temperature=0.6, max_tokens=20),
        Sampling(temperature=0.0, max_tokens=20),
        Sampling(temperature=1.3, max_tokens=20, min_tokens=4),
        Sampling(temperature=0.0, max_tokens=20, min_tokens=4),
        Sampling(max_tokens=3),
    ],
    ids=["plain", "temperature", "greedy", "min_tokens", "greedy_and_min_tokens", "limit"],
)
@pytest.mark.parametrize("name", ["one", "three"])
@pytest.mark.parametrize(
    ("dtype", "code"),
    [(torch.float32, "kernel"), (torch.float32, "sampler"), (torch.bfloat16, "sampler")],
    ids=["float32", "float32_drawing_only", "bfloat16_drawing_only"],
)
def test_sampling_does_what_the_batch_does(name: str, sampling: Sampling, dtype: torch.dtype, code: str) -> None:
    """Eight steps over the same logits: tokens, log-probs, stop strings, ends."""
    decoder = Decoder(random_model(name), dtype=dtype, device=CPU, use_kernel=True)
    found: list[Rows] = []
    for compiled in (None, getattr(decoder, code)):
        assert compiled is not None or not found
        rows, rules = new_rows(decoder, 50, sampling, stop=("abc", "x"))
        batch = Batch(decoder, rules, sampling, (3, 30), 10_000, Event(), compiled)
        generator = torch.Generator().manual_seed(2)
        for _ in range(8):
            rows.logits.normal_(std=3, generator=generator)
            rows.logits[:, [0, 3, 27, 28]] += 3  # a, an end, b and c
            if sampling.temperature == 0:  # the largest is twice there: the first is taken
                largest = rows.logits.argmax(dim=1, keepdim=True)
                rows.logits.scatter_(1, (largest + 40) % rows.logits.shape[1], rows.logits.gather(1, largest))
            batch._sample(rows)
        found.append(rows)
    expected, ours = found
    assert 0 < int(ours.stopped.sum()) < 50 or sampling.max_tokens == 3
    for attribute in ("counts", "finished", "stopped"):
        assert torch.equal(getattr(ours, attribute), getattr(expected, attribute)), attribute
    sampled = torch.arange(21) < expected.counts.unsqueeze(1)
    sampled = sampled[:, : expected.tokens.shape[1]]
    assert torch.equal(ours.tokens[sampled], expected.tokens[sampled])
    torch.testing.assert_close(ours.log_probs[sampled], expected.log_probs[sampled], rtol=1e-5, atol=1e-6)


def drawn(logits: Tensor, uniform: Sequence[float]) -> tuple[Tensor, Tensor]:
    """Tokens and log-probs of rows of logits, by the kernel."""
    model = random_model("one")
    model.lm_head.weight = torch.nn.Parameter(torch.zeros(logits.shape[1], 64), requires_grad=False)
    decoder = Decoder(model, dtype=torch.float32, device=CPU, use_kernel=True)
    sampling = Sampling(max_tokens=4)
    rows, rules = new_rows(decoder, len(logits), sampling)
    rows.logits.copy_(logits)
    assert rows.uniform is not None
    assert decoder.kernel is not None
    rows.uniform[:, 0] = torch.tensor(uniform)
    decoder.kernel.bind(rows, rules, sampling, ()).sample()
    return rows.sampled, rows.log_probs[:, 0]


@pytest.mark.parametrize("vocabulary", [31, 256, 257, 1000, 32_000])
def test_draws_invert_the_cumulative_distribution(vocabulary: int) -> None:
    generator = torch.Generator().manual_seed(3)
    logits = torch.randn(400, vocabulary, generator=generator) * 4
    logits[:, ::3] = float("-inf")
    uniform = torch.rand(400, generator=generator)
    uniform[:3] = torch.tensor([0.0, 0.5, 1 - 2**-24])
    tokens, log_probs = drawn(logits, uniform.tolist())
    probs = logits.double().softmax(dim=1)
    upper = probs.cumsum(dim=1).gather(1, tokens.unsqueeze(1)).squeeze(1)
    share = probs.gather(1, tokens.unsqueeze(1)).squeeze(1)
    assert bool((share > 0).all())
    assert bool((uniform < upper + 1e-6).all())
    assert bool((uniform >= upper - share - 1e-6).all())
    torch.testing.assert_close(log_probs.double(), share.log(), rtol=1e-5, atol=1e-6)
    expected, _ = sample_tokens(logits, uniform, TokenDistribution(), None)
    assert int((tokens != expected).sum()) <= 1  # a number within rounding of a token's edge


@pytest.mark.parametrize("broken", [float("nan"), float("inf")])
@pytest.mark.parametrize("place", [0, 9, 299])
def test_broken_logits_give_a_token_and_nan(broken: float, place: int) -> None:
    logits = torch.zeros(2, 300)
    logits[0, place] = broken
    tokens, log_probs = drawn(logits, [0.3, 0.3])
    assert 0 <= int(tokens[0]) < 300
    assert bool(log_probs[0].isnan())
    assert int(tokens[1]) == 90
    assert float(log_probs[1]) == pytest.approx(-5.7038, abs=1e-3)


@pytest.mark.parametrize(
    "sampling", [Sampling(max_tokens=16), Sampling(max_tokens=16, top_p=0.8)], ids=["all", "top_p"]
)
def test_completions_where_only_drawing_is_compiled(sampling: Sampling) -> None:
    """As large models have it on many cores: rows end, hand over their places, and the batch shrinks."""
    prompts, keys, ends = [[5, 6, 7], [9], [11, 12]], keys_of(3, 6), (0, 50, 100)
    expected = torch_engine(tiny_model(), TOKENIZER, ends, cache_tokens=160).generate(prompts, keys, sampling)
    engine = kernel_engine(tiny_model(), TOKENIZER, ends, cache_tokens=160)
    engine._decoder.kernel = None
    found = engine.generate(prompts, keys, sampling)
    for ours, theirs in zip(chain(*found), chain(*expected), strict=True):
        assert ours.token_ids == theirs.token_ids
        assert ours.sampler_log_probs == pytest.approx(theirs.sampler_log_probs, abs=1e-5)


# --- What it is for -------------------------------------------------------------------------------------------------


def test_other_sizes_and_dtypes_have_torch_operations() -> None:
    odd = Qwen2Config(
        **SHAPE, vocab_size=320, hidden_size=64, intermediate_size=44, num_attention_heads=2, num_key_value_heads=1
    )
    narrow = Decoder(Qwen2ForCausalLM(odd), dtype=torch.float32, device=CPU, use_kernel=True)
    assert narrow.kernel is None
    model = random_model("one")
    for masters in (torch.float32, torch.bfloat16):  # of which residuals have the dtype
        model, has_kernel = random_model("one").to(masters), masters is torch.float32
        decoder = Decoder(model, dtype=torch.bfloat16, device=CPU, use_kernel=True)
        assert (decoder.kernel is not None) == has_kernel
        assert decoder._cache_attention is not None
    model = random_model("one")
    unwanted = Decoder(model, dtype=torch.float32, device=CPU, use_kernel=False)
    assert unwanted.kernel is unwanted.sampler is None
    assert Decoder(model, dtype=torch.float32, device=CPU, use_kernel=True).kernel is not None


def test_bfloat16_where_tiles_are_multiplied_is_left_to_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": True, "amx_bf16": True})
    narrow, wide = (
        Decoder(random_model("one"), dtype=dtype, device=CPU, use_kernel=True)
        for dtype in (torch.bfloat16, torch.float32)
    )
    assert narrow.kernel is None
    assert wide.kernel is not None


def test_a_step_is_two_calls() -> None:
    """Nothing of Python is left in a step but the loop: the number of calls does not depend on layers or rows."""
    calls = {2: 0, 6: 0}
    for layers in calls:
        config = Qwen2Config(
            **{**SHAPE, "num_hidden_layers": layers},
            vocab_size=320,
            hidden_size=64,
            intermediate_size=48,
            num_attention_heads=2,
            num_key_value_heads=1,
        )
        engine = kernel_engine(Qwen2ForCausalLM(config).eval(), TOKENIZER, ())
        engine.generate([[5] * 10], keys_of(1, 4), Sampling(max_tokens=2))  # what is loaded on first use
        counted = []
        for max_tokens in (8, 16):
            count = 0

            def note(frame: Any, event: str, argument: object) -> None:
                nonlocal count
                # How often a pool waits, and what threads find of each other's dispatch modes, depends on the machine.
                elsewhere = ("concurrent.", "threading", "torch.utils._python_dispatch")
                is_own = not frame.f_globals.get("__name__", "").startswith(elsewhere)
                count += event in ("call", "c_call") and is_own

            threading.setprofile(note)
            try:
                engine.generate([[5] * 10], keys_of(1, 4), Sampling(max_tokens=max_tokens))
            finally:
                threading.setprofile(None)
            counted.append(count)
        calls[layers] = counted[1] - counted[0]
    assert calls[2] == calls[6]
    assert 0 < calls[2] < 8 * 60


# --- Machines without a compiler ------------------------------------------------------------------------------------


@pytest.fixture
def cache_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty one, and a kernel that this process has not loaded yet."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for function in (native.load_library, kernel._library):
        function.cache_clear()
    yield tmp_path / "cache" / "grpo"
    for function in (native.load_library, kernel._library):
        function.cache_clear()


@pytest.mark.parametrize(
    ("compiler", "reason"),
    [
        ("/nowhere/cc", "/nowhere/cc does not run"),
        ("false", "false does not compile it: no message"),
        ("", "no C compiler is found, as CC or as cc, gcc, clang; install one, or use hardware.compiled_kernels=false"),
    ],
)
@pytest.mark.usefixtures("cache_folder")
def test_without_a_compiler_torch_operations_sample_the_same(
    compiler: str, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CC", compiler)
    if not compiler:
        monkeypatch.setattr(native.shutil, "which", lambda name: None)
    with pytest.raises(KernelUnavailable):
        kernel_engine(tiny_model(), TOKENIZER, (0,))
    warnings: list[str] = []
    config = compose_run_config(["hardware=cpu", "model.path=x"]).hardware
    engine = build_engine(
        config, tiny_model(), TOKENIZER, end_ids=(0,), compute_dtype=torch.float32, warn=warnings.append
    )
    (warning,) = warnings
    assert warning.startswith("sampling without compiled code")
    assert reason in warning
    assert "\n" not in warning
    sampling, prompts = Sampling(max_tokens=12), [[5, 6, 7], [9]]
    expected = torch_engine(tiny_model(), TOKENIZER, (0,)).generate(prompts, keys_of(2, 2), sampling)
    assert engine.generate(prompts, keys_of(2, 2), sampling) == expected


@pytest.mark.usefixtures("cache_folder")
def test_a_compiler_that_knows_less_than_the_processor_will_do(monkeypatch: pytest.MonkeyPatch) -> None:
    refused: list[tuple[str, ...]] = []

    def load(source: Path, lanes: int, *flags: str) -> ctypes.CDLL:
        if flags:
            refused.append(flags)
            raise KernelUnavailable("unrecognized command-line option")
        return native.load_library(source, lanes)

    monkeypatch.setattr(kernel, "load_library", load)
    sampling, prompts = Sampling(max_tokens=12), [[5, 6, 7], [9]]
    expected = torch_engine(tiny_model(), TOKENIZER, (0,)).generate(prompts, keys_of(2, 2), sampling)
    engine = kernel_engine(tiny_model(), TOKENIZER, (0,))
    found = engine.generate(prompts, keys_of(2, 2), sampling)
    tried = len(refused)
    engine.sync(tiny_model(), 1)
    assert len(refused) == tried  # a step does not ask the compiler again
    assert [one.token_ids for one in chain(*found)] == [one.token_ids for one in chain(*expected)]
    assert ("-fopenmp",) in refused


@pytest.mark.usefixtures("cache_folder")
def test_it_is_not_compiled_where_it_is_not_wanted(cache_folder: Path) -> None:
    config = compose_run_config(["hardware=cpu", "model.path=x", "hardware.compiled_kernels=false"]).hardware
    build_engine(config, tiny_model(), TOKENIZER, end_ids=(0,), compute_dtype=torch.float32)
    assert not cache_folder.exists()
