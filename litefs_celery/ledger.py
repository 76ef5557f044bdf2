"""The tables inside the application's database: outcomes by write id, and terms."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from sqlalchemy import Connection, text

from .wire import Write

LEDGER = "_litefs_celery_ledger"
TERMS = "_litefs_celery_terms"
# seq is no identity, only the order for pruning: AUTOINCREMENT would write a page more a commit.
_SCHEMA = (
    f"""CREATE TABLE IF NOT EXISTS {LEDGER} (
        seq INTEGER PRIMARY KEY,
        write_id TEXT NOT NULL UNIQUE,
        method TEXT NOT NULL,
        fingerprint TEXT NOT NULL,
        outcome TEXT NOT NULL,
        epoch INTEGER NOT NULL,
        committed_at REAL NOT NULL)""",
    f"""CREATE TABLE IF NOT EXISTS {TERMS} (
        epoch INTEGER PRIMARY KEY AUTOINCREMENT,
        node TEXT NOT NULL,
        litefs_id TEXT NOT NULL,
        started_at REAL NOT NULL)""",
)
# One statement however many ids there are, given as a JSON array: compiled once, and no part of
# it is built at each look. CROSS JOIN keeps SQLite from reading the ledger from end to end.
_FIND = (
    "SELECT write_id, method, fingerprint, outcome, epoch, committed_at "
    f"FROM json_each(?) CROSS JOIN {LEDGER} ON write_id = value"
)
# The term of each row in the same snapshot: another look could see another one.
_SIGHT = (
    "SELECT write_id, method, fingerprint, outcome, l.epoch, committed_at, node, litefs_id, "
    f"(SELECT max(epoch) FROM {TERMS}) "
    f"FROM json_each(?) CROSS JOIN {LEDGER} l ON write_id = value "
    f"LEFT JOIN {TERMS} t ON t.epoch = l.epoch"
)
_RECORD = (
    f"INSERT INTO {LEDGER} (write_id, method, fingerprint, outcome, epoch, committed_at) "
    "VALUES (?, ?, ?, ?, ?, ?)"
)
_NEWEST_TERM = text(
    f"SELECT epoch, node, litefs_id, started_at FROM {TERMS} ORDER BY epoch DESC LIMIT 1"
)
_BEGIN_TERM = text(
    f"INSERT INTO {TERMS} (node, litefs_id, started_at) VALUES (:node, :litefs_id, :started_at)"
)
# Twice: SQLite writes no page for an UPDATE that changes nothing (3.40.1), and then the commit
# proves nothing and meets no error.
_CONTINUE_TERM = text(f"UPDATE {TERMS} SET started_at = :started_at WHERE epoch = :epoch")
# Looks at the oldest :limit rows only: without that, a ledger with nothing to prune would be
# read from end to end under the write lock.
_PRUNE = text(
    f"DELETE FROM {LEDGER} WHERE seq IN (SELECT seq FROM (SELECT seq, committed_at FROM {LEDGER} "
    "ORDER BY seq LIMIT :limit) WHERE committed_at < :before)"
)


@dataclass(frozen=True)
class Entry:
    """One write's row: its outcome as JSON text, and ``committed_at`` in Unix seconds."""

    write_id: str
    method: str
    fingerprint: str
    outcome: str
    epoch: int
    committed_at: float

    def matches(self, write: Write) -> bool:
        """Whether this row is about ``write``, not another one under the same id."""
        return (self.method, self.fingerprint) == (write.method, write.fingerprint)


@dataclass(frozen=True)
class Sighting:
    """
    A row as one node sees it: by which node and start of LiteFS its term was begun.

    ``node`` and ``litefs_id`` are None where this node does not know the term.
    """

    entry: Entry
    node: str | None
    litefs_id: str | None
    newest_epoch: int | None


@dataclass(frozen=True)
class TermRow:
    """A row of the tracking table, replicated to every node; ``started_at`` in Unix seconds."""

    epoch: int
    node: str
    litefs_id: str
    started_at: float


def create(connection: Connection) -> None:
    """Create both tables where they are missing; only the primary can."""
    if not exists(connection):
        for statement in _SCHEMA:
            connection.exec_driver_sql(statement)


def exists(connection: Connection) -> bool:
    """Whether both tables are there: on a replica, whether they have been replicated."""
    query = "SELECT count(*) FROM sqlite_master WHERE name IN (?, ?)"
    return connection.exec_driver_sql(query, (LEDGER, TERMS)).scalar() == 2  # noqa: PLR2004


def find(connection: Connection, ids: Sequence[str]) -> dict[str, Entry]:
    """The rows of those ``ids`` that have one, by id."""
    rows = connection.exec_driver_sql(_FIND, (json.dumps(ids),))
    return {row[0]: Entry(*row) for row in rows}


def sight(connection: Connection, ids: Sequence[str]) -> list[Sighting]:
    """The rows of those ``ids`` that have one, with the term that made each, in one look."""
    rows = connection.exec_driver_sql(_SIGHT, (json.dumps(ids),))
    return [Sighting(Entry(*row[:6]), *row[6:]) for row in rows]


def record(connection: Connection, entries: Iterable[Entry]) -> None:
    """Insert one row for each entry."""
    rows = [tuple(vars(entry).values()) for entry in entries]
    if rows:
        connection.exec_driver_sql(_RECORD, rows)


def remove(connection: Connection, write_id: str) -> None:
    """Delete one row."""
    connection.exec_driver_sql(f"DELETE FROM {LEDGER} WHERE write_id = ?", (write_id,))


def newest_term(connection: Connection) -> TermRow | None:
    """The last term that began, as far as this node has replicated; None before the first."""
    row = connection.execute(_NEWEST_TERM).one_or_none()
    return None if row is None else TermRow(*row)


def begin_term(connection: Connection, node: str, litefs_id: str) -> TermRow:
    """
    Write this node's row into the tracking table, inside the caller's write transaction.

    The commit is the arbiter: only the true primary can make it. A term that this start of
    LiteFS has begun already, with nobody after it, goes on under its epoch; its row is written
    again all the same.
    """
    create(connection)
    newest = newest_term(connection)
    if newest is not None and (newest.node, newest.litefs_id) == (node, litefs_id):
        for started_at in (newest.started_at + 1.0, newest.started_at):
            connection.execute(_CONTINUE_TERM, {"epoch": newest.epoch, "started_at": started_at})
        return newest
    parameters = {"node": node, "litefs_id": litefs_id, "started_at": time.time()}
    epoch = connection.execute(_BEGIN_TERM, parameters).lastrowid
    return TermRow(epoch, node, litefs_id, parameters["started_at"])  # type: ignore[arg-type]


def prune(connection: Connection, *, before: float, limit: int) -> int:
    """Delete up to ``limit`` rows committed before that Unix time; returns how many."""
    return connection.execute(_PRUNE, {"before": before, "limit": limit}).rowcount


def size(connection: Connection) -> int:
    """How many outcomes the ledger holds: from its ends, because count(*) reads every row."""
    query = text(f"SELECT coalesce(max(seq) - min(seq) + 1, 0) FROM {LEDGER}")
    return int(connection.execute(query).scalar_one())
