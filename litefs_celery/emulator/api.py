"""The HTTP face of a node: LiteFS's own paths, and ``/emulator`` for faults on demand."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from http import HTTPStatus
from http.client import HTTPConnection, HTTPException
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, quote, urlsplit

from litefs_celery.emulator.state import Faults

if TYPE_CHECKING:
    from litefs_celery.emulator.state import NodeState

HOST = "127.0.0.1"
_SETTLE_TIMEOUT = 1.0  # seconds; only a primary settles, within some milliseconds
_HANDOFF_TIMEOUT = 5.0  # seconds; the primary only notes the request


class Server(ThreadingHTTPServer):
    """The HTTP server of one node; binding raises ``OSError`` while the port is taken."""

    daemon_threads = True
    request_queue_size = 64  # callers poll, and a refused connection looks like a dead node

    def __init__(self, state: NodeState) -> None:
        """Bind to the node's port on the loopback interface."""
        self.state = state
        super().__init__((HOST, state.port), _Handler)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Ignore clients that went away."""


def call(
    port: int, method: str, path: str, body: object = None, timeout: float = 1.0
) -> tuple[int, str]:
    """Send one request to a node; returns status and text. Raises ``OSError`` in ``timeout``."""
    connection = HTTPConnection(HOST, port, timeout=timeout)
    try:
        connection.request(method, path, None if body is None else json.dumps(body))
        response = connection.getresponse()
        return response.status, response.read().decode()
    except HTTPException as error:
        raise ConnectionError(str(error) or type(error).__name__) from error
    finally:
        connection.close()


class _Handler(BaseHTTPRequestHandler):
    """One connection; every answer is one of LiteFS's (http/server.go)."""

    protocol_version = "HTTP/1.1"
    # Head and body go out in two sends; the second must not wait for an acknowledgement.
    disable_nagle_algorithm = True
    server: Server

    def do_GET(self) -> None:
        path = urlsplit(self.path).path
        if path == "/info":
            self._json(self.server.state.info())
        elif path == "/events":
            self._events()
        elif path == "/emulator":
            self._json(asdict(self.server.state.faults))
        else:
            self._unknown(path, ("/promote", "/handoff"))

    def do_POST(self) -> None:
        url = urlsplit(self.path)
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if url.path == "/promote":
            self._promote()
        elif url.path == "/handoff":
            self._handoff(parse_qs(url.query).get("name", [""])[0])
        elif url.path == "/emulator":
            self._faults(body)
        elif url.path == "/emulator/settle":
            settled = self.server.state.settle(_SETTLE_TIMEOUT)
            self._send(b"", HTTPStatus.OK if settled else HTTPStatus.SERVICE_UNAVAILABLE)
        else:
            self._unknown(url.path, ("/info", "/events"))

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - http.server's name
        """Keep the log for what matters."""

    def _promote(self) -> None:
        state = self.server.state
        if not state.faults.candidate:
            self._error("not eligible to become primary", HTTPStatus.CONFLICT)
        elif state.is_primary:
            self._send(b"")
        elif not state.primary_port:
            self._error("no primary is currently available for handoff, cannot promote")
        else:
            self._ask_for_handoff(state)

    def _ask_for_handoff(self, state: NodeState) -> None:
        path = f"/handoff?name={quote(state.layout.name)}"
        try:
            status, text = call(state.primary_port, "POST", path, timeout=_HANDOFF_TIMEOUT)
        except OSError as error:
            status, text = 0, str(error)
        if status == HTTPStatus.OK:
            self._send(b"")
        else:
            self._error(f"handoff failed: {text.strip()}")

    def _handoff(self, name: str) -> None:
        if not self.server.state.is_primary:
            self._error("cannot handoff: node is not primary")
            return
        self.server.state.handoff_to = name
        self._send(b"")

    def _faults(self, body: bytes) -> None:
        default = asdict(Faults())
        try:
            wanted = json.loads(body)
            given = {key: default[key] if value is None else value for key, value in wanted.items()}
            given = {key: type(default[key])(value) for key, value in given.items()}
            state = self.server.state
            state.faults = replace(state.faults, **given)
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            self._error(f"bad faults: {error!r}, known: {sorted(default)}", HTTPStatus.BAD_REQUEST)
        else:
            self._json(asdict(state.faults))

    def _events(self) -> None:
        self._head("application/json", chunked=True)
        with self.server.state.subscription() as events:
            while (event := events.get()) is not None:
                line = json.dumps(event, separators=(",", ":")).encode() + b"\n"
                self.wfile.write(b"%x\r\n%b\r\n" % (len(line), line))
        self.wfile.write(b"0\r\n\r\n")

    def _json(self, document: object) -> None:
        self._send(json.dumps(document, indent=2).encode() + b"\n")

    def _unknown(self, path: str, other_method: tuple[str, ...]) -> None:
        if path in other_method:
            self._error("method not allowed", HTTPStatus.METHOD_NOT_ALLOWED)
        else:
            self._error("404 page not found", HTTPStatus.NOT_FOUND)

    def _error(self, text: str, status: HTTPStatus = HTTPStatus.INTERNAL_SERVER_ERROR) -> None:
        self._send(text.encode() + b"\n", status)

    def _send(self, body: bytes, status: HTTPStatus = HTTPStatus.OK) -> None:
        self._head("text/plain; charset=utf-8", status=status, length=len(body))
        self.wfile.write(body)

    def _head(
        self,
        kind: str,
        *,
        status: HTTPStatus = HTTPStatus.OK,
        length: int = 0,
        chunked: bool = False,
    ) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Litefs-Id", self.server.state.id)
        self.send_header("Litefs-Cluster-Id", self.server.state.cluster_id)
        if chunked:
            self.send_header("Transfer-Encoding", "chunked")
        else:
            self.send_header("Content-Length", str(length))
        self.end_headers()
