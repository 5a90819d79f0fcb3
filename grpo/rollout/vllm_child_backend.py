"""vLLM in a child process: the GPU of its own that `hardware=two_gpu` gives it, and nothing of it in the trainer.

A child that dies or hangs is restarted once, with the weights it had. The completions that it still owed are drawn
again, from the same seeds; those that had come are kept.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from grpo.rollout.vllm_group import WeightGroup
from grpo.rollout.vllm_process import HANG_S, ChildLostError, ChildProcess, Starter
from grpo.rollout.vllm_types import Draw, Finished, VllmError, VllmSettings, Wanted
from grpo.rollout.vllm_weights import BUCKET_BYTES, Bucket, buckets, contents, pack

_Packed = tuple[Bucket, Tensor]  # what is in a bucket, and its bytes


@dataclass(frozen=True)
class ChildOptions:
    """How a child is run.

    Attributes:
        log: what it prints goes here.
        warn: told when a child is restarted.
        policy_device: where the weights are that it gets.
        backend: "nccl" where policy and child have a GPU each, else "gloo", which goes through CPU memory.
        variables: of its environment.
        keep_weights: hold a copy of what was sent in CPU memory, for a restart while the policy is being changed, or
            is sharded, which one rank alone cannot gather.
        hang_s: seconds without progress after which it counts as hung.
        bucket_bytes: of weights that are sent at once.
        module: what the child runs.
    """

    log: Path
    warn: Callable[[str], None]
    policy_device: torch.device
    backend: str = "gloo"
    variables: Mapping[str, str] = field(default_factory=dict)
    keep_weights: bool = False
    hang_s: float = HANG_S
    bucket_bytes: int = BUCKET_BYTES
    module: str = "grpo.rollout.vllm_child"


class VllmChild:
    """Implements `grpo.rollout.vllm_types.Backend` over a child process. Not for several threads at once."""

    def __init__(self, settings: VllmSettings, options: ChildOptions):
        """Starts the child and waits until vLLM is built.

        Raises:
            VllmError: it cannot be.
        """
        self._settings, self._options = settings, options
        self._dtype = getattr(torch, settings.dtype)
        self._restarts_left = 1
        self._weights: Callable[[], Iterator[_Packed]] | None = None  # of the last sync, to be sent again
        self._in_call = self._closed = False
        self._starter = Starter()
        try:
            self._start()
        except BaseException as error:
            self.close()
            if isinstance(error, ChildLostError):
                raise VllmError(f"vLLM's process could not start: {error}; {self._child.end_of_log()}") from error
            raise

    @property
    def pid(self) -> int:
        """Of the child that runs now."""
        return self._child.pid

    def generate(self, wanted: Sequence[Wanted], draw: Draw) -> Generator[Finished, None, None]:
        """See `grpo.rollout.vllm_types.Backend`."""
        missing = {one.place: one for one in wanted}
        while missing:
            try:
                with closing(self._generate(list(missing.values()), draw)) as finished:
                    for one in finished:
                        del missing[one.place]
                        yield one
            except ChildLostError as lost:
                self._restart(lost)

    def load(self, model: Any) -> None:
        """See `grpo.rollout.vllm_types.Backend`."""
        self._weights = None
        keeps, kept = self._options.keep_weights, list[_Packed]()
        packed = self._kept_too(self._packed(model), kept) if keeps else self._packed(model)
        lost: ChildLostError | None = None
        try:
            self._send_weights(packed)
        except ChildLostError as error:
            lost = error
            for _ in packed if keeps else ():
                pass  # other ranks gather with this one, to the end
        self._weights = (lambda: iter(kept)) if keeps else (lambda: self._packed(model))
        if lost is not None:
            self._restart(lost)

    def sleep(self) -> None:
        """See `grpo.rollout.vllm_types.Backend`."""
        self._simple("sleep")

    def wake(self) -> None:
        """See `grpo.rollout.vllm_types.Backend`."""
        torch.cuda.empty_cache()  # what this process keeps for its next tensors the child cannot have
        self._simple("wake")

    def close(self) -> None:
        """Ends the child."""
        self._closed = True
        if hasattr(self, "_child"):
            self._child.kill() if self._in_call else self._child.close()
        self._starter.close()
        if hasattr(self, "_group"):
            self._group.leave()

    def _start(self) -> None:
        """A child with vLLM built, joined to the group that weights go over.

        Raises:
            ChildLostError, VllmError: there is none.
        """
        options = self._options
        self._in_call = True
        self._child = ChildProcess(self._starter, options.module, options.log, options.variables, options.hang_s)
        self._child.send("build", self._settings)
        self._child.receive(is_start=True)
        folder = tempfile.mkdtemp(prefix="grpo-")
        try:
            meeting = str(Path(folder, "meeting"))
            self._child.send("join", meeting, options.backend)
            self._group = self._child.attend(
                lambda: WeightGroup(meeting, rank=0, backend=options.backend, device=options.policy_device),
                is_start=True,
            )
            self._child.receive(is_start=True)
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise
        self._in_call = False

    def _restart(self, lost: ChildLostError) -> None:
        """Another child with the weights of the last sync.

        Raises:
            VllmError: it was the second to be lost, or `close` has ended it.
        """
        if self._closed:
            raise VllmError("vLLM was closed in the middle of a call") from lost
        end = self._child.end_of_log()
        self._group.leave()
        if self._restarts_left == 0:
            raise VllmError(f"vLLM's process was lost a second time: {lost}; {end}") from lost
        self._restarts_left -= 1
        self._options.warn(f"vLLM's process was lost: {lost}; it is restarted once ({end})")
        try:
            self._start()
            if self._weights is not None:
                self._send_weights(self._weights())
        except ChildLostError as again:
            end = self._child.end_of_log()
            raise VllmError(f"vLLM's process was lost a second time: {again}; {end}") from again

    def _begin(self, *command: Any) -> None:
        """Starts a command. One that was broken off half-way has left the child in the middle of something."""
        if self._in_call:
            self._child.kill()
            raise ChildLostError("its last call was broken off")
        self._in_call = True
        self._child.send(*command)

    def _generate(self, wanted: Sequence[Wanted], draw: Draw) -> Generator[Finished, None, None]:
        self._begin("generate", wanted, draw)
        try:
            while (message := self._child.receive())[0] == "finished":
                yield message[1]
        except GeneratorExit:
            with suppress(ChildLostError, VllmError):  # the next call will find out
                self._break_off()
            raise
        self._in_call = False

    def _break_off(self) -> None:
        """Has the child end what it is at, unless it is gone already."""
        if self._closed:
            return
        self._child.send("break off")
        while self._child.receive()[0] != "done":
            pass
        self._in_call = False

    def _send_weights(self, packed: Iterator[_Packed]) -> None:
        self._begin("load", self._dtype)
        try:
            for bucket, flat in packed:
                self._child.receive()  # it asks for a bucket
                self._child.send("bucket", bucket)
                self._child.attend(lambda flat=flat: self._group.send(flat))
            self._child.receive()
            self._child.send("bucket", None)
            self._child.receive()
        except VllmError:
            self._in_call = False  # the child has given the command up, and waits for another
            raise
        except (RuntimeError, ValueError):  # a weight cannot be read
            with suppress(ChildLostError):
                self._take_back()
            raise
        self._in_call = False

    def _take_back(self) -> None:
        """Has the child give up the weights that it waits for."""
        with suppress(VllmError):
            self._child.send("no bucket")
            while True:
                self._child.receive()  # up to its error
        self._in_call = False

    def _simple(self, name: str) -> None:
        try:
            self._begin(name)
            self._child.receive()
        except ChildLostError as lost:
            self._restart(lost)
            return
        self._in_call = False

    def _packed(self, model: Any) -> Iterator[_Packed]:
        """The model's weights, a bucket at a time, where the group takes them."""
        for tensors in buckets(model, self._dtype, self._options.bucket_bytes):
            yield contents(tensors), pack(tensors, self._group.device)

    @staticmethod
    def _kept_too(packed: Iterator[_Packed], kept: list[_Packed]) -> Iterator[_Packed]:
        for bucket, flat in packed:
            kept.append((bucket, flat.cpu()))
            yield bucket, flat
