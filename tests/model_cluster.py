"""A cluster in one process: real files, terms, committers, outboxes and resenders."""

from __future__ import annotations

import json
import sqlite3
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, cast

from sqlalchemy import Connection, event, text
from support import TIMEOUT, rows

from litefs_celery import LiteFSCelery, Settings, ledger
from litefs_celery.committer import Committer
from litefs_celery.detector import Term
from litefs_celery.engines import Engines
from litefs_celery.errors import NotAcknowledged
from litefs_celery.forward import Unsent
from litefs_celery.litefs import LiteFSNode, NodeInfo, Position
from litefs_celery.message import arguments, header, writes_in
from litefs_celery.outbox import Outbox
from litefs_celery.resender import Resender
from litefs_celery.savepoint import current_session
from litefs_celery.terms import Terms
from litefs_celery.wire import Outcome, Wire, Write

Message = tuple[str, str]
"""A message in the queue: its headers and its body, each as JSON."""
GRACE, RESEND = 600.0, 30.0
WIRE = Wire(max_bytes=100_000)


class Died(Exception):
    """A process of the primary ended there."""


class Clock:
    """The time of day, which a test can move on."""

    def __init__(self) -> None:
        self._now = time.time
        self.passed = 0.0

    def __call__(self) -> float:
        """Return the time of day, moved on."""
        return self._now() + self.passed


class Broker:
    """The queue, held by the test: it may forget, reorder and repeat."""

    def __init__(self) -> None:
        self.messages: list[Message] = []
        self.away = False

    def publish(self, writes: Sequence[Write]) -> None:
        """Take a message as kombu would bring it."""
        if self.away:
            raise Unsent(OSError("away"), maybe_sent=False)
        headers = {"id": writes[0].id, "task": writes[0].method, "litefs": header(writes)}
        self.messages.append((json.dumps(headers), json.dumps([arguments(writes), {}, {}])))


class LiteFS:
    """What LiteFS says on one node."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.starts = 0
        self.is_primary = False

    @property
    def id(self) -> str:
        """The id of this start of LiteFS."""
        return f"{self.name}{self.starts}"

    def position(self, _database: str) -> Position:
        """Return any position: the file is readable."""
        return Position(1, 1)

    def info(self) -> NodeInfo:
        """Return what ``/info`` answers."""
        return NodeInfo(self.is_primary, candidate=True, primary="", litefs_id=self.id)


class Node:
    """One node: a file of its own, and what a worker runs on it."""

    standalone = False

    def __init__(self, folder: Path, name: str, broker: Broker) -> None:
        self.name = name
        self.path = folder / name / "app.db"
        self.path.parent.mkdir(parents=True)
        self.outbox_path = folder / f"{name}.outbox"
        self.broker = broker
        # No pruning: the model counts rows for ever.
        self.settings = Settings(
            node=name, outbox_resend_interval=RESEND, outbox_grace=GRACE, ledger_retention=1e9
        )
        self.litefs = LiteFS(name)
        self.term: Term | None = None
        self.held: threading.Event | None = None
        self.dies = ""
        self.ran: list[str] = []
        self.start()

    def start(self) -> None:
        """Start the node's process."""
        self.engines = Engines(self.path, lock_timeout=1.0, on_connect=_unsynced)
        event.listen(self.engines.writer, "commit", self._die_before_commit)
        database = cast("LiteFSCelery", self)
        self.terms = Terms(
            database, self.engines, lambda: cast("LiteFSNode", self.litefs)
        )
        self.committer = Committer(
            self, "model", self.settings, self.engines, WIRE, run=self.run, confirm=self._confirm
        )
        self.outbox = Outbox(self.outbox_path, limit_bytes=10_000_000)
        self.resender = Resender(
            "model", self.settings, self.outbox, self.engines.fresh,
            is_settled=self.terms.is_settled, publish=self.broker.publish,
        )

    def stop(self) -> None:
        """End the node's process; what it held in memory is gone."""
        if self.term is not None:
            self.term.end("the process ended")
        self.term, self.dies = None, ""
        self.committer.stop()
        self.outbox.close()
        self.engines.dispose()

    def restart(self) -> None:
        """End the process and start another."""
        self.stop()
        self.start()

    def begin(self) -> None:
        """Begin a term, as the detector does on the primary."""
        if self.term is None or not self.term.held:
            self.term = self.terms.begin(self.litefs.id)

    def run(self, write: Write) -> Any:
        """Run the method of a write."""
        if self.held is not None:
            assert self.held.wait(TIMEOUT)
        self.ran.append(write.id)
        session = current_session(self)
        assert session is not None
        (value,), _ = WIRE.loads(write.arguments)
        session.execute(text("INSERT INTO effects VALUES (:value)"), {"value": value})
        if write.method == "refuse":
            raise LookupError(value)
        if write.method == "spoil":  # rolls back the transaction of its whole group
            session.execute(text("INSERT OR ROLLBACK INTO taken VALUES (1)"))
        return value

    def commit(self, writes: Sequence[Write], dies: str = "") -> list[Outcome | None]:
        """
        Run ``writes``, the first in a group of its own and the others in the next.

        None for each that was not acknowledged. ``dies`` is "", "before" or "after" COMMIT.
        """
        assert self.term is not None
        self.dies, self.held = dies, threading.Event()
        futures = [self.committer.submit(write, self.term) for write in writes]
        self.held.set()
        outcomes: list[Outcome | None] = []
        for future in futures:
            outcome = None
            with suppress(NotAcknowledged):
                outcome = future.result(TIMEOUT)
            outcomes.append(outcome)
        recorded = self.recorded()
        for write, outcome in zip(writes, outcomes, strict=True):
            assert outcome is None or write.id in recorded, "answered, and not in the file"
        if dies:
            self.restart()
        return outcomes

    def replicate(self, source: Node) -> None:
        """Take the state of the primary, as LiteFS does: in the same file, behind SQLite."""
        if self.term is not None:
            self.term.end("LiteFS says not primary")
        state = source.path.read_bytes()
        with self.path.open("r+b") as file:
            file.write(state)
            file.truncate()

    def effects(self) -> list[int]:
        """Return what the table holds."""
        return [value for (value,) in rows(self.path, "SELECT value FROM effects")]

    def recorded(self) -> dict[str, ledger.Entry]:
        """Return the ledger by id."""
        query = (
            "SELECT write_id, method, fingerprint, outcome, epoch, committed_at "
            f"FROM {ledger.LEDGER}"
        )
        return {row[0]: ledger.Entry(*row) for row in rows(self.path, query)}

    def kept(self) -> dict[str, bool]:
        """Return what the outbox holds: by id, whether it was seen."""
        self.outbox.size()  # opened, and made
        query = "SELECT write_id, seen_at IS NOT NULL FROM outbox"
        return {write_id: bool(seen) for write_id, seen in rows(self.outbox_path, query)}

    def _confirm(self, term: Term) -> None:
        if self.dies == "after":
            raise Died
        self.terms.confirm(term)

    def _die_before_commit(self, _connection: Connection) -> None:
        if self.dies == "before":
            raise Died


