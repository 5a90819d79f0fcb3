r"""One way to compare answers, in a process that can be killed: `python -m bench.contender ours|math-verify`.

Both contenders are timed inside the same loop, so that neither pays for the pipe.
"""

from __future__ import annotations

import json
import os
import resource
import select
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO

DEADLINE_S = 5.0
START_S = 120.0
_MEMORY_BYTES = 4 * 2**30
Judge = Callable[[str, str, bool], bool | None]


@dataclass(frozen=True, slots=True)
class Judged:
    """What became of a pair: None as `correct` is an error; `hung` one that took `DEADLINE_S` or its process's life."""

    correct: bool | None
    seconds: float
    hung: bool = False


class Contender:
    """The parent's end of the process, which is started again whenever it is lost."""

    def __init__(self, name: str) -> None:
        """Starts nothing yet; `name` is a key of `JUDGES`."""
        self.name = name
        self._process: subprocess.Popen[bytes] | None = None

    def judge(self, pairs: Sequence[tuple[str, str, bool]]) -> list[Judged]:
        """One result per (gold, text, is a response), in order."""
        return [self._judge(*pair) for pair in pairs]

    def close(self) -> None:
        """Ends the process."""
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
            self._process = None

    def _judge(self, gold: str, text: str, is_response: bool) -> Judged:
        process = self._process = self._process or self._start()
        assert process.stdin is not None
        try:
            process.stdin.write(json.dumps([gold, text, is_response]).encode() + b"\n")
            process.stdin.flush()
            correct, seconds = json.loads(_line(process, DEADLINE_S))
            return Judged(correct, seconds)
        except (TimeoutError, OSError, ValueError):
            self.close()
            return Judged(None, DEADLINE_S, hung=True)

    def _start(self) -> subprocess.Popen[bytes]:
        process = subprocess.Popen(
            [sys.executable, "-m", "bench.contender", self.name],
            cwd=Path(__file__).resolve().parent.parent,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        try:
            _line(process, START_S)
        except (TimeoutError, OSError):
            raise RuntimeError(f"{self.name} does not start; try `python -m bench.contender {self.name}`") from None
        return process


def _line(process: subprocess.Popen[bytes], limit_s: float) -> bytes:
    stream = process.stdout
    assert stream is not None
    if not select.select([stream], [], [], limit_s)[0]:
        raise TimeoutError
    line = stream.readline()
    if not line:
        raise OSError("the process has ended")
    return line


def _ours() -> Judge:
    from grpo.reward.answers.comparison import compare
    from grpo.reward.equivalence import decide
    from grpo.reward.extraction import read_bare, read_tagged
    from grpo.reward.last_resort import compare as compare_at_last

    def judge(gold: str, text: str, is_response: bool) -> bool | None:
        answer = (read_tagged if is_response else read_bare)(text).answer
        if answer is None:
            return False
        verdict = decide(answer, gold) or compare(answer, gold) or compare_at_last(answer, gold)
        return None if verdict.is_error else verdict.correct

    return judge


def _math_verify() -> Judge:
    """math-verify with its defaults, but for its time limits: signals, which C code does not see."""
    import math_verify

    def judge(gold: str, text: str, is_response: bool) -> bool | None:
        gold_forms = math_verify.parse(f"${gold}$", parsing_timeout=0)
        forms = math_verify.parse(text if is_response else rf"\boxed{{{text}}}", parsing_timeout=0)
        return bool(math_verify.verify(gold_forms, forms, timeout_seconds=0))

    return judge


JUDGES: dict[str, Callable[[], Judge]] = {"ours": _ours, "math-verify": _math_verify}


def main() -> None:
    """Judges what comes in until there is no more."""
    output = _own_output()
    with suppress(ValueError, OSError):  # macOS has RLIMIT_AS in name only
        resource.setrlimit(resource.RLIMIT_AS, (_MEMORY_BYTES, resource.getrlimit(resource.RLIMIT_AS)[1]))
    judge = JUDGES[sys.argv[1]]()
    judge("x+1", "1+x", False)  # the first call builds parsers
    print("ready", file=output, flush=True)
    for line in sys.stdin.buffer:
        gold, text, is_response = json.loads(line)
        start = time.perf_counter()
        try:
            correct = judge(gold, text, is_response)
        except Exception:  # whatever a library does with such an answer: an error of its own
            correct = None
        print(json.dumps([correct, time.perf_counter() - start]), file=output, flush=True)


def _own_output() -> IO[str]:
    """Standard output for the results alone: what libraries print there goes nowhere."""
    output = os.fdopen(os.dup(1), "w")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    return output


if __name__ == "__main__":
    main()
