"""SQLite's write lock, waited for so that no process of the node starves another."""

from __future__ import annotations

import contextlib
import sqlite3
import time
from collections.abc import Callable, Iterator

from sqlalchemy import Connection, Engine

# SQLite's own busy handler sleeps up to 100 ms between two tries (3.40.1), and a process that
# makes one commit after the other leaves less than a millisecond between them: waiting writers
# then get the lock by chance, after a second or not in time. A try takes 0.1 ms through FUSE.
TRY_INTERVAL = 0.001


def begin_immediate(lock_timeout: float) -> Callable[[Connection], None]:
    """What begins a transaction with the write lock, and waits ``lock_timeout`` seconds for it."""

    def begin(connection: Connection) -> None:
        raw = connection.connection.dbapi_connection
        assert isinstance(raw, sqlite3.Connection)
        raw.execute("PRAGMA busy_timeout = 0")
        begun = _try_until(raw, time.monotonic() + lock_timeout)
        if not begun:
            connection.exec_driver_sql("BEGIN IMMEDIATE")  # raises as all statements do
        raw.execute(f"PRAGMA busy_timeout = {lock_timeout * 1000:.0f}")

    return begin


@contextlib.contextmanager
def held(setup: Engine) -> Iterator[None]:
    """No other connection commits meanwhile; nothing is written. ``setup`` begins by the above."""
    with setup.connect() as connection:
        connection.begin()
        yield  # rolled back when it is closed


def _try_until(raw: sqlite3.Connection, deadline: float) -> bool:
    while time.monotonic() < deadline:
        try:
            raw.execute("BEGIN IMMEDIATE")
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY:
                return False
            time.sleep(TRY_INTERVAL)
        else:
            return True
    return False
