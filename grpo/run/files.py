"""Files that are either whole or absent (contract 8), whatever instant the process dies at."""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

_GLANCE_S = 0.05  # far more than a report needs to see whether a folder is held, for which it must lock it for a moment

# What the writers below name their files and folders while these are not whole; nobody else's are touched.
_SIBLING = re.compile(r"\.(tmp|old)-.+-\d+")


def write_atomic(path: Path, data: bytes | str) -> None:
    """Writes a file that is seen with all of `data` or not at all.

    Args:
        path: the final name; an existing file stays as it was until the new one is on the disk.
        data: text is written as UTF-8.

    Raises:
        OSError: no room, no permission; what stood at `path` is untouched.
    """
    temporary = path.with_name(f".tmp-{path.name}-{os.getpid()}-{threading.get_ident()}")
    try:
        with open(temporary, "wb") as file:
            file.write(data.encode() if isinstance(data, str) else data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    _sync(path.parent)


@contextmanager
def replace_folder(target: Path) -> Iterator[Path]:
    """Yields a hidden folder beside `target` to write into, which becomes `target` when the block succeeds.

    Between two renames `target` may be absent for an instant; `sweep_leftovers` then brings the former one back.

    Args:
        target: the final name; a folder of that name is replaced, and stays as it was if the block raises.

    Yields:
        The folder to fill, empty.
    """
    temporary = _sibling(".tmp", target)
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        yield temporary
        _sync_tree(temporary)
        _swap_in(temporary, target)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def remove_folder(folder: Path) -> None:
    """Deletes a folder, which is whole until it is gone."""
    doomed = _sibling(".tmp", folder)
    shutil.rmtree(doomed, ignore_errors=True)
    os.rename(folder, doomed)
    shutil.rmtree(doomed)


def sweep_leftovers(folder: Path) -> None:
    """Deletes what killed writers left in `folder`, and restores a folder killed half-way through its replacement.

    For the one owner of `folder`, before anything writes there.
    """
    if not folder.is_dir():
        return
    for old in sorted(path for path in folder.glob(".old-*") if _SIBLING.fullmatch(path.name)):
        target = folder / old.name.removeprefix(".old-").rpartition("-")[0]
        if target.exists():
            shutil.rmtree(old)
        else:
            os.rename(old, target)
    for leftover in [path for path in folder.glob(".tmp-*") if _SIBLING.fullmatch(path.name)]:
        if leftover.is_dir() and not leftover.is_symlink():
            shutil.rmtree(leftover)
        else:
            leftover.unlink()
    _sync(folder)


def _lock(descriptor: int, wait: bool) -> None:
    """Raises BlockingIOError if another process has the lock, unless it waits."""
    if wait:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        return
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        time.sleep(_GLANCE_S)
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)


@contextmanager
def hold_folder(folder: Path, *, wait: bool = False) -> Iterator[None]:
    """Keeps other processes out of `folder` while the block runs; the lock ends with the process, however it ends.

    Args:
        folder: made if it does not exist.
        wait: for the process that holds it, instead of raising.

    Raises:
        ValueError: another process holds the folder.
    """
    folder.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        try:
            _lock(descriptor, wait)
        except BlockingIOError:
            raise ValueError(f"{folder} is in use by another run; wait for it, or use another output_dir") from None
        except OSError:
            pass  # a network file system without locks: as safe as it was before
        yield
    finally:
        os.close(descriptor)


def remove_empty(folder: Path) -> None:
    """Removes a folder that nothing came into, unless another process holds it."""
    with suppress(OSError, ValueError), hold_folder(folder):
        folder.rmdir()


def append_lines(path: Path, lines: Sequence[str]) -> None:
    """Appends lines, whole, in one write.

    Args:
        path: made if it does not exist.
        lines: without their newlines.

    Raises:
        OSError: no room for all of it; the part that was written is cut off again.
    """
    assert not any("\n" in line for line in lines)
    data = "".join(f"{line}\n" for line in lines).encode()
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        size = os.fstat(descriptor).st_size
        written = os.write(descriptor, data)
        if written < len(data):
            os.ftruncate(descriptor, size)
            raise OSError(f"{path}: only {written} of {len(data)} bytes could be written; make room on the disk")
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _sibling(prefix: str, target: Path) -> Path:
    return target.with_name(f"{prefix}-{target.name}-{os.getpid()}")


def _swap_in(temporary: Path, target: Path) -> None:
    """Renames `temporary` to `target`; a former target is kept aside until the new one is in place."""
    old = _sibling(".old", target)
    if target.exists():
        shutil.rmtree(old, ignore_errors=True)
        os.rename(target, old)
    try:
        os.rename(temporary, target)
    except BaseException:
        if old.exists() and not target.exists():
            os.rename(old, target)
        raise
    _sync(target.parent)
    shutil.rmtree(old, ignore_errors=True)


def _sync_tree(folder: Path) -> None:
    """Every file and every folder below `folder`, and itself, to the disk."""
    for root, _, names in os.walk(folder, topdown=False):
        for name in names:
            if not Path(root, name).is_symlink():
                _sync(Path(root, name))
        _sync(Path(root))


def _sync(path: Path) -> None:
    """Fsync of a file, or of a folder's entries."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
