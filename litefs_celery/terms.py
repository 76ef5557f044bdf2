"""This process's term: begun by the row that only the true primary can write, and confirmed."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING, NoReturn

from sqlalchemy.exc import OperationalError, SQLAlchemyError

from . import ledger, observe, wal_index
from .detector import Detector, Term
from .engines import IOERR, Engines, primary_code
from .errors import LiteFSCeleryError, NotAcknowledged
from .litefs import LiteFSNode
from .roles import Kind, decide, look

if TYPE_CHECKING:
    from .database import LiteFSCelery


class Terms:
    """
    The terms of one process for one database.

    In a worker the detector holds the term, and `detector` is set; elsewhere LiteFS is asked when
    somebody writes. ``node`` gives the calling thread's client of LiteFS.
    """

    def __init__(
        self, db: LiteFSCelery, engines: Engines, node: Callable[[], LiteFSNode]
    ) -> None:
        self.detector: Detector | None = None
        self._db = db
        self._engines = engines
        self._node = node
        self._term: Term | None = None
        self._term_until = 0.0
        self._lock = threading.Lock()

    @property
    def held(self) -> Term | None:
        """The term that the running detector holds."""
        term = self.detector.term if self.detector is not None else None
        return term if term is not None and term.held else None

    def current(self) -> Term | None:
        """The term under which this process may write; None where the write must travel."""
        if self.detector is not None:
            return self.held
        if time.monotonic() >= self._term_until or (self._term and not self._term.held):
            with self._lock:
                if time.monotonic() >= self._term_until or (self._term and not self._term.held):
                    self._term = self._look_for_term()
                    # Either answer may be old: a write that is sent finds the primary, one that
                    # is committed here is confirmed. Looking costs a millisecond through FUSE.
                    self._term_until = time.monotonic() + self._db.settings.file_interval
        return self._term

    def _look_for_term(self) -> Term | None:
        if self._db.standalone:
            return self._begin_once("")
        facts = look(self._node(), self._db.settings)
        if decide(self._db.settings, facts).kind is Kind.PRIMARY:
            return self._begin_once(facts.info.litefs_id if facts.info else "")
        if self._term is not None:
            self._term.end("LiteFS says not primary")
        return None

    def _begin_once(self, litefs_id: str) -> Term | None:
        term = self._term
        if term is not None and term.held and term.litefs_id == litefs_id:
            return term
        try:
            return self.begin(litefs_id)
        except (SQLAlchemyError, LiteFSCeleryError) as error:
            if self._db.standalone:
                raise
            observe.logger.warning("cannot begin a term here: %s", error)
            return None

    def begin(self, litefs_id: str) -> Term:
        """Write this node's row into the tracking table: only the true primary can."""
        try:
            row = self._write_term(litefs_id)
        except OperationalError as error:
            if primary_code(error) != IOERR or not self._repair(litefs_id):
                raise
            row = self._write_term(litefs_id)
        term = Term(row.epoch, row.node, litefs_id, row.started_at)
        self.confirm(term)
        return term

    def _write_term(self, litefs_id: str) -> ledger.TermRow:
        with self._engines.setup.begin() as connection:
            return ledger.begin_term(connection, self._db.settings.node, litefs_id)

    def _repair(self, litefs_id: str) -> bool:
        """Mend what a killed writer left in WAL mode, on a node that is primary beyond doubt."""
        if self._db.standalone or not self._engines.uses_wal():
            return False
        if not self._db.settings.has_fixed_role:
            info = self._node().info()
            if not info.is_primary or info.litefs_id != litefs_id:
                return False
        return wal_index.rebuild(self._db.path, lock_timeout=self._db.settings.lock_timeout)

    def newest(self) -> ledger.TermRow | None:
        """The last term that was replicated here; None where that cannot be read."""
        with suppress(SQLAlchemyError, LiteFSCeleryError), self._engines.reader.connect() as reader:
            return ledger.newest_term(reader)
        return None

    def is_settled(self, sighting: ledger.Sighting) -> bool:
        """
        Whether a row that is readable here is known to last beyond this node's own term.

        What came by replication is. What this node committed as primary is when the same LiteFS
        still says primary, or when a later term was replicated here and the row is still there.
        """
        settings = self._db.settings
        if self._db.standalone or settings.has_fixed_role:
            return True
        if sighting.node is None or sighting.node != settings.node:
            return True
        if sighting.newest_epoch is not None and sighting.newest_epoch > sighting.entry.epoch:
            return True
        with suppress(LiteFSCeleryError):
            info = self._node().info()
            return info.is_primary and info.litefs_id == sighting.litefs_id
        return False

    def confirm(self, term: Term) -> None:
        """
        Raise unless this node still is the primary of ``term``.

        A COMMIT that returned is not proof (litefs 0.5.14 can lose it in a handoff); it counts
        when the position is readable and the same LiteFS still says primary.
        """
        if self._db.standalone:
            return
        if not term.held:
            self._unconfirmed(term, term.reason)
        node = self._node()
        try:
            if node.position(self._db.path.name) is None:
                self._unconfirmed(term, "the database has no position")
            if self._db.settings.has_fixed_role:
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
