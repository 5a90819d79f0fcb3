import os
import signal
import threading
import time
from typing import Any

import pytest

from grpo.distributed import ONE_RANK
from grpo.run.interrupt import Interrupt


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_first_signal_is_noted_and_told(number: signal.Signals) -> None:
    said: list[str] = []
    before = signal.getsignal(number)
    with Interrupt(said.append) as interrupt:
        assert (interrupt.signal, interrupt.exit_status) == (None, 0)
        os.kill(os.getpid(), number)
        for _ in range(500):
            if said:
                break
            time.sleep(0.01)
        assert interrupt.signal is number
        assert interrupt.exit_status == 128 + number
        assert said[0].startswith(f"{number.name}: this step is finished and saved, then the run ends")
    assert signal.getsignal(number) is before


def test_the_second_signal_acts_as_ever() -> None:
    with pytest.raises(KeyboardInterrupt), Interrupt(print):  # noqa: PT012
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(1)


def test_a_sigterm_that_is_sent_twice_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the first was; but one that comes later is a second one."""
    now = 100.0
    monkeypatch.setattr("grpo.run.interrupt.time.monotonic", lambda: now)
    ended: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda signum, frame: ended.append(signum))
    try:
        with Interrupt(lambda text: None) as interrupt:
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGTERM)
            now = 104.0
            os.kill(os.getpid(), signal.SIGTERM)
            assert (interrupt.signal, ended) == (signal.SIGINT, [])
            now = 106.0
            os.kill(os.getpid(), signal.SIGTERM)
            assert ended == [signal.SIGTERM]
    finally:
        signal.signal(signal.SIGTERM, before)


def test_it_lets_go_of_the_signals_when_the_block_raises() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(ValueError, match="no"), Interrupt(print):
        raise ValueError("no")
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_thread_that_may_not_handle_signals_goes_without() -> None:
    seen: list[Interrupt] = []

    def work() -> None:
        with Interrupt(print) as interrupt:
            seen.append(interrupt)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen[0].signal is None


class Heard:
    """Ranks of which the others have received these signals; one comes to this rank while it asks."""

    def __init__(self, *others: signal.Signals | None) -> None:
        self.others = others

    def gather(self, value: Any) -> list[Any]:
        heard = [value, *self.others]
        if not any(self.others):
            os.kill(os.getpid(), signal.SIGTERM)
        return heard


def _heard(*others: signal.Signals | None) -> Any:
    return Heard(*others)


def test_a_signal_to_any_rank_counts_for_all() -> None:
    interrupt = Interrupt(print)
    assert not interrupt.noted_by_any(ONE_RANK)
    assert interrupt.noted_by_any(_heard(None, signal.SIGINT))
    assert interrupt.signal is signal.SIGINT
    assert interrupt.exit_status == 130


def test_a_signal_that_comes_after_another_rank_has_told_of_it_is_no_second_one() -> None:
    with Interrupt(lambda text: None) as interrupt:
        assert interrupt.noted_by_any(_heard(signal.SIGTERM))
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.01)
        assert interrupt.signal is signal.SIGTERM


def test_a_signal_that_comes_while_all_ask_is_not_lost() -> None:
    with Interrupt(lambda text: None) as interrupt:
        assert not interrupt.noted_by_any(_heard())
        assert interrupt.noted_by_any(ONE_RANK)
        assert interrupt.signal is signal.SIGTERM
