"""Waiting, for all callers of a process at once, until ledger rows appear locally."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, InvalidStateError

from sqlalchemy import Connection, Engine
from sqlalchemy.exc import SQLAlchemyError

from . import ledger, observe
from .config import Settings
from .errors import LiteFSCeleryError
from .ledger import Entry, Sighting, TermRow
from .litefs import LiteFSNode

# Looked at even when -pos did not move: a look that raced with a write, or a database that was
# replaced by a snapshot, must not cost more than this.
SAFETY_INTERVAL = 0.25
ERROR_INTERVAL = 0.05
EVENTS_INTERVAL = 0.02  # how late a lost event may make a caller


class Visibility:
    """
    One watcher thread, awake only while somebody waits.

    When the database moved it asks the ledger once for all waiting ids, in autocommit: waiters
    that each polled the database would hold up replication. That it moved is told by LiteFS's
    event stream, which speaks when the transaction can be read (litefs 0.5.14: after ``-pos``
    and, in WAL, after the shared memory); while the stream is away, and in case it dropped
    something, by ``-pos``, which takes no database lock.
    A row counts when ``is_settled`` says so: one that this node committed itself as primary is
    readable before it is known to last. ``on_epoch`` is called with a new epoch when a new term
    was replicated here.
    """

    def __init__(
        self,
        database: str,
        settings: Settings,
        reader: Engine,
        connect: Callable[[], LiteFSNode],
        file_name: str,
        *,
        is_settled: Callable[[Sighting], bool],
        on_epoch: Callable[[int], None],
    ) -> None:
        self.problem = ""
        self._database = database
        self._settings = settings
        self._reader = reader
        self._connect = connect
        self._file_name = file_name
        self._is_settled = is_settled
        self._on_epoch = on_epoch
        self._waiting: dict[str, list[Future[Entry]]] = {}
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None
        self._stopped = False
        self._epoch = 0
        self._moved = threading.Event()
        self._told_txid = 0
        self._listening = False
        self._term_looked = 0.0

    def watch(self, write_id: str) -> Future[Entry]:
        """
        A future of the ledger's row of ``write_id``, set when this node can read it.

        The watcher looks for it at its next look; `wake` tells it that there is something to see.
        """
        with self._changed:
            future: Future[Entry] = Future()
            self._waiting.setdefault(write_id, []).append(future)
        return future

    def wake(self) -> None:
        """Begin to look for what is waited for, if that was not begun."""
        with self._changed:
            if self._thread is None and not self._stopped:
                name = f"litefs-{self._database}-visibility"
                self._thread = threading.Thread(target=self._loop, name=name, daemon=True)
                self._thread.start()
                if "events" in self._settings.sources and not self._settings.has_fixed_role:
                    name = f"litefs-{self._database}-transactions"
                    threading.Thread(target=self._listen, name=name, daemon=True).start()
            self._changed.notify()

    def forget(self, write_id: str, future: Future[Entry]) -> None:
        """Stop waiting for ``write_id`` with ``future``; others go on waiting."""
        with self._changed:
            futures = self._waiting.get(write_id, [])
            if future in futures:
                futures.remove(future)
            if not futures:
                self._waiting.pop(write_id, None)

    def wait(self, write_id: str, timeout: float) -> Entry:
        """The row of ``write_id``, once this node can read it; raises TimeoutError."""
        entry = self.look_settled(write_id)
        if entry is not None:
            return entry
        future = self.watch(write_id)
        self.wake()
        try:
            return future.result(timeout)
        finally:
            self.forget(write_id, future)

    def look(self, write_id: str) -> Sighting | None:
        """The row of ``write_id`` if this node can read it now; raises as the database does."""
        with self._reader.connect() as connection:
            if not ledger.exists(connection):
                return None
            return next(iter(ledger.sight(connection, [write_id])), None)

    def look_settled(self, write_id: str) -> Entry | None:
        """The same, unless the row may still be lost with this node's own term."""
        seen = self.look(write_id)
        return seen.entry if seen is not None and self._is_settled(seen) else None

    def stop(self) -> None:
        """End the thread; idempotent. Futures stay unset: their callers have deadlines."""
        with self._changed:
            self._stopped = True
            thread, self._thread = self._thread, None
            self._changed.notify()
        if thread is not None:
            thread.join()

    def _loop(self) -> None:
        with contextlib.closing(self._connect()) as node:
            seen: int | None = None
            looked = 0.0
            while self._somebody_waits():
                try:
                    txid = self._txid(node)
                    if txid == seen and time.monotonic() - looked < SAFETY_INTERVAL:
                        # Polling through FUSE costs more than being told (half a millisecond).
                        self._moved.wait(
                            EVENTS_INTERVAL if self._listening
                            else self._settings.visibility_interval
                        )
                        continue
                    seen, looked = txid, time.monotonic()
                    self._look_for_all()
                    self.problem = ""
                except (LiteFSCeleryError, SQLAlchemyError) as error:
                    seen, self.problem = None, str(error)
                    # What was opened before LiteFS went away must not be read from after.
                    self._reader.dispose()
                    time.sleep(ERROR_INTERVAL)
                except Exception:  # noqa: BLE001 - the others wait too; it is logged
                    seen = None
                    observe.logger.exception("waiting for writes of %s failed", self._database)
                    time.sleep(ERROR_INTERVAL)

    def _txid(self, node: LiteFSNode) -> int:
        """Which transaction can be read here: as just told, else as ``-pos`` says; -1: none."""
        if self._moved.is_set():
            self._moved.clear()
            return self._told_txid
        position = node.position(self._file_name)
        return -1 if position is None else position.txid

    def _listen(self) -> None:
        with contextlib.closing(self._connect()) as node:
            while not self._stopped:
                with contextlib.suppress(LiteFSCeleryError):
                    for event in node.events():
                        self._listening = True
                        if self._stopped:
                            return
                        if event.type == "tx" and event.database == self._file_name:
                            self._told_txid = event.txid
                            self._moved.set()
                self._listening = False
                time.sleep(SAFETY_INTERVAL)

    def _somebody_waits(self) -> bool:
        with self._changed:
            while not self._waiting and not self._stopped:
                self._changed.wait()
            return not self._stopped

    def _look_for_all(self) -> None:
        with self._changed:
            ids = list(self._waiting)
        with self._reader.connect() as connection:
            found = ledger.sight(connection, ids)
            term = self._newest_term(connection)
        for seen in found:
            if not self._is_settled(seen):
                continue
            with self._changed:
                futures = self._waiting.pop(seen.entry.write_id, [])
            for future in futures:
                with contextlib.suppress(InvalidStateError):
                    future.set_result(seen.entry)
        if term is not None and term.epoch != self._epoch:
            self._epoch, previous = term.epoch, self._epoch
            if previous:
                self._on_epoch(term.epoch)

    def _newest_term(self, connection: Connection) -> TermRow | None:
        if time.monotonic() - self._term_looked < SAFETY_INTERVAL:
            return None
        self._term_looked = time.monotonic()
        return ledger.newest_term(connection)
