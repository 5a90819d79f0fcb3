r"""The update on a CPU: memory and time of the head, of ways to pack sequences, and bytes per parameter.

    python -m bench.update [--only head packing bytes] [--rounds 1] [--threads N] [--out bench/results/update.md]

Every measurement is a process of its own, one after another. Prints tables and writes nothing, but for --out.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

import torch
from rich.console import Console

from bench.environments import ROOT
from bench.peers.update_step import Job, Measured
from bench.rollout_cases import LARGE, SMALL, TINY, Size, varying_lengths
from bench.tables import Section, markdown, show
from grpo.config import HardwareConfig, Packing
from grpo.errors import user_errors

SECTIONS = ("head", "packing", "bytes")
_GIB = 2**30
_GOALS = "Goals: a share of 35% at most, gradients within 1e-5, time no worse."

# Qwen2.5-0.5B, which has 24 layers; the head does not know how many there are.
QWEN_HEAD = Size("0.5B", 896, 2, 4864, 14, 2, 151_936)

# What the section "packing" compares: a name, and fields of HardwareConfig.
PACKINGS: dict[str, dict[str, Any]] = {
    f"{packing.value}, {tokens:,} tokens": {"packing": packing.value, "micro_batch_tokens": tokens}
    for packing in Packing
    for tokens in (2048, 8192)
}

# What the section "bytes" compares: a name, and fields of the job.
MASTERS: dict[str, dict[str, Any]] = {
    "float32 masters, AdamW": {"dtype": "float32"},
    "bfloat16 masters, AdamW": {"dtype": "bfloat16"},
    "bfloat16 masters, AdamW with 8-bit states": {"dtype": "bfloat16", "optimizer": "adamw_8bit"},
}


@dataclass(frozen=True, slots=True)
class Runner:
    """What all measurements share: how often each is taken, with how many threads, and where files may go."""

    rounds: int
    threads: int
    scratch: Path

    def run(self, jobs: Mapping[str, Job]) -> dict[str, Measured]:
        """The median of each job's rounds; jobs take turns."""
        results: dict[str, list[Measured]] = {name: [] for name in jobs}
        for _ in range(self.rounds):
            for name, job in jobs.items():
                start = time.monotonic()
                results[name].append(run_job(job))
                print(
                    f"{name}: {results[name][-1].seconds:.2f} s ({time.monotonic() - start:.0f} s in all)", flush=True
                )
        return {name: middle(rounds) for name, rounds in results.items()}


