"""The node's worker sends what is in its outbox until it can be read here, and looks again."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence

from sqlalchemy import Connection, Engine
from sqlalchemy.exc import SQLAlchemyError

from . import ledger, observe
from .config import Settings
from .errors import LiteFSCeleryError
from .forward import Unsent
from .ledger import Sighting, TermRow
from .message import bundles
from .outbox import Outbox
from .wire import Write, expired_at

INTERVAL = 0.5  # how late an outcome is noticed; nobody waits for that
FORGET_INTERVAL = 10.0
BATCH = 1_000
# After a new term was seen: the new primary is draining the queue, a write may be in it.
NEW_TERM_DELAY = 2.0


class Resender:
    """
    One thread of the node's worker that tends its outbox.

    A write is sent again until its row can be read here, and kept for ``outbox_grace`` after.
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
        there, expired = self._look(connection, list(waiting))
        found = [write_id for write_id in there if there[write_id] and write_id not in expired]
        self._outbox.mark_seen(found, term)
        # Not what was lost, and is now asked for with a later deadline: see `Outbox.mark_lost`.
        over = [write_id for write_id, at in expired.items() if at >= waiting[write_id]]
        if over:
            self._outbox.drop(over)
        if term == self._term:
            return
        while ids := self._outbox.seen_under_another(term, limit=BATCH):
            there, expired = self._look(connection, ids)
            still = [write_id for write_id in there if there[write_id] and write_id not in expired]
            self._outbox.mark_seen(still, term)
            # What is there but not settled yet is looked for, and sent, again; it is not lost. What
            # had another outcome before, and has expired since, is.
            lost = sorted(set(ids) - (set(there) - set(expired)))
            if lost:
                observe.emit(observe.WritesLost(self._database, newest.node, tuple(lost)))
            deadline = time.time() + self._settings.submit_timeout
            self._outbox.mark_lost(sorted(set(ids) - set(still)), deadline)
        left = [write_id for write_id in waiting if write_id not in {*found, *over}]
        soon = time.time() - self._settings.outbox_resend_interval + NEW_TERM_DELAY
        self._outbox.hurry(left, soon)
        self._term = term

    def _look(
        self, connection: Connection, ids: Sequence[str]
    ) -> tuple[dict[str, bool], dict[str, float]]:
        """Which of ``ids`` have a row here and whether it will last; which expired, and when."""
        sightings = ledger.sight(connection, ids) if ids else []
        there = {seen.entry.write_id: self._is_settled(seen) for seen in sightings}
        expired = {
            seen.entry.write_id: at
            for seen in sightings
            if (at := expired_at(seen.entry.outcome)) is not None and self._is_settled(seen)
        }
        return there, expired

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
