"""A cluster of real LiteFS nodes and a real Consul on this machine, with the emulator's face."""

from __future__ import annotations

import contextlib
import os
import signal
import time
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import requests

from litefs_celery.emulator.real_config import (
    Host,
    Program,
    consul_json,
    consul_version,
    free_ports,
    lazy_unmount,
    litefs_yaml,
    missing_programs,
    mounts_below,
    start_reaper,
)

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from typing import Self

__all__ = ["RealCluster", "RealNode", "missing_programs"]

_T = TypeVar("_T")

# One look at a loopback server is about 2 ms, so ten milliseconds neither load it nor add delay.
_POLL_INTERVAL = 0.01
# (connect, read) in seconds: loopback answers in milliseconds; a paused process never does.
_HTTP_TIMEOUT = (0.5, 1.0)
# POST /promote returns after the primary took the request, for which LiteFS allows 5 s.
_PROMOTE_TIMEOUT = (0.5, 6.0)
# Consul elects itself within about 3 s; a machine that also compiles takes longer.
_CONSUL_TIMEOUT = 30.0


class RealNode:
    """
    One `litefs mount` process with its mount, data directory, API address and log.
    """

    def __init__(self, directory: Path, name: str, port: int, token: str, host: Host) -> None:
        self.name = name
        self.directory = directory
        self.mount = directory / "mount"
        self.address = f"{host.address}:{port}"
        self.api_url = f"http://{self.address}"
        argv = ["litefs", "mount", "-no-expand-env", "-config", str(directory / "litefs.yml")]
        self._program = Program([*host.prefix, *argv], directory / "litefs.log", token)

    @property
    def pid(self) -> int | None:
        """
        Return the process id of LiteFS while it lives, otherwise None.
        """
        return self._program.pid

    def database(self, name: str = "app.db") -> Path:
        """
        Return the path of a database in this node's mount, whether it exists or not.
        """
        return self.mount / name

    def is_alive(self) -> bool:
        """
        Return True while the process exists; a paused one exists.
        """
        return self._program.pid is not None

    def start(self, timeout: float = 30.0) -> None:
        """
        Return when mounted and /info answers; a dead mount is taken away first.

        Raises RuntimeError when LiteFS exits instead, TimeoutError after `timeout` seconds.
        """
        if not self.is_alive():
            lazy_unmount(self.mount)
            self.mount.mkdir(parents=True, exist_ok=True)
            self._program.start()
        _poll(timeout, self._ready, lambda: self._program.explain(f"{self.name} is not ready"))

    def stop(self, timeout: float = 30.0) -> None:
        """
        End LiteFS with SIGTERM and leave an empty directory.

        Raises TimeoutError after `timeout` seconds, having killed and unmounted it even so.
        """
        self._program.signal(signal.SIGCONT)
        self._program.signal(signal.SIGTERM)
        ended = self._program.wait(timeout)
        if not ended:
            self.kill()
        # A file that somebody still has open makes LiteFS end without unmounting.
        lazy_unmount(self.mount)
        if not ended:
            message = self._program.explain(f"node {self.name} ignored SIGTERM for {timeout} s")
            raise TimeoutError(message)

    def kill(self) -> None:
        """
        End LiteFS with SIGKILL; its mount stays and answers ENOTCONN to everything.
        """
        self._program.signal(signal.SIGKILL)
        self._program.wait(None)

    def pause(self) -> None:
        """
        Freeze LiteFS with SIGSTOP; from now on every access to its mount blocks.
        """
        self._program.signal(signal.SIGSTOP)

    def resume(self) -> None:
        """
        Let a paused LiteFS go on.
        """
        self._program.signal(signal.SIGCONT)

    def position(self, database: str = "app.db") -> tuple[int, int] | None:
        """
        Return a database's transaction id and checksum here, None when it is not here.

        Raises OSError (ENOTCONN) on a dead mount; blocks while the node is paused.
        """
        try:
            text = (self.mount / f"{database}-pos").read_text(encoding="ascii")
        except FileNotFoundError:
            return None
        txid, checksum = text.strip().split("/")
        return int(txid, 16), int(checksum, 16)

    def _ready(self) -> bool:
        if not self.is_alive():
            raise RuntimeError(self._program.explain(f"node {self.name} did not start"))
        return self.mount in mounts_below(self.mount) and isinstance(_ask(self), dict)


