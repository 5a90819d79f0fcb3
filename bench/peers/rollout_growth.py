"""The torch engine's speed against batch, length and parameters, and the machine's limits, in one process.

`python -m bench.peers.rollout_growth JOB RESULT`; the job's `options` hold `quick` and `budget_s`, the seconds that a
point should take. All rows of a point are samples of one prompt, so that what is timed is decoding.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import grpo  # first: it sets how OpenMP's threads wait, before torch starts them

# isort: split
import torch

from bench.limits import Limits, measure_limits
from bench.rollout_cases import LARGE, SEED, SIZES, SMALL, TINY, Size, build_model, build_tokenizer, make_prompts
from grpo.config import compose_run_config
from grpo.rollout.build import build_engine
from grpo.types import Engine, SampleKey, Sampling

PROMPT_TOKENS = 32
BATCHES = tuple(2**power for power in range(10))
LENGTHS = (64, 128, 256, 512, 1024, 2048)
_LENGTH_BATCH, _PARAMETER_BATCH = 32, 16
_TOKENS = 64  # of a completion, where the length is not what grows
_FEWEST, _PROBE = 4, 3
_WORD = 4  # bytes of a float32


@dataclass(frozen=True, slots=True)
class Point:
    """One measurement.

    Attributes:
        panel: what grows: "batch", "batch, 53M", "length" or "parameters".
        size: the model's name.
        parameters: of the matrices.
        batch: rows.
        tokens: of each completion.
        rate: tokens per second, of all rows; 0 before the measurement.
        limit: the same, if the machine's limits were all that it took.
    """

    panel: str
    size: str
    parameters: int
    batch: int
    tokens: int
    rate: float = 0.0
    limit: float = 0.0


def wanted(quick: bool) -> Iterator[tuple[Size, list[Point]]]:
    """The points by model, so that no two models are in memory at once."""
    lengths = (8, 16) if quick else LENGTHS
    for size in (TINY,) if quick else SIZES:

        def point(panel: str, batch: int, tokens: int, size: Size = size) -> Point:
            return Point(panel, size.name, size.num_matrix_parameters, batch, tokens)

        points = [point("parameters", _PARAMETER_BATCH, _TOKENS)]
        if size in (SMALL, TINY):
            points += [point("batch", batch, _TOKENS) for batch in BATCHES[: 2 if quick else None]]
            points += [point("length", _LENGTH_BATCH, length) for length in lengths]
        if size is LARGE:
            points += [point(f"batch, {size.name}", batch, _TOKENS) for batch in BATCHES]
        yield size, points


def step_seconds(size: Size, point: Point, limits: Limits) -> float:
    """The least time of a step of all rows in float32, halfway through the completion.

    Weights are read once, keys and values of every row once; a multiplication and an addition are two operations.
    """
    positions = point.batch * (PROMPT_TOKENS + point.tokens / 2)
    num_bytes = _WORD * (size.num_matrix_parameters + 2 * positions * size.layers * size.kv_width)
    operations = 2 * point.batch * size.num_matrix_parameters + 4 * positions * size.layers * size.hidden
    return limits.seconds(num_bytes, operations)


def timed(engine: Engine, prompt: list[int], batch: int, tokens: int) -> float:
    """Seconds of one call."""
    keys = [[SampleKey(SEED, 1, 0, sample) for sample in range(batch)]]
    start = time.perf_counter()
    (completions,) = engine.generate([prompt], keys, Sampling(max_tokens=tokens))
    assert all(len(one.token_ids) == tokens for one in completions)
    return time.perf_counter() - start


def measured(engine: Engine, prompt: list[int], size: Size, point: Point, limits: Limits, budget_s: float) -> Point:
    """The point with its numbers; completions are cut short where they would take longer than the budget."""
    if point.panel != "length":
        timed(engine, prompt, point.batch, _PROBE)
        a_token = timed(engine, prompt, point.batch, _PROBE) / _PROBE
        point = replace(point, tokens=max(_FEWEST, min(point.tokens, int(budget_s / a_token))))
    seconds = timed(engine, prompt, point.batch, point.tokens)
    limit = point.batch / step_seconds(size, point, limits)
    return replace(point, rate=point.batch * point.tokens / seconds, limit=limit)


def build(size: Size) -> Engine:
    """The engine of a run on a CPU, without an end of sequence."""
    cfg = compose_run_config(["hardware=cpu"]).hardware
    model: Any = build_model(size, context=PROMPT_TOKENS + LENGTHS[-1])
    return build_engine(cfg, model, build_tokenizer(size.vocabulary), end_ids=(), compute_dtype=torch.float32)


def main() -> None:
    """Measures every point and says each as it is done."""
    job = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    torch.set_num_threads(job["threads"])
    quick, budget_s = job["options"]["quick"], job["options"]["budget_s"]
    limits = measure_limits(0.01 if quick else 1.0)
    plan = list(wanted(quick))
    total, points, start = sum(len(own) for _, own in plan), [], time.perf_counter()
    for size, own in plan:
        engine = build(size)
        prompt = make_prompts(1, PROMPT_TOKENS, PROMPT_TOKENS, size.vocabulary)[0]
        timed(engine, prompt, 1, _PROBE)
        for point in own:
            points.append(measured(engine, prompt, size, point, limits, budget_s))
            left = (time.perf_counter() - start) / len(points) * (total - len(points))
            done = points[-1]
            print(
                f"growth {len(points)}/{total}: {done.size}, batch {done.batch}, {done.tokens} tokens: "
                f"{done.rate:,.0f} tokens/s; about {left:.0f} s left",
                flush=True,
            )
    rates = {str(number): rate for number, rate in limits.read_rates.items()}
    result = {"version": grpo.__version__, "points": [asdict(point) for point in points]}
    result |= {"read_rates": rates, "flops": limits.flops}
    Path(sys.argv[2]).write_text(json.dumps(result), encoding="utf-8")


if __name__ == "__main__":
    main()
