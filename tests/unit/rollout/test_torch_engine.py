"""What is the torch engine's own: which models it knows, that prompts are run once, memory, dtypes, broken weights."""

from __future__ import annotations

import copy
import math
import sys
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import Gemma2Config, LlamaConfig, Qwen2Config, Qwen3Config

from grpo.config import Packing
from grpo.native import vector_lanes
from grpo.policy.attention import use_packed_attention
from grpo.policy.forward import ForwardSettings, response_log_probs
from grpo.policy.packing import collate
from grpo.rl.log_probs import TokenDistribution
from grpo.rollout import batch, workers
from grpo.rollout.decoder import Decoder, KeyValueCache, check_supported
from grpo.rollout.torch_engine import TorchEngine
from grpo.types import Completion, Sampling
from tests.contract.engines import (
    EOS,
    FAMILIES,
    keys_of,
    merged_tokenizer,
    scripted_model,
    tiny_model,
    token_ids,
    torch_engine,
    train_batch,
)

TOKENIZER = merged_tokenizer()
PROMPTS = [[5, 6, 7, 8], [9], list(range(30, 80)), [7] * 23]
CPU = torch.device("cpu")


def differences(model: Any, groups: list[list[Completion]], compute_dtype: torch.dtype) -> Tensor:
    """[tokens] of all completions, sampler against trainer, nats."""
    batch = train_batch(PROMPTS, groups)
    settings = ForwardSettings(TokenDistribution(), 0, compute_dtype, head_chunk_tokens=64)
    model = copy.deepcopy(model)
    use_packed_attention(model)
    with torch.no_grad():
        micro_batch = collate(batch, range(len(batch)), CPU, Packing.shared_prompts)
        log_probs, _ = response_log_probs(model, micro_batch, settings)
    rows = [log_probs[row, : batch.response_length(row)] for row in range(len(batch))]
    return (torch.cat(rows) - torch.cat(batch.sampler_log_probs)).abs()


