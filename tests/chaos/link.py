"""A node's way to the broker, which can be cut: connections stay open and nothing comes through."""

from __future__ import annotations

import contextlib
import socket
import threading

CHUNK = 65_536


class Link:
    """
    A TCP proxy on loopback.

    While it is cut it holds what comes instead of passing it on, as a network that drops packets
    does: TCP sends them again, so what was under way arrives after the cut, or its sender has
    given up by then.
    """

    def __init__(self, port: int) -> None:
        self._target = ("127.0.0.1", port)
        self._passing = threading.Event()
        self._passing.set()
        self._stopped = False
        self._sockets: set[socket.socket] = set()
        self._lock = threading.Lock()
        self._server = socket.create_server(("127.0.0.1", 0), backlog=256)
        self.port: int = self._server.getsockname()[1]

    def start(self) -> None:
        """Accept connections; called once."""
        threading.Thread(target=self._accept, daemon=True).start()

    def cut(self) -> None:
        """Let nothing through."""
        self._passing.clear()

    def join(self) -> None:
        """Let everything through again, and what was held."""
        self._passing.set()

    def stop(self) -> None:
        """Close everything."""
        self._stopped = True
        self._passing.set()
        with contextlib.suppress(OSError):
            self._server.shutdown(socket.SHUT_RDWR)
        self._server.close()
        with self._lock:
            for one in self._sockets:
                _close(one)

    def _accept(self) -> None:
        while not self._stopped:
            try:
                client, _ = self._server.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        self._passing.wait()
        try:
            server = socket.create_connection(self._target, timeout=5)
        except OSError:
            _close(client)
            return
        server.settimeout(None)
        with self._lock:
            self._sockets |= {client, server}
        back = threading.Thread(target=self._pump, args=(server, client), daemon=True)
        back.start()
        self._pump(client, server)
        back.join()
        with self._lock:
            self._sockets -= {client, server}
        for one in (client, server):
            one.close()

    def _pump(self, source: socket.socket, target: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(CHUNK):
                self._passing.wait()
                target.sendall(data)
        self._passing.wait()
        # Either side's end is the end of both: Redis and its clients half-close nothing.
        for one in (source, target):
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)


def _close(one: socket.socket) -> None:
    with contextlib.suppress(OSError):
        one.shutdown(socket.SHUT_RDWR)
    one.close()
