"""Lines of a JSON Lines file to grade: a gold, and a response or an answer."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, NoReturn

from grpo.reward.golds import Gold, alternatives

# What is graded, by the field that holds it: whole responses first, then answers.
RESPONSE_FIELDS = ("response", "completion")
ANSWER_FIELDS = ("prediction", "answer")


@dataclass(frozen=True, slots=True)
class Row:
    """One thing to grade.

    Attributes:
        line: its number in the file, from 1.
        id: what the line's field `id` says, if it has one.
        gold: see `alternatives`.
        text: a response, or an answer that is already read.
        is_response: which of the two.
    """

    line: int
    id: str | int | None
    gold: Gold
    text: str
    is_response: bool


def read_rows(lines: Iterable[bytes], name: str) -> Iterator[Row]:
    """The rows of a file, in its order; blank lines are skipped.

    Args:
        lines: UTF-8, with their ends.
        name: of the file, for errors.

    Raises:
        ValueError: a line that cannot be graded, with its number, or no line at all; one sentence.
    """
    number = 0
    for place, line in enumerate(lines, start=1):
        content = line.removeprefix(b"\xef\xbb\xbf").strip() if place == 1 else line.strip()
        if content:
            number += 1
            yield _row(_record(content, f"{name}, line {place},"), place, f"{name}, line {place},")
    if not number:
        raise ValueError(f'{name} is empty; put one JSON object a line into it: {{"gold": ..., "response": ...}}')


def _row(record: dict[str, Any], line: int, where: str) -> Row:
    field = next((name for name in (*RESPONSE_FIELDS, *ANSWER_FIELDS) if name in record), None)
    if "gold" not in record or field is None:
        has = ", ".join(map(repr, record)) or "none"
        lacks = f"{' or '.join(map(repr, (*RESPONSE_FIELDS, *ANSWER_FIELDS)))}" if "gold" in record else "'gold'"
        raise ValueError(
            f"{where} lacks the field {lacks} (its fields: {has}); "
            'write {"gold": ..., "response": ...} or {"gold": ..., "answer": ...}'
        )
    text = record[field]
    if not isinstance(text, str | int | float) or isinstance(text, bool):
        raise ValueError(f'{where} has {text!r} in {field!r}, which must be text; where there is none, write ""')
    try:
        alternatives(record["gold"])
    except ValueError as error:
        raise ValueError(f"{where} has no gold to grade by: {error}") from None
    own_id = record.get("id")
    own_id = own_id if isinstance(own_id, str | int) else None
    answer = text if isinstance(text, str) else alternatives(text)[0]
    return Row(line, own_id, record["gold"], answer, field in RESPONSE_FIELDS)


def _record(content: bytes, where: str) -> dict[str, Any]:
    try:
        record = json.loads(content.decode("utf-8"), parse_float=_number, parse_constant=_no_constant)
    except UnicodeDecodeError:
        raise ValueError(f"{where} is not UTF-8, which JSON Lines must be; save the file as UTF-8") from None
    except (ValueError, RecursionError) as error:
        reason = f"{error.msg}, column {error.colno}" if isinstance(error, json.JSONDecodeError) else str(error)
        raise ValueError(f"{where} is not JSON ({reason}); correct the line or remove it") from None
    if not isinstance(record, dict):
        raise ValueError(f'{where} is no JSON object; write each row as one: {{"gold": ..., "response": ...}}')
    return record


def _number(text: str) -> str | float:
    """A decimal as the file spells it, so that no digit is lost; an exponent is worked out."""
    return float(text) if "e" in text or "E" in text else text


def _no_constant(name: str) -> NoReturn:
    """NaN and Infinity, which Python would read and JSON does not know."""
    raise ValueError(f"{name} is no JSON value")
