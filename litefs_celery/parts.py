"""What one process runs for one database: made at first use, and anew after a fork."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import suppress
from typing import TYPE_CHECKING, Any, NoReturn

from sqlalchemy import MetaData
from sqlalchemy.exc import OperationalError, SQLAlchemyError

from . import ledger, observe, tasks, wal_index
from .committer import Committer
from .consumer import PrimaryConsumer
from .detector import Detector, Term
from .engines import IOERR, Engines, primary_code
from .errors import DatabaseMissing, LiteFSCeleryError, MountUnavailable, NotAcknowledged
from .forward import Forwarder
from .litefs import LiteFSNode
from .roles import Kind, Role, decide, look
from .scalars import ScalarCodec
from .stored import Stored
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
        self.committer = Committer(
            db, db.name, settings, self.engines, self.wire, run=db.run, confirm=self.confirm
        )
        self.visibility = Visibility(
            db.name, settings, self.engines.reader, db.litefs, db.path.name,
            is_settled=self.is_settled, on_epoch=lambda epoch: self.forwarder.new_term(epoch),  # noqa: PLW0108 - made below
        )
        self.forwarder = Forwarder(db.name, settings, self.wire, self.visibility, self)
        self.sender = tasks.Sender(db.app, db.queue, timeout=settings.broker_timeout)
        self.stored = Stored(db.app, self.wire, timeout=settings.broker_timeout)
        self.detector: Detector | None = None
        self.consumer: PrimaryConsumer | None = None
        self.sends_events: Callable[[], bool] = lambda: False
        self._threads = threading.local()
        self._term: Term | None = None
        self._term_until = 0.0
        self._ready_until = 0.0
        self._lock = threading.Lock()

    def node(self) -> LiteFSNode:
        """This thread's client of LiteFS."""
        if not hasattr(self._threads, "node"):
            self._threads.node = self.db.litefs()
        node: LiteFSNode = self._threads.node
        return node

    def look(self) -> Role:
        """What LiteFS says of this node's role now."""
        return decide(self.db.settings, look(self.node(), self.db.settings))

    # The two ways of a write (forward.Ways).

    def run_here(self, write: Write) -> Future[Outcome] | None:
        """See `forward.Ways`."""
        term = self._current_term()
        return None if term is None else self.committer.submit(write, term)

    def publish(self, writes: Sequence[Write]) -> None:
        """See `forward.Ways`."""
        self.sender.publish(writes)

    def find_stored(self, writes: Sequence[Write]) -> dict[str, Outcome]:
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

    def _current_term(self) -> Term | None:
        """The term under which this process may write; None where the write must travel."""
        if self.detector is not None:
            return self.db.term
        if time.monotonic() >= self._term_until or (self._term and not self._term.held):
            with self._lock:
                if time.monotonic() >= self._term_until or (self._term and not self._term.held):
                    self._term = self._look_for_term()
                    # Either answer may be old: a write that is sent finds the primary, one that
                    # is committed here is confirmed. Looking costs a millisecond through FUSE.
                    self._term_until = time.monotonic() + self.db.settings.file_interval
        return self._term

    def _look_for_term(self) -> Term | None:
        if self.db.standalone:
            return self._begin_once("")
        facts = look(self.node(), self.db.settings)
        if decide(self.db.settings, facts).kind is Kind.PRIMARY:
            return self._begin_once(facts.info.litefs_id if facts.info else "")
        if self._term is not None:
            self._term.end("LiteFS says not primary")
        return None

    def _begin_once(self, litefs_id: str) -> Term | None:
        term = self._term
        if term is not None and term.held and term.litefs_id == litefs_id:
            return term
        try:
            return self.begin_term(litefs_id)
        except (SQLAlchemyError, LiteFSCeleryError) as error:
            if self.db.standalone:
                raise
            observe.logger.warning("cannot begin a term here: %s", error)
            return None

    def begin_term(self, litefs_id: str) -> Term:
        """Write this node's row into the tracking table: only the true primary can."""
        try:
            row = self._write_term(litefs_id)
        except OperationalError as error:
            if primary_code(error) != IOERR or not self._repair(litefs_id):
                raise
            row = self._write_term(litefs_id)
        term = Term(row.epoch, row.node, litefs_id)
        self.confirm(term)
        return term

    def _write_term(self, litefs_id: str) -> ledger.TermRow:
        with self.engines.setup.begin() as connection:
            return ledger.begin_term(connection, self.db.settings.node, litefs_id)

    def _repair(self, litefs_id: str) -> bool:
        """Mend what a killed writer left in WAL mode, on a node that is primary beyond doubt."""
        if self.db.standalone or not self.engines.uses_wal():
            return False
        if not self.db.settings.has_fixed_role:
            info = self.node().info()
            if not info.is_primary or info.litefs_id != litefs_id:
                return False
        return wal_index.rebuild(self.db.path, lock_timeout=self.db.settings.lock_timeout)

    def newest_term(self) -> ledger.TermRow | None:
        """The last term that was replicated here; None where that cannot be read."""
        with suppress(SQLAlchemyError, LiteFSCeleryError), self.engines.reader.connect() as reader:
            return ledger.newest_term(reader)
        return None

    def is_settled(self, sighting: ledger.Sighting) -> bool:
        """
        Whether a row that is readable here is known to last beyond this node's own term.

        What came by replication is. What this node committed as primary is when the same LiteFS
        still says primary, or when a later term was replicated here and the row is still there.
        """
        settings = self.db.settings
        if self.db.standalone or settings.has_fixed_role:
            return True
        if sighting.node is None or sighting.node != settings.node:
            return True
        if sighting.newest_epoch is not None and sighting.newest_epoch > sighting.entry.epoch:
            return True
        with suppress(LiteFSCeleryError):
            info = self.node().info()
            return info.is_primary and info.litefs_id == sighting.litefs_id
        return False

    def confirm(self, term: Term) -> None:
        """
        Raise unless this node still is the primary of ``term``.

        A COMMIT that returned is not proof (litefs 0.5.14 can lose it in a handoff); it counts
        when the position is readable and the same LiteFS still says primary.
        """
        if self.db.standalone:
            return
        if not term.held:
            self._unconfirmed(term, term.reason)
        node = self.node()
        try:
            if node.position(self.db.path.name) is None:
                self._unconfirmed(term, "the database has no position")
            if self.db.settings.has_fixed_role:
                # There may be no API to ask. The file would name another; that it is absent
                # proves nothing, which is what a fixed role takes upon itself.
                if node.primary_file() is not None:
                    self._unconfirmed(term, ".primary names another node")
                return
            # Also where "info" is no source: it is asked here as the proof, not for changes.
            info = node.info()
            if not info.is_primary or info.litefs_id != term.litefs_id:
                self._unconfirmed(term, "/info does not say primary any more")
        except LiteFSCeleryError as error:
            self._unconfirmed(term, str(error), error)

    def _unconfirmed(self, term: Term, why: str, cause: Exception | None = None) -> NoReturn:
        term.end(why)
        if self.detector is not None:
            self.detector.look_again()
        raise NotAcknowledged(f"node {term.node} is no longer the primary it was: {why}") from cause

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
            if self.detector is not None:
                return
            db = self.db
            self.consumer = PrimaryConsumer(db, hostname)
            self.detector = Detector(
                db.name, db.settings, db.litefs, begin_term=self.begin_term,
                newest_term=self.newest_term, on_change=self.consumer.term_changed,
            )
            self.consumer.start()
            self.detector.start()

    def stop(self) -> None:
        """Stop consuming first, while the term is held, then the detector; idempotent."""
        with self._lock:
            consumer, detector = self.consumer, self.detector
            self.consumer = self.detector = None
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
        }
        with suppress(LiteFSCeleryError):
            position = self.node().position(db.path.name)
            status["position"] = None if position is None else f"{position.txid:016x}"
            status["lag_ms"] = self.node().lag_ms()
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
        self.sender.close()
        self.stored.close()
        self.engines.dispose()
