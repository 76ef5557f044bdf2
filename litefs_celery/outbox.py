"""Submitted writes, kept on the origin's own disk until they are known to last."""

from __future__ import annotations

import contextlib
import json
import sqlite3
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from .errors import ConfigurationError, OutboxFull
from .message import header, write_of
from .wire import Write

FULL, BUSY_TIMEOUT = 13, 5.0
_SCHEMA = """
    CREATE TABLE IF NOT EXISTS outbox (
        seq INTEGER PRIMARY KEY,
        write_id TEXT NOT NULL UNIQUE,
        header TEXT NOT NULL,
        arguments TEXT NOT NULL,
        deadline REAL NOT NULL,
        sent_at REAL NOT NULL,
        seen_at REAL,
        seen_term TEXT,
        order_key TEXT,
        sends INTEGER NOT NULL DEFAULT 0);
    CREATE INDEX IF NOT EXISTS outbox_unseen ON outbox (sent_at) WHERE seen_at IS NULL;
    CREATE INDEX IF NOT EXISTS outbox_seen ON outbox (seen_at) WHERE seen_at IS NOT NULL;
    CREATE INDEX IF NOT EXISTS outbox_order ON outbox (order_key, seq)
        WHERE order_key IS NOT NULL;
    CREATE INDEX IF NOT EXISTS outbox_order_unseen ON outbox (order_key, seq)
        WHERE order_key IS NOT NULL AND seen_at IS NULL;
"""
# The write that must come before this one: the last of its key, unless it can never begin.
_AFTER = """
    SELECT b.write_id FROM outbox b
    WHERE b.order_key IS NOT NULL AND b.order_key = o.order_key AND b.seq < o.seq
        AND (b.seen_at IS NOT NULL OR b.deadline >= ?)
    ORDER BY b.seq DESC LIMIT 1
"""
# Whose predecessor had no outcome when they came did not run: so many are sent again, at once.
_HURRY_NEXT = """
    UPDATE outbox SET sent_at = 0 WHERE sent_at < ? AND seq IN (
        SELECT seq FROM outbox
        WHERE order_key IS NOT NULL AND order_key = ? AND seen_at IS NULL ORDER BY seq LIMIT 64)
"""
_CHOSEN = "write_id IN (SELECT value FROM json_each(?))"
CLOCK_MARGIN = 5.0  # the primary's clock may be that late: what has expired here may still begin
MOST_DOUBLINGS = 4  # of the interval between sends: else an hour without a primary makes 120 copies
HURRY_AFTER = 2.0  # what was sent this long ago, and has no outcome, may have come out of turn
# Not PRAGMA max_page_count: what is full must still take note of what was seen.
_USED_BYTES = """
    SELECT (page_count - freelist_count) * page_size
    FROM pragma_page_count, pragma_freelist_count, pragma_page_size
"""

@dataclass(frozen=True)
class OutboxSize:
    """How many writes wait to be seen, and how many are kept after they were."""

    waiting: int
    seen: int


