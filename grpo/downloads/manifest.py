"""`download.json`: what a folder was filled with, so that it is not loaded twice and nobody's work is overwritten."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from grpo.data.remote_file import RemoteFile
from grpo.run.files import write_atomic
from grpo.run.progress import Progress, bytes_text

NAME = "download.json"


@dataclass(frozen=True)
class Manifest:
    """What was loaded into a folder.

    Attributes:
        id: of the repository.
        revision: that was asked for; None is the default branch.
        commit: that it was.
        request: what else was asked for and decides which files there are.
        files: by name, at least "sha256" and "size" in bytes.
        sources: files of the repository that these were made of, with their checksums on the Hub.
    """

    id: str
    revision: str | None
    commit: str
    request: Mapping[str, Any]
    files: Mapping[str, Mapping[str, Any]]
    sources: Mapping[str, str]

    def answers(self, repo_id: str, revision: str | None, request: Mapping[str, Any]) -> bool:
        """Whether it was made for the same wish; the revision may be given as it was then, or as the commit it was."""
        return self.id == repo_id and revision in (self.revision, self.commit) and dict(self.request) == dict(request)

    def intact(self, folder: Path, names: Collection[str] | None = None) -> set[str]:
        """Which of these files, or of all, are in the folder as they were loaded."""
        entries = {name: self.files[name] for name in (self.files if names is None else names)}
        files = [RemoteFile(name, entry["size"], entry["sha256"]) for name, entry in entries.items()]
        return {file.path for file in intact_files(files, folder)}

    def write(self, folder: Path) -> None:
        """Puts it into the folder."""
        write_atomic(folder / NAME, json.dumps(asdict(self), indent=2, ensure_ascii=False) + "\n")


def read_manifest(folder: Path) -> Manifest | None:
    """The manifest of a folder, if it has one.

    Raises:
        ValueError: a file of that name is something else.
    """
    path = folder / NAME
    try:
        return Manifest(**json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        return None
    except (ValueError, TypeError) as error:
        raise ValueError(
            f"{path} is not what a download leaves ({error}); remove it, or use --output-dir DIR"
        ) from error


def intact_files(files: Sequence[RemoteFile], folder: Path) -> list[RemoteFile]:
    """Those that are in the folder, whole and unchanged; a bar shows how far checking is."""
    there = [file for file in files if (folder / file.path).exists()]
    progress = Progress("checking what is there", sum(file.size for file in there), bytes_text)
    try:
        return [file for file in there if file.is_intact(folder / file.path, progress.add)]
    finally:
        progress.finish()


def refuse_changed(names: Sequence[str], folder: Path) -> None:
    """Leaves files alone that are not what was loaded.

    Raises:
        ValueError: there are some; names the first.
    """
    if names:
        others = f" and {len(names) - 1} more" if len(names) > 1 else ""
        raise ValueError(
            f"{folder / names[0]}{others} is not what would be loaded (changed by hand, or of another revision) and is "
            "left as it is; replace it with --force, or name another folder: --output-dir DIR"
        )


def refuse_other(manifest: Manifest, repo_id: str, folder: Path) -> None:
    """Keeps two repositories out of one folder.

    Raises:
        ValueError: the folder holds another one.
    """
    if manifest.id != repo_id:
        raise ValueError(
            f"{folder} holds {manifest.id}, not {repo_id}; name another folder with --output-dir DIR, or replace what "
            "is there with --force"
        )
