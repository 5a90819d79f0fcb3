r"""Whether a gold answer can be graded: it is graded against itself, as a response would be.

A grader that compares texts first pays a gold that is repeated letter by letter, whatever it is. So here the texts are
not compared: the gold must be read out of a response in both formats, and the comparison by meaning must find it equal
to itself. A gold that fails would pay nobody who writes the right answer in other words, and count as a grader error.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future

from grpo.reward.equivalence import MAX_CHARS, Verdict, decide, plain_number
from grpo.reward.extraction import Extraction, read_boxed, read_tagged, unwrap_box
from grpo.reward.pool import WorkerPool

_AHEAD = 512  # golds that may be with the workers
_FORMATS: tuple[tuple[str, Callable[[str], Extraction]], ...] = (
    ("</think> <answer>{}</answer>", read_tagged),
    ("\\boxed{{{}}}", read_boxed),
)


def check_golds(golds: Sequence[str], pool: WorkerPool, on_checked: Callable[[int], None]) -> list[str]:
    """Why each gold cannot be graded, or "" where it can.

    Args:
        golds: as the data has them.
        pool: of workers that compare by meaning.
        on_checked: is called with 1 for each gold.

    Returns:
        One short code per gold, in order, such as "unbalanced_braces".

    Raises:
        RuntimeError: the worker processes cannot be started.
    """
    reasons: list[str] = []
    for start in range(0, len(golds), _AHEAD):
        pending = [_submit(gold, pool) for gold in golds[start : start + _AHEAD]]
        for verdict in pending:
            reasons.append(verdict if isinstance(verdict, str) else _reason(verdict.result()))
            on_checked(1)
    return reasons


def _submit(gold: str, pool: WorkerPool) -> str | Future[Verdict]:
    """What is wrong with the gold at first sight, or the verdict to come; "" needs none."""
    gold = unwrap_box(gold).strip()
    if len(gold) > MAX_CHARS:
        return "too_long"
    for form, read in _FORMATS:
        extraction = read(form.format(gold))
        if extraction.answer is None:
            return extraction.failure
        verdict = decide(extraction.answer, gold)
        if verdict is None or not verdict.correct:
            return verdict.reason if verdict else "read_otherwise"
    return "" if plain_number(gold) is not None else pool.submit(gold, gold)


def _reason(verdict: Verdict) -> str:
    return "" if verdict.correct else verdict.reason
