r"""The grader against labelled answers, with math-verify as the peer in the same run.

    python -m bench.grader --cases DIR [--data FILE ...] [--show] [--out bench/results/grader.md]

DIR holds JSON Lines with `gold`, `prediction` (or a whole `response`), `equivalent` and `tier`; FILE is problems with
their `answer`, such as MATH and GSM8K. Prints tables and writes nothing, but for --out. Ours is the grader as a run
uses it, workers and all; math-verify has its defaults, the gold in `$` and the answer in `\boxed{}`.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from bench.contender import Contender, Judged
from bench.grader_cases import GROUPS, Case, load_cases, load_golds, real_pairs
from bench.tables import Section, markdown, show
from grpo.config import RewardConfig, RewardName
from grpo.errors import user_errors
from grpo.reward.answers.comparison import compare
from grpo.reward.extraction import read_bare
from grpo.reward.functions import TextGrader, answer_reward, build_grader
from grpo.reward.golds import alternatives
from grpo.types import Grade, Outcome, SampleKey

GOALS = {"core": "99%, 2 FP", "rewritings, near misses": "99.9%, 0 FP", "algebra answer tests": "93%"}
PEER = "math-verify"
HOSTILE_S = 0.25
HOSTILE_ANSWERS = ("9^9^9^9", r"\binom{100000000}{50000000}", "7^{123456789}", "x" + "^{x" * 1000 + "}" * 1000)


class Ours:
    """The grader of a run, for answers and for r1_zero responses."""

    def __init__(self, num_workers: int) -> None:
        """Starts the workers, so that no case pays for it."""
        grader = build_grader(RewardConfig(name=RewardName.r1_zero, num_workers=num_workers))
        assert isinstance(grader, TextGrader)
        self.pool = grader.pool
        self._graders = {True: grader, False: TextGrader(read_bare, answer_reward, grader.pool)}
        self.fresh_step = 0
        warm = [(f"{place}+x", f"x+{place}") for place in range(8 * num_workers)]
        # math-verify too is imported by then: nobody's own rules know this function.
        self.grade([(gold, answer, False) for gold, answer in [*warm, (r"\operatorname{li}(x)", "\\Gamma(x)")]])

    def grade(self, pairs: Sequence[tuple[str, str, bool]]) -> list[Grade]:
        """One grade per (gold, text, is a response), as one step of a run."""
        self.fresh_step += 1
        key = SampleKey(0, self.fresh_step, 0, 0)
        pending = [self._graders[is_response].submit(text, gold, key) for gold, text, is_response in pairs]
        return [grade.result() for grade in pending]

    def close(self) -> None:
        """Ends the workers."""
        self.pool.close()


def main() -> None:
    """Prints the tables."""
    with user_errors():
        args = parse()
        with tempfile.TemporaryDirectory() as scratch:
            sections, wrong = measure(args, Path(scratch))
        console = Console() if sys.stdout.isatty() else Console(width=140)
        for section in sections:
            show(console, section)
        for line in wrong if args.show else ():
            console.print(line, markup=False, highlight=False, soft_wrap=True)
        if args.out:
            page = markdown("The grader against labelled answers", shown_command(), sections)
            args.out.write_text(page, encoding="utf-8")


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=Path, required=True, help="folder of labelled pairs")
    parser.add_argument("--data", type=Path, nargs="+", default=[], help="files of problems")
    parser.add_argument("--golds", type=int, default=1000, help="of each file, for the speed; default 1000")
    parser.add_argument("--workers", type=int, default=RewardConfig.num_workers, help="of our grader")
    parser.add_argument("--no-peer", action="store_true", help=f"leave {PEER} out, which takes minutes")
    parser.add_argument("--show", action="store_true", help="list every answer that ours has wrong")
    parser.add_argument("--out", type=Path, help="also write the tables here, as Markdown")
    return parser.parse_args()


def measure(args: argparse.Namespace, scratch: Path) -> tuple[list[Section], list[str]]:
    """The tables, and a line for each answer that ours has wrong.

    Raises:
        ValueError: nothing to measure with; one sentence.
    """
    canaries = [scratch / "ours", scratch / "peer"]
    cases, peer_cases = (load_cases(args.cases, canary) for canary in canaries)
    golds = {path: load_golds(path) for path in args.data}
    pairs = real_pairs(cases, list(golds.values()), args.golds)
    contenders = [Contender("ours"), *([] if args.no_peer else [Contender(PEER)])]
    ours = Ours(args.workers)
    try:
        graded, seconds = grade_each(ours, cases)
        peer = None if args.no_peer else contenders[1].judge([(c.gold, c.text, c.is_response) for c in peer_cases])
        sections = [
            answers_section(cases, graded, peer),
            hostile_section(cases, graded, seconds, peer, [path.exists() for path in canaries]),
            golds_section(ours, golds),
            speed_section(contenders, pairs),
            pool_section(ours, pairs),
        ]
    finally:
        for one in (ours, *contenders):
            one.close()
    wrong = [describe(case, grade) for case, grade in zip(cases, graded, strict=True) if not is_right(case, grade)]
    return sections, wrong


def grade_each(ours: Ours, cases: Sequence[Case]) -> tuple[list[Grade], list[float]]:
    """Grades one case after another, with the seconds that each took."""
    grades, seconds = [], []
    for case in cases:
        start = time.perf_counter()
        grades += ours.grade([(case.gold, case.text, case.is_response)])
        seconds.append(time.perf_counter() - start)
    return grades, seconds


def is_right(case: Case, grade: Grade) -> bool:
    """Whether our grade is what the label says; a grader error never is."""
    if grade.outcome is Outcome.grader_error:
        return False
    agrees = case.equivalent is None or bool(grade.answer_reward) == case.equivalent
    return agrees and (case.format_ok is None or bool(grade.format_reward) == case.format_ok)


def answers_section(cases: Sequence[Case], graded: Sequence[Grade], peer: Sequence[Judged] | None) -> Section:
    """Accuracy by group of tiers."""
    mine = [None if grade.outcome is Outcome.grader_error else bool(grade.answer_reward) for grade in graded]
    theirs = [one.correct for one in peer] if peer else []
    rows = []
    for group in dict.fromkeys([*GROUPS, *(case.group for case in cases)]):
        places = [place for place, case in enumerate(cases) if case.group == group and case.equivalent is not None]
        labels = [cases[place].equivalent for place in places]
        tallies = [tally(labels, [said[place] for place in places]) for said in (mine, theirs) if said]
        rows.append((group, str(len(places)), GOALS.get(group, ""), *(cell for one in tallies for cell in one)))
    header = ("tier", "rows", "goal", "ours", "FP", "FN", "errors")
    return Section(
        "Answers",
        (*header, PEER, "FP", "FN", "errors") if peer else header,
        rows,
        ("FP: a wrong answer called right; FN: a right one called wrong; errors: no verdict. Errors are not right.",),
    )


def tally(labels: Sequence[bool | None], said: Sequence[bool | None]) -> tuple[str, str, str, str]:
    """Accuracy, false positives, false negatives, errors."""
    pairs = list(zip(labels, said, strict=True))
    num_right = sum(label == verdict for label, verdict in pairs)
    positives = sum(verdict is True and label is False for label, verdict in pairs)
    negatives = sum(verdict is False and label is True for label, verdict in pairs)
    errors = sum(verdict is None for _, verdict in pairs)
    return f"{num_right / len(pairs):.2%}" if pairs else "-", str(positives), str(negatives), str(errors)


def hostile_section(
    cases: Sequence[Case],
    graded: Sequence[Grade],
    seconds: Sequence[float],
    peer: Sequence[Judged] | None,
    canaries: Sequence[bool],
) -> Section:
    """What hostile answers and tag tricks did."""
    places = [place for place, case in enumerate(cases) if case.group == "hostile"]
    times = [seconds[place] for place in places]
    num_right = sum(is_right(cases[place], graded[place]) for place in places)
    num_errors = sum(graded[place].outcome is Outcome.grader_error for place in places)
    rows = [hostile_row("ours", len(places), num_right, num_errors, times, canaries[0])]
    if peer:
        own = [(cases[place], peer[place]) for place in places]
        right = sum(one.correct is not None and case.equivalent in (None, one.correct) for case, one in own)
        lost = sum(one.correct is None for _, one in own)
        rows.append(hostile_row(PEER, len(own), right, lost, [one.seconds for _, one in own], canaries[1]))
    slow = [cases[place] for place in places if seconds[place] >= HOSTILE_S]
    return Section(
        "Hostile answers and tag tricks",
        ("", "rows", "right", "no verdict", "slowest", "code was executed"),
        rows,
        tuple(
            f"Slower than {HOSTILE_S * 1e3:.0f} ms: `{brief(case.text)}` against `{brief(case.gold)}`." for case in slow
        ),
    )


def hostile_row(
    name: str, num_rows: int, num_right: int, num_lost: int, times: Sequence[float], executed: bool
) -> tuple[str, ...]:
    """One contender's line."""
    slowest = f"{max(times, default=0) * 1e3:,.0f} ms"
    return name, str(num_rows), str(num_right), str(num_lost), slowest, "yes" if executed else "no"


