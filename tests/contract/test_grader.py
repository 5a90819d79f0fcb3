"""Contract 5: no input hangs, crashes or escapes the grader; the trainer outlives a worker's death."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest

from grpo.config import RewardConfig, RewardName
from grpo.reward.equivalence import Verdict
from grpo.reward.functions import build_grader
from grpo.reward.pool import WorkerPool
from grpo.reward.worker import MEMORY_BYTES
from grpo.types import Outcome, SampleKey

ROOT = Path(__file__).resolve().parents[2]
EASY = ("1+x", "x+1")
RIGHT = Verdict(True, "math_verify")
LONG_S = 60.0  # a deadline that no test waits for
# sympy expands the first in Python for hours; the second is one power that C computes without ever pausing.
LOST_IN_PYTHON = (r"\binom{100000000}{50000000}", "42")
LOST_IN_C = ("7^{123456789}", "42")

HOSTILE = [
    "9^{9^{9^{9}}}",
    "9^9^9^9",
    "10^10^10",
    LOST_IN_C[0],
    LOST_IN_PYTHON[0],
    r"\prod_{k=1}^{10^{9}} k",
    r"(1, 9**9**9**9)",
    "0^{-1}",
    r"\frac{1}{0}",
    r"\infty - \infty",
    "1e" + "9" * 50,
    "9" * 100_000,
    "a" * 1_000_000,
    "x_{1}+" * 20_000 + "x",
    "{" * 100 + "42" + "}" * 100,
    "{" * 100_000 + "42" + "}" * 100_000,
    r"\boxed{" * 100_000 + "42" + "}" * 100_000,
    r"\left(" * 100 + "2" + r"\right)" * 100,
    "x" + "^{x" * 300 + "}" * 300,
    r"\text{",
    r"\frac{1}",
    "4 2",
    "$",
    "^",
    "NaN",
    "\0",
    "\ud800",
    "🤖",
    "\n\n\t",
    "1 or 2 or 42",
    "__import__('os').system('touch @@CANARY@@')",
    "(open)('@@CANARY@@','w')",
    "Function('f')(open('@@CANARY@@','w'))",
    r"\write18{touch @@CANARY@@}",
]

# Takes math_verify's place in a worker, to die in ways that no answer is known to cause.
STAND_IN = """
import ctypes, os, sys, time
print("noise on stdout")
print("noise on stderr", file=sys.stderr)
time.sleep(float(os.environ.get("STAND_IN_START_S", "0")))
LatexExtractionConfig = ExprExtractionConfig = lambda: None
def parse(text, rules, parsing_timeout):
    if "segfault" in text:
        ctypes.string_at(0)
    if "exit" in text:
        os._exit(0)
    if "memory" in text:
        bytearray(64 * 2**30)
    if "raise" in text:
        raise KeyError(text)
    if "graded" in text:
        open(os.environ["STAND_IN_LOG"], "a").write(text + "\\n")
    return [1]
def verify(gold, answer, timeout_seconds, raise_on_error):
    return True
"""

# Grades what it is told to, says which processes do so, and then waits to be killed.
TRAINER = """
import json, sys, threading, time
from grpo.reward.pool import WorkerPool
case, deadline_s, ends = json.loads(sys.argv[1])
pool = WorkerPool(1, deadline_s)
pool.judge([("1+x", "x+1")])
if case:
    threading.Thread(target=pool.judge, args=([case],), daemon=True).start()
    while not pool.busy_pids:
        time.sleep(0.01)
print(json.dumps(pool.pids), flush=True)
time.sleep(0 if ends else 60)
"""


@pytest.fixture
def pool_of() -> Iterator[Callable[..., WorkerPool]]:
    """Makes pools, and closes them after the test."""
    pools: list[WorkerPool] = []

    def make(num_workers: int = 1, deadline_s: float = LONG_S) -> WorkerPool:
        pools.append(WorkerPool(num_workers, deadline_s))
        return pools[-1]

    yield make
    for pool in pools:
        pool.close()


@pytest.fixture
def stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Workers import a stand-in for math_verify; returns the file in which it logs what it grades."""
    (tmp_path / "math_verify.py").write_text(STAND_IN)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setenv("STAND_IN_LOG", str(tmp_path / "log"))
    return tmp_path / "log"


def wait_for(condition: Callable[[], object], within_s: float = 30.0) -> None:
    end = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.01)


def is_running(pid: int) -> bool:
    return psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE


