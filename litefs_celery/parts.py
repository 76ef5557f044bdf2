"""What one process runs for one database: made at first use, and anew after a fork."""

from __future__ import annotations

import os
import threading
import time
import weakref
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sqlalchemy import MetaData
from sqlalchemy.exc import SQLAlchemyError

from . import ledger, tasks
from .committer import Committer
from .consumer import PrimaryConsumer
from .detector import Detector
from .engines import Engines
from .errors import (
    ConfigurationError,
    DatabaseMissing,
    LiteFSCeleryError,
    MountUnavailable,
)
from .forward import Forwarder
from .litefs import LiteFSNode
from .outbox import Outbox
from .resender import Resender
from .rivals import Rivals
from .roles import Role, decide, look
from .scalars import ScalarCodec
from .signing import WriteSigner
from .stored import Stored
from .surroundings import surroundings
from .terms import Terms
from .told import Told
from .visibility import Visibility
from .wire import Outcome, Wire, Write

if TYPE_CHECKING:
    from .database import LiteFSCelery


class Parts:
    """What one process runs for one database."""

    def __init__(self, db: LiteFSCelery) -> None:
        self.db = db
        self.pid = os.getpid()
        settings = db.settings
        self.wire = Wire(
            ScalarCodec(), db._instances, db._criteria, max_bytes=settings.max_payload_bytes)
        self.engines = Engines(
            db.path, lock_timeout=settings.lock_timeout, relies_on_litefs=not db.standalone,
            on_connect=db._on_connect,
        )
        self.engines.may_create = db.standalone
        self.terms = Terms(db, self.engines, self.node)
        self.rivals = Rivals(settings.node, self.engines, db.litefs)
        self.committer = Committer(
            db, db.name, settings, self.engines, self.wire, run=db.run, confirm=self.terms.confirm
        )
        self.visibility = Visibility(
            db.name, settings, self.engines.reader, db.litefs, db.path.name,
            is_settled=self.terms.is_settled, on_epoch=lambda epoch: self.forwarder.new_term(epoch),  # noqa: PLW0108 - made below
        )
        self.forwarder = Forwarder(db.name, settings, self.wire, self.visibility, self)
        keys = settings.signing_keys
        self.signer = WriteSigner(keys, db.queue) if keys else None
        self.sender = tasks.Sender(
            db.app, db.queue, timeout=settings.broker_timeout, signer=self.signer)
        self.outbox = self._make_outbox()
        self.told = self._make_told()
        self.resender: Resender | None = None
        self.stored = Stored(db.app, self.wire, timeout=settings.broker_timeout)
        self.consumer: PrimaryConsumer | None = None
        self.sends_events: Callable[[], bool] = lambda: False
        self.handover = ""
        self.awaited: dict[str, str] = {}
        self._threads = threading.local()
        # Weakly: a thread that ends takes its client along.
        self._nodes: weakref.WeakSet[LiteFSNode] = weakref.WeakSet()
        self._ready_until = 0.0
        self._lock = threading.Lock()

    def _make_outbox(self) -> Outbox | None:
        settings, path = self.db.settings, self.db.path
        if not settings.outbox_dir or self.db.standalone:
            return None
        directory = Path(settings.outbox_dir).absolute()
        if path.parent in (directory, *directory.parents):
            raise ConfigurationError(
                f"litefs_outbox_dir={settings.outbox_dir} lies in the LiteFS mount: it must "
                "outlive what LiteFS rolls back. Use a directory on this node's own disk"
            )
        file = directory / f"{settings.node}.{self.db.name}.outbox"
        return Outbox(file, limit_bytes=settings.outbox_limit_bytes)

    def _make_told(self) -> Told | None:
        settings = self.db.settings
        if self.outbox is None or settings.outbox_keeps != "all":
            return None
        return Told(self.db.name, self.outbox, lasts=settings.submit_timeout)

    def node(self) -> LiteFSNode:
        """This thread's client of LiteFS."""
        if not hasattr(self._threads, "node"):
            self._threads.node = self.db.litefs()
            self._nodes.add(self._threads.node)
        node: LiteFSNode = self._threads.node
        return node

    def look(self) -> Role:
        """What LiteFS says of this node's role now."""
        return decide(self.db.settings, look(self.node(), self.db.settings))

    # The two ways of a write (forward.Ways).

    def run_here(self, write: Write) -> Future[Outcome] | None:
        """See `forward.Ways`."""
        term = self.terms.current()
        return None if term is None else self.committer.submit(write, term)

    def publish(self, writes: Sequence[Write]) -> None:
        """See `forward.Ways`."""
        self.sender.publish(writes)

    def keep(self, write: Write) -> Write | None:
        """See `forward.Ways`."""
        wanted = self.db.settings.outbox_keeps == "all" or write.order_key
        return self.outbox.add(write) if self.outbox is not None and wanted else None

    def tell(self, write: Write, then: Callable[[], None]) -> None:
        """See `forward.Ways`."""
        if self.told is None:
            then()
        else:
            self.told.tell(write.id, then)

    def sent(self, writes: Sequence[Write]) -> None:
        """See `forward.Ways`."""
        if self.outbox is not None:
            self.outbox.mark_sent([write.id for write in writes], time.time())

    def find_stored(self, writes: Sequence[Write]) -> dict[str, Outcome | str]:
        """See `forward.Ways`."""
        return self.stored.find([write.id for write in writes])

    def holds_local_session(self) -> bool:
        """See `forward.Ways`."""
        return self.engines.holds_local_session()

    def check_ready(self) -> None:
        """Raise unless the mount answers and holds the database."""
        if time.monotonic() < self._ready_until:
            return
        if self.db.standalone:
            return
        node, path = self.node(), self.db.path
        if node.position(path.name) is not None:
            self._ready_until = time.monotonic() + self.db.settings.info_interval
            return
        if not node.is_mounted():
            raise MountUnavailable(self._not_mounted())
        raise DatabaseMissing(
            f"LiteFS at {path.parent} holds no {path.name}: create it with db.create_all() on the "
            "primary, or wait until this node has replicated it"
        )

    def _not_mounted(self) -> str:
        return (
            f"{self.db.path.parent} shows no sign of LiteFS: it is not mounted there. Start LiteFS "
            "on this node, or correct the database URL"
        )

    def hear_term(self, node: str, epoch: int, since: float) -> None:
        """Another node's worker may hold a term: where that is news, look at ours."""
        if self.rivals.hear(node, epoch, since) and self.terms.detector is not None:
            self.terms.detector.look_again()

    def create(self, metadata: MetaData, journal_mode: str) -> None:
        """Create what is missing, as the primary; never in a directory that is no mount."""
        if not self.db.standalone and not self.node().is_mounted():
            raise MountUnavailable(self._not_mounted())
        fresh = not self.db.path.exists()
        self.engines.may_create = True
        try:
            if fresh and journal_mode == "wal":
                with self.engines.setup.connect() as connection:
                    raw = connection.connection.dbapi_connection
                    if raw is not None:
                        raw.execute("PRAGMA journal_mode = wal")
            with self.engines.setup.begin() as connection:
                ledger.create(connection)
                metadata.create_all(connection)
        finally:
            self.engines.may_create = self.db.standalone

    def start(self, hostname: str, sends_events: Callable[[], bool]) -> None:
        """Start detector and consumer; idempotent."""
        self.sends_events = sends_events
        with self._lock:
            if self.terms.detector is not None:
                return
            db = self.db
            self.consumer = PrimaryConsumer(db, hostname)
            detector = self.terms.detector = Detector(
                db.name, db.settings, db.litefs, begin_term=self.terms.begin,
                newest_term=self.terms.newest, keep_out=self.rivals.keep_out,
                on_change=self.consumer.term_changed,
            )
            if self.outbox is not None:
                self.resender = Resender(
                    db.name, db.settings, self.outbox, self.engines.fresh,
                    is_settled=self.terms.is_settled, publish=self.publish,
                )
                self.resender.start()
            self.consumer.start()
            detector.start()

    def stop(self) -> None:
        """Stop consuming first, while the term is held, then the detector; idempotent."""
        with self._lock:
            consumer, detector = self.consumer, self.terms.detector
            resender, self.resender = self.resender, None
            self.consumer = self.terms.detector = None
        if resender is not None:
            resender.stop()
        if consumer is not None:
            consumer.stop()
        if detector is not None:
            detector.stop()

    def status(self) -> dict[str, Any]:
        """What this node says of itself, as plain data; what is not known is None."""
        db = self.db
        role, term = db.role(), db.term
        status: dict[str, Any] = {
            "node": db.settings.node, "database": db.name, "path": str(db.path),
            "role": role.kind.value, "primary": role.primary, "reason": role.reason,
            "epoch": None if term is None else term.epoch, "queue": db.queue,
            "consuming": db.consuming, "position": None, "lag_ms": None, "ledger": None,
            "outbox": None, "candidate": None, "handover": self.handover,
            "signs": self.signer is not None, **surroundings(db.settings),
        }
        if self.outbox is not None:
            status["outbox"] = vars(self.outbox.size())
        with suppress(LiteFSCeleryError):
            position = self.node().position(db.path.name)
            status["position"] = None if position is None else f"{position.txid:016x}"
            status["lag_ms"] = self.node().lag_ms()
        with suppress(LiteFSCeleryError):
            status["candidate"] = None if db.standalone else self.node().info().candidate
        with suppress(SQLAlchemyError, LiteFSCeleryError), self.engines.reader.connect() as reader:
            status["ledger"] = ledger.size(reader)
            newest = ledger.newest_term(reader)
            status["epoch"] = newest.epoch if newest else None
        return status

    def close(self) -> None:
        """Stop all threads, close all connections."""
        self.stop()
        self.forwarder.stop()
        self.visibility.stop()
        self.committer.stop()
        if self.told is not None:
            self.told.stop()
        self.sender.close()
        self.stored.close()
        if self.outbox is not None:
            self.outbox.close()
        for node in list(self._nodes):
            node.close()
        self.engines.dispose()
