"""Contract 5: no input hangs, crashes or escapes the grader; the trainer outlives a worker's death."""

import gc
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from grpo.config import RewardConfig, RewardName
from grpo.reward import pool as pool_module
from grpo.reward.equivalence import Verdict
from grpo.reward.functions import TextGrader, build_grader
from grpo.reward.pool import WorkerPool
from grpo.reward.process import WorkerProcess
from grpo.reward.verdicts import VerdictCache
from grpo.reward.worker import MEMORY_BYTES
from grpo.types import Grade, Outcome, SampleKey

ROOT = Path(__file__).resolve().parents[2]
EASY = ("1+x", "x+1")
RIGHT, WRONG = Verdict(True, "stand_in"), Verdict(False, "stand_in")
DEADLINE, DIED, CLOSED = (Verdict(False, reason, is_error=True) for reason in ("deadline", "worker_died", "closed"))
LONG_S = 60.0  # a deadline that no test waits for

HOSTILE = [
    "9^{9^{9^{9}}}",
    "9^9^9^9",
    "10^10^10",
    "7^{123456789}",
    r"\binom{100000000}{50000000}",
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

# Takes the comparisons' places in a worker, to fail in ways that no answer is known to cause.
STAND_IN = """
import ctypes, os, sys, time, types
from threading import Event

time.sleep(float(os.environ.get("STAND_IN_START_S", "0")))

def compare(answer, gold):
    print("noise on stdout", flush=True)
    print("noise on stderr", file=sys.stderr)
    from grpo.reward.equivalence import Verdict
    if "STAND_IN_LOG" in os.environ:
        open(os.environ["STAND_IN_LOG"], "a").write(answer + "\\n")
    if "undecided" in answer:
        return None
    if "segfault" in answer:
        ctypes.string_at(0)
    if "exit" in answer:
        os._exit(0)
    if "memory" in answer:
        bytearray(5 * 2**30)  # which is there, but for the limit
    if "raise" in answer:
        raise KeyError(answer)
    if "lost in Python" in answer:
        while True: pass
    if "lost in C" in answer:
        7 ** 123456789  # one power that C computes without ever pausing
    if "asleep" in answer:
        Event().wait()
    return Verdict("wrong" not in answer, "stand_in")

def load():
    end = time.process_time() + float(os.environ.get("STAND_IN_LOAD_S", "0"))
    while time.process_time() < end: pass
    if "STAND_IN_LOAD_ERROR" in os.environ:
        raise ImportError(os.environ["STAND_IN_LOAD_ERROR"])

def last_compare(answer, gold):
    from grpo.reward.equivalence import Verdict
    return compare(answer.replace("undecided", ""), gold) and Verdict(True, "last_resort")

comparison, last_resort = (types.ModuleType("grpo.reward." + name) for name in ("answers.comparison", "last_resort"))
comparison.compare, last_resort.compare, last_resort.load = compare, last_compare, load
sys.modules |= {module.__name__: module for module in (comparison, last_resort)}
"""

# Grades what it is told to, says which processes do so, and then waits to be killed, or ends.
TRAINER = """
import json, sys, time
from grpo.reward.pool import WorkerPool
answer, deadline_s, ends = json.loads(sys.argv[1])
pool = WorkerPool(1, deadline_s)
pool.judge([("1+x", "x+1")])
if answer:
    pending = [pool.submit(answer, "1") for _ in range(20)]
    while not pool.busy_pids:
        time.sleep(0.01)
print(json.dumps(pool.pids), flush=True)
time.sleep(0 if ends else 60)
"""

# Forks while its workers are up; the fork grades with workers of its own and leaves the parent's alone.
FORKING = """
import os, sys
from grpo.reward.pool import WorkerPool
pool = WorkerPool(1, 60.0)
pool.judge([("1+x", "x+1")])
(pid,) = pool.pids
child = os.fork()
if child == 0:
    assert pool.judge([("2+x", "x+1")])[0].correct
    assert pool.pids != [pid]
    sys.exit(0)
assert os.waitpid(child, 0)[1] == 0
assert pool.judge([("3+x", "x+1")])[0].correct
assert pool.pids == [pid]
"""


@pytest.fixture
def stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Workers compare by the stand-in; returns the file in which it logs the answers that it sees."""
    (tmp_path / "sitecustomize.py").write_text(STAND_IN)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setenv("STAND_IN_LOG", str(tmp_path / "log"))
    return tmp_path / "log"


@pytest.fixture
def pool_of(stand_in: Path) -> Iterator[Callable[..., WorkerPool]]:
    """Makes pools, and closes them after the test."""
    pools: list[WorkerPool] = []

    def make(num_workers: int = 1, deadline_s: float = LONG_S) -> WorkerPool:
        pools.append(WorkerPool(num_workers, deadline_s))
        return pools[-1]

    yield make
    for pool in pools:
        pool.close()


@pytest.fixture
def grader(stand_in: Path) -> Iterator[TextGrader]:
    made = build_grader(RewardConfig(name=RewardName.boxed, deadline_s=0.3))
    assert isinstance(made, TextGrader)
    yield made
    made.close()


def easy(first: int, number: int) -> list[tuple[str, str]]:
    return [(f"{first + n}+x", "x+1") for n in range(number)]


def in_box(answer: str) -> str:
    return rf"so \boxed{{{answer}}}"


def key(step: int = 1, sample: int = 0) -> SampleKey:
    return SampleKey(0, step, 0, sample)


def wait_for(condition: Callable[[], object], within_s: float = 30.0) -> None:
    end = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.01)


def is_running(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def kill_for_good(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)
    with suppress(ChildProcessError):  # the pool has noticed
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)  # until its last thread is gone, and its socket is closed


def test_hostile_answers_are_wrong_or_errors_within_the_deadline(tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    answers = [answer.replace("@@CANARY@@", str(canary)) for answer in HOSTILE]
    responses = [f"</think> <answer>{answer}</answer>" for answer in answers]
    responses += [rf"</think> <answer>\boxed{{{answer}}}</answer>" for answer in answers]
    deadline_s = 1.5
    grader = build_grader(RewardConfig(name=RewardName.r1_zero, num_workers=2, deadline_s=deadline_s))
    keys = [key(sample=sample) for sample in range(len(responses))]
    start = time.monotonic()
    grades = grader.grade(responses, ["42"] * len(responses), keys)
    took_s = time.monotonic() - start
    errors = [grade for grade in grades if grade.outcome is Outcome.grader_error]
    for answer, grade in zip(answers * 2, grades, strict=True):
        is_a_way_to_write_42 = answer.startswith("{") and len(answer) < 1000
        assert grade.answer_reward == 0 or is_a_way_to_write_42, (answer[:80], grade.reason)
        assert grade.outcome is not Outcome.format_failure, (answer[:80], grade.reason)
    assert {grade.reason for grade in errors} <= {"deadline"}
    assert len({grade.extracted for grade in errors}) <= 3  # nearly all are decided: a flood of errors stops a run
    # Two workers share the cases that reach the deadline; each leaves a worker to start again, and the rest is quick.
    assert took_s < 30 * (deadline_s + 4)
    assert not canary.exists()
    (after,) = grader.grade(["</think> <answer>1+x</answer>"], ["x+1"], keys[:1])
    assert after.reward == 1.0
    grader.close()


# --- Workers that are lost ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("answer", ["lost in Python", "lost in C", "undecided lost in C"])
def test_a_case_that_uses_up_its_processor_time_costs_its_worker(
    pool_of: Callable[..., WorkerPool], answer: str
) -> None:
    pool = pool_of(deadline_s=1.0)
    assert pool.judge([EASY]) == [RIGHT]
    pids = pool.pids
    start = time.monotonic()
    assert pool.judge([(answer, "1")]) == [DEADLINE]
    assert 1.0 <= time.monotonic() - start < 10.0  # before it is out of time on the clock
    assert not is_running(pids[0])
    assert pool.judge([EASY]) == [RIGHT]
    assert pool.pids != pids


def test_a_case_that_waits_for_ever_is_out_of_time_on_the_clock(pool_of: Callable[..., WorkerPool]) -> None:
    pool = pool_of(deadline_s=0.2)
    pool.judge([EASY])
    start = time.monotonic()
    assert pool.judge([("asleep", "1")]) == [DEADLINE]
    assert 2.0 <= time.monotonic() - start < 10.0


@pytest.mark.parametrize("length", [3, 4_000_000], ids=["read", "more than the socket holds"])
def test_a_stopped_worker_is_a_lost_one(pool_of: Callable[..., WorkerPool], length: int) -> None:
    pool = pool_of(deadline_s=0.5)
    pool.judge([EASY])
    (stopped,) = pool.pids
    os.kill(stopped, signal.SIGSTOP)
    verdicts = pool.judge([("1" * length, "1"), *easy(0, 3)])
    # The case that it was thought to be on is an error, those behind it are graded by its successor.
    assert verdicts[1:] == [RIGHT] * 3
    assert verdicts[0] == (DEADLINE if length < 1000 else RIGHT)
    assert not is_running(stopped)


@pytest.mark.parametrize(
    ("answer", "verdict", "num_tries"),
    [
        ("segfault", DIED, 2),
        ("exit", DIED, 2),
        ("memory", DIED, 2),
        ("raise", Verdict(False, "exception", is_error=True), 1),
        ("lost in C", DEADLINE, 1),
        ("lost in Python", DEADLINE, 1),
        ("undecided segfault", DIED, 2),
        ("undecided lost in C", DEADLINE, 1),
    ],
)
def test_a_bad_case_in_a_chunk_costs_only_itself(
    pool_of: Callable[..., WorkerPool], stand_in: Path, answer: str, verdict: Verdict, num_tries: int
) -> None:
    pool = pool_of(deadline_s=0.3)
    before, after = easy(0, 45), easy(100, 45)
    assert pool.judge([*before, (answer, "1"), *after]) == [*[RIGHT] * 45, verdict, *[RIGHT] * 45]
    seen = stand_in.read_text().splitlines()
    assert seen.count(answer) == num_tries
    assert [seen.count(case) for case, _ in before + after] == [1] * 90  # what was begun is not begun again


def test_a_worker_killed_between_calls_costs_nothing(pool_of: Callable[..., WorkerPool]) -> None:
    pool = pool_of(num_workers=2)
    pool.judge(easy(0, 20))
    for pid in pool.pids:
        kill_for_good(pid)
    assert pool.judge(easy(0, 3)) == [RIGHT] * 3


def test_a_case_whose_worker_is_killed_once_is_graded_after_all(pool_of: Callable[..., WorkerPool]) -> None:
    pool = pool_of()
    pool.judge([EASY])
    (pid,) = pool.pids
    os.kill(pid, signal.SIGSTOP)  # so that it surely has the cases, and surely has not answered
    verdicts = [pool.submit(*case) for case in easy(0, 30)]
    wait_for(lambda: pool.busy_pids == [pid])
    os.kill(pid, signal.SIGKILL)
    assert [verdict.result(timeout=30) for verdict in verdicts] == [RIGHT] * 30


def test_a_case_that_costs_two_workers_is_an_error(pool_of: Callable[..., WorkerPool]) -> None:
    pool = pool_of()
    pool.judge([EASY])
    killed = pool.pids  # a worker that dies between calls is not one of the two
    kill_for_good(killed[0])
    verdict = pool.submit("lost in Python", "1")
    for _ in range(2):
        wait_for(lambda: set(pool.busy_pids) - set(killed))
        killed.extend(pool.busy_pids)
        os.kill(killed[-1], signal.SIGKILL)
    assert verdict.result(timeout=30) == DIED
    assert pool.judge([EASY]) == [RIGHT]


@pytest.mark.skipif(not hasattr(psutil.Process, "rlimit"), reason="only Linux tells and enforces the limit")
def test_memory_is_limited(pool_of: Callable[..., WorkerPool]) -> None:
    pool = pool_of()
    pool.judge([EASY])
    assert 0 < psutil.Process(pool.pids[0]).rlimit(psutil.RLIMIT_AS)[0] <= MEMORY_BYTES  # -1 is no limit


# --- Starting -------------------------------------------------------------------------------------------------------


def test_starting_does_not_count_against_the_deadline(
    pool_of: Callable[..., WorkerPool], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STAND_IN_START_S", "2.5")  # on the clock a case may take 0.2 s · 10
    assert pool_of(deadline_s=0.2).judge([EASY]) == [RIGHT]


def test_loading_the_last_resort_does_not_count_either(
    pool_of: Callable[..., WorkerPool], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STAND_IN_LOAD_S", "2.5")
    verdicts = pool_of(deadline_s=0.2).judge([("undecided", "1"), EASY, ("undecided again", "1")])
    assert verdicts == [Verdict(True, "last_resort"), RIGHT, Verdict(True, "last_resort")]


def test_a_worker_has_neither_torch_nor_computer_algebra_before_it_needs_them() -> None:
    program = (
        "import sys\n"
        "from grpo.reward.worker import Judge\n"
        "Judge(None, 1.0).compare('1+x', 'x+1')\n"
        "print(sorted({'torch', 'numpy', 'sympy', 'math_verify', 'omegaconf'} & set(sys.modules)))"
    )
    output = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert output.stdout.strip() == "[]"


def test_workers_do_not_write_to_the_terminal(
    pool_of: Callable[..., WorkerPool], capfd: pytest.CaptureFixture[str]
) -> None:
    assert pool_of().judge([EASY]) == [RIGHT]
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("program", "told"),
    [
        (STAND_IN + "\ncomparison.__getattr__ = lambda name: 1 / 0\ndel comparison.compare", "ZeroDivisionError"),
        ("import os; os._exit(3)", "exit status 3"),
    ],
)
def test_workers_that_cannot_start_stop_the_run_with_the_cause(
    pool_of: Callable[..., WorkerPool], stand_in: Path, program: str, told: str
) -> None:
    site = stand_in.with_name("sitecustomize.py")
    site.write_text(program)
    pool = pool_of(num_workers=2)
    with pytest.raises(RuntimeError, match=told):
        pool.judge(easy(0, 20))
    wait_for(lambda: pool.pids == [])
    site.write_text(STAND_IN)
    assert pool.judge([EASY]) == [RIGHT]


def test_a_start_that_fails_is_tried_again(pool_of: Callable[..., WorkerPool], stand_in: Path) -> None:
    fails_twice = f"""
import os
for name in ("first", "second"):
    if not os.path.exists({str(stand_in)!r} + name):
        open({str(stand_in)!r} + name, "w").close()
        os._exit(3)
"""
    stand_in.with_name("sitecustomize.py").write_text(fails_twice + STAND_IN)
    pool = pool_of()
    assert pool.judge([EASY]) == [RIGHT]
    assert (stand_in.parent / "logsecond").exists()


def test_a_last_resort_that_cannot_be_loaded_stops_the_run_too(
    pool_of: Callable[..., WorkerPool], monkeypatch: pytest.MonkeyPatch
) -> None:
    pool = pool_of()
    monkeypatch.setenv("STAND_IN_LOAD_ERROR", "no algebra here")
    with pytest.raises(RuntimeError, match="ImportError: no algebra here; install"):
        pool.judge([("undecided", "1")])
    assert pool.judge([EASY]) == [RIGHT]


# --- Ending ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("answer", "deadline_s", "kill"),
    [
        ("", LONG_S, True),
        ("lost in Python", LONG_S, True),
        ("lost in C", 1.0, True),
        ("", LONG_S, False),
        ("lost in Python", LONG_S, False),
    ],
    ids=["idle", "lost in Python", "lost in C", "ends by itself", "ends by itself with cases pending"],
)
@pytest.mark.usefixtures("stand_in")
def test_workers_end_with_their_parent(answer: str, deadline_s: float, kill: bool) -> None:
    command = [sys.executable, "-c", TRAINER, json.dumps([answer, deadline_s, not kill])]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as trainer:
        assert trainer.stdout is not None
        (pid,) = json.loads(trainer.stdout.readline())
        assert is_running(pid) or not kill
        if kill:
            trainer.kill()
        status = trainer.wait(timeout=30)
    assert status == (-signal.SIGKILL if kill else 0)
    # The watch looks every half second; what is lost in C is ended by the kernel at its deadline.
    wait_for(lambda: not is_running(pid), within_s=15.0)


@pytest.mark.usefixtures("stand_in")
def test_a_fork_of_the_trainer_has_workers_of_its_own() -> None:
    subprocess.run([sys.executable, "-c", FORKING], cwd=ROOT, check=True, timeout=60)


def test_signals_to_the_trainer_do_not_reach_the_workers(pool_of: Callable[..., WorkerPool]) -> None:
    pool = pool_of()
    pool.judge([EASY])
    (pid,) = pool.pids
    assert os.getpgid(pid) != os.getpgid(0)  # Ctrl-C goes to a process group
    for name in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1):  # and Slurm signals every process
        os.kill(pid, name)
    assert pool.judge([EASY]) == [RIGHT]
    assert pool.pids == [pid]


def test_close_ends_the_workers_and_a_later_call_starts_new_ones(pool_of: Callable[..., WorkerPool]) -> None:
    pool = pool_of(num_workers=2)
    pool.judge(easy(0, 20))
    pids = pool.pids
    pool.close()
    assert pool.pids == []
    assert not any(is_running(pid) for pid in pids)
    assert pool.judge([EASY]) == [RIGHT]


def test_close_settles_what_is_pending(pool_of: Callable[..., WorkerPool]) -> None:
    pool = pool_of()
    verdicts = [pool.submit(f"lost in Python {n}", "1") for n in range(50)]
    wait_for(lambda: pool.busy_pids)
    pool.close()
    assert [verdict.result(timeout=10) for verdict in verdicts] == [CLOSED] * 50


@pytest.mark.parametrize("pause_s", [0.0, 1.0], ids=["known to the pool", "not yet known to it"])
def test_a_close_while_a_worker_starts_ends_it(
    pool_of: Callable[..., WorkerPool], monkeypatch: pytest.MonkeyPatch, pause_s: float
) -> None:
    started: list[int] = []

    class SlowlyBorn(WorkerProcess):
        def __init__(self, deadline_s: float) -> None:
            super().__init__(deadline_s)
            started.append(self.pid)
            time.sleep(pause_s)

    monkeypatch.setenv("STAND_IN_START_S", "60")
    monkeypatch.setattr(pool_module, "WorkerProcess", SlowlyBorn)
    pool = pool_of()
    verdict = pool.submit(*EASY)
    wait_for(lambda: started if pause_s else pool.pids)
    pool.close()
    assert verdict.result(timeout=10) == CLOSED
    wait_for(lambda: not is_running(started[0]), within_s=10.0)


@pytest.mark.usefixtures("stand_in")
def test_a_pool_that_nobody_holds_leaves_no_process() -> None:
    pool = WorkerPool(1, LONG_S)
    pool.judge([EASY])
    (pid,) = pool.pids
    del pool
    gc.collect()
    assert not is_running(pid)


# --- Threads --------------------------------------------------------------------------------------------------------


def test_workers_stay_warm_and_serve_any_thread(pool_of: Callable[..., WorkerPool]) -> None:
    pool = pool_of(num_workers=2)
    first = threading.Thread(target=pool.judge, args=(easy(0, 40),))
    first.start()
    first.join()
    wait_for(lambda: pool.judge(easy(0, 40)) and len(pool.pids) == 2)  # on a busy machine one may do them all at first
    pids = pool.pids  # their first user's thread has ended, and they have not
    answers = [[f"{thread}+{n}" + " wrong" * (n * thread % 3 == 0) for n in range(60)] for thread in range(8)]
    with ThreadPoolExecutor(8) as threads:
        cases = [[(answer, "1") for answer in one] for one in answers]
        verdicts = list(threads.map(pool.judge, cases))
    assert verdicts == [[WRONG if "wrong" in answer else RIGHT for answer in one] for one in answers]
    assert pool.pids == pids


def test_one_case_needs_one_process(pool_of: Callable[..., WorkerPool]) -> None:
    pool = pool_of(num_workers=4)
    assert pool.pids == []
    for _ in range(5):
        pool.judge([EASY])
        wait_for(lambda: pool._crew is not None and pool._crew._num_idle == 1)  # its thread waits for more
    assert len(pool.pids) == 1


def test_verdicts_come_as_they_are_found(pool_of: Callable[..., WorkerPool]) -> None:
    pool = pool_of(num_workers=2)
    slow = pool.submit("asleep", "1")
    wait_for(lambda: pool.busy_pids)
    assert pool.judge(easy(0, 40)) == [RIGHT] * 40
    assert not slow.done()
    assert not slow.cancel()  # others may wait for it too


def test_what_a_callback_does_is_not_the_pools_concern(pool_of: Callable[..., WorkerPool]) -> None:
    pool = pool_of()
    more: list[Future[Verdict]] = []
    waits: list[bool] = []

    def callback(_: Future[Verdict]) -> None:
        other = threading.Thread(target=lambda: more.append(pool.submit(*EASY)))
        other.start()
        other.join(timeout=10)
        waits.append(other.is_alive())
        raise KeyError

    pool.submit("asked first", "1").add_done_callback(callback)
    wait_for(lambda: waits)
    assert waits == [False]
    assert more[0].result(timeout=30) == RIGHT


def test_an_interrupted_call_leaves_no_verdict_for_the_next(pool_of: Callable[..., WorkerPool]) -> None:
    class Interruption(BaseException):
        pass

    def interrupt(*_: object) -> None:
        raise Interruption

    pool = pool_of(num_workers=2, deadline_s=1.0)
    pool.judge(easy(0, 20))
    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.3)
        with pytest.raises(Interruption):
            pool.judge([("lost in Python", "1"), ("lost in C", "1")])
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert pool.judge([("wrong", "1"), EASY]) == [WRONG, RIGHT]


# --- What a grader asks ---------------------------------------------------------------------------------------------


def test_equal_cases_are_compared_once(grader: TextGrader, stand_in: Path) -> None:
    answers = ["x+1", "x+2", "x+1"] * 2
    for step in range(2):
        keys = [key(step, sample) for sample in range(6)]
        pending = [grader.submit(in_box(answer), "b", key) for answer, key in zip(answers, keys, strict=True)]
        grades = grader.grade([in_box(answer) for answer in answers], ["b"] * 6, keys)
        assert [grade.result() for grade in pending] == grades
        assert [grade.reason for grade in grades] == ["stand_in"] * 6
    assert sorted(stand_in.read_text().splitlines()) == ["x+1", "x+2"]


def test_an_error_is_kept_for_its_step_and_no_longer(grader: TextGrader, stand_in: Path) -> None:
    expected = Grade(0.0, 0.0, 0.0, Outcome.grader_error, "exception", "raise")
    for step in (1, 1, 2, 2, 2):
        assert grader.submit(in_box("raise"), "b", key(step)).result() == expected
    assert stand_in.read_text().splitlines() == ["raise"] * 2


def test_a_grade_is_waited_for_only_where_it_is_asked_for(grader: TextGrader) -> None:
    start = time.monotonic()
    slow = grader.submit(in_box("asleep"), "b", key())
    plain = grader.submit(in_box("43"), "42", key())
    assert plain.result() == Grade(0.0, 1.0, 0.0, Outcome.graded, "number", "43")
    assert time.monotonic() - start < 2.0  # the slow one takes 0.3 s · 10
    assert slow.result().reason == "deadline"


def test_the_cases_that_were_asked_for_last_are_kept(pool_of: Callable[..., WorkerPool], stand_in: Path) -> None:
    cache = VerdictCache(pool_of(), capacity=2)
    for answer in ("a", "b", "a", "c", "a", "b"):
        assert cache.submit(answer, "1", step=1).result() == RIGHT
    assert stand_in.read_text().split() == ["a", "b", "c", "b"]


def test_a_closed_grader_has_no_verdict_to_come(grader: TextGrader) -> None:
    for sample in range(20):
        grader.submit(in_box(f"asleep {sample}"), "b", key())
    pending = grader.submit(in_box("x+1"), "b", key())
    wait_for(lambda: grader.pool.busy_pids)
    grader.close()
    assert pending.result().reason == "closed"
    assert grader.submit(in_box("x+1"), "b", key()).result().reward == 1.0
