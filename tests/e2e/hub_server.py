"""A small Hub on this machine: the endpoints that huggingface_hub uses, and faults on demand.

Large files ("lfs") are redirected to another host name, as the Hub redirects them to where they are stored.
"""

from __future__ import annotations

import hashlib
import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit


@dataclass
class Repo:
    """A repository: by commit, the content of each path. The last commit is `main`."""

    commits: dict[str, dict[str, bytes]]
    token: str | None = None  # that may read it; None lets everybody
    gated: bool = False

    def resolve(self, revision: str) -> str | None:
        """The commit of a revision."""
        if revision == "main":
            return list(self.commits)[-1]
        return revision if revision in self.commits else None


@dataclass
class Request:
    method: str
    path: str
    range: str | None
    authorization: str | None
    encoding: str | None


@dataclass
class Hub:
    """The server's repositories, faults and memory.

    Attributes:
        cuts: by path, after how many bytes of each answer in turn the connection is cut.
        statuses: by path, with which status each request in turn is refused; also of the API ("api").
        stop_at: by path, at how many bytes the server waits for `go_on`, so that a test can act in the middle.
        lies: by path, what is sent instead of the content.
        ranges: False ignores Range headers.
        sent: by path, how many bytes of content were sent.
    """

    repos: dict[tuple[str, str], Repo] = field(default_factory=dict)
    cuts: dict[str, list[int]] = field(default_factory=dict)
    statuses: dict[str, list[int]] = field(default_factory=dict)
    stop_at: dict[str, int] = field(default_factory=dict)
    lies: dict[str, bytes] = field(default_factory=dict)
    ranges: bool = True
    go_on: threading.Event = field(default_factory=threading.Event)
    requests: list[Request] = field(default_factory=list)
    sent: dict[str, int] = field(default_factory=dict)
    known_tokens: set[str] = field(default_factory=set)
    lfs_bytes: int = 2000
    url: str = ""

    def content_requests(self) -> list[Request]:
        """Those for the content of files."""
        return [request for request in self.requests if request.method == "GET" and "/api/" not in request.path]


