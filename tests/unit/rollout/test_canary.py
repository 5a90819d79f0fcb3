"""The canary passes where engine and policy agree, and stops the run where they have parted."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from grpo.policy.forward import ForwardSettings, response_log_probs
from grpo.policy.packing import collate
from grpo.rl.log_probs import TokenDistribution
from grpo.rollout.canary import TOLERANCE, Mismatch, check, measure
from grpo.types import RunError, SampleKey, Sampling, TrainBatch
from tests.contract.engines import merged_tokenizer, tiny_model, torch_engine

TOKENIZER = merged_tokenizer()
END_IDS = (0, 40, 80)
PROMPTS = [[5, 6, 7, 8], [9], list(range(30, 60))]
SAMPLING = Sampling(temperature=0.8, min_tokens=4, max_tokens=64)
SENTENCE = (
    "at the start, log-probs of engine and policy differ by .* nats on average, more than the 0.0001 that float32 "
    "explains: what is sampled is not what is trained; try hardware.engine=torch hardware.compute_dtype=float32"
)
LogProbs = Callable[[TrainBatch], list[Tensor]]


def policy(model: Any, sampling: Sampling = SAMPLING, compute_dtype: torch.dtype = torch.float32) -> LogProbs:
    distribution = TokenDistribution(sampling.temperature, sampling.top_k, sampling.top_p, END_IDS)
    settings = ForwardSettings(distribution, sampling.min_tokens, compute_dtype, head_chunk_tokens=64)

    def log_probs(batch: TrainBatch) -> list[Tensor]:
        with torch.no_grad():
            rows, _ = response_log_probs(model, collate(batch, range(len(batch)), torch.device("cpu")), settings)
        return [values[: batch.response_length(row)] for row, values in enumerate(rows)]

    return log_probs


def mismatch_with(log_probs: LogProbs, *, dtype: torch.dtype = torch.float32) -> Mismatch:
    engine = torch_engine(tiny_model(), TOKENIZER, END_IDS, dtype=dtype)
    return measure(engine, log_probs, PROMPTS, SAMPLING, seed=0)


def assert_stops(mismatch: Mismatch) -> None:
    with pytest.raises(RunError, match=SENTENCE):
        check(mismatch, compute_dtype=torch.float32, when="at the start")


def test_agreement_passes() -> None:
    mismatch = mismatch_with(policy(tiny_model()))
    assert 0 <= mismatch.mean <= mismatch.max < 1e-5
    check(mismatch, compute_dtype=torch.float32, when="at the start")


def test_agreement_in_bfloat16_passes_its_own_tolerance_only() -> None:
    narrow = policy(tiny_model(), compute_dtype=torch.bfloat16)
    for dtype in (torch.bfloat16, torch.float32):
        mismatch = mismatch_with(narrow, dtype=dtype)
        check(mismatch, compute_dtype=torch.bfloat16, when="at the start")
    assert_stops(mismatch)  # of bfloat16 and float32: two in bfloat16 may agree to the bit


def test_stale_weights_stop_the_run() -> None:
    trained = tiny_model()
    generator = torch.Generator().manual_seed(0)
    for parameter in trained.parameters():
        parameter += 0.001 * torch.randn(parameter.shape, generator=generator)
    assert_stops(mismatch_with(policy(trained)))


def test_another_temperature_stops_the_run() -> None:
    assert_stops(mismatch_with(policy(tiny_model(), Sampling(temperature=0.81, min_tokens=4))))


def test_other_min_tokens_stop_the_run() -> None:
    assert_stops(mismatch_with(policy(tiny_model(), Sampling(temperature=0.8, min_tokens=0))))


def test_shifted_positions_stop_the_run() -> None:
    right = policy(tiny_model())
    assert_stops(mismatch_with(lambda batch: [values.roll(1) for values in right(batch)]))


@pytest.mark.parametrize("broken", [math.nan, math.inf])
def test_log_probs_that_are_no_numbers_stop_the_run(broken: float) -> None:
    right = policy(tiny_model())

    def log_probs(batch: TrainBatch) -> list[Tensor]:
        first, *rest = right(batch)
        return [first.index_fill(0, torch.tensor([2]), broken), *rest]

    assert_stops(mismatch_with(log_probs))


def test_mean_and_max_golden_and_what_is_sampled_for_it() -> None:
    # Every log-prob is 0.5 too low but one of the first row, which is 1.5 too high: mean (n - 1 + 3) · 0.5 / n.
    seen: list[TrainBatch] = []

    def log_probs(batch: TrainBatch) -> list[Tensor]:
        seen.append(batch)
        rows = [values - 0.5 for values in batch.sampler_log_probs]
        rows[0][1] += 2
        return rows

    mismatch = mismatch_with(log_probs)
    [batch] = seen
    lengths = [batch.response_length(row) for row in range(len(batch))]
    assert all(4 < length <= 32 for length in lengths)  # cut short, but not shorter than min_tokens
    assert [batch.token_ids[row][: batch.prompt_lengths[row]].tolist() for row in range(3)] == PROMPTS
    assert mismatch.mean == pytest.approx((sum(lengths) + 2) * 0.5 / sum(lengths), abs=1e-5)
    assert mismatch.max == pytest.approx(1.5, abs=1e-5)


def test_its_random_numbers_belong_to_no_step_of_a_run() -> None:
    engine = torch_engine(tiny_model(), TOKENIZER, END_IDS)
    seen: list[SampleKey] = []

    class Noting:
        def __getattr__(self, name: str) -> Any:
            return getattr(engine, name)

        def generate(self, prompts: Any, keys: Any, sampling: Sampling) -> Any:
            seen.extend(key for group in keys for key in group)
            return engine.generate(prompts, keys, sampling)

    measure(Noting(), policy(tiny_model()), PROMPTS, SAMPLING, seed=3)  # type: ignore[arg-type]
    assert {(key.seed, key.step) for key in seen} == {(3, 2**32 - 1)}
    assert len(set(seen)) == len(PROMPTS)


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_the_tolerance_itself_passes_and_a_little_more_does_not(dtype: torch.dtype) -> None:
    check(Mismatch(TOLERANCE[dtype], 9.0), compute_dtype=dtype, when="now")
    with pytest.raises(RunError, match=r"^now, log-probs"):
        check(Mismatch(TOLERANCE[dtype] * 1.01, 9.0), compute_dtype=dtype, when="now")
