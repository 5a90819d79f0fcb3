"""The page on localhost: for this machine only, up to date, and no burden to the run."""

import http.client
import os
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from grpo.run.report.server import WatchedPage, fingerprint, make_server


class Source:
    """What a page is made from."""

    def __init__(self) -> None:
        self.state, self.num_built, self.error = "a", 0, None

    def build(self, version: str) -> str:
        self.num_built += 1
        if self.error is not None:
            raise self.error
        return f"<p>page of {version}</p>"


@pytest.fixture
def source() -> Source:
    return Source()


@pytest.fixture
def port(source: Source) -> Iterator[int]:
    with make_server(WatchedPage(source.build, lambda: source.state, rest=0), 0) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server.server_address[1]
        server.shutdown()
        thread.join()


def ask(port: int, path: str = "/", host: str | None = None) -> tuple[int, str, str | None]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    connection.request("GET", path, headers={"Host": host or f"127.0.0.1:{port}"})
    answer = connection.getresponse()
    return answer.status, answer.read().decode(), answer.getheader("Content-Type")


def test_it_answers_with_the_page_and_its_version(port: int, source: Source) -> None:
    assert ask(port) == (200, "<p>page of a</p>", "text/html; charset=utf-8")
    assert ask(port, "/version") == (200, "a", "text/plain; charset=utf-8")
    source.state = "b"
    assert ask(port, "/version")[1] == "b"
    assert ask(port, host=f"localhost:{port}")[1] == "<p>page of b</p>"
    assert source.num_built == 2  # once a state
    assert ask(port, "/../../etc/passwd")[0] == 404


def test_a_page_of_another_name_cannot_read_it(port: int) -> None:
    for host in (f"evil.example:{port}", "evil.example", f"127.0.0.1.evil.example:{port}"):
        status, body, _ = ask(port, host=host)
        assert status == 403
        assert "page of" not in body


def test_only_this_machine_is_listened_to(source: Source) -> None:
    with make_server(WatchedPage(source.build, lambda: "a"), 0) as server:
        assert server.server_address[0] == "127.0.0.1"


def test_a_folder_that_vanishes_costs_an_answer_and_not_the_server(port: int, source: Source) -> None:
    source.state, source.error = "b", FileNotFoundError("gone")
    assert ask(port)[:2] == (500, "grpo: gone")
    source.error = None
    assert ask(port)[:2] == (200, "<p>page of b</p>")


def test_a_page_is_not_made_again_before_its_rest(monkeypatch: pytest.MonkeyPatch, source: Source) -> None:
    clock, processor = [100.0], [0.0]
    monkeypatch.setattr("grpo.run.report.server.time.monotonic", lambda: clock[0])
    monkeypatch.setattr("grpo.run.report.server.time.thread_time", lambda: processor[0])

    def build(version: str) -> str:
        clock[0] += 60.0  # on a machine that has better things to do
        processor[0] += 2.0
        return version

    page = WatchedPage(build, lambda: source.state, rest=10)
    source.state = "b"
    clock[0] = 179.9
    assert page.get() == ("a", "a")
    clock[0] = 180.0
    assert page.get() == ("b", "b")


def test_a_port_that_is_taken_is_a_sentence(source: Source) -> None:
    page = WatchedPage(source.build, lambda: "a")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        number = taken.getsockname()[1]
        with pytest.raises(
            ValueError, match=rf"--port {number} cannot be used \(Address already in use\); use another"
        ):
            make_server(page, number)
    with pytest.raises(ValueError, match="--port 70000 cannot be used"):
        make_server(page, 70000)


def test_a_fingerprint_tells_any_change(tmp_path: Path) -> None:
    files = [tmp_path / "a", tmp_path / "b"]
    seen = {fingerprint(files)}
    files[0].write_text("1")
    seen.add(fingerprint(files))
    files[0].write_text("12")
    seen.add(fingerprint(files))
    os.utime(files[0], ns=(1, 1))
    seen.add(fingerprint(files))
    seen.add(fingerprint(files, True))
    assert len(seen) == 5
    assert fingerprint(files) in seen
