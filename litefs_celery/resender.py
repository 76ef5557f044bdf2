"""The node's worker sends what is in its outbox until it can be read here, and looks again."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from sqlalchemy import Connection, Engine
from sqlalchemy.exc import SQLAlchemyError

from . import ledger, observe
from .config import Settings
from .errors import LiteFSCeleryError
from .forward import Unsent
from .ledger import Entry, Sighting, TermRow
from .message import bundles
from .outbox import Outbox
from .wire import Write, is_committed

INTERVAL = 0.5  # how late an outcome is noticed; nobody waits for that
FORGET_INTERVAL = 10.0
BATCH = 1_000
# After a new term was seen: the new primary is draining the queue, a write may be in it.
NEW_TERM_DELAY = 2.0


@dataclass(frozen=True)
class _Looked:
    """Ids with a row here; of those rows that will last, which say what."""

    there: set[str]
    made: list[str] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)
    expired: list[Entry] = field(default_factory=list)


class Resender:
    """
    One thread of the node's worker that tends its outbox.

    A write is sent again until its row can be read here; one that is committed is kept for
    ``outbox_grace`` after.
    A new term is the sign that another node won: what it does not have is sent again, under its
    id. ``is_settled`` tells whether a row will last beyond this node's own term. ``reader`` must
    open a connection for each look: SQLite keeps its pages while the file's change counter is
    the same, which it can be after LiteFS has put another node's state in its place.
    """

    def __init__(
        self,
        database: str,
        settings: Settings,
        outbox: Outbox,
        reader: Engine,
        *,
        is_settled: Callable[[Sighting], bool],
        publish: Callable[[Sequence[Write]], None],
    ) -> None:
        self._database = database
        self._settings = settings
        self._outbox = outbox
        self._reader = reader
        self._is_settled = is_settled
        self._publish = publish
        self._term = ""
        self._forgot_at = 0.0
        self._stopped = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Start the thread; idempotent."""
        if self._thread is None:
            self._stopped.clear()
            name = f"litefs-{self._database}-outbox"
            self._thread = threading.Thread(target=self._loop, name=name, daemon=True)
            self._thread.start()

    def stop(self) -> None:
        """End the thread; idempotent. What is in the outbox stays there."""
        self._stopped.set()
        thread, self._thread = self._thread, None
        if thread is not None:
            thread.join()

    def _loop(self) -> None:
        told = ""
        while not self._stopped.wait(INTERVAL):
            try:
                self.tend()
                told = ""
            except (Unsent, SQLAlchemyError, LiteFSCeleryError) as error:
                if str(error) != told:
                    told = str(error)
                    observe.logger.warning("the outbox of %s waits: %s", self._database, error)
            except Exception:  # noqa: BLE001 - what is kept must go out all the same; it is logged
                observe.logger.exception("tending the outbox of %s failed", self._database)

    def tend(self) -> None:
        """Look for outcomes, look again for older ones after a new term, send what is due."""
        with self._reader.connect() as connection:
            # The term first: a row that is read later is at worst looked for once more.
            newest = ledger.newest_term(connection) if ledger.exists(connection) else None
            if newest is not None:
                self._see(connection, newest)
        self._send()
        self._forget()

    def _see(self, connection: Connection, newest: TermRow) -> None:
        term = f"{newest.epoch} {newest.node} {newest.litefs_id} {newest.started_at}"
        waiting = self._outbox.waiting(limit=BATCH)
        found = self._look(connection, list(waiting))
        # What was lost is asked for with a later deadline than that which expired: it is to run.
        over = [
            entry.write_id
            for entry in found.expired
            for deadline, fingerprint in [waiting[entry.write_id]]
            if not (entry.expired_before(deadline) and entry.fingerprint == fingerprint)
        ]
        self._outbox.mark_seen(found.made, term)
        # Their callers may have been told so, and may have called again with a new id: sent
        # again after a stale winner, they could take effect all the same.
        self._outbox.drop(found.refused + over)
        if term == self._term:
            return
        while ids := self._outbox.seen_under_another(term, limit=BATCH):
            looked = self._look(connection, ids)
            self._outbox.mark_seen(looked.made, term)
            self._outbox.drop(looked.refused)
            # What is there but not settled yet is looked for, and sent, again; it is not lost. What
            # was committed, and is refused or expired now, is: another copy of it came late.
            late = {*looked.refused, *(entry.write_id for entry in looked.expired)}
            lost = sorted(set(ids) - looked.there | late)
            if lost:
                observe.emit(observe.WritesLost(self._database, newest.node, tuple(lost)))
            deadline = time.time() + self._settings.submit_timeout
            self._outbox.mark_lost(sorted(set(ids) - {*looked.made, *looked.refused}), deadline)
        left = sorted(set(waiting) - {*found.made, *found.refused, *over})
        soon = time.time() - self._settings.outbox_resend_interval + NEW_TERM_DELAY
        self._outbox.hurry(left, soon)
        self._term = term

    def _look(self, connection: Connection, ids: Sequence[str]) -> _Looked:
        sightings = ledger.sight(connection, ids) if ids else []
        looked = _Looked(there={seen.entry.write_id for seen in sightings})
        for entry in (seen.entry for seen in sightings if self._is_settled(seen)):
            if is_committed(entry.outcome):
                looked.made.append(entry.write_id)
            elif entry.expired_before(math.inf):
                looked.expired.append(entry)
            else:
                looked.refused.append(entry.write_id)
        return looked

    def _send(self) -> None:
        settings, now = self._settings, time.time()
        interval = settings.outbox_resend_interval
        due = self._outbox.unseen(sent_before=now - interval, limit=BATCH, interval=interval)
        alive = [write for write in due if write.deadline > now]
        for part in bundles(
            alive, max_writes=settings.group_limit, max_bytes=settings.max_payload_bytes
        ):
            self._publish(part)
            self._outbox.mark_sent([write.id for write in part], time.time())
            observe.emit(observe.OutboxSent(self._database, len(part)))

    def _forget(self) -> None:
        if time.monotonic() - self._forgot_at < FORGET_INTERVAL:
            return
        self._forgot_at = time.monotonic()
        before = time.time() - self._settings.outbox_grace
        unknown = self._outbox.forget(seen_before=before, expired_before=before)
        if unknown:
            observe.emit(observe.OutboxGaveUp(self._database, tuple(unknown)))
