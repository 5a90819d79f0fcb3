"""What a run or a sweep came to, as one self-contained page: curves, completions, settings, how to go on.

    python -m grpo.report outputs/mine                      # a run: writes outputs/mine/report.html and report.png
    python -m grpo.report outputs/sweeps/2026-11-22/10-37-09    # a sweep: points, curves in the same axes, paired tests
    python -m grpo.report outputs/mine --out mine.html      # elsewhere, with mine.png beside it
    python -m grpo.report outputs/mine --watch              # serves the page on localhost while the run goes on

The curves are printed as a table, too. A folder of which parts are torn or missing gives a report that says so.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from math import comb
from pathlib import Path

from grpo.config import ConsoleMode
from grpo.errors import user_errors
from grpo.run.console import wants_rich
from grpo.run.files import write_atomic
from grpo.run.plots import draw_curves
from grpo.run.progress import Progress, bytes_text
from grpo.run.report.completions import CompletionIndex
from grpo.run.report.curves import draw_overlaid
from grpo.run.report.page import run_page
from grpo.run.report.panels import RUN_PANELS, SWEEP_PANELS
from grpo.run.report.reading import holds_run, is_held, read_run
from grpo.run.report.server import WatchedPage, fingerprint, make_server
from grpo.run.report.sweep import MAX_COMPARED, PointPair, Sweep, compare_points, point_folders, read_sweep
from grpo.run.report.sweep_page import overlaid_runs, sweep_page
from grpo.run.report.terminal import run_table, sweep_tables
from grpo.run.table import Table

_RUN_FILES = ("config.yaml", "provenance.json", "metrics.jsonl", "completions.jsonl", "evaluations", "log.txt")


def main() -> None:
    """What `python -m grpo.report` does."""
    with user_errors():
        raise SystemExit(run(sys.argv[1:]))


def run(arguments: Sequence[str]) -> int:
    """Reports what the command line says and returns the exit status.

    Raises:
        ValueError: something a user can mend; one sentence.
    """
    args = _parse(arguments)
    folder: Path = args.folder
    is_run = _is_run(folder)
    if args.watch:
        return _watch(folder, is_run, args.port)
    page_path = args.out or folder / "report.html"
    _check_out(page_path)
    tables = (_report_run if is_run else _report_sweep)(folder, page_path)
    _print(tables)
    print(f"\n{'page':<8}{page_path}\n{'curves':<8}{page_path.with_suffix('.png')}")
    return 0


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m grpo.report", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", metavar="RUN|SWEEP", type=Path, help="the folder of a run, or of a sweep")
    parser.add_argument("--out", metavar="FILE", type=Path, help="where the page goes; default: FOLDER/report.html")
    parser.add_argument("--watch", action="store_true", help="serve it on localhost, up to date; writes nothing")
    parser.add_argument("--port", type=int, default=0, help="of --watch; default: a free one")
    args = parser.parse_args(arguments)
    if args.out and args.watch:
        parser.error("--watch writes no file; leave --out or --watch out")
    if args.port and not args.watch:
        parser.error("--port is for --watch; add it, or leave --port out")
    return args


def _is_run(folder: Path) -> bool:
    """Whether the folder is a run's; else it is a sweep's.

    Raises:
        ValueError: it is neither.
    """
    if not folder.is_dir():
        raise ValueError(f"{folder} is no folder; name a run's or a sweep's, such as those below outputs/")
    if holds_run(folder):
        return True
    if point_folders(folder):
        return False
    raise ValueError(
        f"{folder} holds no run (metrics.jsonl, config.yaml) and no sweep (folders that do); name the folder that "
        "`python -m grpo.train` printed as its run folder"
    )


def _check_out(path: Path) -> None:
    if path.suffix != ".html" or path.is_dir() or not path.parent.is_dir():
        raise ValueError(f"--out {path} is no .html file in a folder that exists; name one, such as report.html")


def _report_run(folder: Path, page_path: Path) -> list[Table]:
    record = read_run(folder)
    write_atomic(page_path, run_page(record, _index(folder)))
    panels = [panel.panel for panel in RUN_PANELS]
    draw_curves(record.metrics, page_path.with_suffix(".png"), folder.resolve().name, panels)
    return [run_table(record)]


def _index(folder: Path) -> CompletionIndex:
    """The folder's completions, read through."""
    index = CompletionIndex(folder / "completions.jsonl")
    size = index.path.stat().st_size if index.path.is_file() else 0
    progress = Progress("reading completions", size, bytes_text)
    index.update(progress.add)
    progress.finish()
    return index


def _report_sweep(folder: Path, page_path: Path) -> list[Table]:
    sweep, pairs = _read_sweep(folder)
    write_atomic(page_path, sweep_page(sweep, pairs))
    draw_overlaid(SWEEP_PANELS, overlaid_runs(sweep), page_path.with_suffix(".png"), folder.resolve().name)
    return sweep_tables(sweep, pairs)


def _read_sweep(folder: Path) -> tuple[Sweep, list[PointPair]]:
    reading = Progress("reading points", len(point_folders(folder)))
    sweep = read_sweep(folder, reading.add)
    reading.finish()
    testing = Progress("testing pairs of points", comb(min(len(sweep.points), MAX_COMPARED), 2))
    pairs = compare_points(sweep.points, testing.add)
    testing.finish()
    return sweep, pairs


def _print(tables: Sequence[Table]) -> None:
    if wants_rich(ConsoleMode.auto, sys.stdout):
        from rich.console import Console

        console = Console(highlight=False)
        for table in tables:
            console.print(table.rich())
            console.print()
    else:
        print("\n\n".join(table.plain() for table in tables))


def _watch(folder: Path, is_run: bool, port: int) -> int:
    """Serves the page until Ctrl-C."""
    page = WatchedPage(_run_builder(folder) if is_run else _sweep_builder(folder), lambda: _state(folder, is_run))
    with make_server(page, port) as server:
        print(f"report of {folder}: http://127.0.0.1:{server.server_address[1]}/  (Ctrl-C ends it)", flush=True)
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            print("\nthe report is no longer served; the run, if it goes on, is not touched", flush=True)
    return 0


def _run_builder(folder: Path) -> Callable[[str], str]:
    index = _index(folder)

    def build(version: str) -> str:
        index.update()
        return run_page(read_run(folder), index, version)

    return build


def _sweep_builder(folder: Path) -> Callable[[str], str]:
    def build(version: str) -> str:
        sweep = read_sweep(folder)
        return sweep_page(sweep, compare_points(sweep.points), version)

    return build


def _state(folder: Path, is_run: bool) -> str:
    """Changes with all that the page shows."""
    folders = [folder] if is_run else point_folders(folder)
    paths = [path / name for path in folders for name in _RUN_FILES]
    return fingerprint(paths, *(is_held(path) for path in folders))


if __name__ == "__main__":
    main()
