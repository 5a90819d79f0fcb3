"""The problems of a data set on the Hub: which files hold a split, and what its rows hold."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any

from grpo.data.remote_file import RemoteFile

FIELDS = ("problem", "answer", "solution", "level", "subject", "unique_id", "id")
_FORMATS = (".parquet", ".jsonl")
_HELD_OUT = ("test", "val", "dev", "eval")


def is_held_out(split: str) -> bool:
    """Whether a split is for measuring, and not for training."""
    return split.lower().startswith(_HELD_OUT)


def split_files(files: Sequence[RemoteFile], split: str, subset: str | None, repo_id: str) -> list[RemoteFile]:
    """The files that hold a split, in order: its name is a word of their path, as in data/train-00000-of-00001.parquet.

    Raises:
        ValueError: none, or those of several subsets; names what there is.
    """
    data = [file for file in files if file.path.endswith(_FORMATS)]
    found = [file for file in data if _has_word(file.path, split, "./-")]
    found = found or [file for file in data if _has_word(file.path, split, "")]
    subsets = sorted({_subset(file.path, split) for file in found})
    if subset is not None:
        found = [file for file in found if _subset(file.path, split) == subset]
    elif len(subsets) > 1:
        raise ValueError(f"{repo_id} has the subsets {', '.join(subsets)}; name one: --subset {subsets[0]}")
    if not found:
        has = ", ".join(file.path for file in data[:8]) or f"no {' or '.join(_FORMATS)}"
        of = f" of the subset {subset!r} (subsets: {', '.join(subsets) or 'none'})" if subset else ""
        raise ValueError(f"{repo_id} has no file of the split {split!r}{of}; it has {has}: name others with --splits")
    form = next(form for form in _FORMATS if any(file.path.endswith(form) for file in found))
    return sorted((file for file in found if file.path.endswith(form)), key=lambda file: file.path)


def _has_word(path: str, word: str, separators: str) -> bool:
    """Whether the word stands in the path between two separators; "" is whatever is no letter and no digit."""
    edge = f"[{re.escape(separators)}]" if separators else "[^A-Za-z0-9]"
    return re.search(f"(^|{edge}){re.escape(word)}({edge}|$)", path) is not None


def _subset(path: str, split: str) -> str:
    """The folder that tells one subset from another; "default" if there is none."""
    folders = [name for name in path.split("/")[:-1] if name != "data" and not _has_word(name, split, "")]
    return "/".join(folders) or "default"


def read_rows(path: Path, name: str) -> Iterator[dict[str, Any]]:
    """The rows of a file.

    Args:
        path: where it is.
        name: what the repository calls it; the format is told by its end.

    Raises:
        ValueError: it cannot be read; one sentence.
    """
    if name.endswith(".parquet"):
        yield from _parquet_rows(path, name)
    else:
        yield from _json_rows(path, name)


def _parquet_rows(path: Path, name: str) -> Iterator[dict[str, Any]]:
    try:
        from pyarrow import ArrowException, parquet
    except ImportError as error:
        raise ValueError(f"{name} is read by pyarrow, which is not installed; pip install pyarrow") from error
    try:
        for batch in parquet.ParquetFile(path).iter_batches(batch_size=1024):
            yield from batch.to_pylist()
    except ArrowException as error:
        reason = str(error).splitlines()[0].rstrip(".")
        raise ValueError(f"{name} is no parquet file that pyarrow reads ({reason}); name another data set") from error


def _json_rows(path: Path, name: str) -> Iterator[dict[str, Any]]:
    with open(path, "rb") as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            try:
                row = json.loads(line.removeprefix(b"\xef\xbb\xbf"), parse_float=_plain)
            except (ValueError, RecursionError) as error:
                raise ValueError(f"{name}, line {number}, is not JSON ({error}); name another data set") from error
            if not isinstance(row, dict):
                raise ValueError(f"{name}, line {number}, is no JSON object; name another data set")
            yield row


def _plain(number: str) -> str:
    """As it is spelt, so that no digit is lost, but for an exponent, which in mathematics would be a variable."""
    if "e" not in number.lower() or abs(Decimal(number).adjusted()) > 400:
        return number
    return f"{Decimal(number):f}"


def to_record(row: dict[str, Any]) -> dict[str, str | int]:
    """The fields of a row that the project reads, as text or integers; those that hold nothing else are left out.

    GSM8K asks a `question`, and its `answer` is the worked text with the final number after `####`.
    """
    renamed = dict(row)
    if "problem" not in row and "question" in row:
        renamed["problem"] = row["question"]
    answer = row.get("answer")
    if isinstance(answer, str) and "####" in answer:
        renamed["answer"] = answer.rpartition("####")[2].strip()
        renamed.setdefault("solution", answer)
    fields = {name: _field(renamed.get(name)) for name in FIELDS}
    return {name: value for name, value in fields.items() if value is not None}


def row_failure(record: dict[str, str | int]) -> str:
    """Why a row is no problem to train on or measure with, whatever its answer is, or ""."""
    for name in ("problem", "answer"):
        if not str(record.get(name, "")).strip():
            return f"no_{name}"
    text = "".join(str(value) for value in record.values())
    return "half_a_character" if any("\ud800" <= character <= "\udfff" for character in text) else ""


def _field(value: object) -> str | int | None:
    if isinstance(value, bool) or not isinstance(value, str | int | float | Decimal):
        return None
    if isinstance(value, str | int):
        return value
    return _plain(str(value)) if math.isfinite(value) else None
