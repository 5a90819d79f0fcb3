"""How a sweep on this machine takes signals, and what it says of a process that has ended."""

import os
import signal
from collections.abc import Iterator

import pytest

from hydra_plugins.grpo_launchers._local import StopRequest, status_of


@pytest.fixture
def hang_up() -> Iterator[None]:
    """SIGHUP as the test leaves it is not the next one's."""
    before = signal.getsignal(signal.SIGHUP)
    yield
    signal.signal(signal.SIGHUP, before)


@pytest.mark.usefixtures("hang_up")
@pytest.mark.parametrize(("handler", "noted"), [(signal.SIG_DFL, signal.SIGHUP), (signal.SIG_IGN, None)])
def test_a_terminal_that_is_gone_stops_a_sweep_unless_nohup_started_it(
    handler: signal.Handlers, noted: signal.Signals | None
) -> None:
    signal.signal(signal.SIGHUP, handler)
    with StopRequest().listening() as stop:
        os.kill(os.getpid(), signal.SIGHUP)
    assert stop.signum == noted
    assert signal.getsignal(signal.SIGHUP) is handler


@pytest.mark.parametrize(
    ("returncode", "asked", "status"),
    [
        (0, False, "ok"),
        (0, True, "ok"),  # it was done before the signal reached it
        (130, True, "stopped"),
        (-signal.SIGTERM, True, "stopped"),
        (130, False, "exit status 130"),
        (-signal.SIGTERM, False, "killed by SIGTERM"),
        (3, True, "exit status 3"),
        (-signal.SIGKILL, True, "killed by SIGKILL"),
    ],
)
def test_how_a_process_ended_in_words(returncode: int, asked: bool, status: str) -> None:
    assert status_of(returncode, asked) == status
