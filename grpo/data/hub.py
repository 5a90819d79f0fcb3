"""Repositories of the Hugging Face Hub: what one holds, and its files, resumed where they broke off and checked.

huggingface_hub 2 begins a file again when a process was ended in the middle of it, and compares sizes only. Here what
has come stays beside the target as `<name>.incomplete`, is gone on with by the next call, and becomes the target when
its checksum is the one that the Hub lists.
"""

from __future__ import annotations

import errno
import json
import os
import re
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from grpo.data.remote_file import OnBytes, PartialFile, RemoteFile, held

Kind = Literal["model", "dataset"]

_TIMEOUT_S = 20.0  # without a byte
_MAX_FAILURES = 5  # in a row, without a byte between them
_WAIT_S = 1.0  # after the first failure; twice as long after each further one
_PASSING_STATUS = {408, 429, 500, 502, 503, 504}
_ENDPOINT = "https://huggingface.co"


@dataclass(frozen=True, slots=True)
class Repository:
    """What a repository held at one commit.

    Attributes:
        revision: the branch, tag or commit that was asked for; None is the default branch.
        commit: its full id.
    """

    kind: Kind
    id: str
    revision: str | None
    commit: str
    files: tuple[RemoteFile, ...]


@dataclass(frozen=True)
class Hub:
    """The Hub that HF_ENDPOINT names.

    Attributes:
        token: None is HF_TOKEN, or the one of `hf auth login`. It is sent to the Hub and told to nobody else.
    """

    token: str | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        for name, token in (("--token", self.token), ("HF_TOKEN", os.environ.get("HF_TOKEN", "").strip() or None)):
            if token is not None and not re.fullmatch(r"[!-~]+", token):  # an HTTP client would print it
                raise ValueError(f"{name} is empty, or holds what no token has; give it as the Hub shows it")

    @property
    def endpoint(self) -> str:
        """Without a slash at its end."""
        return (os.environ.get("HF_ENDPOINT") or _ENDPOINT).rstrip("/")

    def look_up(self, kind: Kind, repo_id: str, revision: str | None) -> Repository:
        """The files of a repository at a revision, without loading any.

        Raises:
            ValueError: no connection, no such repository, no access; one sentence.
        """
        from huggingface_hub import HfApi

        api = HfApi(endpoint=self.endpoint, token=self.token)
        ask: Any = api.model_info if kind == "model" else api.dataset_info
        with self.errors(kind, repo_id, revision):
            try:
                info = ask(repo_id, revision=revision, timeout=_TIMEOUT_S, files_metadata=True)
            except (json.JSONDecodeError, KeyError) as error:
                raise ValueError(
                    f"{self.endpoint} does not answer as the Hub does; check HF_ENDPOINT and the proxies on the way"
                ) from error
        files = tuple(_remote_file(sibling, repo_id) for sibling in info.siblings or ())
        if info.sha is None or not files:
            raise ValueError(f"{repo_id} holds no files at {revision or 'its default branch'}; name another revision")
        return Repository(kind, repo_id, revision, info.sha, files)

    def fetch(self, repository: Repository, file: RemoteFile, target: Path, on_bytes: OnBytes) -> None:
        """Loads a file; `target` has all of it afterwards, and is not touched before.

        Args:
            repository: which holds it.
            file: what to load.
            target: in a folder that exists.
            on_bytes: hears how many bytes are there more than before; fewer, if some had to be thrown away.

        Raises:
            ValueError: no connection, no access, another process is at it, or another content; one sentence.
            OSError: no room on the disk; what has come is kept.
        """
        from huggingface_hub import hf_hub_url

        url = hf_hub_url(
            repository.id,
            file.path,
            repo_type=repository.kind,
            revision=repository.commit,
            endpoint=self.endpoint,
        )
        partial_path = target.with_name(f"{target.name}.incomplete")
        with self.errors(repository.kind, repository.id, repository.revision), held(partial_path) as stream:
            partial = PartialFile(stream, file, on_bytes)
            num_resumed = partial.read_back()
            self._receive(url, partial)
            if num_resumed and not partial.is_whole():  # perhaps it is the old part that is broken
                partial.restart()
                self._receive(url, partial)
            if not partial.is_whole():
                partial.restart()
                raise ValueError(
                    f"{file.path} of {repository.id} came with another checksum than the Hub lists, and was thrown "
                    "away; run the command again, and if that does not help look for a proxy that changes files"
                )
            os.fsync(stream.fileno())
            os.replace(partial_path, target)

    def _receive(self, url: str, partial: PartialFile) -> None:
        """Appends what is missing. A connection that breaks is taken up again where it broke."""
        from huggingface_hub.errors import HfHubHTTPError
        from huggingface_hub.errors import HTTPError as TransportError  # pyright: ignore[reportPrivateImportUsage]

        num_failures = 0
        while partial.num_bytes < partial.file.size:
            before = partial.num_bytes
            try:
                self._receive_once(url, partial)
                error: Exception = ValueError(f"{url} ended too soon")
            except HfHubHTTPError as failure:
                error = failure
                if failure.response.status_code == 416:
                    partial.restart()
                elif failure.response.status_code not in _PASSING_STATUS:
                    raise
            except TransportError as failure:
                error = failure
            num_failures = 1 if partial.num_bytes > before else num_failures + 1
            if partial.num_bytes < partial.file.size:
                if num_failures >= _MAX_FAILURES:
                    raise error
                time.sleep(_WAIT_S * 2 ** (num_failures - 1))

    def _receive_once(self, url: str, partial: PartialFile) -> None:
        from huggingface_hub import get_session
        from huggingface_hub.utils import build_hf_headers, hf_raise_for_status

        # Compressed on the way, a part would have no place in the whole.
        headers = build_hf_headers(token=self.token) | {"Accept-Encoding": "identity"}
        if partial.num_bytes:
            headers["Range"] = f"bytes={partial.num_bytes}-"
        with get_session().stream("GET", url, headers=headers, timeout=_TIMEOUT_S) as response:
            hf_raise_for_status(response)
            if partial.num_bytes and response.status_code != 206:
                partial.restart()  # the whole file comes, whatever was asked for
            for chunk in response.iter_bytes():  # as they come: what waits for a full chunk is lost with the connection
                partial.append(chunk)

    @contextmanager
    def errors(self, kind: Kind, repo_id: str, revision: str | None) -> Iterator[None]:
        """Says in a sentence what the Hub, or the lack of it, means for the user.

        Raises:
            ValueError: instead of what huggingface_hub and its HTTP client raise in the block.
        """
        from huggingface_hub.errors import HfHubHTTPError, HFValidationError, OfflineModeIsEnabled
        from huggingface_hub.errors import HTTPError as TransportError  # pyright: ignore[reportPrivateImportUsage]

        try:
            yield
        except OfflineModeIsEnabled as error:
            raise ValueError(
                f"{repo_id} cannot be loaded, because HF_HUB_OFFLINE or TRANSFORMERS_OFFLINE is set; unset it, or "
                "copy the files from a machine that has them"
            ) from error
        except HFValidationError as error:
            raise ValueError(f"{repo_id!r} is no name that the Hub can have; write <owner>/<name>") from error
        except HfHubHTTPError as error:
            raise ValueError(self._refusal(error, kind, repo_id, revision)) from error
        except TransportError as error:
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise ValueError(
                f"no connection to {self.endpoint} for {repo_id} ({reason}); check the network, a proxy and "
                "HF_ENDPOINT, and run the same command again: what has come is kept"
            ) from error
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            raise ValueError(
                f"there is no room for {repo_id} on the disk ({error.strerror}); make room and run the same command "
                "again, which goes on with what has come, or name another folder: --output-dir DIR"
            ) from error

    def _refusal(self, error: Any, kind: Kind, repo_id: str, revision: str | None) -> str:
        from huggingface_hub.errors import (
            DisabledRepoError,
            GatedRepoError,
            RepositoryNotFoundError,
            RevisionNotFoundError,
        )

        page = f"{self.endpoint}/{'datasets/' if kind == 'dataset' else ''}{repo_id}"
        status = error.response.status_code
        if isinstance(error, GatedRepoError):
            return f"{repo_id} is gated; accept its terms at {page} and give a token of that account: HF_TOKEN=..."
        if isinstance(error, DisabledRepoError):
            return f"{repo_id} was disabled on the Hub; name another {kind}: --id <owner>/<name>"
        if isinstance(error, RevisionNotFoundError):
            return f"{repo_id} has no revision {revision!r}; use a branch, a tag or a commit of {page}/commits/main"
        if isinstance(error, RepositoryNotFoundError):
            return (
                f"there is no {kind} {repo_id} on the Hub, or it is private; check the name at {page}, and for a "
                "private one give a token that may read it: HF_TOKEN=..."
            )
        if status in (401, 403):
            return (
                f"the Hub does not let this token read {repo_id} (status {status}); make one with read access at "
                f"{self.endpoint}/settings/tokens, or unset HF_TOKEN for what is public"
            )
        return f"the Hub answered {status} for {repo_id}; run the same command again later: what has come is kept"


