r"""What can be said about an answer without computer algebra: equal texts, plain numbers, and what no grader can read.

Runs in the trainer's own process, so everything here is linear in the text and nothing here evaluates it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction

from grpo.reward.extraction import has_balanced_braces, has_box

# The longest gold of MATH has 159 characters. What is longer than this is compared as text only.
MAX_CHARS = 1000

_DECIMAL = re.compile(r"[+-]?(?:(?:[1-9][0-9]{0,2}(?:,[0-9]{3})+|[0-9]+)(?:\.[0-9]+)?|\.[0-9]+)")
_FRACTION = re.compile(
    r"([+-]?)(?:([0-9]+)/([0-9]+)|\\frac\{([+-]?[0-9]+)\}\{([0-9]+)\}|\\frac([0-9])([0-9]))",
)
_TEXT = re.compile(r"\\(?:text|textbf|textrm|mbox)\{([^{}]*)\}")
_REWRITES = (
    (re.compile(r"\\[dt]frac(?![A-Za-z])"), r"\\frac"),
    (re.compile(r"\\(?:left|right)(?![A-Za-z])|\\!"), ""),
    (re.compile(r"\{,\}"), ","),
    (re.compile(r"−"), "-"),
    (re.compile(r"\\[,;: ]|~"), " "),
    (re.compile(r"\s+"), " "),
)
# A space keeps "4 2" from being 42, "\pi r" from being a command, and "1, 234" from being a thousand.
_IDLE_SPACE = re.compile(r"(?<![A-Za-z0-9,]) | (?![A-Za-z0-9])|(?<=,) (?![0-9]{3})")


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether an answer is right.

    Attributes:
        correct: False too if grading failed.
        reason: short code of the rule that decided.
        is_error: grading failed, so that nothing is known about the answer.
    """

    correct: bool
    reason: str
    is_error: bool = False


def decide(answer: str, gold: str) -> Verdict | None:
    """The verdict where no computer algebra is needed, else None.

    An answer that no grader should read is wrong: an empty one, one over `MAX_CHARS`, one with several boxes or with
    braces that do not match. A gold over `MAX_CHARS` is the data's fault and an error, unless the answer repeats it.
    """
    if same_text(answer, gold):
        return Verdict(True, "exact")
    left, right = plain_number(answer), plain_number(gold)
    if left is not None and right is not None:
        return Verdict(left == right, "number")
    if not answer.strip():
        return Verdict(False, "empty_answer")
    if len(answer) > MAX_CHARS:
        return Verdict(False, "too_long")
    if has_box(answer):
        return Verdict(False, "several_boxes")
    if not has_balanced_braces(answer):
        return Verdict(False, "unbalanced_braces")
    return Verdict(False, "gold_unreadable", is_error=True) if len(gold) > MAX_CHARS else None


def same_text(answer: str, gold: str) -> bool:
    r"""Whether the texts are the same but for idle spaces, delimiters and, where one is `\text{...}`, case."""
    if max(len(answer), len(gold)) > MAX_CHARS:
        return answer.strip() == gold.strip()
    left, right = _tidy(answer), _tidy(gold)
    left_text, right_text = _TEXT.fullmatch(left), _TEXT.fullmatch(right)
    if left_text or right_text:
        left = (left_text[1] if left_text else left).strip().casefold()
        right = (right_text[1] if right_text else right).strip().casefold()
    return bool(left) and left == right


def plain_number(text: str) -> Fraction | None:
    r"""The exact value of an integer, a decimal, `a/b` or `\frac{a}{b}`, else None. Thousands may be set off: 1,234."""
    if len(text) > MAX_CHARS:
        return None
    tidy = _tidy(text)
    if _DECIMAL.fullmatch(tidy):
        return Fraction(tidy.replace(",", ""))
    match = _FRACTION.fullmatch(tidy)
    if match is None:
        return None
    top, bottom = (int(part) for part in match.groups()[1:] if part is not None)
    return None if bottom == 0 else Fraction(-top if match[1] == "-" else top, bottom)


def _tidy(text: str) -> str:
    text = text.strip().removeprefix(r"\(").removesuffix(r"\)").removeprefix(r"\[").removesuffix(r"\]")
    for pattern, replacement in _REWRITES:
        text = pattern.sub(replacement, text)
    return _IDLE_SPACE.sub("", text.strip(" $").removesuffix(".").strip(" $"))
