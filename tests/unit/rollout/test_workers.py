"""Batches side by side: who gets what, that the completions stay the same, and what happens when something fails."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from grpo.native import vector_lanes
from grpo.rollout import workers
from grpo.rollout.batch import Batch, Request
from grpo.rollout.decoder import Decoder
from grpo.rollout.kernel import BoundKernel
from grpo.rollout.workers import num_workers, split, suits_one_core
from grpo.types import Completion, SampleKey, Sampling
from tests.contract.engines import keys_of, merged_tokenizer, tiny_model, torch_engine

TOKENIZER = merged_tokenizer()
PROMPTS = [[5 + place] * (3 + place % 7) for place in range(16)]
ENDS = range(0, 320, 16)  # a twentieth of the vocabulary: lengths vary
SAMPLING = Sampling(max_tokens=40)
needs_kernel = pytest.mark.skipif(not vector_lanes(), reason="the kernel is for x86 CPUs with AVX2")


@pytest.fixture(autouse=True)
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture
def batch_threads(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    """Thread name and torch's number of threads, for every batch that runs from here on."""
    seen: list[tuple[str, int]] = []
    run = Batch.run

    def noting(self: Batch, requests: Any) -> Any:
        seen.append((threading.current_thread().name, torch.get_num_threads()))
        return run(self, requests)

    monkeypatch.setattr(Batch, "run", noting)
    return seen


def completions(num_threads: int, group_size: int = 8) -> list[Completion]:
    torch.set_num_threads(num_threads)
    engine = torch_engine(tiny_model(), TOKENIZER, ENDS)
    return [one for group in engine.generate(PROMPTS, keys_of(16, group_size), SAMPLING) for one in group]


def requests(*sizes: int) -> list[Request]:
    firsts = [sum(sizes[:place]) for place in range(len(sizes))]
    return [
        Request(first, [place + 1], [SampleKey(0, 1, place, sample) for sample in range(size)])
        for place, (first, size) in enumerate(zip(firsts, sizes, strict=True))
    ]