def golds_section(ours: Ours, golds: dict[Path, list[str]]) -> Section:
    """Every gold of the data against itself: as the grader does it, and by the comparison of what it means alone."""
    rows, notes = [], []
    for path, own in golds.items():
        grades = ours.grade([(gold, gold, False) for gold in own])
        # The same text is right whatever it says; here the gold has to be read to be right.
        read = [compare(*alternatives(gold), *alternatives(gold)) for gold in own]
        num_right = sum(int(grade.answer_reward) for grade in grades)
        num_read = sum(verdict is not None and verdict.correct for verdict in read)
        rows.append((path.name, f"{len(own):,}", f"{num_right:,}", f"{num_read:,}"))
        for gold, grade, verdict in zip(own, grades, read, strict=True):
            if not grade.answer_reward:
                notes.append(f"{path.name}: `{brief(gold)}` is not itself ({grade.outcome.value}, {grade.reason}).")
            elif verdict is None or not verdict.correct:
                notes.append(f"{path.name}: `{brief(gold)}` is right as a text only.")
    return Section("Golds against themselves", ("file", "golds", "right", "of these read"), rows, tuple(notes))


def speed_section(contenders: Sequence[Contender], pairs: Sequence[tuple[str, str]]) -> Section:
    """Time per pair in one warm process without workers, cases in the order of the files."""
    rows, totals = [], []
    for contender in contenders:
        times = sorted(one.seconds for one in contender.judge([(*pair, False) for pair in pairs]))
        totals.append(sum(times))
        p50, p99 = (times[int(share * (len(times) - 1))] * 1e3 for share in (0.5, 0.99))
        speed = f"{len(times) / totals[-1]:,.0f}"
        rows.append((contender.name, f"{len(times):,}", f"{p50:.3f} ms", f"{p99:.2f} ms", speed))
    notes = [
        "Labelled pairs (core, rewritings, near misses), and golds of each file against other golds of it. "
        "Goal: p50 <= 0.15 ms, p99 <= 20 ms, 3,000 pairs/s."
    ]
    if len(totals) > 1:
        notes.append(f"Ours grades {totals[1] / totals[0]:,.1f} times as many pairs per second as {PEER}.")
    return Section("Real answers, one core", ("", "pairs", "p50", "p99", "pairs/s"), rows, tuple(notes))