def test_hostile_answers_are_wrong_or_errors_within_the_deadline(tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    answers = [answer.replace("@@CANARY@@", str(canary)) for answer in HOSTILE]
    responses = [f"</think> <answer>{answer}</answer>" for answer in answers]
    responses += [rf"</think> <answer>\boxed{{{answer}}}</answer>" for answer in answers]
    deadline_s = 1.5
    grader = build_grader(RewardConfig(name=RewardName.r1_zero, num_workers=2, deadline_s=deadline_s))
    keys = [SampleKey(0, 1, 0, sample) for sample in range(len(responses))]
    start = time.monotonic()
    grades = grader.grade(responses, ["42"] * len(responses), keys)
    took_s = time.monotonic() - start
    errors = [grade for grade in grades if grade.outcome is Outcome.grader_error]
    for answer, grade in zip(answers * 2, grades, strict=True):
        is_a_way_to_write_42 = answer.startswith("{") and len(answer) < 1000
        assert grade.answer_reward == 0 or is_a_way_to_write_42, (answer[:80], grade.reason)
        assert grade.outcome is not Outcome.format_failure, (answer[:80], grade.reason)
    assert {grade.reason for grade in errors} == {"deadline"}
    assert 4 <= len({grade.extracted for grade in errors}) <= 12  # most are decided: a flood of errors stops a run
    # Two workers share the cases that reach the deadline; each leaves a worker to start again, and the rest is quick.
    assert took_s < 10 * (deadline_s + 4)
    assert not canary.exists()
    (after,) = grader.grade(["</think> <answer>1+x</answer>"], ["x+1"], keys[:1])
    assert after.reward == 1.0
    grader.close()


def test_a_lost_worker_is_killed_at_the_deadline_and_replaced(pool_of: Callable[..., WorkerPool]) -> None:
    pool = pool_of(deadline_s=1.0)
    assert pool.judge([EASY]) == [RIGHT]
    pids = pool.pids
    start = time.monotonic()
    assert pool.judge([LOST_IN_C]) == [Verdict(False, "deadline", is_error=True)]
    assert 1.0 <= time.monotonic() - start < 3.0
    assert not is_running(pids[0])
    assert pool.judge([EASY]) == [RIGHT]
    assert pool.pids != pids


def test_a_stopped_worker_is_a_lost_one(pool_of: Callable[..., WorkerPool]) -> None:
    pool = pool_of(deadline_s=1.0)
    pool.judge([EASY])
    (stopped,) = pool.pids
    os.kill(stopped, signal.SIGSTOP)
    # The case that it got is an error, the one behind it is graded by its successor.
    assert pool.judge([EASY, ("2+x", "x+2")]) == [Verdict(False, "deadline", is_error=True), RIGHT]
    assert not is_running(stopped)


def test_a_worker_killed_between_calls_costs_nothing(pool_of: Callable[..., WorkerPool]) -> None:
    pool = pool_of(num_workers=2)
    pool.judge([EASY, ("2+x", "x+2")])
    for pid in pool.pids:
        os.kill(pid, signal.SIGKILL)
        wait_for(lambda pid=pid: not is_running(pid))
    assert pool.judge([EASY]) == [RIGHT]


def test_a_case_whose_worker_is_killed_once_is_graded_after_all(pool_of: Callable[..., WorkerPool]) -> None:
    pool = pool_of()
    pool.judge([EASY])
    (pid,) = pool.pids
    os.kill(pid, signal.SIGSTOP)  # so that it surely has the case, and surely has not answered
    with ThreadPoolExecutor() as threads:
        verdicts = threads.submit(pool.judge, [EASY])
        wait_for(lambda: pool.busy_pids == [pid])
        os.kill(pid, signal.SIGKILL)
        assert verdicts.result(timeout=30) == [RIGHT]


def test_a_case_that_costs_two_workers_is_an_error(pool_of: Callable[..., WorkerPool]) -> None:
    pool = pool_of()
    killed: list[int] = []
    with ThreadPoolExecutor() as threads:
        verdicts = threads.submit(pool.judge, [LOST_IN_PYTHON])
        for _ in range(2):
            wait_for(lambda: set(pool.busy_pids) - set(killed))
            killed.extend(pool.busy_pids)
            os.kill(killed[-1], signal.SIGKILL)
        assert verdicts.result(timeout=30) == [Verdict(False, "worker_died", is_error=True)]
    assert pool.judge([EASY]) == [RIGHT]


@pytest.mark.parametrize(
    ("answer", "reason"),
    [("segfault", "worker_died"), ("exit", "worker_died"), ("memory", "exception"), ("raise", "exception")],
)
@pytest.mark.usefixtures("stand_in")
def test_ways_to_die(pool_of: Callable[..., WorkerPool], answer: str, reason: str) -> None:
    pool = pool_of(num_workers=2)
    cases = [("a", "b"), (answer, "b"), ("c", "b")]
    assert pool.judge(cases) == [RIGHT, Verdict(False, reason, is_error=True), RIGHT]


@pytest.mark.skipif(not hasattr(psutil.Process, "rlimit"), reason="only Linux tells and enforces the limit")
def test_memory_is_limited(pool_of: Callable[..., WorkerPool]) -> None:
    pool = pool_of()
    pool.judge([EASY])
    assert 0 < psutil.Process(pool.pids[0]).rlimit(psutil.RLIMIT_AS)[0] <= MEMORY_BYTES  # -1 is no limit


@pytest.mark.usefixtures("stand_in")
def test_starting_does_not_count_against_the_deadline(
    pool_of: Callable[..., WorkerPool], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STAND_IN_START_S", "1.5")
    assert pool_of(deadline_s=0.5).judge([EASY]) == [RIGHT]


@pytest.mark.usefixtures("stand_in")
def test_workers_do_not_write_to_the_terminal(
    pool_of: Callable[..., WorkerPool], capfd: pytest.CaptureFixture[str]
) -> None:
    assert pool_of().judge([EASY]) == [RIGHT]
    assert capfd.readouterr() == ("", "")


def test_equal_cases_are_graded_once(stand_in: Path) -> None:
    grader = build_grader(RewardConfig(name=RewardName.boxed))
    keys = [SampleKey(0, 1, 0, sample) for sample in range(6)]
    answers = ["graded 1", "graded 2", "graded 1"] * 2
    grades = grader.grade([rf"so \boxed{{{answer}}}" for answer in answers], ["b"] * 6, keys)
    grader.close()
    assert [grade.reason for grade in grades] == ["math_verify"] * 6
    assert sorted(stand_in.read_text().split("\n")) == ["", r"\boxed{graded 1}", r"\boxed{graded 2}"]


@pytest.mark.parametrize(
    ("program", "told"),
    [("raise ImportError('no algebra here')", "no algebra here"), ("import os; os._exit(3)", "exit status 3")],
)
def test_workers_that_cannot_start_stop_the_run_with_the_cause(
    pool_of: Callable[..., WorkerPool], stand_in: Path, program: str, told: str
) -> None:
    (stand_in.parent / "math_verify.py").write_text(program)
    pool = pool_of(num_workers=2)
    with pytest.raises(RuntimeError, match=told):
        pool.judge([EASY])
    (stand_in.parent / "math_verify.py").write_text(STAND_IN)
    assert pool.judge([EASY]) == [RIGHT]


@pytest.mark.parametrize(
    ("case", "deadline_s", "kill"),
    [(None, LONG_S, True), (LOST_IN_PYTHON, LONG_S, True), (LOST_IN_C, 2.0, True), (None, LONG_S, False)],
    ids=["idle", "lost in Python", "lost in C", "ends by itself"],
)
def test_workers_end_with_their_parent(case: tuple[str, str] | None, deadline_s: float, kill: bool) -> None:
    arguments = json.dumps([case, deadline_s, not kill])
    command = [sys.executable, "-c", TRAINER, arguments]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as trainer:
        assert trainer.stdout is not None
        (pid,) = json.loads(trainer.stdout.readline())
        assert is_running(pid) or not kill
        if kill:
            trainer.kill()
        trainer.wait(timeout=30)
    # The watch looks every half second; what is lost in C has an alarm one second after its deadline.
    wait_for(lambda: not is_running(pid), within_s=6.0)


def test_signals_to_the_trainer_do_not_reach_the_workers(pool_of: Callable[..., WorkerPool]) -> None:
    pool = pool_of()
    pool.judge([EASY])
    (pid,) = pool.pids
    assert os.getpgid(pid) != os.getpgid(0)  # Ctrl-C goes to a process group
    for name in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1):  # and Slurm signals every process
        os.kill(pid, name)
    assert pool.judge([EASY]) == [RIGHT]
    assert pool.pids == [pid]


def test_workers_stay_warm_and_serve_any_thread(pool_of: Callable[..., WorkerPool]) -> None:
    pool = pool_of(num_workers=2)
    cases = [(f"{n}+x", f"x+{n // 2 * 2}") for n in range(8)]
    expected = [Verdict(n % 2 == 0, "math_verify") for n in range(8)]
    first = threading.Thread(target=pool.judge, args=(cases,))
    first.start()
    first.join()
    pids = pool.pids  # their maker's thread has ended, and they have not
    assert len(pids) == 2
    with ThreadPoolExecutor(4) as threads:
        assert list(threads.map(pool.judge, [cases] * 8)) == [expected] * 8
    assert pool.judge(cases) == expected
    assert pool.pids == pids


def test_an_interrupted_call_leaves_no_verdict_for_the_next(pool_of: Callable[..., WorkerPool]) -> None:
    class Interruption(BaseException):
        pass

    def interrupt(*_: object) -> None:
        raise Interruption

    pool = pool_of(num_workers=2)
    pool.judge([EASY, ("2+x", "x+2")])
    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.3)
        with pytest.raises(Interruption):
            pool.judge([LOST_IN_PYTHON, LOST_IN_C])
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    wrong = ("1-x", "x+1")
    assert pool.judge([wrong, EASY]) == [Verdict(False, "math_verify"), RIGHT]


def test_close_ends_the_workers_and_a_later_call_starts_new_ones(pool_of: Callable[..., WorkerPool]) -> None:
    pool = pool_of(num_workers=2)
    pool.judge([EASY, ("2+x", "x+2")])
    pids = pool.pids
    pool.close()
    assert pool.pids == []
    assert not any(is_running(pid) for pid in pids)
    assert pool.judge([EASY]) == [RIGHT]
