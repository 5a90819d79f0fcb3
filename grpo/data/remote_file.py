"""A file that comes from elsewhere: its checksum, and what there is of it before it is whole."""

from __future__ import annotations

import fcntl
import hashlib
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

OnBytes = Callable[[int], None]

_CHUNK_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class RemoteFile:
    """A file of a repository.

    Attributes:
        path: in the repository.
        size: bytes.
        oid: what identifies its content: the SHA-256 of a large file, the git blob id (SHA-1) of a small one.
    """

    path: str
    size: int
    oid: str

    def new_digest(self) -> Any:
        """A hash that has seen nothing of the file yet, and whose end result is `oid`."""
        if len(self.oid) == 64:
            return hashlib.sha256()
        return hashlib.sha1(b"blob %d\0" % self.size, usedforsecurity=False)

    def is_intact(self, file: Path, on_bytes: OnBytes = lambda _: None) -> bool:
        """Whether `file` is there and holds this content; `on_bytes` hears of what has been read."""
        if not file.is_file() or file.stat().st_size != self.size:
            return False
        digest = self.new_digest()
        with open(file, "rb") as stream:
            while chunk := stream.read(_CHUNK_BYTES):
                digest.update(chunk)
                on_bytes(len(chunk))
        return digest.hexdigest() == self.oid


class PartialFile:
    """What there is of a file, with its running checksum.

    Attributes:
        file: what it is to become.
        num_bytes: that there are.
    """

    def __init__(self, stream: BinaryIO, file: RemoteFile, on_bytes: OnBytes) -> None:
        """Has read nothing yet.

        Args:
            stream: open for reading and appending.
            file: see the class.
            on_bytes: hears of every change of `num_bytes`.
        """
        self.file = file
        self.num_bytes = 0
        self._stream, self._on_bytes, self._digest = stream, on_bytes, file.new_digest()

    def read_back(self) -> int:
        """Takes in what earlier calls left, and returns how many bytes that is."""
        self._stream.seek(0)
        while chunk := self._stream.read(_CHUNK_BYTES):
            self._count(chunk)
        return self.num_bytes

    def append(self, chunk: bytes) -> None:
        """Writes what comes next."""
        self._stream.write(chunk)
        self._count(chunk)

    def restart(self) -> None:
        """Throws away what there is."""
        self._stream.seek(0)
        self._stream.truncate()
        self._on_bytes(-self.num_bytes)
        self.num_bytes, self._digest = 0, self.file.new_digest()

    def is_whole(self) -> bool:
        """Whether size and checksum are the file's."""
        self._stream.flush()
        return self.num_bytes == self.file.size and self._digest.hexdigest() == self.file.oid

    def _count(self, chunk: bytes) -> None:
        self._digest.update(chunk)
        self.num_bytes += len(chunk)
        self._on_bytes(len(chunk))


@contextmanager
def held(path: Path) -> Iterator[BinaryIO]:
    """Opens a partial file for one process at a time.

    Raises:
        ValueError: another process has it.
    """
    with open(path, "a+b") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(f"another process is loading {path}; wait for it, and run the command again") from None
        except OSError:
            pass  # a network file system without locks
        try:
            yield stream
        finally:
            stream.flush()
            if os.fstat(stream.fileno()).st_size == 0:
                path.unlink(missing_ok=True)
