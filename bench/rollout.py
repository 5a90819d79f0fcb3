r"""Sampling on a CPU: ours, transformers' `generate` and vLLM on the same prompts and lengths, threads equal.

    python -m bench.rollout [--only fixed varying ...] [--rounds 3] [--threads N] [--out bench/results/rollout.md]

Every measurement is a process of its own, one after another; engines take turns. Prints tables and writes nothing, but
for --out, which also draws rollout_growth.png beside the page. vLLM has an environment of its own in .bench/.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from statistics import median

from rich.console import Console

from bench import rollout_growth
from bench.peers.rollout_job import Job, Measured
from bench.rollout_cases import LARGE, SEED, SMALL, TINY, Size, make_prompts, save_folder
from bench.rollout_contest import ENGINES, Contest, Progress, cases
from bench.rollout_process import VARIANTS, NotMeasured, Runner, peer_python
from bench.tables import Section, markdown, show
from grpo.errors import user_errors
from grpo.policy.load import quiet_transformers

SECTIONS = ("fixed", "varying", "large", "bf16", "prefill", "growth")
GROUP_SIZE = 8
_PREFILL_PROMPT = 200
_GROWTH_BUDGET_S = 8.0  # of one of its points
_GROWTH_LIMIT_S = 3600.0  # of all


def main() -> None:
    """Prints the tables."""
    with user_errors():
        args = parse()
        quiet_transformers()
        with tempfile.TemporaryDirectory() as scratch:
            runner = Runner(Path(scratch), args.threads, args.wait_policy, args.limit_s)
            sections = measure(args, runner)
        console = Console() if sys.stdout.isatty() else Console(width=140)
        for section in sections:
            show(console, section)
        if args.out:
            page = markdown("Sampling on a CPU", shown_command(), sections, ("torch", "transformers"))
            args.out.write_text(page, encoding="utf-8")


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    parser.add_argument("--only", nargs="+", choices=SECTIONS, default=list(SECTIONS), help="these tables")
    parser.add_argument("--engines", nargs="+", choices=list(ENGINES), default=list(ENGINES), help="besides ours")
    parser.add_argument("--rounds", type=int, default=3, help="of every engine; default 3")
    parser.add_argument("--threads", type=int, default=cores, help="of every engine; default: the cores there are")
    parser.add_argument(
        "--wait-policy",
        choices=("default", "passive", "active"),
        default="default",
        help="of OpenMP's threads, for all engines; default: each engine's own",
    )
    parser.add_argument(
        "--vllm",
        nargs="+",
        default=["plain", "one-thread", "unseeded", "iomp", "iomp+unseeded"],
        help=f"variants of vLLM, tried in the first round, the fastest kept: plain, or of {', '.join(VARIANTS)} with +",
    )
    parser.add_argument("--limit-s", type=float, default=900, help="of one process; default 900")
    parser.add_argument("--quick", action="store_true", help="tiny sizes, to see that it runs")
    parser.add_argument("--out", type=Path, help="also write the tables here, as Markdown, and the plot beside it")
    args = parser.parse_args()
    for name in ("rounds", "threads"):
        if getattr(args, name) < 1:
            parser.error(f"--{name}={getattr(args, name)} is below 1; use 1 or more")
    unknown = {word for variant in args.vllm for word in variant.split("+")} - {"plain", *VARIANTS}
    if unknown:
        parser.error(f"--vllm has {', '.join(sorted(unknown))}; use plain, or of {', '.join(VARIANTS)} with +")
    if args.threads == 1:
        args.vllm = [one for one in args.vllm if "one-thread" not in one.split("+")] or ["plain"]
    args.engines = ["ours", *(name for name in ENGINES if name in args.engines and name != "ours")]
    return args


def measure(args: argparse.Namespace, runner: Runner) -> list[Section]:
    """The tables that were asked for."""
    own = [case for case in cases(args.quick) if case.name in args.only]
    sizes = [] if "prefill" not in args.only else [TINY] if args.quick else [SMALL, LARGE]
    missing = missing_engines(args.engines) if own else {}
    variants = ("plain",) if "vllm" in missing else tuple(args.vllm)
    progress = Progress(2 * args.rounds * len(sizes))
    contest = Contest(runner, args.rounds, tuple(args.engines), variants, missing, progress)
    progress.total += len(own) * contest.measurements
    sections = [contest.hold(case) for case in own]
    if sizes:
        sections.append(prefill(args, runner, sizes, progress))
    if "growth" in args.only:
        sections.append(growth(args, runner))
    return sections


def missing_engines(engines: Sequence[str]) -> dict[str, str]:
    """Why an engine cannot be measured here; its environment is made if it can be."""
    if "vllm" not in engines:
        return {}
    try:
        peer_python("vllm")
    except NotMeasured as error:
        print(f"{ENGINES['vllm']}: {error}; {error.details}", file=sys.stderr, flush=True)
        return {"vllm": f"not measured: {error}"}
    return {}


def prefill(args: argparse.Namespace, runner: Runner, sizes: list[Size], progress: Progress) -> Section:
    """Prompts through the layers: once a group, against once a completion."""
    problems, length = (2, 10) if args.quick else (8, _PREFILL_PROMPT)
    rows = []
    for size in sizes:
        folder = str(save_folder(size, runner.scratch / size.name))
        prompts = [one for one in make_prompts(problems, length, length, size.vocabulary) for _ in range(GROUP_SIZE)]
        measured: dict[int, list[Measured]] = {GROUP_SIZE: [], 1: []}
        for _ in range(args.rounds):
            for group, results in measured.items():
                options = {"prefill": True, "group_size": group}
                job = Job(folder, "float32", runner.threads, prompts, [2] * len(prompts), 2, SEED, options)
                results.append(runner.run("ours", job))
                progress.say(f"prefill, {size.name}, groups of {group}: {results[-1].extra['prefill_s']:.2f} s")
        seconds = {group: median(one.extra["prefill_s"] for one in results) for group, results in measured.items()}
        tokens = {group: results[0].extra["prefill_tokens"] for group, results in measured.items()}
        for group, name in ((GROUP_SIZE, "once a group"), (1, "once a completion")):
            shares = f"1/{tokens[1] / tokens[group]:.1f}", f"1/{seconds[1] / seconds[group]:.1f}"
            rows.append((size.name, name, f"{tokens[group]:,}", shares[0], f"{seconds[group]:.3f}", shares[1]))
    title = f"Prefill: {problems} prompts of {length} tokens, G={GROUP_SIZE}"
    note = "Tokens of prompts that go through the layers, and the seconds of that; goal: an eighth."
    return Section(title, ("parameters", "a prompt is run", "tokens", "share", "seconds", "share"), rows, (note,))


def growth(args: argparse.Namespace, runner: Runner) -> Section:
    """Tokens per second against batch, length and parameters, beside the machine's limits."""
    job = {"threads": runner.threads, "options": {"quick": args.quick, "budget_s": _GROWTH_BUDGET_S}}
    command = [sys.executable, "-m", "bench.peers.rollout_growth"]
    try:
        result = replace(runner, limit_s=_GROWTH_LIMIT_S).call(command, job, {}, shown=True)
    except NotMeasured as error:
        raise RuntimeError(f"growth was not measured: {error}\n{error.details}") from error
    if args.out:
        rollout_growth.draw(result, args.out.with_name("rollout_growth.png"))
    return rollout_growth.section(result)


def shown_command() -> str:
    """How to get this page."""
    words = sys.argv[1:]
    if "--out" in words:
        place = words.index("--out")
        words = [*words[:place], *words[place + 2 :]]
    return " ".join(["python -m bench.rollout", *words])


if __name__ == "__main__":
    main()
