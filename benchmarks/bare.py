"""What SQLite and LiteFS do by themselves, without any of this package: the yardsticks."""

from __future__ import annotations

import contextlib
import fcntl
import os
import sqlite3
import struct
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

from litefs_celery.ledger import LEDGER

VISIT = "UPDATE regions SET visits = visits + 1 WHERE code = ?"
RECORD = (
    f"INSERT INTO {LEDGER} (write_id, method, fingerprint, outcome, epoch, committed_at) "
    "VALUES (?, ?, ?, ?, ?, ?)"
)
METHOD = "worker.repositories.Regions.visit"
FINGERPRINT = "0" * 32
OUTCOME = '{"committed": 1234}'
# LiteFS 0.5: an OFD write lock on this byte of the virtual file "<database>-lock" is HALT.
HALT_BYTE = 72
LOCK_TIMEOUT = 10.0


def commits(database: Path, code: str, count: int) -> list[float]:
    """Seconds of each of ``count`` commits of one row, on one connection: on the primary."""
    durations = []
    with _connection(database) as connection:
        for _ in range(count):
            began = time.perf_counter()
            connection.execute(VISIT, (code,))
            durations.append(time.perf_counter() - began)
    return durations


def halted(database: Path, code: str, count: int) -> list[float]:
    """
    Do the same from a replica: each under the HALT lock, taken and released for each.

    The connection and the lock's file stay open: the least that such a write can cost.
    """
    durations = []
    lock = os.open(f"{database}-lock", os.O_RDWR)
    try:
        with _connection(database) as connection:
            for _ in range(count):
                began = time.perf_counter()
                with _halt(lock):
                    connection.execute(VISIT, (code,))
                durations.append(time.perf_counter() - began)
    finally:
        os.close(lock)
    return durations


def replicated(primary: Path, replica: Path, code: str, count: int) -> list[float]:
    """
    Seconds of commits of one row and its ledger row on the primary, until a replica can read it.

    The least that any write can take whose caller, on a replica, waits to read it: no broker,
    no other process, and its position is read without a pause.
    """
    durations = []
    position = Path(f"{primary}-pos")
    with _connection(primary) as connection:
        for _ in range(count):
            began = time.perf_counter()
            _group(connection, code, 1)
            committed = position.read_text()
            while Path(f"{replica}-pos").read_text() < committed:
                pass
            durations.append(time.perf_counter() - began)
    return durations


def grouped(database: Path, code: str, groups: int, size: int) -> list[float]:
    """Seconds for each write of commits of ``size`` writes, savepoints and ledger rows included."""
    durations = []
    with _connection(database) as connection:
        for _ in range(groups):
            began = time.perf_counter()
            _group(connection, code, size)
            durations.append((time.perf_counter() - began) / size)
    return durations


def total(database: Path) -> int:
    """How many visits there were in all."""
    with _connection(database) as connection:
        return int(connection.execute("SELECT sum(visits) FROM regions").fetchone()[0])


def _group(connection: sqlite3.Connection, code: str, size: int) -> None:
    connection.execute("BEGIN IMMEDIATE")
    for _ in range(size):
        connection.execute("SAVEPOINT one")
        connection.execute(VISIT, (code,))
        connection.execute("RELEASE one")
    now = time.time()
    rows = [(_write_id(now), METHOD, FINGERPRINT, OUTCOME, 1, now) for _ in range(size)]
    connection.executemany(RECORD, rows)
    connection.execute("COMMIT")


def _write_id(now: float) -> str:
    # Ordered by time like the UUIDv7 of real writes: random keys would touch more pages.
    stamp = int(now * 1000).to_bytes(6, "big")
    return str(uuid.UUID(bytes=stamp + os.urandom(10), version=4))


@contextlib.contextmanager
def _connection(database: Path) -> Iterator[sqlite3.Connection]:
    connection = sqlite3.connect(
        f"file:{database}?mode=rw", uri=True, isolation_level=None, timeout=LOCK_TIMEOUT
    )
    try:
        yield connection
    finally:
        connection.close()


@contextlib.contextmanager
def _halt(lock: int) -> Iterator[None]:
    # LiteFS knows the waiting form only.
    fcntl.fcntl(lock, fcntl.F_OFD_SETLKW, _range(fcntl.F_WRLCK))
    try:
        yield
    finally:
        fcntl.fcntl(lock, fcntl.F_OFD_SETLKW, _range(fcntl.F_UNLCK))


def _range(kind: int) -> bytes:
    # struct flock of 64-bit Linux; the process id of an OFD lock is 0.
    return struct.pack("hhqqi4x", kind, os.SEEK_SET, HALT_BYTE, 1, 0)
