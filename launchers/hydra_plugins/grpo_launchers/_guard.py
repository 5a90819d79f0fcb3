"""Runs a command, and ends it when the process that started this one is gone, however that happened.

python -I -S _guard.py <descriptor> <command> ...

The descriptor is the reading end of a pipe whose other end only the parent holds: it reads end-of-file once the parent
has died, also of `kill -9`. SIGTERM and SIGINT are passed on. Only the standard library, because one stands beside
every point of a sweep.
"""

import os
import select
import signal
import subprocess
import sys

# How long an orphan has to finish its step and save.
_GRACE_S = 30.0


def _main() -> None:
    parent, command = int(sys.argv[1]), sys.argv[2:]
    wake_up, woken = os.pipe()
    os.set_blocking(woken, False)
    signal.set_wakeup_fd(woken, warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, lambda number, frame: None)
    process: list[subprocess.Popen[bytes]] = []

    def pass_on(number: int, frame: object) -> None:
        if process:
            process[0].send_signal(number)
        else:
            os._exit(128 + number)

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, pass_on)
    process.append(subprocess.Popen(command))
    _leave_as(_wait(process[0], parent, wake_up))


def _wait(process: "subprocess.Popen[bytes]", parent: int, wake_up: int) -> int:
    """The process's return code."""
    watched = [parent, wake_up]
    while (code := process.poll()) is None:
        ready, _, _ = select.select(watched, [], [])
        if wake_up in ready:
            os.read(wake_up, 4096)
        if parent in ready:
            watched.remove(parent)
            return _end(process)
    return code


def _end(process: "subprocess.Popen[bytes]") -> int:
    process.send_signal(signal.SIGTERM)
    try:
        return process.wait(_GRACE_S)
    except subprocess.TimeoutExpired:
        os.killpg(os.getpgid(0), signal.SIGKILL)
        raise AssertionError("the signal was for this process too") from None


def _leave_as(code: int) -> None:
    """Ends as the command did, by the same signal if it was one."""
    if code < 0:
        if -code != signal.SIGKILL:
            signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    sys.exit(code)


if __name__ == "__main__":
    _main()