def pool_section(ours: Ours, pairs: Sequence[tuple[str, str]]) -> Section:
    """A step's worth of responses through the workers, without and with hostile ones among them."""
    stride = max(2, len(pairs) // 256)
    # Other pairs in the second batch: verdicts on those of the first are kept.
    typical, mixed = (
        [(gold, f"</think> <answer>{answer}</answer>", True) for gold, answer in pairs[first::stride][:256]]
        for first in (0, 1)
    )
    for place, answer in enumerate(HOSTILE_ANSWERS):
        mixed.insert(place * len(mixed) // len(HOSTILE_ANSWERS), ("42", f"</think> <answer>{answer}</answer>", True))
    rows = []
    for name, batch in ((f"{len(typical)} typical answers", typical), (f"4 hostile among {len(mixed)}", mixed)):
        start = time.perf_counter()
        grades = ours.grade(batch)
        seconds = time.perf_counter() - start
        errors = sum(grade.outcome is Outcome.grader_error for grade in grades)
        rows.append((name, f"{seconds * 1e3:,.0f} ms", str(errors)))
    return Section("One step through the workers", ("", "time", "errors"), rows)


def describe(case: Case, grade: Grade) -> str:
    """A line on an answer that is graded otherwise than its label says."""
    said = f"{grade.outcome.value}, {grade.reason}, answer {grade.answer_reward:.0f}, format {grade.format_reward:.0f}"
    return f"{case.group}: gold {brief(case.gold)}  text {brief(case.text)}  wants {case.equivalent}  ({said})"


def brief(text: str) -> str:
    """The text in one line of at most 100 characters."""
    shown = repr(text)[1:-1].replace("\\\\", "\\")
    return shown if len(shown) <= 100 else f"{shown[:80]}... ({len(text):,} characters)"


def shown_command() -> str:
    """How to get this page; folders of this machine are left out."""
    return "python -m bench.grader --cases DIR --data " + " ".join(
        Path(word).name for word in sys.argv[1:] if word.endswith(".jsonl")
    )


if __name__ == "__main__":
    main()
