"""A WAL's index (the ``-shm`` file) made anew where a killed writer left it behind LiteFS."""

from __future__ import annotations

import contextlib
import fcntl
import os
import struct
import time
from pathlib import Path

from .observe import logger

# https://sqlite.org/walformat.html: the index begins with two copies of a header of 48 bytes, each
# with its checksum in the last 8; the write lock is byte 120 of the file.
HEADER_BYTES = 48
CHECKSUM_AT = 40
WRITE_LOCK_BYTE = 120
LOCK_INTERVAL = 0.01


def rebuild(database: Path, *, lock_timeout: float) -> bool:
    """
    Make SQLite recover the index from the WAL at its next look; False where there is no WAL.

    A process that is killed between the last frame of a commit and its entry in the index leaves
    a transaction that LiteFS has committed and replicated (it commits when the lock goes) and
    SQLite does not know. The next writer begins where the index ends, and LiteFS refuses that
    for ever: "cannot write wal frame header before current WAL position" (litefs 0.5.14; seen
    after 11 of 60 kills of a busy writer). SQLite recovers an index whose two headers differ: it
    then reads the WAL to its end and finds that transaction. So one header's checksum is spoiled
    here, under the write lock, by a lock of the open file, as closing one of the process would
    drop the locks of its connections.
    """
    try:
        index = os.open(f"{database}-shm", os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        if not _lock(index, time.monotonic() + lock_timeout):
            return False
        header = os.pread(index, HEADER_BYTES, 0)
        if len(header) < HEADER_BYTES:
            return False
        spoiled = bytes(byte ^ 0xFF for byte in header[CHECKSUM_AT:])
        os.pwrite(index, spoiled, CHECKSUM_AT)
        logger.warning("the WAL index of %s was behind LiteFS: SQLite rebuilds it", database)
        return True
    finally:
        os.close(index)


def _lock(index: int, until: float) -> bool:
    # struct flock of 64-bit Linux; the process id of a lock of the open file is 0.
    lock = struct.pack("hhqqi4x", fcntl.F_WRLCK, os.SEEK_SET, WRITE_LOCK_BYTE, 1, 0)
    while time.monotonic() < until:
        with contextlib.suppress(BlockingIOError, PermissionError):
            fcntl.fcntl(index, fcntl.F_OFD_SETLK, lock)
            return True
        time.sleep(LOCK_INTERVAL)
    return False
