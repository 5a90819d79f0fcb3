r"""A process that compares answers with math-verify: `python -m grpo.reward.worker FD PARENT_PID DEADLINE_S`.

It reads one JSON request after another from a pipe and answers each. Nothing it does may last: its parent kills it at
the deadline, and where there is no parent any more it ends by itself. Imports nothing of the trainer, so that it
starts fast and small.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from multiprocessing.connection import Connection
from typing import Any

MEMORY_BYTES = 4 * 2**30
_PARENT_CHECK_S = 0.5
_ALARM_MARGIN_S = 1.0


class UnreadableGoldError(ValueError):
    """math-verify cannot parse the gold answer, so a difference from it says nothing."""


def main() -> None:
    """Announces itself, then answers requests until the pipe closes."""
    handle, parent, deadline_s = int(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3])
    _depend_on(parent)
    _limit_resources()
    pipe = Connection(handle)
    try:
        are_equal = load_math_verify()
        are_equal("1/3", r"\frac{1}{3}")  # the first call builds math-verify's parser
    except Exception as error:
        _send(pipe, {"cannot_start": f"{type(error).__name__}: {error}"})
        return
    _send(pipe, {"ready": True})
    with suppress(EOFError, OSError):
        while True:
            request = json.loads(pipe.recv_bytes())
            # The default action of SIGALRM ends even a process that is lost in C code with no parent to kill it.
            signal.setitimer(signal.ITIMER_REAL, deadline_s + _ALARM_MARGIN_S)
            reply = _reply(are_equal, request)
            signal.setitimer(signal.ITIMER_REAL, 0)
            _send(pipe, reply)


def load_math_verify() -> Callable[[str, str], bool]:
    """Imports math-verify, which takes a second or more, and returns the comparison of an answer with a gold."""
    import math_verify

    # Its own time-outs are signals, which cannot interrupt C code; 0 turns them off.
    rules = [math_verify.LatexExtractionConfig(), math_verify.ExprExtractionConfig()]

    def are_equal(answer: str, gold: str) -> bool:
        gold_forms = math_verify.parse(f"${gold}$", rules, parsing_timeout=0)
        answer_forms = math_verify.parse(rf"\boxed{{{answer}}}", rules, parsing_timeout=0)
        equal = math_verify.verify(gold_forms, answer_forms, timeout_seconds=0, raise_on_error=True)
        if not equal and all(isinstance(form, str) for form in gold_forms):
            raise UnreadableGoldError
        return equal

    return are_equal


def _reply(are_equal: Callable[[str, str], bool], request: dict[str, str]) -> dict[str, Any]:
    try:
        return {"correct": bool(are_equal(request["answer"], request["gold"]))}
    except UnreadableGoldError:
        return {"error": "gold_unreadable"}
    except Exception:  # whatever computer algebra does with what a model wrote: counted as a grader error
        return {"error": "exception"}


def _send(pipe: Connection, message: dict[str, Any]) -> None:
    pipe.send_bytes(json.dumps(message).encode())


def _depend_on(parent: int) -> None:
    """Lives exactly as long as the parent: ignores what a terminal or scheduler sends to all, ends when it is gone.

    Not PR_SET_PDEATHSIG: that fires when the thread that started the worker ends, and any thread may grade.
    """
    for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1", "SIGUSR2"):
        signal.signal(getattr(signal, name), signal.SIG_IGN)

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(_PARENT_CHECK_S)
        os._exit(0)

    threading.Thread(target=watch, daemon=True).start()


def _limit_resources() -> None:
    for kind, limit in ((resource.RLIMIT_AS, MEMORY_BYTES), (resource.RLIMIT_CORE, 0)):
        with suppress(ValueError, OSError):  # macOS has RLIMIT_AS in name only
            _, hard = resource.getrlimit(kind)
            bound = limit if hard == resource.RLIM_INFINITY else min(limit, hard)
            resource.setrlimit(kind, (bound, bound))


if __name__ == "__main__":
    main()