def matching(files: Sequence[RemoteFile], include: Sequence[str] | None, exclude: Sequence[str]) -> list[RemoteFile]:
    """The files whose path matches one of `include` (None: any) and none of `exclude`; patterns as in a shell."""
    from huggingface_hub.utils import filter_repo_objects

    allowed = None if include is None else list(include)
    kept = filter_repo_objects(files, allow_patterns=allowed, ignore_patterns=list(exclude), key=lambda file: file.path)
    return list(kept)


def _remote_file(sibling: Any, repo_id: str) -> RemoteFile:
    """A file as the Hub lists it.

    Raises:
        ValueError: a path that leads out of the folder that it is to go into, or no checksum.
    """
    path = PurePosixPath(sibling.rfilename)
    if path.is_absolute() or ".." in path.parts:
        raise ValueError(f"{repo_id} holds a file called {sibling.rfilename!r}, which leads elsewhere; do not use it")
    size, oid = (sibling.lfs.size, sibling.lfs.sha256) if sibling.lfs else (sibling.size, sibling.blob_id)
    if size is None or not re.fullmatch(r"[0-9a-f]{40}|[0-9a-f]{64}", oid or ""):
        raise ValueError(f"the Hub lists no checksum for {path} of {repo_id}; check HF_ENDPOINT")
    return RemoteFile(sibling.rfilename, size, oid)
