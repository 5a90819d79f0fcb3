r"""Comparison by math-verify, for what this project's own comparison leaves undecided. Runs in a worker alone.

math-verify is made to look for answers in prose. Here it reads the whole text as one LaTeX expression or not at all:
its extraction, which finds a number anywhere and hands plain text to sympy's `eval`, is left out, and so is its
removal of units. A relation such as `3=2` is compared with relations only, where math-verify takes its right side.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import cache

from grpo.reward.equivalence import Verdict

# "2 3" is no expression, but latex2sympy reads it as the mixed number 2 + 3.
_SIDE_BY_SIDE = re.compile(r"[0-9](?:\s|~|\\[,;:! ]|\\q?quad(?![A-Za-z]))+[0-9]")


class UnreadableError(ValueError):
    """A text is no expression that latex2sympy knows."""


def compare(answer: str, gold: str) -> Verdict:
    """Whether math-verify finds the two equal; never undecided.

    An answer that cannot be read is wrong. A gold that cannot be read is an error: a difference from it says nothing.
    """
    try:
        return Verdict(load()(answer, gold), "math_verify")
    except UnreadableError:
        return Verdict(False, "gold_unreadable", is_error=True)
    except MemoryError:
        raise
    except Exception:  # whatever computer algebra does with what a model wrote: counted as a grader error
        return Verdict(False, "exception", is_error=True)


@cache
def load() -> Callable[[str, str], bool]:
    """Imports sympy and math-verify, which takes seconds, and returns the comparison of an answer with a gold."""
    import math_verify
    from latex2sympy2_extended import NormalizationConfig, latex2sympy, normalize_latex
    from math_verify.grader import should_treat_as_complex
    from sympy import And, Eq, Symbol
    from sympy.core.function import AppliedUndef
    from sympy.core.relational import Relational

    rules = NormalizationConfig(malformed_operators=True, units=False, nits=False, boxed="none", equations=False)

    def read(text: str) -> object:
        try:
            plain = normalize_latex(text, rules)
            if _SIDE_BY_SIDE.search(plain):
                raise UnreadableError
            return latex2sympy(plain, is_real=not should_treat_as_complex(plain), normalization_config=None)
        except MemoryError:
            raise
        except Exception as error:
            raise UnreadableError from error

    def is_statement(form: object) -> bool:
        """Whether it claims something, unlike `x = 3` and `f(x) = x^2`, which name a value."""
        names_a_value = isinstance(form, Eq) and isinstance(form.lhs, Symbol | AppliedUndef)
        return isinstance(form, Relational | And) and not names_a_value

    def are_equal(answer: str, gold: str) -> bool:
        gold_form = read(gold)
        try:
            answer_form = read(answer)
        except UnreadableError:
            return False
        if is_statement(answer_form) and not is_statement(gold_form):
            return False
        # Its own time limit is a signal, which cannot interrupt C code; 0 turns it off.
        return bool(math_verify.verify(gold_form, answer_form, timeout_seconds=0, raise_on_error=True))  # type: ignore[arg-type]

    are_equal("1/3", r"\frac{1}{3}")  # the first call builds the parser's tables
    return are_equal
