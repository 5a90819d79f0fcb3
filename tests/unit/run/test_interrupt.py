import os
import signal
import threading
import time

import pytest

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
    assert signal.getsignal(number) is before


def test_the_second_signal_acts_as_ever() -> None:
    with pytest.raises(KeyboardInterrupt), Interrupt(print):  # noqa: PT012
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(1)


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
