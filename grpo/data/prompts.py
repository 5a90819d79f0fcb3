"""Prompt templates: text files with one `{question}` in them, in the folder `prompts` beside this file.

A text file ends with a newline that belongs to the editor and not to the prompt, so exactly one is taken off. A prompt
that itself ends with a newline, as qwen_boxed does, therefore ends with two in its file.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

_FOLDER = Path(__file__).parent / "prompts"
_PLACEHOLDER = "{question}"
_STOP = {"r1_zero": ("</answer>",), "qwen_boxed": ("<|im_end|>",)}


@dataclass(frozen=True)
class PromptTemplate:
    """What is wrapped around a question.

    Attributes:
        name: of the template, or its file's stem.
        text: holds `{question}` exactly once; other braces stand for themselves.
        stop: strings that end a completion; they stay in it.
    """

    name: str
    text: str
    stop: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        _check_placeholder(self.name, self.text)
        if "" in self.stop:
            raise ValueError(
                f"data.stop={list(self.stop)} holds an empty string, which would end every completion at once; "
                "remove it, or use data.stop=[] to stop at the end of sequence only"
            )

    def render(self, question: str) -> str:
        """The prompt of one question. Never str.format: questions and templates hold braces of their own."""
        return self.text.replace(_PLACEHOLDER, question)


def _check_placeholder(source: str, text: str) -> None:
    found = text.count(_PLACEHOLDER)
    if found != 1:
        raise ValueError(
            f"data.prompt={source} holds {_PLACEHOLDER} {found} times, but a template holds it once; "
            "write it where the question belongs, and nowhere else"
        )


def template_names() -> list[str]:
    """The templates that come with the project."""
    return sorted(file.stem for file in _FOLDER.glob("*.txt"))


def load_template(name_or_path: str, stop: Sequence[str] | None = None) -> PromptTemplate:
    """The template of `data.prompt`.

    Args:
        name_or_path: a name of `template_names`, else the path of a UTF-8 text file.
        stop: strings that end a completion. None is the template's own: "</answer>" for r1_zero, "<|im_end|>" for
            qwen_boxed, nothing otherwise.

    Raises:
        ValueError: no such template (with the near names), a file that cannot be read, or one without exactly one
            `{question}`; one sentence.
    """
    own = name_or_path in template_names()
    file = _FOLDER / f"{name_or_path}.txt" if own else Path(os.path.expanduser(name_or_path))
    if not os.path.isfile(file):  # unlike Path.is_file, it bears a name that is too long: a template given as text
        raise ValueError(_unknown(name_or_path))
    try:
        text = file.read_text(encoding="utf-8-sig").removesuffix("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(
            f"data.prompt={name_or_path} cannot be read ({error}); a template is a readable text file in UTF-8"
        ) from error
    _check_placeholder(name_or_path, text)  # the template knows its file's stem only
    return PromptTemplate(file.stem, text, _STOP.get(name_or_path, ()) if stop is None else tuple(stop))


def _unknown(name: str) -> str:
    names = template_names()
    near = difflib.get_close_matches(name, names, n=2, cutoff=0.5)
    meant = f" (did you mean {' or '.join(near)}?)" if near else ""
    return (
        f"data.prompt={name if len(name) <= 80 else name[:77] + '...'} is neither a template nor a file{meant}; "
        f"use {', '.join(names)}, or the path of a text file that holds {_PLACEHOLDER}"
    )
