"""The child process of vLLM without vLLM: how it is started, watched, restarted and ended."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import torch

from grpo.rollout import vllm_child, vllm_process
from grpo.rollout.vllm_child_backend import ChildOptions, VllmChild
from grpo.rollout.vllm_process import ChildLostError, ChildProcess, inherited
from grpo.rollout.vllm_types import Draw, Finished, VllmError, VllmSettings, Wanted

ROOT = Path(__file__).resolve().parents[3]
FAKE = "tests.unit.rollout.fake_vllm_child"
SETTINGS = VllmSettings({}, "float32", "cpu", 128, 1, 0.5)
DRAW = Draw(1.0, 1.0, 0, 0, 9, (0,), None)
WANTED = [Wanted(place, [1] * (place + 1), 1000 + place) for place in range(12)]
StartChild = Callable[..., VllmChild]


def is_alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state not in "ZX"


def wait_until_gone(pids: Sequence[int], timeout_s: float = 20) -> None:
    end = time.monotonic() + timeout_s
    while any(map(is_alive, pids)):
        assert time.monotonic() < end, f"still there: {[pid for pid in pids if is_alive(pid)]}"
        time.sleep(0.02)


@pytest.fixture
def order(tmp_path: Path) -> Callable[[str, str], None]:
    """Tells the next child what to do."""

    def tell(name: str, moment: str) -> None:
        (tmp_path / name).write_text(moment)

    return tell


@pytest.fixture
def warnings() -> list[str]:
    return []


def options(folder: Path, **changes: Any) -> ChildOptions:
    chosen: dict[str, Any] = {
        "log": folder / "vllm.log",
        "warn": lambda text: None,
        "policy_device": torch.device("cpu"),
        "variables": {"GRPO_FAKE": str(folder), "OMP_NUM_THREADS": "1"},
        "hang_s": 4.0,
        "bucket_bytes": 100,
        "module": FAKE,
    }
    return ChildOptions(**{**chosen, **changes})


@pytest.fixture
def start(tmp_path: Path, warnings: list[str]) -> Iterator[StartChild]:
    children: list[VllmChild] = []

    def make(settings: VllmSettings = SETTINGS, **changes: Any) -> VllmChild:
        children.append(VllmChild(settings, options(tmp_path, warn=warnings.append, **changes)))
        return children[-1]

    yield make
    for child in children:
        child.close()
    wait_until_gone(pids(tmp_path))


@pytest.fixture(scope="module")
def healthy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[VllmChild, Path]]:
    """A child to which nothing happens, and its folder."""
    folder = tmp_path_factory.mktemp("healthy")
    child = VllmChild(SETTINGS, options(folder))
    yield child, folder
    child.close()
    assert len(pids(folder)) == 1
    wait_until_gone(pids(folder), 1)


def pids(folder: Path) -> list[int]:
    file = folder / "pids"
    return [int(line) for line in file.read_text().splitlines()] if file.is_file() else []


def model_of(value: float) -> torch.nn.Module:
    """110 numbers in four weights, of which the largest is larger than a bucket."""
    model = torch.nn.Sequential(torch.nn.Linear(9, 7), torch.nn.Linear(7, 5))
    for parameter in model.parameters():
        torch.nn.init.constant_(parameter, value)
    return model


def expected(value: float) -> list[Finished]:
    return [Finished(one.place, [one.seed % 251, len(one.prompt)], [110 * value, -1.0], False) for one in WANTED]


def drawn(child: VllmChild) -> list[Finished]:
    return sorted(child.generate(WANTED, DRAW))


def test_weights_arrive_whole_and_every_time(healthy: tuple[VllmChild, Path]) -> None:
    child, _ = healthy
    for value in (0.5, 0.25):
        child.load(model_of(value))
        assert drawn(child) == expected(value)
    assert list(child.generate([], DRAW)) == []


def test_weights_arrive_in_the_dtype_of_the_engine(healthy: tuple[VllmChild, Path]) -> None:
    child, _ = healthy
    child.load(model_of(0.1).to(torch.bfloat16))
    assert drawn(child) == expected(float(torch.tensor(0.1).bfloat16()))


@pytest.mark.parametrize("how", ["die", "hang", "block"])
def test_a_lost_child_is_replaced_once_and_nothing_is_drawn_twice(
    start: StartChild, order: Callable[[str, str], None], warnings: list[str], tmp_path: Path, how: str
) -> None:
    child = start()
    child.load(model_of(0.5))
    order(how, "5")
    began = time.monotonic()
    finished = list(child.generate(WANTED, DRAW))
    assert time.monotonic() - began < 60
    assert sorted(finished) == expected(0.5)
    assert [one.place for one in finished] == list(range(12))  # each once
    assert len(pids(tmp_path)) == 2
    assert not is_alive(pids(tmp_path)[0])
    what = "it died, with exit status 7" if how == "die" else "it hung: there was no progress for"
    assert warnings[0].startswith(f"vLLM's process was lost: {what}")
    assert f"{tmp_path / 'vllm.log'}, ends: told to {how} at 5)" in warnings[0]

    order("die", "3")
    with pytest.raises(
        VllmError, match=r"lost a second time: it died, with exit status 7; its log, .*told to die at 3"
    ):
        list(child.generate(WANTED, DRAW))
    assert len(pids(tmp_path)) == 2


@pytest.mark.parametrize(("how", "keep_weights"), [("die", False), ("hang", True)])
def test_a_child_lost_during_a_sync_is_replaced_with_the_new_weights(
    start: StartChild, order: Callable[[str, str], None], how: str, keep_weights: bool
) -> None:
    child = start(keep_weights=keep_weights)
    child.load(model_of(0.5))
    order(how, "load")
    child.load(model_of(0.25))
    assert drawn(child) == expected(0.25)


def test_a_child_that_computes_for_long_is_left_alone(
    start: StartChild, order: Callable[[str, str], None], warnings: list[str]
) -> None:
    """A step may take minutes on a CPU."""
    child = start()
    child.load(model_of(0.5))
    order("compute", "5")
    assert drawn(child) == expected(0.5)
    assert warnings == []


def test_a_hang_is_noticed_within_half_a_minute() -> None:
    """A sign of life may have come right after the last progress, and be read a poll later."""
    assert vllm_process.HANG_S + vllm_child.TICK_S + 2 * vllm_process._POLL_S < 30


def test_a_child_that_is_stopped_while_it_waits_is_replaced(start: StartChild) -> None:
    child = start()
    child.load(model_of(0.5))
    os.kill(child.pid, signal.SIGSTOP)
    many = [Wanted(place, [1] * 50_000, place) for place in range(12)]  # more than a socket holds
    assert len(list(child.generate(many, DRAW))) == 12


def test_kept_weights_are_those_of_the_sync(start: StartChild, order: Callable[[str, str], None]) -> None:
    child, model = start(keep_weights=True), model_of(0.5)
    child.load(model)
    for parameter in model.parameters():
        torch.nn.init.constant_(parameter, 9.0)  # the update that runs while the engine samples
    order("die", "5")
    assert drawn(child) == expected(0.5)


class Gathering:
    """A sharded model: other ranks take part in gathering each weight, and would wait for ever if this one left off."""

    def __init__(self, model: torch.nn.Module) -> None:
        self.model = model
        self.gathered: list[str] = []

    def named_parameters(self) -> Iterator[tuple[str, torch.Tensor]]:
        for name, parameter in self.model.named_parameters():
            self.gathered.append(name)
            yield name, parameter


def test_all_weights_are_gathered_once_though_the_child_is_lost(
    start: StartChild, order: Callable[[str, str], None]
) -> None:
    child, model = start(keep_weights=True), Gathering(model_of(0.25))
    order("die", "load")
    child.load(model)
    assert model.gathered == ["0.weight", "0.bias", "1.weight", "1.bias"]
    assert drawn(child) == expected(0.25)


def test_weights_that_the_child_refuses(healthy: tuple[VllmChild, Path]) -> None:
    child, folder = healthy
    (folder / "refuse").touch()
    with pytest.raises(VllmError, match=r"^told to refuse$"):
        child.load(model_of(0.5))
    (folder / "refuse").unlink()
    child.load(model_of(0.25))
    assert drawn(child) == expected(0.25)


@pytest.mark.parametrize("late_s", [0, 0.5])
def test_a_weight_that_cannot_be_read(
    healthy: tuple[VllmChild, Path], monkeypatch: pytest.MonkeyPatch, late_s: float
) -> None:
    """Also where the child answers before the trainer knows that it has been told."""
    attend = ChildProcess.attend

    def slow(self: ChildProcess, operation: Callable[[], Any], **options: Any) -> Any:
        return attend(self, lambda: (operation(), time.sleep(late_s))[0], **options)

    class Unreadable(torch.nn.Module):
        def named_parameters(self, *args: Any, **kwargs: Any) -> Any:
            yield from list(model_of(0.5).named_parameters())[:3]
            raise RuntimeError("out of memory, say")

    child, _ = healthy
    with monkeypatch.context() as patch:
        patch.setattr(ChildProcess, "attend", slow)
        with pytest.raises(RuntimeError, match="out of memory"):
            child.load(Unreadable())
    for value in (0.25, 0.5):  # nothing of the former call is taken for an answer
        child.load(model_of(value))
        assert drawn(child) == expected(value)


def test_a_caller_that_leaves_off(healthy: tuple[VllmChild, Path]) -> None:
    child, _ = healthy
    child.load(model_of(0.5))
    with closing(child.generate(WANTED, DRAW)) as finished:
        assert next(finished).place == 0
    assert drawn(child) == expected(0.5)


def test_a_call_that_was_broken_off_by_an_interrupt(
    start: StartChild, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    child = start()
    child.load(model_of(0.5))
    with monkeypatch.context() as patch:
        patch.setattr(child._child, "receive", lambda: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            drawn(child)
    assert drawn(child) == expected(0.5)  # by another child: nobody knows what the first one was at
    assert len(pids(tmp_path)) == 2


def test_a_hang_is_noticed_in_time_by_a_busy_trainer(start: StartChild, monkeypatch: pytest.MonkeyPatch) -> None:
    child = start()
    monkeypatch.setattr(vllm_process, "_LOOK_S", 0.001)
    # Other threads keep this one from running: it looks after the child ten times a second instead of a thousand times.
    monkeypatch.setattr(child._child, "_look", lambda: time.sleep(0.1))
    began = time.monotonic()
    with pytest.raises(ChildLostError, match=r"it hung: it took nothing for [4-9] s"):
        child._child.attend(lambda: time.sleep(20))
    assert time.monotonic() - began < 20


def test_closing_during_another_threads_call_restarts_nothing(
    start: StartChild, warnings: list[str], tmp_path: Path
) -> None:
    """As a second Ctrl-C does, beside rollouts that are drawn ahead."""
    child = start()
    child.load(model_of(0.5))
    many = [Wanted(place, [1], place) for place in range(3000)]
    running, failures = threading.Event(), list[Exception]()

    def work() -> None:
        try:
            for _ in child.generate(many, DRAW):
                running.set()
        except Exception as error:
            failures.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    assert running.wait(10)
    child.close()
    thread.join(10)
    assert [str(error) for error in failures] == ["vLLM was closed in the middle of a call"]
    assert warnings == []
    assert len(pids(tmp_path)) == 1


def test_two_threads_may_end_a_child_at_once(start: StartChild) -> None:
    """One closes it, and the other, whose call it was in, finds it lost."""
    child = start()._child
    connection: Any = child._connection
    close, calls = connection._close, list[int]()

    def slowly() -> None:
        calls.append(1)
        time.sleep(0.3)
        close()

    connection._close = slowly
    with ThreadPoolExecutor(2) as threads:
        for ending in [threads.submit(child.kill) for _ in range(2)]:
            ending.result()
    assert len(calls) == 1


def test_an_interrupt_while_vllm_is_built_ends_the_child_at_once(
    order: Callable[[str, str], None], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def interrupted(self: ChildProcess, *, is_start: bool = False) -> None:
        while not pids(tmp_path):
            time.sleep(0.01)
        raise KeyboardInterrupt

    order("hang", "build")
    monkeypatch.setattr(ChildProcess, "receive", interrupted)
    monkeypatch.setattr(vllm_process, "_CLOSE_S", 60.0)
    began = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        VllmChild(SETTINGS, options(tmp_path))
    assert time.monotonic() - began < 55
    wait_until_gone(pids(tmp_path), 1)


def test_a_child_of_a_rank_is_no_rank() -> None:
    """TORCHELASTIC_USE_AGENT_STORE has torch.distributed look for torchrun's store at any address, also at vLLM's."""
    ours = {"PATH": "/bin", "CUDA_VISIBLE_DEVICES": "3", "OMP_NUM_THREADS": "2"}
    ranks = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "GROUP_RANK", "MASTER_ADDR", "MASTER_PORT")
    elastic = ("TORCHELASTIC_USE_AGENT_STORE", "TORCHELASTIC_RUN_ID")
    kept = inherited({**ours, **dict.fromkeys(ranks + elastic, "1"), "PYTHONPATH": "/mine"})
    assert kept == {**ours, "PYTHONPATH": f"{ROOT}{os.pathsep}/mine"}


def test_a_child_killed_while_it_waits_is_replaced_and_outlives_the_thread_that_did_it(
    start: StartChild, tmp_path: Path
) -> None:
    child = start()
    child.load(model_of(0.5))
    os.kill(child.pid, signal.SIGKILL)
    results: list[list[Finished]] = []
    thread = threading.Thread(target=lambda: results.append(drawn(child)))
    thread.start()
    thread.join()
    time.sleep(0.3)
    assert is_alive(child.pid)
    assert results == [drawn(child)] == [expected(0.5)]
    assert len(pids(tmp_path)) == 2


def test_a_child_that_cannot_build(start: StartChild, order: Callable[[str, str], None], tmp_path: Path) -> None:
    with pytest.raises(VllmError, match=r"^told to refuse bfloat16$"):
        start(VllmSettings({}, "bfloat16", "cpu", 128, 1, 0.5))
    order("die", "build")
    with pytest.raises(
        VllmError, match=r"could not start: it died, with exit status 7; its log, .*told to die at build"
    ):
        start()
    wait_until_gone(pids(tmp_path))


def test_the_second_child_may_die_at_once(start: StartChild, order: Callable[[str, str], None]) -> None:
    child = start()
    child.load(model_of(0.5))
    order("hang", "sleep")
    order("die", "build")
    with pytest.raises(VllmError, match="lost a second time: it died, with exit status 7"):
        child.sleep()


def test_close_leaves_nothing_behind_whatever_the_child_is_doing(
    start: StartChild, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "meetings").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "meetings"))
    child = start()
    child.load(model_of(0.5))
    call = child.generate(WANTED, DRAW)
    next(call)
    child.close()
    wait_until_gone(pids(tmp_path), 1)
    assert list((tmp_path / "meetings").iterdir()) == []


PARENT = """
import sys
from pathlib import Path
from tests.unit.rollout.test_vllm_child import DRAW, SETTINGS, WANTED, VllmChild, model_of, options
child = VllmChild(SETTINGS, options(Path(sys.argv[1])))
child.load(model_of(0.5))
try:
    for _ in child.generate([one._replace(place=place) for place in range(3000) for one in WANTED[:1]], DRAW):
        print("running", flush=True)
