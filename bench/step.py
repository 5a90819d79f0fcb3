"""A whole training step against TRL's GRPOTrainer on the same work, what is neither rollout nor update, and start-up.

    python -m bench.step [--only small,varying,large,bf16,8bit,overhead,startup] [--rounds 3] [--out step.md]

Each run has a process of its own, ours and TRL's in turn. TRL gets an environment of its own, below .bench/, and the
micro-batch that is fastest for it.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from bench.environments import python_of
from bench.peers.step_job import StepResult
from bench.step_cases import CASES, Case, build_job
from bench.step_processes import Progress, TooSlow, environment, run_job
from bench.step_startup import startup_section
from bench.step_tables import Compared, memory_section, overhead_section, step_seconds, time_section
from bench.tables import Section, markdown, show
from grpo.errors import user_errors
from grpo.policy.load import quiet_transformers

SECTIONS = (*(case.name for case in CASES), "overhead", "startup")
_LOAD_S = 10.0  # guess of what a process takes before its first step
_NUM_OVERHEAD_STEPS = 3


@dataclass(frozen=True)
class Setting:
    """What all measurements share.

    Attributes:
        peer: TRL's interpreter, or None.
        missing: why there is none.
        scratch: a folder for everything.
        env: of the processes.
        progress: told of each measurement.
        limit_s: of a process of TRL's.
    """

    peer: str | None
    missing: str
    scratch: Path
    env: dict[str, str]
    threads: int
    rounds: int
    progress: Progress
    limit_s: float

    @property
    def conditions(self) -> str:
        """In words."""
        wait = self.env.get("OMP_WAIT_POLICY", "each program's own default (ours: PASSIVE)")
        return f"{self.rounds} rounds, {self.threads} threads, OMP_WAIT_POLICY: {wait}."


def main() -> None:
    """Prints the tables."""
    with user_errors():
        args = parse()
        quiet_transformers()
        peer, missing = (None, "--no-peer") if args.no_peer else find_peer()
        with tempfile.TemporaryDirectory() as scratch:
            progress = Progress(guesses(args, peer is not None))
            env = environment(args.threads, args.wait_policy)
            sections = measure(
                args, Setting(peer, missing, Path(scratch), env, args.threads, args.rounds, progress, args.limit_s)
            )
        console = Console() if sys.stdout.isatty() else Console(width=200)
        for section in sections:
            show(console, section)
        if args.out:
            command = " ".join(["python -m bench.step", *sys.argv[1:]])
            page = markdown("A training step against TRL 1.16", command, sections, ("torch", "transformers"))
            args.out.write_text(page, encoding="utf-8")


def parse() -> argparse.Namespace:
    """The command line.

    Raises:
        ValueError: a section that does not exist.
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default=",".join(SECTIONS), help="what to measure; default all")
    parser.add_argument("--rounds", type=int, default=3, help="runs of each; default 3")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="of every process; default all cores")
    parser.add_argument("--wait-policy", choices=("default", "passive", "active"), default="default", help="of OpenMP")
    parser.add_argument("--limit-s", type=float, default=900, help="of a process of TRL's; default 900")
    parser.add_argument("--no-peer", action="store_true", help="leave TRL out")
    parser.add_argument("--quick", action="store_true", help="tiny sizes, to see that it works")
    parser.add_argument("--out", type=Path, help="also write the tables here, as Markdown")
    args = parser.parse_args()
    args.only = args.only.split(",")
    if unknown := [name for name in args.only if name not in SECTIONS]:
        raise ValueError(f"--only {unknown[0]} is no section; use some of {','.join(SECTIONS)}")
    cases = {case.name: case.quick() if args.quick else case for case in CASES}
    args.cases = [case for name, case in cases.items() if name in args.only]
    args.overhead = cases["large"] if "overhead" in args.only else None
    return args


def find_peer() -> tuple[str | None, str]:
    """TRL's interpreter, or None and why."""
    try:
        return python_of("trl"), ""
    except RuntimeError as error:
        return None, str(error)


