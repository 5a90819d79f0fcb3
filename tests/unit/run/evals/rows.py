"""Results by hand."""

from __future__ import annotations

from typing import Any

# What a completion can be, by a letter: verdict, rule, outcome, format reward, answer reward, reward anywhere.
KINDS: dict[str, tuple[str, str, str, float, float, float]] = {
    "R": ("right", "exact", "graded", 1.0, 1.0, 1.0),
    "W": ("wrong", "number", "graded", 1.0, 0.0, 0.0),
    "F": ("no_answer", "no_answer_tag", "format_failure", 0.0, 0.0, 1.0),  # the right answer, without its tags
    "N": ("no_answer", "no_answer_tag", "format_failure", 0.0, 0.0, 0.0),
    "T": ("no_answer", "no_think_end", "format_failure", 0.0, 0.0, 0.0),  # cut
    "E": ("grader_error", "deadline", "grader_error", 0.0, 0.0, 0.0),
}
_FIELDS = ("verdict", "rule", "outcome", "format_reward", "answer_reward", "anywhere_reward")


def completion(kind: str, sample: int = 0, num_tokens: int = 10) -> dict[str, Any]:
    return {
        "sample": sample,
        "text": f"text of {kind}",
        "num_tokens": num_tokens,
        "finish_reason": "length" if kind == "T" else "stop",
        "extracted": "x",
        "anywhere_extracted": "y",
        "anywhere_rule": "exact",
        **dict(zip(_FIELDS, KINDS[kind], strict=True)),
    }


def results(kinds: list[str], dataset: str = "math", levels: str = "", subjects: str = "") -> list[dict[str, Any]]:
    """A problem for each of `kinds`, whose letters are its samples."""
    return [
        {
            "dataset": dataset,
            "problem": f"{dataset}-{place}",
            "level": levels[place] if levels else "",
            "subject": subjects[place] if subjects else "",
            "question": f"question {place}",
            "prompt": f"ask question {place}",
            "gold": str(place),
            "completions": [completion(kind, sample, 10 * (place + 1)) for sample, kind in enumerate(group)],
        }
        for place, group in enumerate(kinds)
    ]
