"""What an evaluation says when its results are there: analysis.txt, metrics.json, comparison.txt, and the terminal."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from grpo.config import LoggingConfig
from grpo.evaluation_plan import FOLDER, Evaluation
from grpo.run.console import wants_rich
from grpo.run.evals.analysis import Scores, datasets, scores
from grpo.run.evals.analysis_text import analysis_text, score_table
from grpo.run.evals.comparison_text import comparison_tables, comparison_text
from grpo.run.evals.results import Row
from grpo.run.files import write_atomic
from grpo.run.table import Table
from grpo.run.text import LastingStream


def analyse(evaluation: Evaluation, rows: Sequence[Row], *, is_shown: bool) -> None:
    """Writes analysis.txt and metrics.json, and prints the scores."""
    found = _scores(evaluation, rows)
    text = analysis_text(evaluation.headline, rows, found)
    metrics = {name: one.as_json() for name, one in found.items()}
    write_atomic(
        evaluation.folder / "metrics.json", json.dumps({"model": evaluation.given, "datasets": metrics}, indent=2)
    )
    write_atomic(evaluation.folder / "analysis.txt", text)
    if is_shown:
        _show(evaluation.cfg.logging, [score_table(evaluation.name, found)])
        _print_files({name: evaluation.folder / name for name in ("analysis.txt", "results.jsonl")})


def compare(evaluations: Sequence[Evaluation], results: Mapping[str, Sequence[Row]]) -> None:
    """Writes comparison.txt and prints its tables."""
    found = {one.name: _scores(one, results[one.name]) for one in evaluations}
    headline = "\n".join([*(one.headline for one in evaluations), *_unlike(evaluations)])
    folders = " ".join(str(one.folder) for one in evaluations)
    output_dir = evaluations[0].cfg.output_dir
    own = FOLDER / f"comparison-{hashlib.sha256(folders.encode()).hexdigest()[:8]}"
    path = (own if output_dir is None else Path(output_dir)) / "comparison.txt"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, comparison_text(headline, results, found))
    _show(evaluations[0].cfg.logging, comparison_tables(results, found), *_unlike(evaluations))
    _print_files({"comparison.txt": path, **{f"{one.name}": one.folder for one in evaluations}})


def _unlike(evaluations: Sequence[Evaluation]) -> list[str]:
    """What differs between the models besides weights, a sentence."""
    first = evaluations[0].settings
    keys = ("prompt", "stop", "reward", "backend", "compute_dtype")
    unlike = [key for key in keys if any(one.settings[key] != first[key] for one in evaluations)]
    return (
        [f"The models differ in more than their weights: {', '.join(unlike)}, as their runs have it."] if unlike else []
    )


def _scores(evaluation: Evaluation, rows: Sequence[Row]) -> dict[str, Scores]:
    return {name: scores(group, evaluation.cfg.num_pass_at) for name, group in datasets(rows).items()}


def _show(cfg: LoggingConfig, tables: Sequence[Table], *notes: str) -> None:
    """Prints tables, drawn on a terminal and plain elsewhere, and notes."""
    stream = cast(Any, LastingStream(sys.stdout))
    if not wants_rich(cfg.console, sys.stdout):
        print("\n\n".join(["", *(table.plain() for table in tables), *notes]), file=stream, flush=True)
        return
    from rich.console import Console
    from rich.text import Text

    console = Console(file=stream, force_terminal=True, highlight=False)
    for table in tables:
        console.print("", table.rich(), sep="\n")
    for note in notes:
        console.print(Text(note, style="yellow"))


def _print_files(files: Mapping[str, Path]) -> None:
    width = max(map(len, files))
    lines = [f"{name:<{width}}  {path}" for name, path in files.items()]
    print("\n" + "\n".join(lines), file=cast(Any, LastingStream(sys.stdout)), flush=True)