class Outbox:
    """
    One SQLite file for one database on one node, shared by the node's processes.

    It lies outside of the mount, because it must outlive what LiteFS rolls back. ``limit_bytes``
    bounds it. Its own methods may be called from any thread.
    """

    def __init__(self, path: Path, *, limit_bytes: int) -> None:
        self.path = path
        self._limit_bytes = limit_bytes
        self._connection: sqlite3.Connection | None = None
        self._lock = threading.Lock()

    def add(self, write: Write, *, sent_at: float | None = None) -> Write:
        """
        Keep ``write``, which is about to be sent; a second time under its id prolongs it at most.

        Returns it as it is to be sent: with the id of the write that must come before it.

        Raises `OutboxFull` where the limit is reached or the disk is full: nothing was submitted.
        """
        entry = json.dumps(header([write])[0])
        now = time.time()
        row = (
            write.id, entry, write.arguments, write.deadline, now if sent_at is None else sent_at,
            write.order_key or None,
        )
        try:
            with self._transaction() as connection:
                (used,) = connection.execute(_USED_BYTES).fetchone()
                if used >= self._limit_bytes:
                    raise self._full(write)
                connection.execute(
                    "INSERT INTO outbox (write_id, header, arguments, deadline, sent_at, order_key)"
                    " VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT (write_id) DO UPDATE "
                    "SET deadline = max(deadline, excluded.deadline) "
                    "WHERE arguments = excluded.arguments",
                    row,
                )
                after = connection.execute(
                    f"SELECT ({_AFTER}) FROM outbox o WHERE write_id = ?",  # noqa: S608 - constant
                    (now - CLOCK_MARGIN, write.id),
                ).fetchone()[0]
        except sqlite3.OperationalError as error:
            if (error.sqlite_errorcode or 0) & 0xFF != FULL:
                raise
            raise self._full(write) from error
        return replace(write, after=after or "")

    def unseen(
        self, *, sent_before: float, limit: int, interval: float = 0.0
    ) -> list[Write]:
        """
        The writes without an outcome here that were last sent by that Unix time, in order.

        What was sent twice, by ``interval`` seconds earlier, and so on: the pauses double.
        """
        with self._transaction() as connection:
            rows = connection.execute(
                f"SELECT header, arguments, deadline, ({_AFTER}) FROM outbox o "  # noqa: S608 - constant
                "WHERE seen_at IS NULL AND "
                "sent_at <= ? - ? * ((1 << max(0, min(sends - 1, ?))) - 1) ORDER BY seq LIMIT ?",
                (time.time() - CLOCK_MARGIN, sent_before, interval, MOST_DOUBLINGS, limit),
            ).fetchall()
        return [
            write_of({**json.loads(entry), "deadline": deadline, "after": after or ""}, text)
            for entry, text, deadline, after in rows
        ]

    def waiting(self, *, limit: int) -> dict[str, tuple[float, str]]:
        """The writes without an outcome here, oldest first: deadline and fingerprint by id."""
        with self._transaction() as connection:
            rows = connection.execute(
                "SELECT write_id, deadline, json_extract(header, '$.fingerprint') FROM outbox "
                "WHERE seen_at IS NULL ORDER BY seq LIMIT ?",
                (limit,),
            )
            return {write_id: (deadline, mark) for write_id, deadline, mark in rows}

    def seen_under_another(self, term: str, *, limit: int) -> list[str]:
        """Ids of the kept writes that were last seen under another term."""
        with self._transaction() as connection:
            rows = connection.execute(
                "SELECT write_id FROM outbox WHERE seen_at IS NOT NULL AND seen_term IS NOT ? "
                "LIMIT ?",
                (term, limit),
            )
            return [write_id for (write_id,) in rows]

    def mark_sent(self, ids: Sequence[str], at: float) -> None:
        """Note when they were last sent, as Unix time; 0 sends them again at once."""
        self._update("sent_at = ?, sends = sends + 1", (at,), ids)

    def hurry(self, ids: Sequence[str], at: float) -> None:
        """Send them again as if they had been sent at that Unix time, if they were sent later."""
        self._update("sent_at = min(sent_at, ?), sends = 0", (at,), ids)

    def mark_seen(self, ids: Sequence[str], term: str) -> None:
        """
        Note that their outcomes can be read here, and under which term that was looked at.

        Writes that must come after them are due, unless they were sent just now.
        """
        if ids:
            with self._transaction() as connection:
                change = "seen_at = coalesce(seen_at, ?), seen_term = ?"
                _update(connection, change, (time.time(), term), ids)
                _hurry_next(connection, ids)

    def drop(self, ids: Sequence[str]) -> None:
        """Keep them no more: they have had an outcome that left nothing to be made again."""
        if ids:
            with self._transaction() as connection:
                _hurry_next(connection, ids)
                connection.execute(f"DELETE FROM outbox WHERE {_CHOSEN}", (json.dumps(list(ids)),))  # noqa: S608

    def mark_lost(self, ids: Sequence[str], deadline: float) -> None:
        """
        Their outcomes are gone, with the primary that had them: they are to be sent again.

        Until ``deadline`` if theirs was earlier: they were made once, and somebody was told so.
        """
        change = (
            "seen_at = NULL, seen_term = NULL, sent_at = 0, sends = 0, "
            "deadline = max(deadline, ?)"
        )
        self._update(change, (deadline,), ids)

    def mark_told(self, ids: Sequence[str], deadline: float) -> None:
        """Their callers are told that they took effect: until ``deadline`` they are to be there."""
        self._update("deadline = max(deadline, ?)", (deadline,), ids)

    def forget(self, *, seen_before: float, expired_before: float) -> list[str]:
        """
        Drop what was seen before that Unix time, and what expired before that one.

        Returns the ids of those that expired without having been seen.
        """
        with self._transaction() as connection:
            connection.execute("DELETE FROM outbox WHERE seen_at < ?", (seen_before,))
            rows = connection.execute(
                "DELETE FROM outbox WHERE seen_at IS NULL AND deadline < ? RETURNING write_id",
                (expired_before,),
            ).fetchall()
        return [write_id for (write_id,) in rows]

    def size(self) -> OutboxSize:
        """How many writes there are."""
        with self._transaction() as connection:
            query = "SELECT count(*) FILTER (WHERE seen_at IS NULL), count(seen_at) FROM outbox"
            return OutboxSize(*connection.execute(query).fetchone())

    def close(self) -> None:
        """Close the file; idempotent, and usable again afterwards."""
        with self._lock:
            connection, self._connection = self._connection, None
            if connection is not None:
                connection.close()

    def _full(self, write: Write) -> OutboxFull:
        return OutboxFull(
            f"{write.method} [{write.id}]: the outbox {self.path} is full (at most "
            f"litefs_outbox_limit_bytes={self._limit_bytes}, or its disk is); nothing was "
            "submitted. The primary takes less than is submitted, or this node's worker does "
            "not run",
            write.id,
            write.method,
        )

    def _update(self, change: str, values: tuple[object, ...], ids: Sequence[str]) -> None:
        if ids:
            with self._transaction() as connection:
                _update(connection, change, values, ids)

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        with self._lock:
            if self._connection is None:
                self._connection = self._open()
            with self._connection:
                yield self._connection

    def _open(self) -> sqlite3.Connection:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            connection = sqlite3.connect(
                self.path, timeout=BUSY_TIMEOUT, check_same_thread=False,
                isolation_level="IMMEDIATE",
            )
            connection.execute("PRAGMA journal_mode = wal")
            connection.execute("PRAGMA synchronous = full")  # submitted means: on the disk
            connection.executescript(_SCHEMA)
        except (OSError, sqlite3.Error) as error:
            raise ConfigurationError(
                f"the outbox {self.path} cannot be opened ({error}): correct litefs_outbox_dir, a "
                "directory on this node's own disk, outside of the LiteFS mount, that its web "
                "processes and its worker can write to"
            ) from error
        return connection


def _update(
    connection: sqlite3.Connection, change: str, values: tuple[object, ...], ids: Sequence[str]
) -> None:
    query = f"UPDATE outbox SET {change} WHERE {_CHOSEN}"  # noqa: S608 - constants of this file
    connection.execute(query, (*values, json.dumps(list(ids))))


def _hurry_next(connection: sqlite3.Connection, ids: Sequence[str]) -> None:
    """What must come after these writes is due, unless it was sent just now."""
    query = f"SELECT DISTINCT order_key FROM outbox WHERE order_key IS NOT NULL AND {_CHOSEN}"  # noqa: S608
    keys = connection.execute(query, (json.dumps(list(ids)),)).fetchall()
    due = time.time() - HURRY_AFTER
    connection.executemany(_HURRY_NEXT, [(due, key) for (key,) in keys])
