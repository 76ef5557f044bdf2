"""A cluster of emulated nodes, and failover on demand."""

from __future__ import annotations

import time
from http import HTTPStatus
from typing import TYPE_CHECKING, TypeVar

from litefs_celery.emulator.lease import last_leader
from litefs_celery.emulator.node import EmulatedNode, free_port

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path
    from types import TracebackType
    from typing import Self

_POLL = 0.01  # seconds
_START_TIMEOUT = 30.0  # seconds; several Python processes on a busy machine
_T = TypeVar("_T")


def _wait(look: Callable[[], _T | None], timeout: float, tell: Callable[[], str]) -> _T:
    """Look until it returns something true; one more look at the deadline, then the news."""
    deadline = time.monotonic() + timeout
    while True:
        late = time.monotonic() > deadline
        found = look()
        if found:
            return found
        if late:
            msg = f"not within {timeout} seconds: {tell()}"
            raise TimeoutError(msg)
        time.sleep(_POLL)


class EmulatedCluster:
    """
    A LiteFS cluster made of ordinary files, for laptops and tests; never for production.

    ``root`` is an empty directory or an earlier cluster's. ``failover_gap`` and ``handoff_gap``
    are the seconds without any primary after a death and after a graceful change. Where it differs
    from LiteFS: ``-pos`` follows a commit within some milliseconds instead of before it returns;
    commits that follow each other closely are shipped as one; a write on a primary that has just
    lost its role fails with "readonly" or "locked" instead of "disk I/O error"; connections that
    are open when a node dies can go on reading; WAL databases are not shipped.
    """

    def __init__(
        self,
        root: Path,
        names: Sequence[str] = ("a", "b", "c"),
        *,
        failover_gap: float = 1.0,
        handoff_gap: float = 0.3,
    ) -> None:
        """Only assigns, apart from choosing a port for each node; ``start`` starts it."""
        gaps = ["--failover-gap", str(failover_gap), "--handoff-gap", str(handoff_gap)]
        self._root = root.absolute()
        ports: dict[str, int] = {}
        for name in names:
            port = free_port()
            while port in ports.values():
                port = free_port()
            ports[name] = port
        self.nodes = tuple(
            EmulatedNode(self._root, name, port, gaps) for name, port in ports.items()
        )

    def __enter__(self) -> Self:
        """Start the cluster."""
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Stop the cluster."""
        self.stop()

    def start(self) -> None:
        """Start what does not run, the last leader first; raises ``TimeoutError``."""
        self._root.mkdir(parents=True, exist_ok=True)
        try:
            leader = last_leader(self._root)
            first, *others = sorted(self.nodes, key=lambda node: node.name != leader)
            first.start(_START_TIMEOUT)
            for node in others:
                node.launch()
            for node in others:
                node.start(_START_TIMEOUT)
            self.primary(_START_TIMEOUT)
            _wait(self._all_joined, _START_TIMEOUT, self._answers)
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """End every node, replicas first, so that no failover happens; may be repeated."""
        for node in sorted(self.nodes, key=self._leads):
            node.stop()
        for node in self.nodes:
            node.close()

    def node(self, name: str) -> EmulatedNode:
        """Return the node of that name; raises ``KeyError``."""
        return {node.name: node for node in self.nodes}[name]

    def primary(self, timeout: float = 10.0) -> EmulatedNode:
        """Return the one primary; after ``timeout`` seconds ``TimeoutError`` with all answers."""
        return _wait(self._only_primary, timeout, self._answers)

    def replicas(self) -> tuple[EmulatedNode, ...]:
        """Return the live nodes that are not primary now."""
        return tuple(node for node in self.nodes if node.is_alive() and not self._leads(node))

    def promote(self, name: str, timeout: float = 10.0) -> None:
        """Make a node primary gracefully; ``ValueError`` if it may not, or ``TimeoutError``."""
        node = self.node(name)
        said = ["nothing"]

        def promoted() -> bool:
            if self._leads(node):
                return True
            status, text = node.request_promotion()
            said[0] = text.strip()
            if status == HTTPStatus.CONFLICT:
                raise ValueError(said[0])
            if status != HTTPStatus.OK:
                return False
            # Accepted is not done; a handoff that fails must be asked for again.
            again = time.monotonic() + 1.0
            while not self._leads(node) and time.monotonic() < min(again, deadline):
                time.sleep(_POLL)
            return self._leads(node)

        deadline = time.monotonic() + timeout
        _wait(promoted, timeout, lambda: f"{name} said {said[0]}; {self._answers()}")

    def wait_synced(self, timeout: float = 10.0) -> None:
        """Wait until all live nodes are where the primary is now, or ``TimeoutError``."""
        _wait(self._synced, timeout, self._positions)

    def lag(self, name: str, seconds: float) -> None:
        """Let a node receive everything ``seconds`` later; 0 ends it."""
        self.node(name).fault(lag_seconds=seconds)

    def freeze(self, name: str) -> None:
        """Stop a node's replication; it keeps serving its old data."""
        self.node(name).fault(frozen=True)

    def thaw(self, name: str) -> None:
        """Let a frozen node replicate again."""
        self.node(name).fault(frozen=False)

    def set_candidate(self, name: str, *, candidate: bool) -> None:
        """Say whether a node may become primary."""
        self.node(name).fault(candidate=candidate)

    def _leads(self, node: EmulatedNode) -> bool:
        if not node.is_alive():
            return False
        try:
            return bool(node.info()["isPrimary"])
        except OSError:
            return False

    def _only_primary(self) -> EmulatedNode | None:
        leading = [node for node in self.nodes if self._leads(node)]
        return leading[0] if len(leading) == 1 else None

    def _all_joined(self) -> bool:
        try:
            return all(node.info()["primary"]["hostname"] for node in self.nodes)
        except OSError:
            return False

    def _synced(self) -> bool:
        primary = self._only_primary()
        if primary is None or not primary.settle():
            return False
        return all(
            node.position(database) == primary.position(database)
            for node in self.nodes
            if node.is_alive()
            for database in primary.databases()
        )

    def _answers(self) -> str:
        return ", ".join(f"{node.name}: {self._answer(node)}" for node in self.nodes)

    def _answer(self, node: EmulatedNode) -> str:
        if not node.is_alive():
            return "not running"
        try:
            return str(node.info())
        except OSError as error:
            return repr(error)

    def _positions(self) -> str:
        return ", ".join(
            f"{node.name}: {[(name, node.position(name)) for name in node.databases()]}"
            for node in self.nodes
        )
