"""The quickstart for several seeds: does every one of them learn, and how long does it take?

    python -m bench.quickstart [override ...] [--seeds 0 1 2 3 4] [--fresh]

Prints one table. Each seed has its own warm start; `--fresh` makes it again, so that its seconds are counted.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from rich.console import Console
from rich.table import Table

from grpo.run.metrics import read_jsonl


def run_seed(seed: int, folder: Path, overrides: list[str]) -> dict[str, float]:
    """Runs one seed in a process of its own, with a warm start of its own."""
    command = [sys.executable, "-m", "grpo.train", "experiment=quickstart", f"seed={seed}", f"output_dir={folder}"]
    start = time.perf_counter()
    done = subprocess.run([*command, *overrides], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    seconds = time.perf_counter() - start
    if done.returncode:
        raise SystemExit(f"seed {seed} failed:\n{done.stdout[-2000:]}")
    evaluated = [row for row in read_jsonl(folder / "metrics.jsonl") if "eval/accuracy" in row]
    first, last = evaluated[0], evaluated[-1]
    return {
        "seed": seed,
        "before": first["eval/accuracy"],
        "after": last["eval/accuracy"],
        "after_low": last["eval/accuracy_low"],
        "after_high": last["eval/accuracy_high"],
        "warm_start_s": warm_start_seconds(done.stdout),
        "total_s": seconds,
    }


def warm_start_seconds(output: str) -> float:
    """As the run says them; 0 if the warm start was there already."""
    said = [line for line in output.splitlines() if line.startswith("warm start: done in ")]
    return float(said[0].split()[4]) if said else 0.0


def main() -> None:
    """Runs the seeds one after another and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--fresh", action="store_true", help="do not use warm starts made earlier")
    parser.add_argument("--json", type=Path, help="also write the rows here")
    args, overrides = parser.parse_known_args()
    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        if args.fresh:
            overrides.append(f"model.warm_start.cache_dir={scratch}/warm_start")
        for seed in args.seeds:
            rows.append(run_seed(seed, Path(scratch) / f"seed_{seed}", overrides))
            print(json.dumps(rows[-1]), flush=True)
    table = Table("seed", "before", "after", "95% interval", "warm start", "whole command")
    for row in rows:
        interval = f"{row['after_low']:.1%} to {row['after_high']:.1%}"
        seconds = (f"{row['warm_start_s']:.0f} s", f"{row['total_s']:.0f} s")
        table.add_row(str(row["seed"]), f"{row['before']:.1%}", f"{row['after']:.1%}", interval, *seconds)
    Console().print(table)
    if args.json:
        args.json.write_text(json.dumps(rows, indent=2))


if __name__ == "__main__":
    main()
