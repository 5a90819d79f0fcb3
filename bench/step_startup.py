"""Start-up of the quickstart: seconds from the command to the first rollout, and what importing takes of them."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from statistics import median

from bench.environments import ROOT
from bench.step_processes import Progress, run_process
from bench.tables import Section
from grpo.run.metrics import read_jsonl

GOAL_S = 12.0
_QUICKSTART = ("experiment=quickstart", "train.n_grpo_steps=1", "logging.console=plain")
_QUICK = (
    "model.warm_start.steps=0",
    "model.build.hidden_size=32",
    "model.build.num_hidden_layers=1",
    "train.rollout_batch_size=8",
    "train.train_batch_size=8",
    "evaluation.num_problems=4",
    "sampling.max_tokens=8",
)
# Lines of the plain console by what is done when they come.
_MARKS = {
    "imports, config and folder": re.compile(r"run folder: "),
    "model and data": re.compile(r".* training and .* held-out problems"),
    "evaluation before training": re.compile(r"evaluation after step 0 "),
    "step": re.compile(r"step +1/"),
}
_FIRST_ROLLOUT = "first rollout begins"
_IMPORT = re.compile(r"import time:\s+(\d+) \|\s+\d+ \|\s+(\S+)")


def startup_section(
    scratch: Path, env: dict[str, str], rounds: int, progress: Progress, *, is_quick: bool = False
) -> Section:
    """Seconds since the command at which things were done, the medians over rounds."""
    cache = [f"model.warm_start.cache_dir={scratch / 'models'}"] if is_quick else []
    overrides = [*_QUICKSTART, *(_QUICK if is_quick else ()), *cache]
    prepare = [sys.executable, "-m", "grpo.warm_start", *overrides]
    run_process(prepare, scratch / "warm_start.txt", env)
    runs = []
    for number in range(rounds):
        runs.append(start(overrides, scratch / f"startup_{number}", env))
        progress.done(f"startup: the first rollout begins after {runs[-1][_FIRST_ROLLOUT]:.1f} s")
    unneeded, slowest = imports(overrides, scratch, env)
    progress.done("startup: imports")
    rows = [
        (mark, f"{median(run[mark] for run in runs):.2f}", f"{GOAL_S:.0f}" if mark == _FIRST_ROLLOUT else "")
        for mark in runs[0]
    ]
    notes = (
        "Seconds since `python -m grpo.train experiment=quickstart`, its warm start made earlier. "
        f"Rounds of the first rollout: {', '.join(f'{run[_FIRST_ROLLOUT]:.2f}' for run in runs)} s.",
        "Importing, own time by top-level package (python -X importtime, which adds some itself): "
        f"{', '.join(f'{name} {seconds:.2f} s' for name, seconds in slowest)}.",
        f"Imported before the first rollout though not needed: {', '.join(unneeded) or 'nothing'}.",
    )
    return Section("Start-up of the quickstart", ("done", "s", "goal"), rows, notes)


def start(overrides: Sequence[str], folder: Path, env: dict[str, str]) -> dict[str, float]:
    """One start.

    Returns:
        Seconds since the command by what was done, in the order of time.

    Raises:
        RuntimeError: the run failed, or did not say what it did.
    """
    command = [sys.executable, "-m", "grpo.train", *overrides, f"output_dir={folder}"]
    seen: dict[str, float] = {}
    lines = []
    begin = time.monotonic()
    with subprocess.Popen(
        command, cwd=ROOT, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            lines.append(line)
            for name, pattern in _MARKS.items():
                if pattern.match(line):
                    seen.setdefault(name, time.monotonic() - begin)
    if process.returncode or len(seen) < len(_MARKS):
        raise RuntimeError(f"{' '.join(command[:3])} ended with status {process.returncode}:\n{''.join(lines[-15:])}")
    return marks_in_order(seen, folder / "metrics.jsonl")


def marks_in_order(seen: dict[str, float], metrics: Path) -> dict[str, float]:
    """The marks, and those that follow from the phases that the run itself timed."""
    before, first = (row for row in read_jsonl(metrics) if row["step"] in (0, 1))
    end = seen.pop("step")  # its line comes when all its phases are over
    begin = end - first["time/step_s"]
    evaluated = seen.pop("evaluation before training")
    return {
        **seen,
        "engine, compared with the policy": evaluated - before["time/evaluate_s"],
        "evaluation before training": evaluated,
        _FIRST_ROLLOUT: begin,
        "first rollout ends": begin + first["time/rollout_s"],
    }


def imports(overrides: Sequence[str], scratch: Path, env: dict[str, str]) -> tuple[list[str], list[tuple[str, float]]]:
    """Modules that were imported and not needed, and seconds of the five slowest packages."""
    found, output = scratch / "modules.json", scratch / "imports.txt"
    command = [sys.executable, "-X", "importtime", "-m", "bench.peers.our_startup", str(found), *overrides]
    run_process([*command, f"output_dir={scratch / 'imports'}"], output, env)
    seconds = slowest_imports(output.read_text(encoding="utf-8", errors="replace"))
    return json.loads(found.read_text(encoding="utf-8")), seconds


def slowest_imports(text: str, number: int = 5) -> list[tuple[str, float]]:
    """Top-level packages and the seconds that their modules took by themselves, from what -X importtime writes."""
    micros: Counter[str] = Counter()
    for match in _IMPORT.finditer(text):
        micros[match[2].split(".")[0]] += int(match[1])
    return [(name, total / 1e6) for name, total in micros.most_common(number)]
