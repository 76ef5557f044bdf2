"""A WAL's index that a killed writer left behind is made anew, and nothing else is harmed."""

from __future__ import annotations

import fcntl
import os
import sqlite3
import struct
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import pytest
from support import TIMEOUT

from litefs_celery import wal_index

# Both copies of the index's header, and what checkpoints and readers keep behind them.
HEADER_BYTES = 136
# Of the same file: the first byte that readers lock, and how many there are.
READERS = (123, 5)
F_OFD_GETLK = 36


class Wal:
    """A database in WAL mode with one row, and the connections that a test opens."""

    def __init__(self, path: Path, stack: ExitStack) -> None:
        self.path = path
        self._stack = stack
        self.writer = self.connect()
        self.writer.execute("PRAGMA journal_mode = wal")
        self.writer.execute("CREATE TABLE t(x)")
        self.put(1)
        # Kept open: closing a file drops this process's locks on it, SQLite's among them.
        self.index = os.open(f"{path}-shm", os.O_RDWR)
        stack.callback(os.close, self.index)

    def connect(self) -> sqlite3.Connection:
        """Open one more connection, for any thread."""
        connection = sqlite3.connect(
            self.path, isolation_level=None, timeout=TIMEOUT, check_same_thread=False
        )
        return self._stack.enter_context(closing(connection))

    def put(self, value: int) -> None:
        """Commit a row."""
        self.writer.execute("INSERT INTO t VALUES (?)", (value,))

    def put_and_die(self, value: int) -> None:
        """Commit a row to the WAL as a writer does that is killed before it enters it."""
        before = os.pread(self.index, HEADER_BYTES, 0)
        self.put(value)
        os.pwrite(self.index, before, 0)

    def readers_lock(self) -> int:
        """Return the kind of lock that a stranger meets where readers lock the index."""
        asked = struct.pack("hhqqi4x", fcntl.F_WRLCK, os.SEEK_SET, *READERS, 0)
        kind: int = struct.unpack("hhqqi4x", fcntl.fcntl(self.index, F_OFD_GETLK, asked))[0]
        return kind

    def rebuild(self, lock_timeout: float = TIMEOUT) -> bool:
        """Have the index made anew."""
        return wal_index.rebuild(self.path, lock_timeout=lock_timeout)


def values(connection: sqlite3.Connection) -> list[Any]:
    """Return what the table holds."""
    return [x for (x,) in connection.execute("SELECT x FROM t ORDER BY x")]


@pytest.fixture
def wal(tmp_path: Path) -> Iterator[Wal]:
    """Yield a database in WAL mode."""
    with ExitStack() as stack:
        yield Wal(tmp_path / "app.db", stack)


def test_a_commit_that_the_index_lacks_is_found(wal: Wal) -> None:
    """A commit whose writer was killed before the index had it is read after the rebuild."""
    wal.put_and_die(2)
    reader = wal.connect()
    assert values(reader) == [1], "else this test shows nothing"
    assert wal.rebuild()
    assert values(reader) == [1, 2]
    assert values(wal.connect()) == [1, 2]
    other = wal.connect()
    other.execute("INSERT INTO t VALUES (3)")
    assert values(reader) == [1, 2, 3]
    assert other.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    assert other.execute("PRAGMA wal_checkpoint(truncate)").fetchone()[0] == 0
    assert values(wal.connect()) == [1, 2, 3]


def test_a_sound_index_stays_sound(wal: Wal) -> None:
    """A rebuild loses nothing, disturbs no open reader, and writing goes on."""
    reader = wal.connect()
    reader.execute("BEGIN")
    assert values(reader) == [1]
    wal.put(2)
    assert wal.rebuild()
    assert values(wal.connect()) == [1, 2]
    wal.put(3)
    # Moves into the file what no reader needs any more: here nothing that is new.
    wal.connect().execute("PRAGMA wal_checkpoint(passive)")
    assert values(reader) == [1], "one state within one transaction"
    reader.execute("COMMIT")
    assert values(reader) == [1, 2, 3]
    assert wal.connect().execute("PRAGMA integrity_check").fetchall() == [("ok",)]


def test_a_rebuild_waits_for_the_writer(wal: Wal) -> None:
    """While another connection writes, the rebuild waits; what that one commits is kept."""
    other = wal.connect()
    other.execute("BEGIN IMMEDIATE")
    other.execute("INSERT INTO t VALUES (2)")
    done: list[bool] = []
    thread = threading.Thread(target=lambda: done.append(wal.rebuild()))
    before = os.pread(wal.index, HEADER_BYTES, 0)
    thread.start()
    try:
        thread.join(0.2)
        assert thread.is_alive()
        assert os.pread(wal.index, HEADER_BYTES, 0) == before
    finally:
        other.execute("COMMIT")
        thread.join(TIMEOUT)
    assert done == [True]
    assert values(wal.connect()) == [1, 2]


def test_a_rebuild_gives_up_at_its_timeout(wal: Wal) -> None:
    """A writer that does not end in time keeps the index as it is, and the answer is False."""
    other = wal.connect()
    other.execute("BEGIN IMMEDIATE")
    before = os.pread(wal.index, HEADER_BYTES, 0)
    started = time.monotonic()
    assert wal.rebuild(lock_timeout=0.2) is False
    assert 0.2 <= time.monotonic() - started < TIMEOUT
    assert os.pread(wal.index, HEADER_BYTES, 0) == before
    other.execute("INSERT INTO t VALUES (2)")
    other.execute("COMMIT")
    assert values(wal.connect()) == [1, 2]


def test_a_rebuild_leaves_the_locks_of_this_process(wal: Wal) -> None:
    """What other processes see of this one's readers is the same after a rebuild."""
    reader = wal.connect()
    reader.execute("BEGIN")
    assert values(reader) == [1]
    assert wal.readers_lock() == fcntl.F_RDLCK
    assert wal.rebuild()
    assert wal.readers_lock() == fcntl.F_RDLCK


@pytest.mark.parametrize("index", ["absent", "empty"])
def test_without_an_index_there_is_nothing_to_do(tmp_path: Path, index: str) -> None:
    """Where there is no index the answer is False, and no file is made."""
    path = tmp_path / "app.db"
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TABLE t(x)")
    if index == "empty":
        (tmp_path / "app.db-shm").touch()
    files = sorted(tmp_path.iterdir())
    assert wal_index.rebuild(path, lock_timeout=0.2) is False
    assert sorted(tmp_path.iterdir()) == files