except KeyboardInterrupt:
    alive = Path(f"/proc/{child.pid}").exists()
    child.close()
    print("alive" if alive else "gone", flush=True)
"""


@pytest.fixture
def parent(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """A trainer whose child is at work, in a process group of its own."""
    command = [sys.executable, "-c", PARENT, str(tmp_path)]
    paths = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    environment = {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1", "TMPDIR": str(tmp_path)}
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True, start_new_session=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "running\n"
    yield process
    process.kill()
    process.communicate()
    wait_until_gone(pids(tmp_path))


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere only a child that still runs sees the socket's end")
def test_a_child_that_hangs_does_not_outlive_a_parent_that_is_killed(
    parent: subprocess.Popen[str], tmp_path: Path
) -> None:
    [child] = pids(tmp_path)
    os.kill(child, signal.SIGSTOP)
    assert is_alive(child)
    parent.kill()
    wait_until_gone(pids(tmp_path), 5)


def test_the_child_does_not_outlive_a_parent_that_is_killed(parent: subprocess.Popen[str], tmp_path: Path) -> None:
    assert all(map(is_alive, pids(tmp_path)))
    parent.kill()
    wait_until_gone(pids(tmp_path), 5)


def test_the_end_of_the_socket_ends_the_child_by_itself(start: StartChild, tmp_path: Path) -> None:
    """What is left where the kernel does not see to it."""
    child = start()
    child._child._connection.close()
    wait_until_gone(pids(tmp_path), 5)


def test_ctrl_c_is_the_parents_business(parent: subprocess.Popen[str], tmp_path: Path) -> None:
    [child] = pids(tmp_path)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
        os.kill(child, number)  # as Slurm does to every process of a job
    time.sleep(0.5)
    assert is_alive(child)
    os.killpg(parent.pid, signal.SIGINT)  # as a terminal does
    rest, _ = parent.communicate(timeout=30)
    assert rest.splitlines()[-1] == "alive"
    wait_until_gone(pids(tmp_path), 1)
