"""Problems from JSON Lines files: one JSON object a line, its fields named by the config."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from decimal import Decimal
from itertools import islice
from pathlib import Path
from typing import Any, NoReturn

from grpo.config import DataConfig
from grpo.types import Problem

_MAX_EXPONENT = 400
_ID_FIELDS = ("unique_id", "id")
_DOWNLOADS = {
    "math": "python -m grpo.download dataset",
    "gsm8k": "python -m grpo.download dataset --id openai/gsm8k --subset main --output-dir data/gsm8k",
}
_OTHER_NAMES = {
    "problem_field": ("problem", "question", "prompt", "query", "input"),
    "answer_field": ("answer", "final_answer", "expected_answer", "target"),
}


def load_problems(path: str | Path, cfg: DataConfig, limit: int | None = None) -> list[Problem]:
    """The problems of a file, in its order.

    Numbers become text as the file spells them (5 -> "5", 0.50 -> "0.50"), so that no digit is lost; an exponent, which
    in mathematics would be a variable, is worked out (1e-3 -> "0.001"). Blank lines are skipped. A problem's id is its
    field `unique_id` or `id`, else "<file's stem>-<line number>".

    Args:
        path: a JSON Lines file in UTF-8; `~` is the home folder.
        cfg: names the fields.
        limit: how many problems to read, from the top; lines after them are not looked at. None reads all.

    Returns:
        At least one problem.

    Raises:
        ValueError: no such file, an empty one, or a line that is not a problem (with its number); one sentence.
    """
    setting = f"{_setting(path, cfg)}={path}"
    try:
        with open(os.path.expanduser(path), "rb") as file:
            problems = list(islice(_problems(file, Path(path), cfg), limit))
    except FileNotFoundError:
        raise ValueError(_missing_file(path, cfg)) from None
    except OSError as error:
        raise ValueError(
            f"{setting} cannot be read ({error.strerror}); name a readable file: {_setting(path, cfg)}=..."
        ) from error
    if not problems:
        raise ValueError(
            f"{setting} is empty, but at least one problem is needed; "
            f"put one JSON object a line into it, with {_wanted_fields(cfg)}"
        )
    return problems


def _problems(lines: Iterator[bytes], path: Path, cfg: DataConfig) -> Iterator[Problem]:
    # Bytes end a line at "\n" alone; text would also at U+2028, which JSON strings may hold.
    for number, line in enumerate(lines, start=1):
        content = line.removeprefix(b"\xef\xbb\xbf").strip() if number == 1 else line.strip()
        if content:
            where = f"{path}, line {number},"
            yield _problem(_record(content, where), where, f"{path.stem}-{number}", cfg)


def _problem(record: dict[str, Any], where: str, default_id: str, cfg: DataConfig) -> Problem:
    ids = (_optional(record, name, where) for name in _ID_FIELDS)
    return Problem(
        id=next((found for found in ids if found), default_id),
        question=_required(record, "problem_field", cfg.problem_field, where),
        answer=_required(record, "answer_field", cfg.answer_field, where),
        level=_optional(record, cfg.level_field, where),
        subject=_optional(record, cfg.subject_field, where),
    )


def _record(content: bytes, where: str) -> dict[str, Any]:
    try:
        text = content.decode("utf-8")
        record = json.loads(text, parse_float=_decimal, parse_int=str, parse_constant=_no_constant)
    except UnicodeDecodeError as error:
        byte = f"byte 0x{content[error.start]:02x}"
        raise ValueError(f"{where} is not UTF-8 ({byte}), which JSON Lines must be; save the file as UTF-8") from None
    except (ValueError, RecursionError) as error:
        reason = f"{error.msg}, column {error.colno}" if isinstance(error, json.JSONDecodeError) else str(error)
        raise ValueError(
            f"{where} is not JSON ({reason}): {_short(content.decode())}; "
            "each line must be one whole JSON object, so correct it or remove it"
        ) from None
    if not isinstance(record, dict):
        raise ValueError(
            f'{where} is no JSON object: {_short(text)}; write each problem as one, {{"problem": ..., "answer": ...}}'
        )
    return record


def _decimal(spelt: str) -> str:
    """A number without an exponent; one that no float could hold is refused, since it could fill the memory."""
    if "e" not in spelt.lower():
        return spelt
    if not abs(Decimal(spelt).adjusted()) <= _MAX_EXPONENT:
        raise ValueError(f"{spelt} is beyond what a number may be")
    return f"{Decimal(spelt):f}"


def _no_constant(name: str) -> NoReturn:
    """NaN and Infinity, which Python would read and JSON does not know."""
    raise ValueError(f"{name} is no JSON value")


def _required(record: dict[str, Any], setting: str, name: str, where: str) -> str:
    if name not in record:
        has = ", ".join(map(repr, record)) or "none"
        guess = next((other for other in _OTHER_NAMES[setting] if other in record), "...")
        raise ValueError(
            f"{where} lacks the field {name!r} (its fields: {has}); "
            f"name the field to read with data.{setting}={guess}, or add {name!r} to the line"
        )
    text = _text(record[name], name, where)
    if not text.strip():
        raise ValueError(f"{where} has an empty {name!r}, and nothing can be learnt from that; fill it in or remove it")
    return text


def _optional(record: dict[str, Any], name: str, where: str) -> str:
    return "" if record.get(name) is None else _text(record[name], name, where)


def _text(value: object, name: str, where: str) -> str:
    if not isinstance(value, str):  # numbers are text already, see `_record`
        remedy = "keep one of them" if isinstance(value, list) else "put it in quotes"
        raise ValueError(
            f"{where} has {_short(json.dumps(value))} in {name!r}, which must be text or a number; {remedy}"
        )
    if any("\ud800" <= character <= "\udfff" for character in value):
        raise ValueError(
            f"{where} has half a surrogate pair in {name!r}, which no tokenizer takes; write the whole character"
        )
    return value


def _short(text: str) -> str:
    return text if len(text) <= 60 else f"{text[:57]}..."


def _setting(path: str | Path, cfg: DataConfig) -> str:
    """The setting that named the file."""
    return "data.test_path" if str(path) == cfg.test_path != cfg.train_path else "data.train_path"


def _wanted_fields(cfg: DataConfig) -> str:
    return f"{cfg.problem_field!r}, {cfg.answer_field!r} and, if known, {cfg.level_field!r} and {cfg.subject_field!r}"


def _missing_file(path: str | Path, cfg: DataConfig) -> str:
    setting, own = _setting(path, cfg), Path(path).parent == Path("data", cfg.name)
    folder = "" if Path(path).is_absolute() or str(path).startswith("~") else f" under {Path.cwd()}"
    wanted = f"JSON Lines with the fields {_wanted_fields(cfg)}"
    if own:
        source = f"load it with `{_DOWNLOADS[cfg.name]}`" if cfg.name in _DOWNLOADS else "put the file there"
        return (
            f"{setting}={path} does not exist{folder}, where data={cfg.name} wants {wanted}; "
            f"{source}, or name another: {setting}=..."
        )
    return f"{setting}={path} does not exist{folder}; name a file that does, {wanted}: {setting}=..."