class RealCluster:
    """
    Consul and one LiteFS for each name, all gone when the block ends.

    All are on loopback, unless `hosts` says where a node, or `consul`, is instead.

    `root` is a directory for everything they write; `lease_ttl` is in seconds: after the
    primary is killed, the next one follows within about twice that and two seconds more.
    If this process is killed, a small watcher ends the cluster in its place.
    """

    def __init__(
        self, root: Path, names: Sequence[str] = ("a", "b", "c"), *, lease_ttl: float = 10.0,
        hosts: Mapping[str, Host] | None = None,
    ) -> None:
        hosts = hosts or {}
        self.root = Path(os.path.realpath(root))
        self.lease_ttl = lease_ttl
        self._token = uuid.uuid4().hex
        self._ports = free_ports(3 + len(names))
        pairs = zip(names, self._ports[3:], strict=True)
        self.nodes = tuple(
            RealNode(self.root / n, n, port, self._token, hosts.get(n, Host())) for n, port in pairs
        )
        host = hosts.get("consul", Host())
        self._consul_url = f"http://{host.address}:{self._ports[0]}"
        argv = [*host.prefix, "consul", "agent", "-dev"]
        argv += ["-bind", host.address, "-client", host.address]
        argv += ["-node", "consul", "-config-file", str(self.root / "consul.json")]
        self._consul = Program(argv, self.root / "consul.log", self._token)
        self._reaper: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.stop()

    def start(self) -> None:
        """
        Start Consul and all nodes; they are mounted, but may still be electing a primary.

        Raises RuntimeError when a program is missing or exits, TimeoutError when one hangs;
        in both cases nothing is left running.
        """
        if self._reaper:
            return
        if missing := missing_programs():
            message = f"a real LiteFS cluster needs, but this machine lacks: {', '.join(missing)}"
            raise RuntimeError(message)
        try:
            self._start()
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """
        Kill everything that was started and take away its mounts; the files stay.
        """
        for node in self.nodes:
            node.kill()
        self._consul.signal(signal.SIGKILL)
        self._consul.wait(None)
        lazy_unmount(self.root)
        if self._reaper:
            self._reaper.kill()
            self._reaper.wait()
            self._reaper = None

    def node(self, name: str) -> RealNode:
        """
        Return the node of that name; KeyError when there is none.
        """
        return {node.name: node for node in self.nodes}[name]

    def primary(self, timeout: float = 60.0) -> RealNode:
        """
        Return the node that says it is primary, as soon as exactly one does.

        Raises TimeoutError with every node's answer after `timeout` seconds.
        """
        return _poll(timeout, self._primary, lambda: f"no single primary: {self._answers()}")

    def replicas(self) -> tuple[RealNode, ...]:
        """
        Return the live nodes beside the primary, once there is one.
        """
        primary = self.primary()
        return tuple(node for node in self.nodes if node is not primary and node.is_alive())

    def promote(self, name: str, timeout: float = 30.0) -> None:
        """
        Hand the lease to a node and return when that node says it is primary.

        Raises TimeoutError with every node's answer after `timeout` seconds.
        """
        node, refusals = self.node(name), [""]
        deadline = time.monotonic() + timeout

        def why() -> str:
            return f"node {name} not promoted ({refusals[-1]}): {self._answers()}"

        # Refused while no primary is known, or while the node is not connected to it.
        _poll(timeout, lambda: _promote(node, refusals), why)
        _poll(deadline - time.monotonic(), lambda: _is_primary(node), why)

    def is_leased(self) -> bool:
        """
        Return True while Consul keeps a node's lease; that of a paused primary runs out.
        """
        # Beside the lease's key, which goes with its session, there is one of the cluster's id.
        url = f"http://127.0.0.1:{self._ports[0]}/v1/kv/?keys"
        return f"litefs-celery/{self._token}" in _http("GET", url).json()

    def wait_synced(self, timeout: float = 30.0) -> None:
        """
        Return when every live node is where the primary was when this was called, or further.

        Raises TimeoutError naming the node and its position after `timeout` seconds.
        """
        deadline = time.monotonic() + timeout
        primary = self.primary(timeout)
        names = [file.name.removesuffix("-pos") for file in primary.mount.glob("*-pos")]
        goals = {name: primary.position(name) or (0, 0) for name in names}
        behind: list[str] = []

        def done() -> bool:
            live = (node for node in self.nodes if node.is_alive() and node is not primary)
            behind[:] = [text for node in live for text in _behind(node, goals)]
            return not behind

        _poll(deadline - time.monotonic(), done, lambda: "; ".join(behind))

    def _start(self) -> None:
        self.root.mkdir(parents=True, exist_ok=True)
        http, server, serf = self._ports[:3]
        self._reaper = start_reaper(self.root, self._token)
        config = consul_json(
            http=http, server=server, serf=serf, ttl=self.lease_ttl, version=consul_version()
        )
        (self.root / "consul.json").write_text(config, encoding="utf-8")
        self._consul.start()
        _poll(_CONSUL_TIMEOUT, self._elected, lambda: self._consul.explain("consul has no leader"))
        for node in self.nodes:
            self._configure(node)
            node.start()

    def _configure(self, node: RealNode) -> None:
        node.directory.mkdir(parents=True, exist_ok=True)
        text = litefs_yaml(
            mount=node.mount,
            data=node.directory / "data",
            name=node.name,
            address=node.address,
            consul_url=self._consul_url,
            key=f"litefs-celery/{self._token}",
            ttl=self.lease_ttl,
        )
        (node.directory / "litefs.yml").write_text(text, encoding="utf-8")

    def _elected(self) -> bool:
        if self._consul.pid is None:
            raise RuntimeError(self._consul.explain("consul did not start"))
        url = f"{self._consul_url}/v1/status/leader"
        with contextlib.suppress(requests.RequestException):
            return bool(_http("GET", url).json())
        return False

    def _primary(self) -> RealNode | None:
        found = [node for node in self.nodes if _is_primary(node)]
        return found[0] if len(found) == 1 else None

    def _answers(self) -> str:
        return "; ".join(f"{node.name}: {_ask(node)}" for node in self.nodes)