@pytest.fixture
def forward_shapes(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """[rows, tokens] of every forward pass from here on, all in one batch."""
    monkeypatch.setattr("grpo.rollout.torch_engine.num_workers", lambda *_: 1)
    shapes: list[tuple[int, int]] = []
    forward = Decoder.forward

    def noting(self: Decoder, tokens: Tensor, *rest: Any) -> Tensor:
        shapes.append((tokens.shape[0], tokens.shape[1]))
        return forward(self, tokens, *rest)

    monkeypatch.setattr(Decoder, "forward", noting)
    return shapes


# --- Models ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("config", "sentence"),
    [
        (Gemma2Config(), "does not know model_type='gemma2', it knows qwen2, qwen3, llama; use hardware.engine=vllm"),
        (
            Qwen2Config(use_sliding_window=True, sliding_window=64, max_window_layers=2, num_hidden_layers=4),
            "does not know sliding_attention; set use_sliding_window to false in the model's config.json",
        ),
        (
            Qwen3Config(use_sliding_window=True, sliding_window=64, max_window_layers=0, num_hidden_layers=4),
            "does not know sliding_attention; set use_sliding_window to false",
        ),
        (
            LlamaConfig(rope_parameters={"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 2.0}),
            "does not know rope_type='dynamic', it knows default, linear, llama3, yarn",
        ),
        (LlamaConfig(hidden_act="gelu"), "does not know hidden_act='gelu', it knows 'silu'"),
    ],
    ids=["gemma2", "sliding_window", "sliding_window_everywhere", "dynamic_rope", "gelu"],
)
def test_models_that_it_would_get_wrong_are_refused(config: Any, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        check_supported(config)


def test_weights_of_the_same_dtype_are_not_copied() -> None:
    model = tiny_model()
    decoder = Decoder(model, dtype=torch.float32, device=CPU)
    assert decoder._head.data_ptr() == model.lm_head.weight.data_ptr()
    assert decoder._embedding.data_ptr() == model.model.embed_tokens.weight.data_ptr()


# --- Work and memory ------------------------------------------------------------------------------------------------


def test_a_prompt_is_run_once_for_all_its_samples(forward_shapes: list[tuple[int, int]]) -> None:
    engine = torch_engine(tiny_model(), TOKENIZER, ())
    engine.generate([[5] * 10, [6] * 10, [7] * 10], keys_of(3, 4), Sampling(max_tokens=6))
    # Three prompts of 10 tokens, and then 3 · 4 rows for the 5 tokens whose successors are wanted.
    assert forward_shapes == [(3, 10)] + [(12, 1)] * 5


def test_rows_that_have_ended_leave_the_batch(forward_shapes: list[tuple[int, int]]) -> None:
    engine = torch_engine(tiny_model(), TOKENIZER, range(0, 320, 8), cache_tokens=64 * 91)  # an eighth of all tokens
    engine.generate([[5] * 10], keys_of(1, 64), Sampling(max_tokens=80))
    rows = [count for count, length in forward_shapes if length == 1]
    assert rows == sorted(rows, reverse=True)
    assert rows[0] == 64
    assert rows[-1] < 8
    assert len(rows) < 79


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_step_does_no_work_per_row(monkeypatch: pytest.MonkeyPatch, temperature: float) -> None:
    """What eight more tokens a row cost, in calls of Python functions and of torch's, is the same for 4 and 40 rows."""
    monkeypatch.setattr("grpo.rollout.torch_engine.num_workers", lambda *_: 1)
    monkeypatch.setattr(workers, "_ONE_CORE_PRODUCTS", 0)  # a thread of its own would not be seen
    # transformers looks at every token once more when it decodes them.
    monkeypatch.setattr(TorchEngine, "_completions", lambda self, ended, stop: [None] * len(ended.places))
    engine = torch_engine(tiny_model(), TOKENIZER, ())

    def num_calls(rows: int, max_tokens: int) -> int:
        calls = 0

        def count(frame: object, event: str, argument: object) -> None:
            nonlocal calls
            calls += event in ("call", "c_call")

        sys.setprofile(count)
        try:
            engine.generate([[5] * 10], keys_of(1, rows), Sampling(max_tokens=max_tokens, temperature=temperature))
        finally:
            sys.setprofile(None)
        return calls

    num_calls(4, 8)  # what is made once
    few, many = (num_calls(rows, 16) - num_calls(rows, 8) for rows in (4, 40))
    assert few == many
    assert 500 < few < 8 * 500  # 2 layers; every call of a step is seen


def test_completions_are_told_of_while_others_are_sampled(
    monkeypatch: pytest.MonkeyPatch, forward_shapes: list[tuple[int, int]]
) -> None:
    monkeypatch.setattr(workers, "_ONE_CORE_PRODUCTS", 0)  # a thread of its own would go on meanwhile
    engine = torch_engine(tiny_model(), TOKENIZER, range(0, 320, 8))  # an eighth of all tokens ends a completion
    progress: list[tuple[int, int]] = []  # tokens of the completion, forward passes so far

    def note(place: int, completion: Completion) -> None:
        progress.append((len(completion.token_ids), len(forward_shapes)))

    engine.generate([[5] * 10], keys_of(1, 40), Sampling(max_tokens=80), note)
    assert len({num_forwards for _, num_forwards in progress}) > 2
    for num_tokens, num_forwards in progress:  # the n-th forward pass leads to the n-th token
        assert num_tokens == num_forwards


def test_the_cache_is_bounded(forward_shapes: list[tuple[int, int]]) -> None:
    # A row needs 50 + 14 + 1 = 65 positions, and a quarter more to spare: 4 rows of 81 fit in 325.
    engine = torch_engine(tiny_model(), TOKENIZER, (), cache_tokens=325)
    engine.generate([[5, 6, 7, 8], list(range(30, 80)), [7] * 23], keys_of(3, 8), Sampling(max_tokens=14))
    assert forward_shapes[:2] == [(1, 50), (4, 1)]
    assert max(rows for rows, length in forward_shapes if length == 1) == 4
    assert [length for _, length in forward_shapes if length > 1] == [50, 23, 4]  # each prompt once, longest first


def test_waiting_samples_take_the_places_of_ended_ones(forward_shapes: list[tuple[int, int]]) -> None:
    ends = range(0, 320, 8)  # an eighth of all tokens ends a completion
    engine = torch_engine(tiny_model(), TOKENIZER, ends, cache_tokens=16 * 114)
    groups = engine.generate([[5] * 10] * 4, keys_of(4, 64), Sampling(max_tokens=80))
    num_tokens = sum(len(completion.token_ids) for group in groups for completion in group)
    places = sum(rows for rows, length in forward_shapes if length == 1)
    assert max(rows for rows, length in forward_shapes if length == 1) == 16
    assert num_tokens - 256 <= places < 1.15 * num_tokens  # hardly a place is empty; first tokens need no pass


@pytest.mark.parametrize("check_every", [1, 8])
def test_completions_do_not_depend_on_who_shares_the_batch(monkeypatch: pytest.MonkeyPatch, check_every: int) -> None:
    # Few rows, many samples of uneven prompts: rows join late, the cache is moved to its beginning, the batch shrinks.
    ends, sampling = range(0, 320, 16), Sampling(max_tokens=40)
    alone = torch_engine(tiny_model(), TOKENIZER, ends, cache_tokens=100_000).generate(
        PROMPTS, keys_of(4, 16), sampling
    )
    moves: list[str] = []
    for name in ("rewind", "keep"):
        original = getattr(batch.Rows, name)

        def noting(self: Any, *rest: Any, name: str = name, original: Any = original) -> int:
            moves.append(name)
            return original(self, *rest)

        monkeypatch.setattr(batch.Rows, name, noting)
    monkeypatch.setattr(batch, "_CPU_CHECK_EVERY", check_every)
    for cache_tokens in (100, 500, 900, 1700):
        few = torch_engine(tiny_model(), TOKENIZER, ends, cache_tokens=cache_tokens)
        for first, second in zip(alone, few.generate(PROMPTS, keys_of(4, 16), sampling), strict=True):
            assert [completion.token_ids for completion in first] == [completion.token_ids for completion in second]
    assert {"rewind", "keep"} <= set(moves)


def test_a_prompt_that_waits_for_a_row_is_not_taken_for_another() -> None:
    # 4 + 20 + 1 positions and 6 to spare: 3 rows, so that one sample of the second prompt waits after both were run.
    prompts, keys, sampling = [[5, 6, 7, 8], [50, 60, 70, 80]], keys_of(2, 2), Sampling(max_tokens=20)
    whole, few = (
        torch_engine(tiny_model(), TOKENIZER, (), cache_tokens=cache_tokens).generate(prompts, keys, sampling)
        for cache_tokens in (1000, 93)
    )
    for first, second in zip(whole, few, strict=True):
        assert [completion.token_ids for completion in first] == [completion.token_ids for completion in second]


@pytest.mark.parametrize("use_kernel", [False, True])
def test_a_cache_that_starts_anew_while_a_row_stays_free(use_kernel: bool) -> None:
    # 154 positions are 2 rows. Both end in one look, one sample is left, and a row stays where its last one began.
    script = token_ids(TOKENIZER, [*map(chr, range(48, 123)), EOS])
    if use_kernel and not vector_lanes():
        pytest.skip("the kernel is for x86 CPUs with AVX2")
    model = scripted_model(TOKENIZER, script)
    engine = torch_engine(model, TOKENIZER, script[-1:], cache_tokens=154, use_kernel=use_kernel)
    lengths = [40, 33, 32, 30, 5, 9]
    prompts = [[script[-1 - length]] for length in lengths]
    torch.set_num_threads(1)  # else each takes a share of the cache
    groups = engine.generate(prompts, keys_of(len(prompts), 1), Sampling(max_tokens=60))
    assert [len(completion.token_ids) for (completion,) in groups] == lengths


def test_a_sample_does_not_go_on_with_the_stop_string_of_the_one_before_it() -> None:
    engine = torch_engine(tiny_model(), TOKENIZER, ())
    rows = batch.Rows(2, 8, engine._decoder, engine._stop_rules(("ab",)), Sampling(max_tokens=3))
    rows.states[0][:] = 2  # one byte of it was matched
    queue = batch._Queue(engine._decoder, [batch.Request(0, [5, 6], keys_of(1, 1)[0])])
    with torch.inference_mode():
        queue.admit(rows, 4)
    assert rows.states[0].tolist() == [0, 2]  # the second row is still free


def test_prompts_go_through_the_layers_in_parts_as_wide_as_their_longest(
    monkeypatch: pytest.MonkeyPatch, forward_shapes: list[tuple[int, int]]
) -> None:
    engine, sampling = torch_engine(tiny_model(), TOKENIZER, ()), Sampling(max_tokens=8)
    whole = engine.generate(PROMPTS, keys_of(4, 2), sampling)
    forward_shapes.clear()
    monkeypatch.setattr(batch, "_CPU_PREFILL_TOKENS", 110)  # two prompts of 50 tokens
    parts = engine.generate(PROMPTS, keys_of(4, 2), sampling)
    assert forward_shapes[:3] == [(2, 50), (2, 4), (8, 1)]
    for first, second in zip(whole, parts, strict=True):
        assert [completion.token_ids for completion in first] == [completion.token_ids for completion in second]


@pytest.mark.parametrize("cache_tokens", [200, 2000])
def test_memory_that_nobody_wrote_is_not_looked_at(monkeypatch: pytest.MonkeyPatch, cache_tokens: int) -> None:
    new_cache = Decoder.new_cache

    def soiled(*args: Any) -> KeyValueCache:
        cache = new_cache(*args)
        for layer in (*cache.keys, *cache.values):
            layer.fill_(torch.nan)
        return cache

    monkeypatch.setattr(Decoder, "new_cache", soiled)
    monkeypatch.setattr(batch, "_CPU_PREFILL_TOKENS", 110)
    engine = torch_engine(tiny_model(), TOKENIZER, (0, 50), cache_tokens=cache_tokens)
    for group in engine.generate(PROMPTS, keys_of(4, 3), Sampling(max_tokens=8)):
        assert all(score == score for completion in group for score in completion.sampler_log_probs)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_same_call_gives_the_same_bits(dtype: torch.dtype) -> None:
    engine = torch_engine(tiny_model(), TOKENIZER, (0, 50, 100), dtype=dtype)
    first, second = (engine.generate(PROMPTS, keys_of(4, 8), Sampling(top_p=0.9, max_tokens=24)) for _ in range(2))
    assert first == second


# --- Dtypes ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("master", [torch.float32, torch.bfloat16], ids=["float32_masters", "bfloat16_masters"])
@pytest.mark.parametrize("use_kernel", [False, True])
def test_bfloat16_is_near_the_trainers_bfloat16(family: str, master: torch.dtype, use_kernel: bool) -> None:
    model = tiny_model(family).to(master)
    engine = torch_engine(model, TOKENIZER, (), dtype=torch.bfloat16, use_kernel=use_kernel)
    groups = engine.generate(PROMPTS, keys_of(4, 8), Sampling(max_tokens=24))
    same = differences(model, groups, torch.bfloat16)
    assert same.mean() < 0.003
    # Both round in the same places: what is left is sums that end on either side of an edge.
    assert same.mean() < 0.4 * differences(model.float(), groups, torch.float32).mean()


def test_copied_weights_are_stale_until_a_sync() -> None:
    model = tiny_model()
    engine = torch_engine(model, TOKENIZER, (), dtype=torch.bfloat16)
    old = copy.deepcopy(model)
    for layer in model.model.layers:
        layer.mlp.down_proj.weight.mul_(3)
    stale = engine.generate(PROMPTS, keys_of(4, 4), Sampling(max_tokens=12))
    assert differences(old, stale, torch.bfloat16).mean() < 0.01
    assert differences(model, stale, torch.bfloat16).mean() > 0.1
    engine.sync(model, 1)
    fresh = engine.generate(PROMPTS, keys_of(4, 4), Sampling(max_tokens=12))
    assert differences(model, fresh, torch.bfloat16).mean() < 0.01


# --- Broken weights -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_weights_that_are_nan_give_log_probs_that_are_nan(temperature: float) -> None:
    model = tiny_model()
    model.lm_head.weight[3] = math.nan
    engine = torch_engine(model, TOKENIZER, (0,))
    sampling = Sampling(temperature=temperature, top_p=0.9, max_tokens=6, stop=("ab",))
    for group in engine.generate(PROMPTS, keys_of(4, 2), sampling):
        for completion in group:
            assert len(completion.token_ids) in range(1, 7)
            assert all(math.isnan(log_prob) for log_prob in completion.sampler_log_probs)


def test_own_weights_stay_as_they_are_until_a_sync() -> None:
    model = tiny_model()
    sharing = torch_engine(model, TOKENIZER, ())
    own = TorchEngine(
        model, TOKENIZER, end_ids=(), dtype=torch.float32, device=CPU, cache_tokens=4096, own_weights=True
    )
    greedy, keys = Sampling(temperature=0.0, max_tokens=12), keys_of(4, 1)
    before = own.generate(PROMPTS, keys, greedy)
    assert before == sharing.generate(PROMPTS, keys, greedy)
    model.load_state_dict(tiny_model(seed=1).state_dict())
    assert own.generate(PROMPTS, keys, greedy) == before
    assert sharing.generate(PROMPTS, keys, greedy) != before
    for engine in (own, sharing):
        engine.sync(model, 1)
    after = own.generate(PROMPTS, keys, greedy)
    assert after == sharing.generate(PROMPTS, keys, greedy) != before
