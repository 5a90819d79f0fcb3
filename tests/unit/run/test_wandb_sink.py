"""Weights & Biases never stops, delays or questions a run."""

import os
import pty
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from grpo.config import WandbMode
from grpo.run.metrics import WandbSink

PROGRAM = """
import sys, time
from pathlib import Path
from grpo.config import WandbMode
from grpo.run.metrics import WandbSink
started = time.monotonic()
sink = WandbSink(WandbMode[sys.argv[1]], Path(sys.argv[2]), project="p", config={"seed": 1},
                 say=lambda text: print("SAID", text, flush=True), patience_s=3 if sys.argv[1] == "online" else 60)
print("active", sink.active, "wandb" in sys.modules, flush=True)
for step in (0, 1, 2, 1):
    sink.log({"step": step, "reward/mean": 0.5, "none": None, "text": "x"}, step)
sink.finish()
print("took", time.monotonic() - started, flush=True)
"""


@pytest.fixture
def lonely(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run's folder, on a machine without an account."""
    for name in list(os.environ):
        if name.startswith("WANDB_"):
            monkeypatch.delenv(name)
    (tmp_path / "home").mkdir()
    (tmp_path / "run").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("NETRC", str(tmp_path / "home" / ".netrc"))
    return tmp_path / "run"


def said(output: str) -> list[str]:
    return [line for line in output.splitlines() if line.startswith("SAID")]


def test_disabled_does_nothing_and_imports_nothing(lonely: Path, run_python) -> None:
    done = run_python(PROGRAM, "disabled", lonely)
    assert "active False False" in done.stdout, done.stderr
    assert said(done.stdout) == []
    assert list(lonely.iterdir()) == []


def test_no_package_is_one_line(lonely: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    notes: list[str] = []
    monkeypatch.setitem(sys.modules, "wandb", None)
    sink = WandbSink(WandbMode.online, lonely, project="p", config={}, say=notes.append)
    sink.log({"a": 1.0}, 1)
    sink.finish()
    assert not sink.active
    assert len(notes) == 1
    assert "wandb" in notes[0]
    assert "\n" not in notes[0]


def test_a_failure_in_mid_run_is_one_warning(lonely: Path) -> None:
    class Failing:
        def log(self, *_: object, **__: object) -> None:
            raise RuntimeError("the service\ndied")

    notes: list[str] = []
    sink = WandbSink(WandbMode.disabled, lonely, project="p", config={}, say=notes.append)
    sink._run = Failing()
    for step in range(3):
        sink.log({"a": 1.0}, step)
    sink.finish()
    assert notes == ["logging.wandb is off from here on, and the run goes on: the service died"]


def test_offline_writes_below_the_run_and_resumes_under_the_same_id(lonely: Path, run_python) -> None:
    pytest.importorskip("wandb")
    outputs = [run_python(PROGRAM, "offline", lonely) for _ in range(2)]
    assert all("active True" in done.stdout for done in outputs), outputs
    # Not even a warning about the step that goes back.
    assert all(done.stderr == "" for done in outputs), outputs
    run_id = (lonely / "wandb_id.txt").read_text()
    assert len(run_id) == 8
    assert {p.name.rpartition("-")[2] for p in (lonely / "wandb").glob("offline-run-*")} == {run_id}


def test_online_without_an_account_goes_on_and_never_asks_on_a_terminal(lonely: Path) -> None:
    pytest.importorskip("wandb")
    output, code = run_on_a_terminal([sys.executable, "-c", PROGRAM, "online", str(lonely)])
    assert code == 0, output
    assert "active False" in output
    assert len(said(output)) == 1
    assert "run `wandb login`, or use logging.wandb=offline" in said(output)[0]
    assert "(1)" not in output  # wandb's menu of choices


@pytest.mark.slow
def test_online_without_a_network_gives_up_soon(lonely: Path, run_python) -> None:
    pytest.importorskip("wandb")
    done = run_python(PROGRAM, "online", lonely, WANDB_API_KEY="a" * 40, WANDB_BASE_URL="http://127.0.0.1:9")
    assert "active False" in done.stdout, done.stderr
    assert len(said(done.stdout)) == 1
    assert float(done.stdout.rpartition("took ")[2]) < 30


def run_on_a_terminal(command: list[str], limit_s: float = 60) -> tuple[str, int]:
    """What a command prints on a terminal that nobody types into, and its exit status; killed at the limit."""
    root = Path(__file__).resolve().parents[3]
    ours, theirs = pty.openpty()
    environment = os.environ | {"PYTHONPATH": str(root), "TERM": "xterm"}
    process = subprocess.Popen(
        command, stdin=theirs, stdout=theirs, stderr=theirs, cwd=root, env=environment, start_new_session=True
    )
    os.close(theirs)
    output, deadline = b"", time.monotonic() + limit_s
    while time.monotonic() < deadline:
        if select.select([ours], [], [], 0.2)[0]:
            try:
                output += os.read(ours, 65536)
            except OSError:  # the other end is closed
                break
        elif process.poll() is not None:
            break
    else:
        os.killpg(process.pid, signal.SIGKILL)
    os.close(ours)
    return output.decode(errors="replace"), process.wait(10)
