"""Gold answers as data holds them: a text, a number, or several of these of which any is right."""

from __future__ import annotations

import math
from collections.abc import Sequence
from decimal import Decimal

from grpo.reward.equivalence import Verdict
from grpo.reward.extraction import unwrap_box

Gold = str | int | float | Sequence[str | int | float]


def alternatives(gold: Gold) -> tuple[str, ...]:
    r"""The texts of which any is right, each out of the box that it may stand in.

    A float is written with the fewest digits that give it back, and never with an exponent: 1e-05 -> "0.00001".

    Raises:
        ValueError: no alternative, a float that is no number, or something that is neither text nor number.
    """
    if isinstance(gold, str | int | float):
        return (_text(gold),)
    if not isinstance(gold, list | tuple) or not gold:
        raise ValueError(f"gold={gold!r} is no answer; use a text, a number, or a list of one or more of these")
    return tuple(_text(one) for one in gold)


def best_verdict(verdicts: Sequence[Verdict]) -> Verdict:
    """The verdict on an answer from those on each alternative: one that is right, else an error, else the first."""
    return min(verdicts, key=lambda verdict: (not verdict.correct, not verdict.is_error))


def _text(gold: str | int | float) -> str:
    if isinstance(gold, str):
        return unwrap_box(gold).strip()
    if isinstance(gold, bool) or not isinstance(gold, int | float):
        raise ValueError(f"gold={gold!r} is neither text nor number; use a text, a number, or a list of these")
    if not math.isfinite(gold):
        raise ValueError(f"gold={gold!r} is no number that an answer can have; write what it stands for as a text")
    return str(gold) if isinstance(gold, int) else f"{Decimal(repr(float(gold))):f}"