def blob_id(content: bytes) -> str:
    """What git calls the content."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


@contextmanager
def serve() -> Iterator[Hub]:
    """A Hub that runs while the block does."""
    hub = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": hub}))
    server.daemon_threads = True
    hub.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        hub.go_on.set()
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self._answer(with_body=True)

    def do_HEAD(self) -> None:
        self._answer(with_body=False)

    def log_message(self, *_: object) -> None:
        """Says nothing."""

    def _answer(self, with_body: bool) -> None:
        authorization = self.headers.get("Authorization")
        encoding = self.headers.get("Accept-Encoding")
        self.hub.requests.append(Request(self.command, self.path, self.headers.get("Range"), authorization, encoding))
        split = urlsplit(self.path)
        parts = [unquote(part) for part in split.path.strip("/").split("/")]
        if parts[0] == "api":
            self._api(parts[1].removesuffix("s"), "/".join(parts[2:4]), parts[4:], parse_qs(split.query))
        elif parts[0] == "cdn":
            content = self._repo_content("/".join(parts[2:]), parts[1])
            self._send_content("/".join(parts[2:]), content, {"ETag": f'"{parts[1]}"'}, with_body)
        else:
            kind = "dataset" if parts[0] == "datasets" else "model"
            parts = parts[1:] if kind == "dataset" else parts
            self._resolve(kind, "/".join(parts[:2]), parts[3], "/".join(parts[4:]), with_body)

    def _repo_content(self, path: str, oid: str) -> bytes:
        for repo in self.hub.repos.values():
            for files in repo.commits.values():
                if path in files and hashlib.sha256(files[path]).hexdigest() == oid:
                    return files[path]
        raise KeyError(path)

    def _may_read(self, kind: str, repo_id: str) -> Repo | None:
        """The repository, or None after a refusal was sent, in the Hub's words."""
        token = (self.headers.get("Authorization") or "").removeprefix("Bearer ") or None
        repo = self.hub.repos.get((kind, repo_id))
        if token is not None and token not in self.hub.known_tokens:
            return self._refuse(401, "", "Invalid credentials in Authorization header")
        if repo is None or (repo.token is not None and repo.token != token and not repo.gated):
            code = 401 if token is None else 404
            return self._refuse(code, "RepoNotFound", "Repository not found")
        if repo.gated and repo.token != token:
            return self._refuse(403 if token else 401, "GatedRepo", "Access to this model is restricted.")
        return repo

    def _api(self, kind: str, repo_id: str, rest: list[str], query: dict[str, list[str]]) -> None:
        if self.hub.statuses.get("api"):
            self._refuse(self.hub.statuses["api"].pop(0), "", "")
            return
        repo = self._may_read(kind, repo_id)
        if repo is None:
            return
        commit = repo.resolve(rest[1] if rest else "main")
        if commit is None:
            self._refuse(404, "RevisionNotFound", f"Invalid rev id: {rest[1]}")
            return
        files = repo.commits[commit]
        if rest and rest[0] == "tree":
            self._send_json([{"type": "file", "path": path, **self._entry(path, files[path])} for path in files])
            return
        siblings = [{"rfilename": path} for path in files]
        if "blobs" in query:
            siblings = [{"rfilename": path, **self._sibling(files[path])} for path in files]
        self._send_json({"_id": "1", "id": repo_id, "sha": commit, "siblings": siblings, "private": False, "tags": []})

    def _sibling(self, content: bytes) -> dict[str, object]:
        entry: dict[str, object] = {"size": len(content), "blobId": blob_id(content)}
        if len(content) >= self.hub.lfs_bytes:
            sha256 = hashlib.sha256(content).hexdigest()
            entry["blobId"] = blob_id(sha256.encode())
            entry["lfs"] = {"sha256": sha256, "size": len(content), "pointerSize": 130}
        return entry

    def _entry(self, path: str, content: bytes) -> dict[str, object]:
        entry = self._sibling(content)
        entry["oid"] = entry.pop("blobId")
        if "lfs" in entry:
            entry["lfs"] = {"oid": entry["lfs"]["sha256"], "size": len(content), "pointerSize": 130}  # type: ignore[index]
        return entry

    def _resolve(self, kind: str, repo_id: str, revision: str, path: str, with_body: bool) -> None:
        repo = self._may_read(kind, repo_id)
        if repo is None:
            return
        commit = repo.resolve(revision)
        if commit is None or path not in repo.commits[commit]:
            self._refuse(404, "EntryNotFound" if commit else "RevisionNotFound", "not found")
            return
        content = repo.commits[commit][path]
        if len(content) < self.hub.lfs_bytes:
            headers = {"ETag": f'"{blob_id(content)}"', "X-Repo-Commit": commit}
            self._send_content(path, content, headers, with_body)
            return
        oid = hashlib.sha256(content).hexdigest()
        self.send_response(302)
        self.send_header("Location", f"http://localhost:{self.server.server_port}/cdn/{oid}/{path}")  # type: ignore
        self.send_header("X-Linked-Etag", f'"{oid}"')
        self.send_header("X-Linked-Size", str(len(content)))
        self.send_header("X-Repo-Commit", commit)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def _send_content(self, path: str, content: bytes, headers: dict[str, str], with_body: bool) -> None:
        hub = self.hub
        if with_body and hub.statuses.get(path):
            self._refuse(hub.statuses[path].pop(0), "", "")
            return
        content = hub.lies.get(path, content)
        wanted = self.headers.get("Range") if hub.ranges else None
        start = int(wanted.removeprefix("bytes=").removesuffix("-")) if wanted else 0
        self.send_response(206 if wanted else 200)
        if wanted:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content) - start))
        self.end_headers()
        if with_body:
            self._send_body(path, content[start:], start)

    def _send_body(self, path: str, body: bytes, start: int) -> None:
        hub = self.hub
        if path in hub.stop_at and start < hub.stop_at[path]:
            length = hub.stop_at[path] - start
            self._write(path, body[:length])
            hub.go_on.wait(60)
            body = body[length:]
        elif hub.cuts.get(path):
            self._write(path, body[: hub.cuts[path].pop(0)])
            self.close_connection = True
            return
        self._write(path, body)

    def _write(self, path: str, body: bytes) -> None:
        self.hub.sent[path] = self.hub.sent.get(path, 0) + len(body)
        try:
            self.wfile.write(body)
            self.wfile.flush()
        except OSError:  # the client was killed
            self.close_connection = True

    def _send_json(self, answer: object) -> None:
        body = json.dumps(answer).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _refuse(self, status: int, code: str, message: str) -> None:
        self.send_response(status)
        for name, value in (("X-Error-Code", code), ("X-Error-Message", message)):
            if value:
                self.send_header(name, value)
        self.send_header("Content-Length", "0")
        self.end_headers()


def wait_for(condition: object, timeout_s: float = 60) -> None:
    """Returns when the condition, a function, is true."""
    end = time.monotonic() + timeout_s
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.005)