def _ask(node: RealNode) -> dict[str, Any] | str:
    if not node.is_alive():
        return "dead"
    try:
        answer: dict[str, Any] = _http("GET", f"{node.api_url}/info").json()
    except requests.RequestException as error:
        return f"no answer ({type(error).__name__})"
    return answer


def _is_primary(node: RealNode) -> bool:
    answer = _ask(node)
    return isinstance(answer, dict) and answer.get("isPrimary") is True


def _promote(node: RealNode, refusals: list[str]) -> bool:
    try:
        _http("POST", f"{node.api_url}/promote", _PROMOTE_TIMEOUT)
    except requests.RequestException as error:
        refusals.append(str(error) if error.response is None else error.response.text.strip())
        return False
    return True


def _behind(node: RealNode, goals: dict[str, tuple[int, int]]) -> Iterator[str]:
    # Ask over HTTP first: reading the mount of a paused node would block for ever.
    if not isinstance(answer := _ask(node), dict):
        yield f"node {node.name}: {answer}"
        return
    for name, goal in goals.items():
        seen = None
        with contextlib.suppress(OSError):  # it died since; the next look leaves it out
            seen = node.position(name)
        if seen is None or (seen[0] <= goal[0] and seen != goal):
            yield f"node {node.name} has {name} at {seen}, the primary was at {goal}"


def _http(method: str, url: str, timeout: tuple[float, float] = _HTTP_TIMEOUT) -> requests.Response:
    with requests.Session() as session:
        # A proxy from the environment must not get between this machine and itself.
        session.trust_env = False
        response = session.request(method, url, timeout=timeout)
    response.raise_for_status()
    return response


def _poll(timeout: float, look: Callable[[], _T | None], why: Callable[[], str]) -> _T:
    deadline = time.monotonic() + timeout
    while True:
        last = time.monotonic() >= deadline
        if found := look():
            return found
        if last:
            message = f"after {timeout:.1f} s {why()}"
            raise TimeoutError(message)
        time.sleep(_POLL_INTERVAL)
