"""What the vLLM engine does before and after vLLM, which is not needed here."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from typing import Any

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from grpo.rollout.stopping import StopRules
from grpo.rollout.vllm_engine import VllmEngine, check_sampling, seed_of
from grpo.rollout.vllm_probe import version_problem
from grpo.rollout.vllm_stops import Growing, stop_tables
from grpo.rollout.vllm_types import Draw, Finished, VllmError, Wanted
from grpo.rollout.vllm_weights import buckets, contents, pack, unpack
from grpo.types import RunError, SampleKey, Sampling
from tests.contract.engines import IM_END, keys_of, merged_tokenizer, tiny_model


class Echo:
    """A backend that writes the low byte of every seed."""

    def __init__(self) -> None:
        self.wanted: list[Wanted] = []
        self.loaded: list[Any] = []
        self.error: Exception | None = None
        self.closed = 0

    def generate(self, wanted: Sequence[Wanted], draw: Draw) -> Generator[Finished, None, None]:
        self.wanted = list(wanted)
        try:
            for one in reversed(wanted):
                yield Finished(one.place, [one.seed % 256], [-1.0], stopped=False)
            if self.error is not None:
                raise self.error
        finally:
            self.closed += 1

    def load(self, model: Any) -> None:
        if self.error is not None:
            raise self.error
        self.loaded.append(model)

    def sleep(self) -> None: ...
    def wake(self) -> None: ...
    def close(self) -> None: ...


def test_seeds_are_the_same_everywhere_and_differ_with_every_part_of_the_key() -> None:
    # blake2b of 8 bytes over "(42, 1, 2, 3)", without its last bit
    assert seed_of(SampleKey(42, 1, 2, 3)) == 1241680843303085657
    keys = [
        SampleKey(*key) for key in ((0, 0, 0, 0), (1, 0, 0, 0), (0, 1, 0, 0), (0, 0, 1, 0), (0, 0, 0, 1), (1, 1, 0, 0))
    ]
    keys += [SampleKey(2**32 - 1, step, 0, 0) for step in range(2000)]
    seeds = [seed_of(key) for key in keys]
    assert len(set(seeds)) == len(keys)
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert len({seed % 2**32 for seed in seeds}) == len(keys)  # of which a CPU's generator takes 32 bits


def test_every_completion_is_asked_for_with_its_own_seed_and_put_in_its_place() -> None:
    backend = Echo()
    engine = VllmEngine(backend, tiny_model(), merged_tokenizer(), end_ids=(0,))
    keys = keys_of(3, 4)
    told: list[int] = []
    groups = engine.generate([[1], [2, 3], [4]], keys, Sampling(max_tokens=3), lambda place, _: told.append(place))
    flat_keys = [key for group in keys for key in group]
    assert [(one.place, one.seed) for one in backend.wanted] == [(n, seed_of(key)) for n, key in enumerate(flat_keys)]
    assert [tuple(one.prompt) for one in backend.wanted] == [(1,)] * 4 + [(2, 3)] * 4 + [(4,)] * 4
    assert [c.token_ids[0] for group in groups for c in group] == [seed_of(key) % 256 for key in flat_keys]
    assert told == list(range(11, -1, -1))


def test_an_error_of_the_listener_closes_the_call() -> None:
    backend = Echo()
    engine = VllmEngine(backend, tiny_model(), merged_tokenizer(), end_ids=(0,))

    def fail(place: int, completion: Any) -> None:
        raise KeyError(place)

    with pytest.raises(KeyError) as caught:
        engine.generate([[1]], keys_of(1, 4), Sampling(max_tokens=3), fail)
    assert backend.closed == 1  # at once, though the error's traceback still holds the call
    assert caught.value.args == (3,)


@pytest.mark.parametrize("error", [VllmError("it is gone"), RuntimeError("it is\ngone"), ValueError("it is gone")])
def test_a_sync_that_fails_leaves_no_weights_in_use(error: Exception) -> None:
    backend, model = Echo(), tiny_model()
    engine = VllmEngine(backend, model, merged_tokenizer(), end_ids=(0,))
    backend.error = error
    with pytest.raises(RunError, match=r"did not take the weights of step 3 \(it is gone\); resume the run"):
        engine.sync(model, 3)
    backend.error = None
    with pytest.raises(RunError, match="neither the old weights nor the new"):
        engine.generate([[1]], keys_of(1, 1), Sampling(max_tokens=3))
    engine.sync(model, 3)
    assert engine.version == 3
    assert engine.generate([[1]], keys_of(1, 1), Sampling(max_tokens=3))[0][0].version == 3


def test_an_unexpected_error_of_a_sync_leaves_no_weights_in_use_either() -> None:
    backend, model = Echo(), tiny_model()
    engine = VllmEngine(backend, model, merged_tokenizer(), end_ids=(0,))
    backend.error = KeyError("a bug")
    with pytest.raises(KeyError):
        engine.sync(model, 3)
    with pytest.raises(RunError, match="neither the old weights nor the new"):
        engine.generate([[1]], keys_of(1, 1), Sampling(max_tokens=3))


def test_a_vllm_that_fails_stops_the_run() -> None:
    backend = Echo()
    engine = VllmEngine(backend, tiny_model(), merged_tokenizer(), end_ids=(0,))
    backend.error = VllmError("lost a second time")
    with pytest.raises(RunError, match=r"^lost a second time$"):
        engine.generate([[1]], keys_of(1, 1), Sampling(max_tokens=3))


@pytest.mark.parametrize("temperature", [0.005, 2.5])
def test_temperatures_that_vllm_does_not_have(temperature: float) -> None:
    with pytest.raises(ValueError, match=f"temperature={temperature} is not between 0.01 and 2.0, .*; use 1.0, or"):
        check_sampling(Sampling(temperature=temperature))


def test_greedy_with_filters_is_refused() -> None:
    with pytest.raises(ValueError, match=r"temperature=0 with top_p=0.5 and top_k=0: .*; use top_p=1 and top_k=0"):
        check_sampling(Sampling(temperature=0.0, top_p=0.5))
    with pytest.raises(ValueError, match="top_k=3"):
        check_sampling(Sampling(temperature=0.0, top_k=3))
    check_sampling(Sampling(temperature=0.0))
    check_sampling(Sampling(temperature=1.0, top_p=0.5, top_k=3))


@pytest.mark.parametrize("version", ["0.28.0", "0.30.0", "0.30.1rc2", "0.32.4+cpu"])
def test_versions_that_are_supported(version: str) -> None:
    assert version_problem(version) == ""


@pytest.mark.parametrize("version", ["0.27.9", "0.33.0", "1.0.0", "0.9.2", "dev"])
def test_versions_that_are_not(version: str) -> None:
    assert version_problem(version) == (
        f"vLLM {version} is installed, but hardware.engine=vllm needs vLLM 0.28 to 0.32 (pip install 'vllm==0.30.0'); "
        "or use hardware.engine=torch"
    )


# --- Stop strings ---------------------------------------------------------------------------------------------------

TOKENIZER = merged_tokenizer(["ab", "ba", "aab"])
PIECES = [b"", b"", *(bytes([letter]) for letter in b"ab"), b"ab", b"ba", b"aab", "é".encode(), b"\xc3", b"\xa9"]


@settings(max_examples=200, deadline=None)
@given(
    tokens=st.lists(st.integers(1, len(PIECES) - 1), max_size=14),
    stop=st.lists(st.sampled_from(["a", "ab", "aab", "abab", "é", "bé", IM_END]), min_size=1, max_size=3, unique=True),
    min_tokens=st.integers(0, 4),
)
@example(tokens=[4, 4, 4], stop=["abab"], min_tokens=3)  # an end before min_tokens is also a beginning
def test_completions_stop_where_the_torch_engine_stops_them(
    tokens: list[int], stop: list[str], min_tokens: int
) -> None:
    tables = stop_tables(TOKENIZER, PIECES, stop)
    assert tables is not None
    growing = Growing(Draw(1.0, 1.0, 0, min_tokens, 20, (0,), tables))
    for token in tokens:
        growing.add(token, -0.5)

    special = TOKENIZER.get_vocab()[IM_END]
    rules = StopRules(PIECES, [special] if IM_END in stop else [], stop, torch.device("cpu"))
    states, expected, stopped = rules.start(1), list[int](), False
    for token in tokens:
        states, ended, matched = rules.advance(states, torch.tensor([token]))
        expected.append(token)
        stopped = bool(ended | matched) and len(expected) >= min_tokens
        if stopped:
            break
    assert (growing.token_ids, growing.stopped) == (expected, stopped)
    assert growing.log_probs == [-0.5] * len(expected)


# --- Buckets --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["qwen2", "qwen2_tied"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("limit_bytes", [1, 30_000, 10**9])
def test_buckets_hold_every_weight_once_and_no_more_than_they_may(
    family: str, dtype: torch.dtype, limit_bytes: int
) -> None:
    model = tiny_model(family)
    parts = list(buckets(model, dtype, limit_bytes))
    names = [name for part in parts for name, _ in part]
    assert names == [name for name, _ in model.named_parameters()]
    assert ("lm_head.weight" in names) is (family == "qwen2")
    for part in parts:
        flat = pack(part, torch.device("cpu"))
        assert len(part) == 1 or len(flat) <= limit_bytes
        for name, tensor in unpack(flat, contents(part), dtype):
            assert torch.equal(tensor, dict(model.named_parameters())[name].to(dtype))
    if limit_bytes == 30_000:
        assert 1 < len(parts) < len(names)
    else:
        assert len(parts) == (len(names) if limit_bytes == 1 else 1)