@pytest.mark.parametrize("num_threads", [2, 3])
def test_completions_are_the_same_for_any_number_of_workers(
    num_threads: int, batch_threads: list[tuple[str, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    alone = completions(1)
    all_run, run = threading.Barrier(num_threads, timeout=60), Batch.run

    def meeting(self: Batch, requests: Any) -> Any:
        all_run.wait()
        return run(self, requests)

    monkeypatch.setattr(Batch, "run", meeting)
    together = completions(num_threads)
    assert [one.token_ids for one in together] == [one.token_ids for one in alone]
    assert [one.text for one in together] == [one.text for one in alone]
    assert len({len(one.token_ids) for one in alone}) > 10
    for one, other in zip(alone, together, strict=True):
        assert other.sampler_log_probs == pytest.approx(one.sampler_log_probs, abs=1e-5)
    names = [name for name, _ in batch_threads]
    assert len(names) == 1 + num_threads
    assert len(set(names[1:])) == num_threads
    assert all(count == 1 for _, count in batch_threads)  # the first ran with one thread anyway


def test_the_same_call_gives_the_same_bits_with_workers() -> None:
    assert completions(2) == completions(2)


def test_torch_has_its_threads_back_afterwards() -> None:
    completions(2)
    assert torch.get_num_threads() == 2
    found: list[int] = []
    other = threading.Thread(target=lambda: found.append(torch.get_num_threads()))  # not the workers' number either
    other.start()
    other.join()
    assert found == [2]


def test_few_samples_and_large_models_keep_their_threads_together(monkeypatch: pytest.MonkeyPatch) -> None:
    decoder = Decoder(tiny_model(), dtype=torch.float32, device=torch.device("cpu"))
    torch.set_num_threads(3)
    assert [num_workers(decoder, samples) for samples in (1, 31, 32, 47, 48, 1000)] == [1, 1, 2, 2, 3, 3]
    torch.set_num_threads(1)
    assert num_workers(decoder, 1000) == 1
    torch.set_num_threads(3)
    monkeypatch.setattr(workers, "_MAX_WEIGHT_BYTES", 3 * decoder.weight_bytes)
    assert num_workers(decoder, 1000) == 3
    monkeypatch.setattr(workers, "_MAX_WEIGHT_BYTES", 3 * decoder.weight_bytes - 1)
    assert num_workers(decoder, 1000) == 1


@needs_kernel
def test_the_kernel_has_a_core_a_batch_unless_too_many_would_read_large_weights(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    decoder = Decoder(tiny_model(), dtype=torch.float32, device=torch.device("cpu"), use_kernel=True)
    torch.set_num_threads(3)
    assert [num_workers(decoder, samples) for samples in (1, 2, 3, 1000)] == [1, 2, 3, 3]
    assert suits_one_core(decoder, 1000)
    monkeypatch.setattr(workers, "_MAX_WEIGHT_BYTES", 3 * decoder.weight_bytes - 1)
    assert num_workers(decoder, 1000) == 1
    assert not suits_one_core(decoder, 1000)
    torch.set_num_threads(2)
    monkeypatch.setattr(workers, "_MAX_WEIGHT_BYTES", 0)
    assert num_workers(decoder, 1000) == 2
    assert suits_one_core(decoder, 1000)


@needs_kernel
@pytest.mark.parametrize("can_split", [True, False])
def test_the_kernel_is_not_used_where_a_batch_has_all_cores(monkeypatch: pytest.MonkeyPatch, can_split: bool) -> None:
    monkeypatch.setattr(workers, "_can_split", lambda decoder: can_split)
    decoded: list[int] = []
    decode = BoundKernel.decode

    def noting(self: BoundKernel, rotary: Any, column: int) -> None:
        decoded.append(torch.get_num_threads())
        decode(self, rotary, column)

    monkeypatch.setattr(BoundKernel, "decode", noting)
    torch.set_num_threads(2)
    engine = torch_engine(tiny_model(), TOKENIZER, ENDS, use_kernel=True)
    engine.generate(PROMPTS, keys_of(16, 2), SAMPLING)
    assert set(decoded) == ({1} if can_split else set())


def test_a_small_batch_of_a_small_model_runs_on_one_core(
    monkeypatch: pytest.MonkeyPatch, batch_threads: list[tuple[str, int]]
) -> None:
    few = completions(2, group_size=1)
    assert [count for _, count in batch_threads] == [1]
    assert torch.get_num_threads() == 2
    monkeypatch.setattr(workers, "_ONE_CORE_PRODUCTS", 0)
    assert [one.token_ids for one in completions(2, group_size=1)] == [one.token_ids for one in few]
    assert batch_threads[1:] == [(threading.current_thread().name, 2)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_is_small_is_a_number_of_multiplications(monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype) -> None:
    decoder = Decoder(tiny_model(), dtype=dtype, device=torch.device("cpu"))
    num_weights = decoder.weight_bytes // dtype.itemsize
    monkeypatch.setattr(workers, "_ONE_CORE_PRODUCTS", 5 * num_weights)
    assert [workers.suits_one_core(decoder, samples) for samples in (1, 4, 5)] == [True, True, False]


def test_weight_bytes_are_those_of_the_matrices() -> None:
    model = tiny_model()
    decoder = Decoder(model, dtype=torch.bfloat16, device=torch.device("cpu"))
    matrices = [one for name, one in model.named_parameters() if one.dim() == 2 and "embed_tokens" not in name]
    assert decoder.weight_bytes == 2 * sum(one.numel() for one in matrices)


@pytest.mark.parametrize("sizes", [(8,) * 16, (100,), (1, 0, 30, 5), (0, 0, 7), (3, 3, 3), (1,)])
@pytest.mark.parametrize("num_parts", [1, 2, 3])
def test_every_sample_is_dealt_out_once_and_fairly(sizes: tuple[int, ...], num_parts: int) -> None:
    wanted = requests(*sizes)
    parts = split(wanted, num_parts)
    dealt = sorted(
        (piece.first + place, piece.prompt[0], key)
        for part in parts
        for piece in part
        for place, key in enumerate(piece.keys)
    )
    assert dealt == [(one.first + place, one.prompt[0], key) for one in wanted for place, key in enumerate(one.keys)]
    loads = [sum(len(piece.keys) for piece in part) for part in parts]
    assert len(loads) <= num_parts
    assert min(loads) > 0
    assert max(loads) <= -(-sum(sizes) // num_parts) + max(sizes)


def test_groups_of_one_size_stay_whole() -> None:
    parts = split(requests(*(8,) * 16), 2)
    assert [[len(piece.keys) for piece in part] for part in parts] == [[8] * 8, [8] * 8]
    assert split(requests(0, 0), 2) == []


def test_an_error_in_a_worker_reaches_the_caller_and_ends_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    sample = Batch._sample

    def failing(self: Batch, rows: Any) -> Any:
        if int(rows.counts.max()) == 5:
            raise RuntimeError("no more memory")
        return sample(self, rows)

    monkeypatch.setattr(Batch, "_sample", failing)
    with pytest.raises(RuntimeError, match="no more memory"):
        completions(2)
    assert torch.get_num_threads() == 2
    assert not [one for one in threading.enumerate() if one.name.startswith("grpo")]


def test_a_caller_that_fails_ends_the_workers_at_their_next_step(monkeypatch: pytest.MonkeyPatch) -> None:
    steps: list[int] = []
    sample = Batch._sample

    def counted(self: Batch, rows: Any) -> Any:
        steps.append(1)
        time.sleep(0.005)  # a caller that is slow to fail is not what is tested
        return sample(self, rows)

    def refuse(place: int, completion: Completion) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Batch, "_sample", counted)
    torch.set_num_threads(2)
    engine = torch_engine(tiny_model(), TOKENIZER, ENDS)
    with pytest.raises(KeyboardInterrupt):
        engine.generate(PROMPTS, keys_of(16, 8), Sampling(max_tokens=4000 // 40), refuse)
    assert len(steps) < 150  # of at least 2 x 100
    assert not [one for one in threading.enumerate() if one.name.startswith("grpo")]
    assert torch.get_num_threads() == 2
