"""report.html: one file with everything in it, which loads nothing and runs no script but its own."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from grpo import __version__
from grpo.run.report.completions import CompletionIndex, Sample, embedded
from grpo.run.report.curves import run_curves
from grpo.run.report.paired import paired_test, read_answers
from grpo.run.report.panels import TABLE, thinned, tokens_sampled
from grpo.run.report.reading import RunRecord
from grpo.run.report.settings import chosen_options, commands, differences, lacking
from grpo.run.text import accuracy, duration

MAX_BYTES = 4_900_000  # of a page
_TEMPLATES = Path(__file__).parent / "templates"


def run_page(record: RunRecord, index: CompletionIndex, watch_version: str = "") -> str:
    """The page of a run.

    Args:
        record: of the run.
        index: of its completions, up to date.
        watch_version: of the page, if it is served and asks for later ones.
    """
    rows, width = thinned(record.metrics)
    told = commands(record)
    values: dict[str, Any] = {
        "title": record.folder.resolve().name,
        "folder": str(record.folder),
        "status_kind": status(record)[0],
        "status": status(record)[1],
        "verdict": _verdict(record),
        "facts": run_facts(record),
        "curves": run_curves(rows),
        "curves_note": f"Each point is the mean of {width} steps." if width > 1 else "",
        "numbers": numbers(record.metrics),
        "options": sorted(chosen_options(record.config).items()),
        "differences": [tuple(asdict(difference).values()) for difference in differences(record.config)],
        "config_text": yaml.safe_dump(dict(record.config), sort_keys=False) if record.config else "",
        "resume": told.resume,
        "repeat": told.repeat,
        "where": told.where,
        "commands_note": told.note,
        "made_with": _made_with(record.provenance),
    }
    empty = {"missing": record.missing, "sample_note": "", "has_completions": False, "data": "[]"}
    frame = render("run.html", values | empty, watch_version)
    sample = index.sample(MAX_BYTES - len(frame.encode()) - 5000)  # what the notes add
    values |= {
        "missing": [*record.missing, *_missing_settings(record), *_missing_completions(record, index, sample)],
        "sample_note": _sample_note(sample),
        "has_completions": bool(sample.groups),
        "data": embedded(sample.groups),
    }
    return render("run.html", values, watch_version)


def render(template: str, values: Mapping[str, Any], watch_version: str) -> str:
    """A page from its template, all values escaped, under a policy that allows its own scripts and nothing else."""
    names = (["browser.js"] if template == "run.html" else []) + (["watch.js"] if watch_version else [])
    scripts = [(_TEMPLATES / name).read_text(encoding="utf-8") for name in names]
    hashes = [base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts]
    allowed = " ".join(f"'sha256-{value}'" for value in hashes) or "'none'"
    policy = (
        f"default-src 'none'; script-src {allowed}; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; "
        "form-action 'none'" + ("; connect-src 'self'" if watch_version else "")
    )
    style = (_TEMPLATES / "style.css").read_text(encoding="utf-8")
    own = {"policy": policy, "style": style, "scripts": scripts, "version": __version__}
    text = _environment().get_template(template).render({**own, **values, "watch_version": watch_version})
    # Half a surrogate pair, as a JSON file may hold, has no UTF-8.
    return text.encode("utf-8", "replace").decode()


@cache
def _environment() -> Any:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    return Environment(
        loader=FileSystemLoader(_TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        keep_trailing_newline=True,
    )


def status(record: RunRecord) -> tuple[str, str]:
    """How a run stands, as a word and as a sentence."""
    total = record.total_steps
    of = f"step {record.last_step}" + (f" of {total}" if total is not None else "")
    if record.is_running:
        left = _seconds_left(record)
        return "running", f"running: {of}" + (f", about {duration(left)} left" if left is not None else "")
    if record.is_finished:
        return "finished", f"finished: {of}"
    if total is None:
        return "stopped", f"ended at {of}; whether that was the last one is not known"
    return "stopped", f"stopped after {of}"


def _seconds_left(record: RunRecord) -> float | None:
    times = [row["time/step_s"] for row in record.metrics if "time/step_s" in row][-20:]
    if not times or record.total_steps is None:
        return None
    return (record.total_steps - record.last_step) * sum(times) / len(times)


def _verdict(record: RunRecord) -> str:
    """Held-out accuracy before and after, and what the difference is worth."""
    rows = record.evaluated
    if len(rows) < 2:
        return ""
    first, last = rows[0], rows[-1]
    text = f"Held-out accuracy {accuracy(first)} after step {first['step']}, {accuracy(last)} after step {last['step']}"
    paths = [record.evaluations.get(row["step"]) for row in (last, first)]
    answers = [read_answers(path) for path in paths if path is not None]
    test = paired_test(*answers) if len(answers) == 2 else None
    if test is None:
        return f"{text}."
    return (
        f"{text}: {100 * test.difference:+.1f} points [{100 * test.low:+.1f}, {100 * test.high:+.1f}] on the same "
        f"{test.num_problems} problems, p = {test.p:.2g} (McNemar)."
    )


def run_facts(record: RunRecord) -> list[tuple[str, str]]:
    """A few numbers of the whole run."""
    rows = [row for row in record.metrics if row["step"] > 0]
    facts = []
    if record.evaluated:
        best = max(record.evaluated, key=lambda row: row["eval/accuracy"])
        facts.append(("best held-out accuracy", f"{accuracy(best)} after step {best['step']}"))
    if any(row.get("time/step_s") for row in rows):
        facts.append(("time in steps", duration(sum(row.get("time/step_s", 0) for row in rows))))
    tokens = sum(map(tokens_sampled, rows))
    if tokens:
        facts.append(("tokens sampled", f"{tokens:,.0f}"))
    if any("memory/peak_gib" in row for row in rows):
        facts.append(("peak memory", f"{max(row.get('memory/peak_gib', 0) for row in rows):.2f} GiB"))
    for name, key in (("grader errors", "grade/errors"), ("skipped updates", "policy/skipped_updates")):
        if any(key in row for row in rows):
            facts.append((name, f"{sum(row.get(key, 0) for row in rows):.0f}"))
    if record.last_checkpoint is not None:
        facts.append(("last checkpoint", f"step {record.last_checkpoint}"))
    return facts


def numbers(rows: Sequence[Mapping[str, Any]]) -> list[tuple[str, ...]]:
    """The curves as a table: name, first, last, lowest, highest."""
    table = []
    for name, key, form in TABLE:
        values = [row[key] for row in rows if key in row]
        if values:
            cells = (values[0], values[-1], min(values), max(values))
            table.append((name, *(format(value, form) for value in cells)))
    return table


def _sample_note(sample: Sample) -> str:
    if not sample.num_groups:
        return "There are none to show."
    if not sample.groups:
        return f"None of the {sample.num_groups:,} groups fits into this page; they are in completions.jsonl."
    parts = [f"{sample.num_shown:,} of {sample.num_groups:,} groups are in this page"]
    if sample.num_shown < sample.num_groups:
        parts[0] += (
            f", from {sample.num_steps_shown:,} of {sample.num_steps:,} steps, evenly spread; the rest was left "
        )
        parts[0] += "out to keep the page small and is in completions.jsonl"
        parts.append("Of each step those with log-probs of their tokens come first, then those with a signal")
    if sample.num_cut:
        parts.append(f"{sample.num_cut:,} long completions lack their middle")
    return ". ".join(parts) + "."


def _missing_settings(record: RunRecord) -> list[str]:
    absent = lacking(record.config)
    if not absent:
        return []
    names = ", ".join(absent[:4]) + (", ..." if len(absent) > 4 else "")
    return [f"config.yaml lacks {len(absent)} settings that this version has ({names}): the run is of another version."]


def _missing_completions(record: RunRecord, index: CompletionIndex, sample: Sample) -> list[str]:
    missing = []
    if not index.path.is_file():
        off = record.setting("logging.completions") is False
        why = "logging.completions was off" if off else "no step has ended yet, or the file was lost"
        missing.append(f"completions.jsonl is not there ({why}): there are no completions to browse.")
    elif sample.num_broken:
        missing.append(f"{sample.num_broken} lines of completions.jsonl hold no group; left out.")
    if sample.groups and not sample.has_tokens:
        missing.append("completions.jsonl has no log-probs of single tokens: completions are shown without colours.")
    return missing


def _made_with(provenance: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Versions, commit and machine."""
    versions, git, devices = (provenance.get(key) for key in ("versions", "git", "devices"))
    rows = []
    if isinstance(git, Mapping) and git.get("commit"):
        rows.append(("commit", f"{git['commit']}{', with changes that are not committed' if git.get('dirty') else ''}"))
    if isinstance(devices, list):
        rows.append(("device", ", ".join(map(str, devices))))
    rows += [(key, str(provenance[key])) for key in ("platform", "num_cpus") if provenance.get(key)]
    if isinstance(versions, Mapping):
        rows += [(str(name), str(version)) for name, version in versions.items() if version]
    return rows
