"""vLLM in a process of its own: `python -m grpo.rollout.vllm_child FD PARENT`, which `VllmChild` starts.

It obeys commands that come over a socket and lives as long as the other end of it: a thread that does nothing but read
sees the trainer's death, and ends this process whatever vLLM is doing. On Linux the kernel does the same, even to a
process whose Python hangs.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Mapping
from multiprocessing.connection import Connection
from queue import SimpleQueue
from typing import Any

from grpo.rollout.vllm_types import VllmError

TICK_S = 1.0
_PR_SET_PDEATHSIG = 1
_NOT_OURS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)


class Link:
    """This process's end of the socket."""

    def __init__(self, connection: Connection) -> None:
        """Starts the threads that read and that say how this process gets on."""
        self._connection = connection
        self._sending = threading.Lock()
        self.commands: SimpleQueue[tuple[Any, ...]] = SimpleQueue()
        self._main = threading.main_thread().ident or 0
        self.broken_off = threading.Event()
        self.core: Any = None
        self._busy = threading.Event()
        for work in (self._read, self._tick):
            threading.Thread(target=work, daemon=True).start()

    def send(self, *message: Any) -> None:
        """Sends a message; ends the process where nobody reads it."""
        try:
            with self._sending:
                self._connection.send(message)
        except OSError:
            os._exit(0)

    def next_command(self) -> tuple[Any, ...]:
        """Waits for the next command."""
        self._busy.clear()
        command = self.commands.get()
        self._busy.set()
        return command

    def _read(self) -> None:
        try:
            while True:
                command = self._connection.recv()
                if command[0] == "break off":
                    self.broken_off.set()
                else:
                    self.broken_off.clear()
                    self.commands.put(command)
        except (EOFError, OSError):
            os._exit(0)

    def _tick(self) -> None:
        """Says, during a command, how far it has come: vLLM's steps, and on a CPU the main thread's processor time.

        A step may take minutes on a CPU, where a thread that computes uses up processor time and one that hangs does
        not. On a GPU a thread that waits for a kernel that hangs uses it up too; there only steps count.
        """
        clock = time.pthread_getcpuclockid(self._main) if hasattr(time, "pthread_getcpuclockid") else None
        while True:
            self._busy.wait()
            core = self.core
            computes = core is None or core.is_cpu
            used = time.clock_gettime(clock) if computes and clock is not None else 0.0
            self.send("tick", (core.progress if core else 0, round(used, 2)))
            time.sleep(TICK_S)


def serve(link: Link, commands: Mapping[str, Callable[..., None]]) -> None:
    """Obeys commands until "close"."""
    while True:
        name, *arguments = link.next_command()
        if name == "close":
            return
        try:
            commands[name](link, *arguments)
        except (VllmError, RuntimeError, ValueError) as error:
            import traceback

            traceback.print_exc()
            link.send("error", " ".join(str(error).split()))
        else:
            link.send("done")


def _build(link: Link, settings: Any) -> None:
    from grpo.rollout.vllm_core import VllmCore

    # Importing it registers the transfer engines.
    from grpo.rollout.vllm_transfer import GROUP

    link.core = VllmCore(settings, transfer=GROUP)


def _join(link: Link, meeting: str, backend: str) -> None:
    link.core.join({"meeting": meeting, "backend": backend})


def _load(link: Link, dtype: Any) -> None:
    def ask() -> Any:
        link.core.progress += 1
        link.send("next")
        name, *arguments = link.commands.get()
        if name != "bucket":
            raise VllmError("the trainer has broken the transfer off")
        return arguments[0]

    link.core.update({"dtype": dtype, "ask": ask})


def _generate(link: Link, wanted: Any, draw: Any) -> None:
    generator = link.core.generate(wanted, draw)
    for finished in generator:
        link.send("finished", finished)
        if link.broken_off.is_set():
            generator.close()


def _sleep(link: Link) -> None:
    link.core.sleep()


def _wake(link: Link) -> None:
    link.core.wake()


COMMANDS: Mapping[str, Callable[..., None]] = {
    "build": _build,
    "join": _join,
    "load": _load,
    "generate": _generate,
    "sleep": _sleep,
    "wake": _wake,
}


def _die_with(parent: int) -> None:
    """Has the kernel kill this process when the trainer's thread that started it ends."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(0)


def main(commands: Mapping[str, Callable[..., None]] = COMMANDS) -> None:
    """What `python -m grpo.rollout.vllm_child` does."""
    descriptor, parent = int(sys.argv[1]), int(sys.argv[2])
    _die_with(parent)
    for number in _NOT_OURS:  # signals to a whole job are the trainer's, which ends this process when it is time
        signal.signal(number, signal.SIG_IGN)
    serve(Link(Connection(descriptor)), commands)
    os._exit(0)  # without the clean-up of libraries that may hang


if __name__ == "__main__":
    main()
