"""One emulated node, as the process that runs the cluster sees it."""

from __future__ import annotations

import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from http import HTTPStatus
from pathlib import Path
from typing import TYPE_CHECKING, Any

from litefs_celery.emulator.api import HOST, call
from litefs_celery.emulator.layout import NodeLayout
from litefs_celery.emulator.position import read_position

if TYPE_CHECKING:
    from collections.abc import Sequence

_LAUNCH = Path(__file__).with_name("_launch.py")
_POLL = 0.01  # seconds
_PORTS = range(20_000, 32_000)  # below every system's ports for outgoing connections


def free_port() -> int:
    """Find a free port on the loopback interface; raises ``OSError`` when there is none."""
    for port in random.sample(_PORTS, 100):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((HOST, port))
            except OSError:
                continue
            return port
    msg = f"no free port on {HOST} in {_PORTS}"
    raise OSError(msg)


class EmulatedNode:
    """A node: its files under ``mount``, its HTTP API at ``api_url``, and its daemon ``pid``."""

    def __init__(self, root: Path, name: str, port: int, options: Sequence[str] = ()) -> None:
        """Only assigns; ``start`` starts the daemon with these further options."""
        self.name = name
        self._layout = NodeLayout(root, name)
        self._port = port
        self._options = options
        self._process: subprocess.Popen[bytes] | None = None
        self._fencer: subprocess.Popen[bytes] | None = None

    def __repr__(self) -> str:
        """Name, process and API."""
        return f"<EmulatedNode {self.name} pid={self.pid} {self.api_url}>"

    @property
    def mount(self) -> Path:
        """The directory an application uses."""
        return self._layout.mount

    @property
    def api_url(self) -> str:
        """Where the node's HTTP API is, without a slash at the end."""
        return f"http://{HOST}:{self._port}"

    @property
    def pid(self) -> int | None:
        """The daemon's process id, or ``None`` while it does not run."""
        return self._process.pid if self._process and self._process.poll() is None else None

    def database(self, name: str = "app.db") -> Path:
        """Return the path an application opens."""
        return self.mount / name

    def is_alive(self) -> bool:
        """Whether the daemon runs (a paused one does)."""
        return self.pid is not None

    def info(self, timeout: float = 1.0) -> dict[str, Any]:
        """Return ``/info``; raises ``OSError`` without an answer within ``timeout`` seconds."""
        document: dict[str, Any] = json.loads(self._call("GET", "/info", timeout=timeout)[1])
        return document

    def position(self, database: str = "app.db") -> tuple[int, int] | None:
        """TXID and checksum of the node's files, dead or alive; ``None`` without a position."""
        return read_position(self._layout, database)

    def databases(self) -> list[str]:
        """Return the names of the node's databases that have a position."""
        return [name for name in self._layout.databases() if self.position(name)]

    def start(self, timeout: float = 10.0) -> None:
        """Start the daemon if it does not run; raises ``TimeoutError`` with its log, else ready."""
        self.launch()
        self._wait_ready(timeout)

    def launch(self) -> None:
        """Start the daemon if it does not run, without waiting for it; raises ``OSError``."""
        if self.is_alive():
            return
        self._end_fencer()
        self._layout.create()
        options = ["--port", str(self._port), "--watch-parent", str(os.getpid())]
        with self._layout.log.open("ab") as log:
            self._process = self._launch(
                "daemon", [*options, *self._options], stdin=subprocess.DEVNULL, stderr=log
            )

    def stop(self, timeout: float = 10.0) -> None:
        """End the daemon gracefully and unmount; after ``timeout`` seconds it is killed."""
        if self._process is None:
            return
        self.resume()
        fencer = self._stand_by()
        self._process.terminate()
        try:
            self._process.wait(timeout)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process = None
        self._layout.mount_empty()
        self._fence(fencer)

    def kill(self) -> None:
        """Kill the daemon with SIGKILL; at the return its mount is dead and nobody can commit."""
        if self._process is None:
            return
        fencer = self._stand_by()
        self._process.kill()
        self._process.wait()
        self._process = None
        self._layout.mount_dead()
        self._fence(fencer)

    def pause(self) -> None:
        """Stop the daemon's clock (SIGSTOP): it keeps its role and does not answer."""
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Let a paused daemon go on (SIGCONT)."""
        self._signal(signal.SIGCONT)

    def fault(self, **faults: float | bool | None) -> None:
        """Change faults of the living daemon; raises ``OSError``, or ``ValueError`` if unknown."""
        status, text = self._call("POST", "/emulator", faults)
        if status != HTTPStatus.OK:
            raise ValueError(text.strip())

    def settle(self) -> bool:
        """Let the primary's ``-pos`` reach every commit so far; False if it takes over a second."""
        try:
            return self._call("POST", "/emulator/settle", timeout=2.0)[0] == HTTPStatus.OK
        except OSError:
            return False

    def request_promotion(self) -> tuple[int, str]:
        """Send ``POST /promote``; returns status and text. Raises ``OSError``."""
        return self._call("POST", "/promote", timeout=6.0)

    def close(self) -> None:
        """End what ``stop`` and ``kill`` may have left at work in the background."""
        self._end_fencer()

    def _call(
        self, method: str, path: str, body: object = None, timeout: float = 5.0
    ) -> tuple[int, str]:
        return call(self._port, method, path, body, timeout)

    def _signal(self, number: signal.Signals) -> None:
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(number)

    def _launch(self, module: str, options: Sequence[str], **pipes: Any) -> subprocess.Popen[bytes]:
        place = ["--root", str(self._layout.root), "--name", self.name]
        command = [sys.executable, "-P", str(_LAUNCH), module, *place, *options]
        return subprocess.Popen(command, **pipes)

    def _wait_ready(self, timeout: float) -> None:
        deadline = time.monotonic() + timeout
        while True:
            try:
                self.info()
            except OSError:
                if self.is_alive() and time.monotonic() < deadline:
                    time.sleep(_POLL)
                    continue
                log = self._layout.log.read_text(encoding="utf-8", errors="replace")[-2000:]
                msg = f"node {self.name} does not answer at {self.api_url}:\n{log}"
                raise TimeoutError(msg) from None
            return

    def _stand_by(self) -> subprocess.Popen[bytes]:
        """
        Start the process that fences, so that nothing commits between a death and its fence.

        In this process it would go wrong: POSIX gives a process's locks to all its threads, so its
        own SQLite connections would not be kept out, and would lose their locks at the end.
        """
        self._end_fencer()
        fencer = self._launch("fence", (), stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self._fencer = fencer
        self._expect(fencer, b"ready\n")
        return fencer

    def _fence(self, fencer: subprocess.Popen[bytes]) -> None:
        assert fencer.stdin is not None, "piped"
        fencer.stdin.write(b"go\n")
        fencer.stdin.flush()
        self._expect(fencer, b"fenced\n")

    def _expect(self, fencer: subprocess.Popen[bytes], word: bytes) -> None:
        assert fencer.stdout is not None, "piped"
        if fencer.stdout.readline() != word:
            msg = f"node {self.name} could not be fenced: exit code {fencer.wait()}"
            raise OSError(msg)

    def _end_fencer(self) -> None:
        if self._fencer is not None:
            self._fencer.kill()
            self._fencer.communicate()
            self._fencer = None
