"""What one node's LiteFS is asked over HTTP: answered soon, or told what to correct."""

from __future__ import annotations

import http.server
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest
from support import NO_API, TIMEOUT

from litefs_celery.errors import LiteFSUnreachable
from litefs_celery.litefs import LiteFSNode, NodeInfo

HTTP_TIMEOUT = 1.0
INFO = b'{"isPrimary": true, "candidate": true, "path": "/litefs"}'
ANSWER = (
    b"HTTP/1.1 200 OK\r\nLitefs-Id: A1\r\nContent-Type: application/json\r\n"
    b"Content-Length: %d\r\n\r\n%s" % (len(INFO), INFO)
)
PRIMARY = NodeInfo(
    is_primary=True, candidate=True, primary="", litefs_id="A1", path="/litefs"
)
# What a connection does with its requests, one after another; at the end it is closed.
ANSWERS, HANGS = "answers", "hangs"


class Api:
    """A server whose every connection follows its own script."""

    def __init__(self, *scripts: list[str]) -> None:
        self.served: list[list[str]] = []
        self.closed = [threading.Event() for _ in scripts]
        self._stopped = threading.Event()
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._socket.getsockname()[1]}"
        self._thread = threading.Thread(target=self._accept, args=(scripts,))
        self._thread.start()

    def _accept(self, scripts: tuple[list[str], ...]) -> None:
        for script, closed in zip(scripts, self.closed, strict=True):
            try:
                connection, _ = self._socket.accept()
            except OSError:
                return  # the test has ended without it
            served: list[str] = []
            self.served.append(served)
            with connection:
                for step in script:
                    if b"GET /info" not in connection.recv(65_536):
                        return
                    served.append(step)
                    if step == HANGS:
                        self._stopped.wait(TIMEOUT)
                    else:
                        connection.sendall(ANSWER)
            closed.set()

    def close(self) -> None:
        """End it."""
        self._stopped.set()
        self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()
        self._thread.join(TIMEOUT)


@pytest.fixture
def api() -> Iterator[Callable[..., Api]]:
    """Return what starts a server with scripts, until the test ends."""
    started: list[Api] = []

    def start(*scripts: list[str]) -> Api:
        started.append(Api(*scripts))
        return started[-1]

    yield start
    for server in started:
        server.close()


def client(url: str) -> LiteFSNode:
    """Return a client of that API; the mount is not read."""
    return LiteFSNode(Path("/nowhere"), url, http_timeout=HTTP_TIMEOUT)


def test_a_connection_is_kept(api: Callable[..., Api]) -> None:
    """Several questions go through one connection."""
    server = api([ANSWERS, ANSWERS, ANSWERS])
    with closing(client(server.url)) as node:
        assert [node.info() for _ in range(3)] == [PRIMARY] * 3
    assert server.served == [[ANSWERS] * 3]


def test_a_connection_that_litefs_closed_is_replaced(api: Callable[..., Api]) -> None:
    """A kept connection that LiteFS has closed meanwhile costs a new one, not an error."""
    server = api([ANSWERS], [ANSWERS], [ANSWERS])
    with closing(client(server.url)) as node:
        for closed in server.closed:
            assert node.info() == PRIMARY
            assert closed.wait(TIMEOUT)
    assert server.served == [[ANSWERS]] * 3


@pytest.mark.parametrize("kept", [0, 1])
def test_a_server_that_hangs_costs_one_timeout(api: Callable[..., Api], kept: int) -> None:
    """A silent LiteFS is told after about ``http_timeout``, also on a connection that was kept."""
    server = api([*[ANSWERS] * kept, HANGS], [ANSWERS])
    with closing(client(server.url)) as node:
        for _ in range(kept):
            node.info()
        started = time.monotonic()
        with pytest.raises(LiteFSUnreachable, match="litefs_api_url") as told:
            node.info()
        assert HTTP_TIMEOUT * 0.9 <= time.monotonic() - started < HTTP_TIMEOUT * 1.9
        assert server.url in str(told.value)


def test_a_server_that_does_not_listen_is_told() -> None:
    """Where nothing listens the error names the setting."""
    with closing(client(NO_API)) as node, pytest.raises(LiteFSUnreachable, match="litefs_api_url"):
        node.info()


PAGES = {
    "404": (404, b"404 page not found\n"),
    "500": (500, INFO),
    "redirect": (302, b""),
    "HTML": (200, b"<!doctype html><title>It works</title>"),
    "nothing": (200, b""),
    "other JSON": (200, b'{"status": "ok"}'),
    "a list": (200, b"[1, 2]"),
    "null": (200, b"null"),
    "no text": (200, b"\xff\xfe"),
    "a primary that is none": (200, b'{"isPrimary": false, "primary": "n1"}'),
}


@pytest.mark.parametrize(("status", "body"), PAGES.values(), ids=PAGES)
def test_another_servers_answer_is_told(status: int, body: bytes) -> None:
    """What is not LiteFS's answer is an error that names the setting; the next is asked anew."""

    class Handler(http.server.BaseHTTPRequestHandler):
        """Answers as LiteFS from its second connection on."""

        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self.send_response(self.server.answer[0])
            self.send_header("Litefs-Id", "A1")
            self.send_header("Location", "/elsewhere")
            self.send_header("Content-Length", str(len(self.server.answer[1])))
            self.end_headers()
            self.wfile.write(self.server.answer[1])

        def log_message(self, *arguments: object) -> None:
            """Say nothing."""

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.answer = (status, body)
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            with closing(client(f"http://127.0.0.1:{server.server_port}/")) as node:
                with pytest.raises(LiteFSUnreachable, match="litefs_api_url") as told:
                    node.info()
                assert f"http://127.0.0.1:{server.server_port}/info" in str(told.value)
                server.answer = (200, INFO)
                assert node.info() == PRIMARY
        finally:
            server.shutdown()
            thread.join(TIMEOUT)
