"""The tables of `bench.gpu`: each measurement is a process of its own, and a row even where it fails."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from bench.environments import ROOT
from bench.gpu_cases import CASES, GOAL_SHARE, Case, Plan
from bench.peers.gpu_rate import Rate, RateJob
from bench.peers.gpu_rollout import Rollout, RolloutJob
from bench.peers.gpu_update import Update, UpdateJob
from bench.peers.gpu_work import model_flops, usual_flops, work_of
from bench.rollout_cases import varying_lengths
from bench.rollout_process import NotMeasured
from bench.tables import Section
from grpo.config import Packing

_GIB = 2**30


@dataclass(frozen=True, slots=True)
class Bench:
    """What all tables share.

    Attributes:
        plan: what to measure.
        device: of torch.
        limit_s: of one process.
        rate: operations per second of bfloat16 matrix products, once known.
    """

    plan: Plan
    device: str
    limit_s: float
    rate: Rate | None = None

    def run(self, name: str, job: Any) -> list[dict[str, Any]]:
        """Runs `bench.peers.gpu_<name>` on a job.

        Raises:
            NotMeasured: it failed or took too long; the message is the last line it said.
        """
        start = time.monotonic()
        try:
            return run_process([sys.executable, "-m", f"bench.peers.gpu_{name}"], job, self.limit_s)
        except NotMeasured as error:
            print(f"{job}: {error}\n{error.details}", file=sys.stderr, flush=True)
            raise
        finally:
            print(f"{name}: {time.monotonic() - start:.0f} s in all", flush=True)

    def update(self, overrides: Sequence[str], batches: Sequence[Sequence[int]]) -> list[Update]:
        """Updates of batches with these response lengths."""
        plan = self.plan
        lengths = [list(batch) for batch in batches]
        job = UpdateJob(list(overrides), self.device, asdict(plan.size), plan.prompt_tokens, lengths, plan.group_size)
        return [Update(**one) for one in self.run("update", job)]

    def speeds(self, update: Update, responses: Sequence[int]) -> tuple[str, ...]:
        """Sequence tokens/s, unique tokens/s, both shares of the matrix rate, seconds."""
        plan = self.plan
        work = work_of(plan.prompt_tokens, responses, plan.group_size)
        tokens = (f"{number / update.seconds:,.0f}" for number in (work.sequence_tokens, work.unique_tokens))
        return (
            *tokens,
            *(self._share(flops(plan.size, work) / update.seconds) for flops in (model_flops, usual_flops)),
            f"{update.seconds:.2f}",
        )

    def _share(self, flops: float) -> str:
        return "" if self.rate is None else f"{flops / self.rate.flops:.1%}"


def run_process(command: Sequence[str], job: Any, limit_s: float) -> list[dict[str, Any]]:
    """What a process says of a job that it reads.

    Raises:
        NotMeasured: see `Bench.run`.
    """
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error"}
    words = json.dumps(asdict(job))
    try:
        done = subprocess.run(
            command, input=words, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=limit_s
        )
    except subprocess.TimeoutExpired:
        raise NotMeasured(f"not done in {limit_s:.0f} s") from None
    if done.returncode:
        raise NotMeasured(last_line(done.stderr) or f"ended with status {done.returncode}", done.stderr[-4000:])
    return json.loads(done.stdout.splitlines()[-1])


def last_line(log: str) -> str:
    """The error of a traceback as it may stand on a page: one line, no folders of this machine."""
    lines = [line for line in log.splitlines() if line.strip()]
    errors = [line for line in lines if line[:1].isalpha() and ("Error" in line or "Exception" in line)]
    line = (errors or lines or [""])[-1]
    return line.replace(str(ROOT), ".").replace(str(Path.home()), "~")[:160]


def attempted(name: str, width: int, rows: Callable[[], list[tuple[str, ...]]]) -> list[tuple[str, ...]]:
    """The rows of one measurement, or the one that says why there are none."""
    try:
        return rows()
    except NotMeasured as error:
        return [(name, f"not measured: {error}", *[""] * (width - 2))]


def rate_section(bench: Bench) -> tuple[Section, Rate | None]:
    """Matrix products, and the fastest of them."""
    plan, rates = bench.plan, list[Rate]()

    def rows() -> list[tuple[str, ...]]:
        job = RateJob(bench.device, [list(shape) for shape in plan.shapes], plan.seconds)
        rates.extend(Rate(**one) for one in bench.run("rate", job))
        return [(" x ".join(f"{side:,}" for side in one.shape), f"{one.flops / 1e12:.3g}") for one in rates]

    header = ("rows x inner x columns", "TFLOP/s")
    table = attempted("matrix products", len(header), rows)
    best = max(rates, key=lambda one: one.flops, default=None)
    note = f"torch.mm of random bfloat16 numbers, {plan.seconds} s each; shares below are of the fastest."
    device = "" if best is None else f": {best.device}"
    return Section(f"The bfloat16 matrix rate{device}", header, table, (note,)), best


_SPEEDS = ("tokens/s", "unique tokens/s", f"MFU (goal: {GOAL_SHARE:.0%})", "MFU by 6 N s", "seconds")
_SPEED_NOTE = (
    "tokens/s counts the prompt of every sequence; unique tokens/s that of a group once. MFU: 6 N u + 12 L H a + "
    "6 H V r operations (N matrix parameters of the layers, u unique tokens, a attended pairs, r response tokens) per "
    "second over the matrix rate, nothing counted that is computed again; by 6 N s: all parameters, all s tokens of "
    "all sequences, no attention."
)


def update_section(bench: Bench) -> Section:
    """The whole update, of `CASES`."""
    plan = bench.plan
    responses = [plan.response_tokens] * plan.num_rows
    header = ("configuration", *_SPEEDS, "of it optimiser", "micro-batches", "peak, GiB", "reserved, GiB")
    rows: list[tuple[str, ...]] = []
    for case in CASES:

        def measured(case: Case = case) -> list[tuple[str, ...]]:
            (one,) = bench.update(case.overrides, [responses])
            parts = f"{one.optimizer_s:.2f}", str(one.num_micro_batches)
            goal = "" if case.goal_gib is None else f" (goal: under {case.goal_gib})"
            return [(case.name, *bench.speeds(one, responses), *parts, gib(one.peak) + goal, gib(one.reserved))]

        rows += attempted(case.name, len(header), measured)
    notes = (
        f"Policy.update of {plan.num_rows} completions of {plan.response_tokens} tokens after prompts of "
        f"{plan.prompt_tokens}, groups of {plan.group_size}, no advantage 0; hardware=single_gpu: bfloat16 compute, "
        "micro-batches of 8,192 tokens, activation checkpointing, shared prompts. The second of two.",
        _SPEED_NOTE,
        "Peak: tensors at most, weights and states included; reserved: what torch had of the device for them.",
    )
    return Section(f"The update at {plan.size.name} parameters", header, rows, notes)


def packing_section(bench: Bench) -> Section:
    """Packings, with float32 masters, on the subset."""
    plan = bench.plan
    batches = {
        "equal": [plan.response_tokens] * plan.subset,
        "exponential": varying_lengths(plan.subset, plan.response_tokens),
    }
    header = ("packing", "lengths", *_SPEEDS, "micro-batches", "peak, GiB")
    rows: list[tuple[str, ...]] = []
    for packing in Packing:

        def measured(packing: Packing = packing) -> list[tuple[str, ...]]:
            updates = bench.update([f"hardware.packing={packing.value}"], list(batches.values()))
            return [
                (packing.value, lengths, *bench.speeds(one, batch), str(one.num_micro_batches), gib(one.peak))
                for (lengths, batch), one in zip(batches.items(), updates, strict=True)
            ]

        rows += attempted(packing.value, len(header), measured)
    note = f"As above with {plan.subset} completions; exponential lengths have a mean of a third of the longest."
    return Section("Packings", header, rows, (note,))


def budget_section(bench: Bench) -> Section:
    """Micro-batch tokens with and without activation checkpointing, with float32 masters, on the subset."""
    plan = bench.plan
    responses = [plan.response_tokens] * plan.subset
    header = ("micro-batch tokens", "checkpointing", *_SPEEDS, "micro-batches", "peak, GiB")
    rows: list[tuple[str, ...]] = []
    for tokens, checkpointing in [*((tokens, True) for tokens in plan.budgets), (plan.budgets[0], False)]:
        name = f"{tokens:,}", "yes" if checkpointing else "no"

        def measured(tokens: int = tokens, checkpointing: bool = checkpointing, name: tuple[str, str] = name):
            knobs = f"micro_batch_tokens={tokens}", f"activation_checkpointing={str(checkpointing).lower()}"
            (one,) = bench.update([f"hardware.{knob}" for knob in knobs], [responses])
            return [(*name, *bench.speeds(one, responses), str(one.num_micro_batches), gib(one.peak))]

        rows += attempted(", ".join(name), len(header), measured)
    return Section("Micro-batch budgets", header, rows, (f"As above with {plan.subset} completions.",))


def rollout_section(bench: Bench) -> Section:
    """The torch engine against `generate`."""
    plan, results, reasons = bench.plan, dict[str, list[Rollout]](), dict[str, str]()
    for way in ("ours", "generate"):
        rows, sizes = list(plan.rollout_rows), (plan.group_size, plan.prompt_tokens, plan.new_tokens, plan.rounds)
        try:
            job = RolloutJob(way, bench.device, asdict(plan.size), rows, *sizes)
            results[way] = [Rollout(**one) for one in bench.run("rollout", job)]
        except NotMeasured as error:
            reasons[way] = f"not measured: {error}"
    header = ("completions", "engine", "tokens/s", "times generate", "seconds", "peak, GiB")
    table: list[tuple[str, ...]] = []
    for place, number in enumerate(plan.rollout_rows):
        for way, name in (("ours", "torch engine"), ("generate", "transformers generate")):
            if way in reasons:
                table.append((str(number), name, reasons[way], "", "", ""))
                continue
            one = results[way][place]
            times = f"{results['generate'][place].seconds / one.seconds:.2f}" if "generate" in results else ""
            speed = f"{number * plan.new_tokens / one.seconds:,.0f}"
            table.append((str(number), name, speed, times, f"{one.seconds:.2f}", gib(one.peak)))
    notes = [
        f"{plan.new_tokens} tokens after prompts of {plan.prompt_tokens * 3 // 4} to {plan.prompt_tokens}, groups of "
        f"{plan.group_size}, bfloat16 weights of {plan.size.name} parameters, temperature 1; new tokens only are "
        f"counted. The faster of {plan.rounds}."
    ]
    if results.get("ours") and (seen := results["ours"][0].mismatch):
        notes.append(
            f"Log-probs of engine and policy, in bfloat16, differ by {seen[0]:.2g} nats on average, {seen[1]:.2g} at "
            "most."
        )
    return Section("The torch engine against generate", header, table, tuple(notes))


def gib(number: int | None) -> str:
    """Bytes, where they are known."""
    return "not counted" if number is None else f"{number / _GIB:.1f}"