class Cluster:
    """Three nodes, of which one is primary."""

    def __init__(self, folder: Path) -> None:
        self.broker = Broker()
        self.nodes = {name: Node(folder, name, self.broker) for name in "abc"}
        self.primary = self.nodes["a"]
        self.primary.litefs.is_primary = True
        self.primary.engines.may_create = True
        with self.primary.engines.setup.begin() as connection:
            ledger.create(connection)
            connection.exec_driver_sql("CREATE TABLE effects (value INTEGER NOT NULL)")
            connection.exec_driver_sql("CREATE TABLE taken (value INTEGER PRIMARY KEY)")
            connection.exec_driver_sql("INSERT INTO taken VALUES (1)")
        self.primary.begin()
        for node in self.replicas():
            node.path.touch()
            node.replicate(self.primary)

    def replicas(self) -> list[Node]:
        """Return the nodes that LiteFS does not call primary."""
        return [node for node in self.nodes.values() if node is not self.primary]

    def elect(self, name: str) -> None:
        """Let a node win as it is; what the others have beyond that is lost once they follow."""
        self.primary.litefs.is_primary = False
        self.primary = self.nodes[name]
        self.primary.litefs.is_primary = True

    def take(self, places: Sequence[int]) -> list[Message]:
        """Take messages off the queue, from anywhere in it."""
        taken = []
        for place in places:
            if self.broker.messages:
                taken.append(self.broker.messages.pop(place % len(self.broker.messages)))
        return taken

    def deliver(self, node: Node, messages: Sequence[Message], dies: str = "") -> None:
        """Have a node that holds a term run what the messages bring; acknowledge what it made."""
        brought = [(one, writes_in(json.loads(one[0]), json.loads(one[1]))) for one in messages]
        outcomes = iter(node.commit([write for _, part in brought for write in part], dies))
        for message, part in brought:
            if None in [next(outcomes) for _ in part]:
                self.broker.messages.append(message)

    def settle(self) -> None:
        """Run everything until nothing waits; fail if that does not come to an end."""
        self.broker.away = False
        self.primary.begin()
        for _ in range(30):
            for node in self.replicas():
                node.replicate(self.primary)
            for node in self.nodes.values():
                node.outbox.mark_sent(list(node.outbox.waiting(limit=10_000)), 0.0)
                node.resender.tend()
            if not self.broker.messages:
                return
            self.deliver(self.primary, self.take([0] * len(self.broker.messages)))
        raise AssertionError(f"never quiet: {self.broker.messages}")

    def close(self) -> None:
        """End all processes."""
        for node in self.nodes.values():
            node.stop()


def _unsynced(connection: sqlite3.Connection) -> None:
    connection.execute("PRAGMA synchronous = off").close()


def ids_sent(messages: Sequence[Message]) -> set[str]:
    """Return the ids of all writes in these messages."""
    return {entry["id"] for headers, _ in messages for entry in json.loads(headers)["litefs"]}


