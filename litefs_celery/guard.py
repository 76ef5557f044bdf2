"""What the SQL of a write method may not do, and the engine it does the rest with."""

from __future__ import annotations

import sqlite3

from sqlalchemy import Engine, create_engine
from sqlalchemy.pool import StaticPool

from .errors import MethodMisuse

SAVEPOINT = "litefs_celery_write"
# How LiteFS sees commits, and what the file's schema says: not a method's to change.
_PRAGMAS = frozenset({"journal_mode", "locking_mode", "writable_schema"})
_FORBIDDEN = {
    sqlite3.SQLITE_TRANSACTION: "transaction control",
    sqlite3.SQLITE_ATTACH: "ATTACH",
    sqlite3.SQLITE_DETACH: "DETACH",
}


class Guard:
    """
    Keeps a write method from ending the group's transaction.

    SQLite asks it whenever a statement is compiled; while ``closed`` it denies COMMIT, ROLLBACK,
    ATTACH and a change of the journal mode in whatever form, and remembers what was denied.
    """

    def __init__(self) -> None:
        self.closed = False
        self.denied = ""
        self.rolled_back = False

    def __call__(
        self, action: int, first: str | None, second: str | None, *_: str | None
    ) -> int:
        """SQLite's authorizer callback."""
        if not self.closed:
            return sqlite3.SQLITE_OK
        if action == sqlite3.SQLITE_SAVEPOINT and second == SAVEPOINT:
            self.denied = f"{first} {SAVEPOINT}"
        elif action in _FORBIDDEN:
            self.denied = f"{_FORBIDDEN[action]} {first or ''}".strip()
        elif action == sqlite3.SQLITE_PRAGMA and (first or "").lower() in _PRAGMAS:
            self.denied = f"PRAGMA {first}"
        else:
            return sqlite3.SQLITE_OK
        return sqlite3.SQLITE_DENY


def engine_over(raw: sqlite3.Connection, guard: Guard) -> Engine:
    """
    An engine over the group's connection, for the Session of a write method.

    What SQLAlchemy does at its own commit, rollback or close does not reach the group's
    transaction: a commit is refused while the guard is closed, a rollback noted.
    """

    def refuse(_connection: object) -> None:
        if guard.closed:
            guard.denied = "commit() of the connection"
            raise MethodMisuse(guard.denied)

    def note(_connection: object) -> None:
        # Not refused here: SQLAlchemy rolls back by itself when a flush fails.
        guard.rolled_back = guard.closed

    engine = create_engine(
        "sqlite://", creator=lambda: raw, poolclass=StaticPool, pool_reset_on_return=None
    )
    engine.dialect.do_commit = refuse  # type: ignore[method-assign,assignment]
    engine.dialect.do_rollback = note  # type: ignore[method-assign,assignment]
    # SQLAlchemy's first connect looks at the database and rolls back: now, not under the guard.
    engine.connect().close()
    return engine
