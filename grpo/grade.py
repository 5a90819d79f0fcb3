r"""Grades answers as a run does, and says by which rule: two strings, or the lines of a file.

    python -m grpo.grade '\frac{1}{2}' 0.5                                # the gold, an answer
    python -m grpo.grade 42 'So 42. </think> <answer>42</answer>' --response
    python -m grpo.grade --jsonl answers.jsonl --out grades.jsonl         # lines {"gold": ..., "response": ...}
    cat answers.jsonl | python -m grpo.grade --jsonl - > grades.jsonl     # or {"gold": ..., "answer": ...}

Exit status of two strings: 0 right, 1 wrong, 2 the grader cannot tell. Of a file: 0 graded. Of what a user can mend: 2.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import IO

from grpo.config import RewardConfig, RewardMode, RewardName
from grpo.errors import user_errors
from grpo.reward.extraction import read_bare
from grpo.reward.functions import TextGrader, answer_reward, build_grader
from grpo.reward.rows import Row, read_rows
from grpo.run.text import duration, printable
from grpo.types import Grade, Grader, Outcome, PendingGrade, SampleKey

RIGHT, WRONG, ERROR = 0, 1, 2
_NUM_AHEAD = 512  # rows that may be with the workers
_KEY = SampleKey(seed=0, step=0, problem=0, sample=0)  # for rewards that draw random numbers; none of these does


def main() -> None:
    """What `python -m grpo.grade` does."""
    with user_errors(status=ERROR):
        try:
            raise SystemExit(run(sys.argv[1:]))
        except BrokenPipeError:  # whoever read the grades, such as `head`, has had enough
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def run(arguments: Sequence[str]) -> int:
    """Grades what the command line says and returns the exit status.

    Raises:
        ValueError: something a user can mend; one sentence.
    """
    args = _parse(arguments)
    name = RewardName[args.reward] if args.response or args.jsonl else RewardName.r1_zero
    cfg = RewardConfig(name=name, mode=RewardMode[args.mode], num_workers=args.workers, deadline_s=args.deadline_s)
    reader = build_grader(cfg)
    assert isinstance(reader, TextGrader)
    graders = {True: reader, False: TextGrader(read_bare, answer_reward, reader.pool)}
    try:
        if args.jsonl:
            return _grade_file(args.jsonl, args.out, graders)
        return _grade_pair(args.gold, args.answer, graders[args.response], show_rewards=args.response)
    finally:
        reader.close()


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m grpo.grade", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("gold", nargs="?", help="the gold answer")
    parser.add_argument("answer", nargs="?", help="the answer to grade; after `--` if it starts with two dashes")
    parser.add_argument("--response", action="store_true", help="ANSWER is a whole response, read as --reward says")
    parser.add_argument("--jsonl", metavar="FILE", help="grade the lines of a JSON Lines file; - is standard input")
    parser.add_argument("--out", metavar="FILE", type=Path, help="where the grades go; default: standard output")
    parser.add_argument("--reward", choices=("r1_zero", "boxed"), default="r1_zero", help="how a response is read")
    parser.add_argument("--mode", choices=[mode.name for mode in RewardMode], default="strict", help="of r1_zero")
    parser.add_argument("--workers", type=int, default=RewardConfig.num_workers, help="processes for the last resort")
    parser.add_argument("--deadline-s", type=float, default=RewardConfig.deadline_s, help="of one answer there")
    args = parser.parse_args([_positional(argument) for argument in arguments])
    if args.jsonl and args.gold is not None:
        parser.error(f"{args.gold.strip()!r} and --jsonl do not go together; give two strings, or a file")
    if not args.jsonl and args.answer is None:
        parser.error("give a gold and an answer, or --jsonl FILE")
    if args.out and not args.jsonl:
        parser.error("--out is for the grades of a file; add --jsonl FILE")
    return args


def _positional(argument: str) -> str:
    """The argument, such that `-x+1` is an answer and no option: options have two dashes, but for -h."""
    return f" {argument}" if argument[:1] == "-" and argument[1:2] not in ("", "-") and argument != "-h" else argument


def _grade_pair(gold: str, text: str, grader: Grader, *, show_rewards: bool) -> int:
    (grade,) = grader.grade([text], [gold], [_KEY])
    if grade.outcome is Outcome.grader_error:
        status, verdict = ERROR, "error"
    else:
        status, verdict = (RIGHT, "right") if grade.answer_reward else (WRONG, "wrong")
    print(f"{verdict} ({grade.reason})")
    if show_rewards:
        rewards = f"format_reward {grade.format_reward:.0f}  answer_reward {grade.answer_reward:.0f}"
        print(f"{rewards}  reward {grade.reward:.0f}  extracted {printable(grade.extracted)!r}")
    return status


def _grade_file(source: str, out: Path | None, graders: dict[bool, TextGrader]) -> int:
    total = None
    if Path(source).is_file():  # not a pipe, which can be read but once
        with _opened(source) as lines:  # a line that cannot be graded is found before the work, not in the middle of it
            total = sum(1 for _ in read_rows(lines, source))
    counts: Counter[tuple[str, str]] = Counter()
    num_right, progress = 0, _Progress(total)
    with _opened(source) as lines, _output(out) as output:
        for row, grade in _graded(read_rows(lines, "standard input" if source == "-" else source), graders):
            output.write(_output_line(row, grade))
            counts[grade.outcome.value, grade.reason] += 1
            num_right += int(grade.answer_reward)
            progress.update(counts.total())
    progress.finish()
    _summarise(counts, num_right, progress.elapsed_s)
    return 0


def _graded(rows: Iterable[Row], graders: dict[bool, TextGrader]) -> Iterator[tuple[Row, Grade]]:
    """In the order of the rows. The workers are kept busy with the next ones; memory does not grow with the file."""
    pending: deque[tuple[Row, PendingGrade]] = deque()
    for row in rows:
        pending.append((row, graders[row.is_response].submit(row.text, row.gold, _KEY)))
        if len(pending) > _NUM_AHEAD:
            first, grade = pending.popleft()
            yield first, grade.result()
    yield from ((row, grade.result()) for row, grade in pending)


def _output_line(row: Row, grade: Grade) -> str:
    own = {"line": row.line} if row.id is None else {"line": row.line, "id": row.id}
    return json.dumps({**own, **asdict(grade), "outcome": grade.outcome.value}) + "\n"


@contextmanager
def _opened(source: str) -> Iterator[IO[bytes]]:
    if source == "-":
        yield sys.stdin.buffer
    else:
        with open(os.path.expanduser(source), "rb") as file:
            yield file


@contextmanager
def _output(path: Path | None) -> Iterator[IO[str]]:
    """Standard output, or a file that is there when it is whole."""
    if path is None:
        yield sys.stdout
        return
    if path.is_dir() or not path.parent.is_dir():
        raise ValueError(f"--out {path} is a folder or in none; name a file in a folder that exists")
    temporary = path.with_name(f".tmp-{path.name}-{os.getpid()}")
    try:
        with open(temporary, "w", encoding="utf-8") as file:
            yield file
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


class _Progress:
    """How far a file is, on standard error: a line that rewrites itself on a terminal, one every 10 s elsewhere."""

    def __init__(self, total: int | None) -> None:
        self._total = total
        self._is_terminal = sys.stderr.isatty()
        self._start = self._shown = time.monotonic()

    @property
    def elapsed_s(self) -> float:
        return time.monotonic() - self._start

    def update(self, num_done: int) -> None:
        now = time.monotonic()
        if now - self._shown < (0.5 if self._is_terminal else 10):
            return
        self._shown = now
        text = f"{num_done:,} graded"
        if self._total:
            left_s = self.elapsed_s / num_done * (self._total - num_done)
            text = f"{num_done:,} of {self._total:,} graded, {duration(left_s)} left"
        print(f"\r{text}\x1b[K" if self._is_terminal else text, end="" if self._is_terminal else "\n", file=sys.stderr)
        sys.stderr.flush()

    def finish(self) -> None:
        if self._is_terminal:
            print("\r\x1b[K", end="", file=sys.stderr)


def _summarise(counts: Counter[tuple[str, str]], num_right: int, elapsed_s: float) -> None:
    """Outcomes and reasons in a table on standard error, and the sums."""
    from rich.console import Console
    from rich.table import Table

    total, console = counts.total(), Console(stderr=True)
    table = Table("outcome", "reason")
    for name in ("rows", "share"):
        table.add_column(name, justify="right")
    for (outcome, reason), count in sorted(counts.items(), key=lambda item: (item[0][0], -item[1])):
        table.add_row(outcome, reason, f"{count:,}", f"{count / total:.1%}")
    console.print(table)
    of = {outcome: sum(n for (name, _), n in counts.items() if name == outcome.value) for outcome in Outcome}
    console.print(
        f"{total:,} rows: {num_right:,} right ({num_right / total:.1%}), {of[Outcome.graded] - num_right:,} wrong, "
        f"{of[Outcome.format_failure]:,} without an answer, {of[Outcome.grader_error]:,} grader errors; "
        f"{total / elapsed_s:,.0f} pairs/s",
        highlight=False,
        soft_wrap=True,
    )


if __name__ == "__main__":
    main()
