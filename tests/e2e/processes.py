"""Runs in processes of their own that start at once, for they are forked."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from types import MappingProxyType

from tests.fork_server import SERVER


def start(
    overrides: Sequence[str], log: Path, environment: Mapping[str, str] = MappingProxyType({})
) -> ForkServerProcess:
    """`python -m grpo.train` with these overrides and variables; what it prints is appended to `log`."""
    process = SERVER.Process(target=_main, args=(list(overrides), str(log), dict(environment)))
    process.start()
    return process


def run(overrides: Sequence[str], log: Path, timeout_s: float = 120) -> int:
    """The exit status of `start`."""
    process = start(overrides, log)
    process.join(timeout_s)
    assert process.exitcode is not None, f"still running after {timeout_s} s: {log.read_text()[-2000:]}"
    return process.exitcode


def wait_until(condition: Callable[[], bool], process: ForkServerProcess, timeout_s: float = 60) -> bool:
    """Whether the condition came true before the process ended."""
    end = time.monotonic() + timeout_s
    while time.monotonic() < end:
        if condition():
            return True
        if process.exitcode is not None:
            return condition()
        time.sleep(0.0005)
    raise TimeoutError(f"waited {timeout_s} s for process {process.pid}")


def _main(overrides: list[str], log: str, environment: dict[str, str]) -> None:
    os.environ.update(environment)
    descriptor = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    for stream in (1, 2):
        os.dup2(descriptor, stream)
    sys.stdout, sys.stderr = os.fdopen(1, "w"), os.fdopen(2, "w", buffering=1)
    sys.argv = ["grpo.train", *overrides]
    from grpo.train import main

    main()