def guesses(args: argparse.Namespace, has_peer: bool) -> list[float]:
    """Seconds of every measurement, in the order of `measure`."""
    seconds = []
    for case in args.cases:
        ours, peer = ((1 + case.num_timed) * step_s + _LOAD_S for step_s in case.guess_s)
        seconds += [(1 + case.num_timed // 2) * case.guess_s[1] + _LOAD_S] * (len(micro_batches(case)) * has_peer)
        seconds += [ours, *[peer] * has_peer] * args.rounds
    if args.overhead:
        seconds += [(1 + _NUM_OVERHEAD_STEPS) * args.overhead.guess_s[0] + _LOAD_S] * args.rounds
    return seconds + [2 * _LOAD_S] * ((args.rounds + 1) * ("startup" in args.only))


def measure(args: argparse.Namespace, setting: Setting) -> list[Section]:
    """The tables.

    Raises:
        RuntimeError: a run failed, or did other work than it was to do.
    """
    sections = []
    if args.cases:
        compared = [compare(case, setting) for case in args.cases]
        sections += [time_section(compared, setting.missing, setting.conditions), memory_section(compared)]
    if args.overhead:
        results = [
            run_ours(args.overhead, setting, f"overhead_{number}", num_timed=_NUM_OVERHEAD_STEPS, graded=True)
            for number in range(setting.rounds)
        ]
        sections.append(overhead_section(args.overhead, results))
    if "startup" in args.only:
        scratch, env, progress = setting.scratch, setting.env, setting.progress
        sections.append(startup_section(scratch, env, setting.rounds, progress, is_quick=args.quick))
    return sections


def micro_batches(case: Case) -> list[int]:
    """Those that TRL may use, in completions: all, a half, a quarter."""
    size = case.num_problems * case.group_size
    return [size, size // 2, size // 4]


def compare(case: Case, setting: Setting) -> Compared:
    """Ours and TRL in turn, TRL with its best micro-batch.

    Raises:
        RuntimeError: the two did not have the same prompts.
    """
    best, note, least_s = choose_micro_batch(case, setting) if setting.peer else (0, "", 0.0)
    ours, peer = [], []
    for number in range(setting.rounds):
        ours.append(run_ours(case, setting, f"{case.name}_ours_{number}"))
        if setting.peer and not least_s:
            peer.append(run_peer(case, setting, f"round_{number}", best))
            if ours[-1].prompt_tokens != peer[-1].prompt_tokens:
                raise RuntimeError(f"{case.name}: ours and TRL did not have the same prompts")
    return Compared(case, ours, peer, note, least_s)


def choose_micro_batch(case: Case, setting: Setting) -> tuple[int, str, float]:
    """The size with which TRL's steps are fastest, a sentence about all of them, and 0.

    Where the first one tried runs into the limit the others are not tried, and the last number is the least that a step
    takes, s.
    """
    num_timed = max(1, case.num_timed // 2)
    tried: dict[int, StepResult] = {}
    for size in micro_batches(case):
        try:
            tried[size] = run_peer(case, setting, f"try_{size}", size, num_timed=num_timed)
        except TooSlow as error:
            setting.progress.done(f"{case.name}, TRL with micro-batches of {size}: {error}")
            if not tried:
                steps = 1 + num_timed
                note = f"{case.name}: TRL, micro-batches of {size}: {steps} steps were {error}, imports among them."
                return size, note, max(1.0, setting.limit_s - 3 * _LOAD_S) / steps
    best = min(tried, key=lambda size: step_seconds(tried[size]))
    took = [f"{size}: {step_seconds(one):.2f} s and {one.peak_gib:.2f} GiB" for size, one in tried.items()]
    return best, f"{case.name}: TRL's micro-batch is {best} completions; tried: {', '.join(took)}.", 0.0


def run_ours(
    case: Case, setting: Setting, name: str, *, num_timed: int | None = None, graded: bool = False
) -> StepResult:
    """One run of ours."""
    job = build_job(case, setting.scratch, threads=setting.threads, num_timed=num_timed, graded=graded)
    result = run_job(sys.executable, "bench.peers.our_step", job, setting.scratch / name, setting.env)
    setting.progress.done(f"{name}: {step_seconds(result):.3f} s a step")
    return result


def run_peer(case: Case, setting: Setting, name: str, micro_batch: int, *, num_timed: int | None = None) -> StepResult:
    """One run of TRL."""
    assert setting.peer is not None
    job = build_job(case, setting.scratch, threads=setting.threads, num_timed=num_timed, micro_batch=micro_batch)
    folder = setting.scratch / f"{case.name}_trl_{name}"
    result = run_job(setting.peer, "bench.peers.trl_step", job, folder, setting.env, setting.limit_s)
    setting.progress.done(f"{case.name}, TRL with micro-batches of {micro_batch}: {step_seconds(result):.3f} s a step")
    return result


if __name__ == "__main__":
    main()
