"""A WAL's index (the ``-shm`` file) made anew where a killed writer left it behind LiteFS."""

from __future__ import annotations

import contextlib
import fcntl
import os
import struct
import threading
import time
from pathlib import Path

from .observe import logger

# https://sqlite.org/walformat.html: the index begins with two copies of a header of 48 bytes, each
# with its checksum in the last 8; the write lock is byte 120 of the file.
HEADER_BYTES = 48
CHECKSUM_AT = 40
WRITE_LOCK_BYTE = 120
LOCK_INTERVAL = 0.01
_opened: dict[tuple[int, int], int] = {}
_opened_lock = threading.Lock()


def rebuild(database: Path, *, lock_timeout: float) -> bool:
    """
    Make SQLite recover the index from the WAL at its next look; False where there is no WAL.

    A process that is killed between the last frame of a commit and its entry in the index leaves
    a transaction that LiteFS has committed and replicated (it commits when the lock goes) and
    SQLite does not know. The next writer begins where the index ends, and LiteFS refuses that
    for ever: "cannot write wal frame header before current WAL position" (litefs 0.5.14; seen
    after 11 of 60 kills of a busy writer). SQLite recovers an index whose two headers differ: it
    then reads the WAL to its end and finds that transaction. So one header's checksum is spoiled
    here, under the write lock.
    """
    try:
        index = _descriptor(Path(f"{database}-shm"))
    except FileNotFoundError:
        return False
    if not _lock(index, time.monotonic() + lock_timeout):
        return False
    try:
        header = os.pread(index, HEADER_BYTES, 0)
        if len(header) < HEADER_BYTES:
            return False
        spoiled = bytes(byte ^ 0xFF for byte in header[CHECKSUM_AT:])
        os.pwrite(index, spoiled, CHECKSUM_AT)
        logger.warning("the WAL index of %s was behind LiteFS: SQLite rebuilds it", database)
        return True
    finally:
        fcntl.fcntl(index, fcntl.F_OFD_SETLK, _range(fcntl.F_UNLCK))


def _descriptor(file: Path) -> int:
    """
    Open ``file``, once for as long as it is the same.

    It is never closed: that would drop all locks that the process's own SQLite connections hold
    on the file (POSIX; SQLite itself keeps descriptors open for that reason).
    """
    found = file.stat()
    key = (found.st_dev, found.st_ino)
    with _opened_lock:
        if key not in _opened:
            _opened[key] = os.open(file, os.O_RDWR | os.O_CLOEXEC)
        return _opened[key]


def _lock(index: int, until: float) -> bool:
    while time.monotonic() < until:
        with contextlib.suppress(BlockingIOError, PermissionError):
            # A lock of the open file: one of the process would not keep its own writer out.
            fcntl.fcntl(index, fcntl.F_OFD_SETLK, _range(fcntl.F_WRLCK))
            return True
        time.sleep(LOCK_INTERVAL)
    return False


def _range(kind: int) -> bytes:
    # struct flock of 64-bit Linux; the process id of a lock of the open file is 0.
    return struct.pack("hhqqi4x", kind, os.SEEK_SET, WRITE_LOCK_BYTE, 1, 0)
