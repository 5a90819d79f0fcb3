"""A page on localhost that is made again while its folder changes."""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Callable, Iterable
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

_ADDRESS = "127.0.0.1"
_REST = 5  # times the processor time that a page took it is not made again: a run on this machine needs it, too


class WatchedPage:
    """A page, and whether what it shows has changed since."""

    def __init__(self, build: Callable[[str], str], fingerprint: Callable[[], str], rest: float = _REST) -> None:
        """Makes the first page.

        Args:
            build: given a version, makes a page that knows it.
            fingerprint: of what the page is made from.
            rest: how many times the processor time of making a page the next one waits.
        """
        self._build, self._fingerprint, self._rest = build, fingerprint, rest
        self._lock = threading.Lock()
        self._not_before = 0.0
        self._version = self._page = ""
        self.get()

    def get(self) -> tuple[str, str]:
        """The version and the page, new if something has changed and there was enough rest.

        Raises:
            ValueError, OSError: the folder cannot be read any more.
        """
        with self._lock:
            if time.monotonic() >= self._not_before and (version := self._fingerprint()) != self._version:
                start = time.thread_time()
                self._page = self._build(version)
                self._version = version
                self._not_before = time.monotonic() + self._rest * (time.thread_time() - start)
            return self._version, self._page


def fingerprint(paths: Iterable[Path], *more: object) -> str:
    """Of files' sizes and times, and of whatever else counts."""
    seen: list[object] = [*more]
    for path in sorted(paths):
        try:
            status = path.stat()
        except FileNotFoundError:
            continue
        seen.append((str(path), status.st_size, status.st_mtime_ns))
    return hashlib.sha256(repr(seen).encode()).hexdigest()[:16]


def make_server(page: WatchedPage, port: int) -> ThreadingHTTPServer:
    """A server of that page, on this machine only.

    Args:
        page: what `/` shows; `/version` is its version.
        port: 0 takes a free one.

    Raises:
        ValueError: the port is taken, or may not be used.
    """

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            # A page elsewhere could have its own name lead here, and read the answer: only these names are meant.
            if self.headers.get("Host", "").rpartition(":")[0] not in (_ADDRESS, "localhost"):
                self._answer(HTTPStatus.FORBIDDEN, "text/plain", f"open http://{_ADDRESS}:<port>/ instead")
            elif self.path not in ("/", "/version"):
                self._answer(HTTPStatus.NOT_FOUND, "text/plain", "the report is at /")
            else:
                try:
                    version, text = page.get()
                except (OSError, ValueError) as error:
                    self._answer(HTTPStatus.INTERNAL_SERVER_ERROR, "text/plain", f"grpo: {error}")
                    return
                kind, body = ("text/html", text) if self.path == "/" else ("text/plain", version)
                self._answer(HTTPStatus.OK, kind, body)

        def _answer(self, status: HTTPStatus, kind: str, body: str) -> None:
            data = body.encode()
            self.send_response(status)
            self.send_header("Content-Type", f"{kind}; charset=utf-8")
            self.send_header("Content-Length", str(len(data)))
            self.send_header("Cache-Control", "no-store")
            self.send_header("X-Content-Type-Options", "nosniff")
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, format: str, *args: object) -> None:
            """Requests are not worth a line each."""

    class Server(ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, request: object, client_address: object) -> None:
            """A browser that goes away in the middle is no event."""

    try:
        return Server((_ADDRESS, port), Handler)
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ValueError(f"--port {port} cannot be used ({reason}); use another, or 0 for a free one") from None
