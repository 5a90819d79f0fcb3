r"""The update and the torch engine at Qwen2.5-Math-1.5B's shape on one GPU, with random weights.

    python -m bench.gpu [--only rate update packing budget rollout] [--out bench/results/gpu.md]

Every configuration is measured in a process of its own; one that fails has its last words in its row, and the others go
on. `bench/gpu.sh` runs this, and the tests that need a GPU, on a machine that has nothing but torch and transformers.
Prints tables and writes nothing, but for --out, which is written again after every table.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from rich.console import Console

from bench.gpu_cases import FULL, QUICK
from bench.gpu_tables import Bench, budget_section, packing_section, rate_section, rollout_section, update_section
from bench.tables import Section, markdown, show
from grpo.errors import user_errors

_PACKAGES = ("torch", "transformers")

SECTIONS: dict[str, Callable[[Bench], Section]] = {
    "update": update_section,
    "rollout": rollout_section,
    "budget": budget_section,
    "packing": packing_section,
}


def measure(bench: Bench, only: Sequence[str]) -> Iterator[Section]:
    """The tables that were asked for, one after another; what matters most first."""
    if "rate" in only:
        section, rate = rate_section(bench)
        bench = replace(bench, rate=rate)
        yield section
    for name, section_of in SECTIONS.items():
        if name in only:
            yield section_of(bench)


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = ("rate", *SECTIONS)
    parser.add_argument("--only", nargs="+", choices=names, default=list(names), help="these tables")
    parser.add_argument("--device", default="cuda:0", help="of torch; default cuda:0")
    parser.add_argument("--limit-s", type=float, default=180, help="of one process; default 180")
    parser.add_argument("--quick", action="store_true", help="tiny sizes, to see that it runs; with --device cpu too")
    parser.add_argument("--out", type=Path, help="also write the tables here, as Markdown")
    return parser.parse_args()


def main() -> None:
    """Prints the tables."""
    with user_errors():
        args = parse()
        bench = Bench(QUICK if args.quick else FULL, args.device, args.limit_s)
        console = Console() if sys.stdout.isatty() else Console(width=160)
        sections: list[Section] = []
        for section in measure(bench, args.only):
            sections.append(section)
            show(console, section)
            if args.out:
                page = markdown("The update and the torch engine on a GPU", shown(args), sections, _PACKAGES)
                args.out.parent.mkdir(parents=True, exist_ok=True)
                args.out.write_text(page, encoding="utf-8")


def shown(args: argparse.Namespace) -> str:
    """How to get this page."""
    names = ["rate", *SECTIONS]
    only = "" if args.only == names else f" --only {' '.join(args.only)}"
    device = "" if args.device == "cuda:0" else f" --device {args.device}"
    return f"python -m bench.gpu{only}{device}{' --quick' if args.quick else ''}"


if __name__ == "__main__":
    main()