def run_job(job: Job) -> Measured:
    """Runs a job in a process of its own.

    Raises:
        RuntimeError: it failed; shows what it said.
    """
    threads = {"OMP_NUM_THREADS": str(job.threads), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-m", "bench.peers.update_step"]
    done = subprocess.run(
        command, input=json.dumps(asdict(job)), env={**os.environ, **threads}, cwd=ROOT, capture_output=True, text=True
    )
    if done.returncode:
        raise RuntimeError(f"{job.way} ended with status {done.returncode}:\n{done.stderr[-2000:]}")
    return Measured(**json.loads(done.stdout.splitlines()[-1]))


def middle(rounds: Sequence[Measured]) -> Measured:
    """The median of seconds and of the peak; the rest is the same in every round."""
    peak, seconds = median(one.peak for one in rounds), median(one.seconds for one in rounds)
    return replace(rounds[0], peak=round(peak), seconds=seconds)


def head_section(runner: Runner, size: Size, num_rows: int, lengths: Sequence[tuple[int, int]], chunk: int) -> Section:
    """A step through full logits against ours."""
    rows: list[tuple[str, ...]] = []
    for prompt, response in lengths:
        files = {way: str(runner.scratch / f"{way}.pt") for way in ("full logits", "ours")}
        jobs = {
            way: Job(
                way,
                asdict(size),
                runner.threads,
                prompt,
                [response] * num_rows,
                hardware={"head_chunk_tokens": chunk} if way == "ours" else {},
                gradients=file,
            )
            for way, file in files.items()
        }
        results = runner.run(jobs)
        full = results["full logits"]
        difference = gradient_difference(*files.values())
        for way, one in results.items():
            shares = [f"{one.peak / full.peak:.0%}", f"{one.seconds:.1f}", f"{one.seconds / full.seconds:.2f}"]
            shown = f"{difference:.1e}" if way == "ours" else ""
            rows.append((f"{prompt} + {response}", way, f"{one.peak / _GIB:.2f}", *shares, shown))
    header = ("prompt + response", "step", "peak, GiB", "share", "seconds", "ratio", "gradients differ by")
    notes = (
        f"Hidden {size.hidden}, vocabulary {size.vocabulary:,}, {size.layers} layers of Qwen2.5-0.5B's shape, tied, "
        f"float32; ours with head_chunk_tokens={chunk}. {_GOALS}",
        "Peak: the most bytes resident during the step (VmHWM, reset before it), less those resident after a step of "
        "a tiny model, when all libraries are loaded, less weights and AdamW's states. Gradients, activations count.",
        "Full logits: log_softmax of all positions' logits, gather, backward; no copy, no slice, no entropy. Ours is "
        "Policy.update, with entropies and statistics. Prompts all differ, so none is shared.",
        "Gradients differ by the largest of |a - b| over the largest of |b|, of the worst parameter.",
    )
    return Section(f"The head: {num_rows} sequences", header, rows, notes)


def gradient_difference(expected: str, actual: str) -> float:
    """Max |a - b| / max |b| of the parameter where that is largest."""
    one, other = (torch.load(file, mmap=True) for file in (expected, actual))
    assert one.keys() == other.keys()
    return max(float((other[name] - value).abs().max() / value.abs().max()) for name, value in one.items())


def packing_section(runner: Runner, sizes: Sequence[tuple[Size, int, int, int]]) -> Section:
    """Tokens per second of `PACKINGS`, for (model, completions, prompt tokens, response tokens at most)."""
    rows: list[tuple[str, ...]] = []
    for size, number, prompt, longest in sizes:
        for lengths, responses in (("equal", [longest] * number), ("exponential", varying_lengths(number, longest))):
            jobs = {
                name: Job("ours", asdict(size), runner.threads, prompt, responses, 8, hardware, num_steps=2)
                for name, hardware in PACKINGS.items()
            }
            results = runner.run(jobs)
            tokens = number * prompt + sum(responses)
            fastest = min(one.seconds for one in results.values())
            for name, one in results.items():
                speed = f"{tokens / one.seconds:,.0f}", f"{fastest / one.seconds:.2f}"
                work = f"{number} x ({prompt} + {longest})"
                rows.append((size.name, work, lengths, name, *speed, f"{one.peak / _GIB:.2f}"))
    header = ("parameters", "tokens", "lengths", "packing, budget", "tokens/s", "of the fastest", "peak, GiB")
    note = (
        "Tokens of prompts and responses, each prompt counted for all 8 of its group; exponential lengths have a mean "
        "of a third of the longest. The faster of two steps; peak as above."
    )
    return Section("Packing", header, rows, (note,))


def bytes_section(runner: Runner, size: Size) -> Section:
    """Bytes that the tensors of weights, gradients and AdamW's states take, of `MASTERS`."""
    jobs = {name: Job("ours", asdict(size), runner.threads, 8, [8] * 8, **options) for name, options in MASTERS.items()}
    rows = [
        (name, *(f"{part / one.num_parameters:.2f}" for part in (*parts, sum(parts))))
        for name, one in runner.run(jobs).items()
        for parts in [(one.weights, one.gradients, one.states)]
    ]
    header = ("", "weights", "gradients", "states", "sum")
    note = f"Of the tensors of a model of {size.name} parameters at its optimiser step."
    return Section("Bytes per parameter", header, rows, (note,))


def measure(args: argparse.Namespace, runner: Runner) -> list[Section]:
    """The tables that were asked for."""
    sections: list[Section] = []
    if "head" in args.only:
        size, lengths = (TINY, [(4, 12)]) if args.quick else (QWEN_HEAD, [(64, 448), (1, 511)])
        size = replace(size, layers=args.layers)
        sections.append(head_section(runner, size, 8, lengths, args.chunk_tokens))
    if "packing" in args.only:
        full = [(SMALL, 128, 64, 128), (LARGE, 32, 64, 64)]
        sections.append(packing_section(runner, [(TINY, 16, 4, 8)] if args.quick else full))
    if "bytes" in args.only:
        sections.append(bytes_section(runner, TINY if args.quick else LARGE))
    return sections


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    parser.add_argument("--only", nargs="+", choices=SECTIONS, default=list(SECTIONS), help="these tables")
    parser.add_argument("--rounds", type=int, default=1, help="of every measurement; default 1")
    parser.add_argument("--threads", type=int, default=cores, help="default: the cores there are")
    parser.add_argument("--layers", type=int, default=QWEN_HEAD.layers, help="of the head's model; default 2")
    parser.add_argument(
        "--chunk-tokens", type=int, default=HardwareConfig.head_chunk_tokens, help="of our head; default the config's"
    )
    parser.add_argument("--quick", action="store_true", help="tiny sizes, to see that it runs")
    parser.add_argument("--out", type=Path, help="also write the tables here, as Markdown")
    args = parser.parse_args()
    for name in ("rounds", "threads", "layers", "chunk_tokens"):
        if getattr(args, name) < 1:
            parser.error(f"--{name.replace('_', '-')}={getattr(args, name)} is below 1; use 1 or more")
    return args


def main() -> None:
    """Prints the tables."""
    with user_errors():
        args = parse()
        with tempfile.TemporaryDirectory() as scratch:
            sections = measure(args, Runner(args.rounds, args.threads, Path(scratch)))
        console = Console() if sys.stdout.isatty() else Console(width=140)
        for section in sections:
            show(console, section)
        if args.out:
            page = markdown("The update on a CPU", shown_command(), sections, ("torch", "transformers"))
            args.out.write_text(page, encoding="utf-8")


def shown_command() -> str:
    """How to get this page."""
    words = sys.argv[1:]
    if "--out" in words:
        place = words.index("--out")
        words = [*words[:place], *words[place + 2 :]]
    return " ".join(["python -m bench.update", *words])


if __name__ == "__main__":
    main()
