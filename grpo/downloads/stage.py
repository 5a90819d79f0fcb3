"""Files of a repository on their way: named by their checksums, so that parts of two revisions never meet."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

from grpo.data.hub import Hub, Repository
from grpo.data.remote_file import RemoteFile
from grpo.run.progress import Progress, bytes_text

STAGE = ".download"  # in the folder that is being filled; goes when that is full


def fetch_all(
    hub: Hub, repository: Repository, files: Sequence[RemoteFile], stage: Path, *, again: bool = False
) -> dict[str, Path]:
    """Loads files, with a bar.

    Args:
        hub: to load from.
        repository: which holds the files.
        files: to load.
        stage: a folder; made if it does not exist. What it holds of the files is checked, and used or gone on with.
        again: load also what it holds whole.

    Returns:
        Where each file is, by its path in the repository. Its name is its checksum: equal files are one.

    Raises:
        ValueError: no room on the disk, or see `Hub.fetch`.
    """
    stage.mkdir(parents=True, exist_ok=True)
    by_oid = {file.oid: file for file in sorted(files, key=lambda file: file.size)}
    total = sum(file.size for file in by_oid.values())
    num_there = sum(min(file.size, _bytes_there(stage / oid, again)) for oid, file in by_oid.items())
    free = shutil.disk_usage(stage).free
    if total - num_there > free:
        raise ValueError(
            f"{repository.id} needs {bytes_text(total - num_there)} more, and {bytes_text(free)} are free on the disk "
            f"of {stage.parent}; make room, or name a folder on another disk: --output-dir DIR"
        )
    progress = Progress(repository.id, total, bytes_text, num_reused=num_there)
    try:
        for oid, file in by_oid.items():
            before = progress.num_done
            if again or not file.is_intact(stage / oid, progress.add):
                progress.add(before - progress.num_done)
                hub.fetch(repository, file, stage / oid, progress.add)
    finally:
        progress.finish()
    return {file.path: stage / file.oid for file in files}


def _bytes_there(target: Path, again: bool) -> int:
    places = [target.with_name(f"{target.name}.incomplete"), *([] if again else [target])]
    return max((path.stat().st_size for path in places if path.exists()), default=0)
