r"""Reading an answer out of a response: where it must stand, and what is wrong if it does not.

Every function takes time linear in the text, whatever the text is.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

_TAGS = {"</think>": "think_end", "<answer>": "answer_tag", "</answer>": "answer_end"}
_HANDOVER = "</think> <answer>"  # one space: as the r1_zero prompt shows it
_BOX = re.compile(r"\\(?:boxed|fbox)(?![A-Za-z])")
_BRACE = re.compile(r"\\.|[{}]", re.DOTALL)  # an escaped brace is matched as a pair, and so does not nest
_ANY_BRACE = re.compile(r"[{}]")
_SPACE = re.compile(r"\s*")
_UNBRACED = re.compile(r"[^\s$]*")


@dataclass(frozen=True, slots=True)
class Extraction:
    """What a response says its answer is.

    Attributes:
        answer: the answer as written, perhaps ""; None is none, which is a format failure unless `is_formatted`.
        failure: code of the rule by which there is no answer, or "".
        is_formatted: the format holds all the same, so that the answer is wrong and the format is not.
    """

    answer: str | None
    failure: str = ""
    is_formatted: bool = False


def read_tagged(response: str) -> Extraction:
    r"""The answer of an r1_zero response: one `</think> <answer>...</answer>` and then only white space.

    The prompt ends with `<think>`, so each of the other three tags stands in the response exactly once. A `\boxed{}`
    that is the only one of the answer is unwrapped.
    """
    failure = _tag_failure(response)
    if failure:
        return Extraction(None, failure)
    inside = response[response.index("<answer>") + len("<answer>") : response.index("</answer>")]
    return Extraction(unwrap_box(inside).strip())


def read_reference(response: str) -> Extraction:
    r"""The answer of an r1_zero response as the Dr. GRPO grader reads it, which CS336-style scripts use.

    The format holds if `</think> <answer>` and `</answer>` both stand anywhere, in whatever order. The answer is what
    follows the last `<answer>`, less every `</answer>`. If it has a `\boxed`, the last one's braces hold the answer,
    where an escaped brace counts like any other; if that is no closed `\boxed{...}`, the format holds and the answer
    is wrong.

    The reading alone is theirs, so that shares of well-formed responses compare exactly. What is read is compared by
    this project's own rules, which let through fewer wrong answers and turn down fewer right ones.

    Source: Understanding R1-Zero-Like Training, arXiv 2503.20783, `r1_zero_reward_fn` of its code.
    """
    missing = next((name for tag, name in _TAGS.items() if tag not in response), "")
    if missing or _HANDOVER not in response:
        return Extraction(None, f"no_{missing}" if missing else "tags_apart")
    answer = response.rpartition("<answer>")[2].replace("</answer>", "")
    _, box, rest = answer.rpartition(r"\boxed")
    content = _naive_braces(rest) if box else answer
    return Extraction(None, "unclosed_box", is_formatted=True) if content is None else Extraction(content.strip())


def read_bare(answer: str) -> Extraction:
    """A text that is an answer and nothing else, but for the box that it may stand in."""
    return Extraction(unwrap_box(answer).strip())


def read_boxed(response: str) -> Extraction:
    r"""The content of the last `\boxed{...}`; `\fbox{...}` and `\boxed 5` count, an unclosed box is a failure."""
    boxes = list(_BOX.finditer(response))
    if not boxes:
        return Extraction(None, "no_box")
    answer = _box_content(response, boxes[-1].end())
    return Extraction(None, "unclosed_box") if answer is None else Extraction(answer.strip())


def unwrap_box(text: str) -> str:
    """The content of the box in `text` if there is exactly one and it is closed, else `text`."""
    boxes = list(_BOX.finditer(text))
    content = _box_content(text, boxes[0].end()) if len(boxes) == 1 else None
    return text if content is None else content


def has_box(text: str) -> bool:
    r"""Whether `text` has a `\boxed` or `\fbox`."""
    return _BOX.search(text) is not None


def has_balanced_braces(text: str) -> bool:
    """Whether every brace of `text` that is not escaped has its partner."""
    depth = 0
    for _, depth in _depths(text, 0):
        if depth < 0:
            return False
    return depth == 0


def _tag_failure(response: str) -> str:
    for tag, name in _TAGS.items():
        count = response.count(tag)
        if count != 1:
            return f"several_{name}s" if count else f"no_{name}"
    if response.index("</answer>") < response.index("<answer>"):
        return "tags_out_of_order"
    if _HANDOVER not in response:
        return "tags_apart"
    tail = response[response.index("</answer>") + len("</answer>") :]
    return "text_after_answer" if tail.strip() else ""


def _depths(text: str, start: int) -> Iterator[tuple[int, int]]:
    """Position of each brace that is not escaped, and how deep the text is nested after it."""
    depth = 0
    for match in _BRACE.finditer(text, start):
        if match[0] in "{}":
            depth += 1 if match[0] == "{" else -1
            yield match.start(), depth


def _naive_braces(text: str) -> str | None:
    """What the braces that `text` starts with hold, escaped or not; None if it starts with none or they stay open."""
    depth = 0
    for match in _ANY_BRACE.finditer(text) if text.startswith("{") else ():
        depth += 1 if match[0] == "{" else -1
        if depth == 0:
            return text[1 : match.start()]
    return None


def _box_content(text: str, after_command: int) -> str | None:
    r"""What a box command that ends at `after_command` boxes, or None if its brace is not closed or nothing follows."""
    space = _SPACE.match(text, after_command)
    start = space.end() if space else after_command
    if text[start : start + 1] == "{":
        end = next((position for position, depth in _depths(text, start) if depth == 0), None)
        return None if end is None else text[start + 1 : end]
    unbraced = _UNBRACED.match(text, start)
    content = unbraced[0].rstrip(".,;:") if unbraced else ""
    is_prose = content.isalpha() and len(content) > 1  # "I put it in \boxed as asked"
    return content if content and not is_prose else None
