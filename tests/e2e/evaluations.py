"""Evaluations in processes of their own, forked from the server of all tests."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from multiprocessing.context import ForkServerProcess
from pathlib import Path

from tests.fork_server import SERVER


def start(overrides: Sequence[str], log: Path) -> ForkServerProcess:
    """`python -m grpo.evaluate` with these overrides; what it prints is appended to `log`."""
    process = SERVER.Process(target=_main, args=(list(overrides), str(log)))
    process.start()
    return process


def _main(overrides: list[str], log: str) -> None:
    descriptor = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    for stream in (1, 2):
        os.dup2(descriptor, stream)
    sys.stdout, sys.stderr = os.fdopen(1, "w"), os.fdopen(2, "w", buffering=1)
    sys.argv = ["grpo.evaluate", *overrides]
    from grpo.evaluate import main

    main()
