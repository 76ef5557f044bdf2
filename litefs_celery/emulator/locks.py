"""SQLite's lock protocol on a database file, spoken with ``fcntl`` byte ranges."""

from __future__ import annotations

import fcntl
import os
import sqlite3
import struct
import sys
from contextlib import suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

PENDING = (0x40000000, 1)
RESERVED = (0x40000001, 1)
SHARED = (0x40000002, 510)
_RECOVERY_TIMEOUT = 0.2  # seconds; long enough for a commit in progress, the caller tries again
# ``struct flock`` differs between kernels, and Python has no wrapper for F_GETLK.
_FLOCK = "@qqihh" if sys.platform == "darwin" else "@hhqqi"


class DatabaseFile:
    """
    One open database file and this process's locks on it.

    POSIX drops *all* locks of a process on a file when it closes *any* descriptor of it, so a
    process must have one of these per file: see ``OpenFiles``. No method ever waits.
    """

    def __init__(self, path: Path) -> None:
        """Open ``path`` for reading and writing; raises ``FileNotFoundError`` or ``OSError``."""
        self.path = path
        self.fd = os.open(path, os.O_RDWR)
        self.inode = os.fstat(self.fd).st_ino

    def close(self) -> None:
        """Close the file, which drops every lock of this process on it."""
        os.close(self.fd)

    def try_shared(self) -> bool:
        """Take SQLite's SHARED lock: no commit completes while it is held."""
        if not self._try(fcntl.LOCK_SH, PENDING):
            return False
        taken = self._try(fcntl.LOCK_SH, SHARED)
        self._release(PENDING)
        return taken

    def try_reserved(self) -> bool:
        """Take SQLite's RESERVED lock: no write transaction runs or begins while it is held."""
        return self._try(fcntl.LOCK_EX, RESERVED)

    def try_pending(self) -> bool:
        """Take SQLite's PENDING lock: no new reader gets in while it is held."""
        return self._try(fcntl.LOCK_EX, PENDING)

    def try_exclusive(self) -> bool:
        """Lock the whole SHARED range: nobody reads or writes while it is held."""
        return self._try(fcntl.LOCK_EX, SHARED)

    def release_pending(self) -> None:
        """Let new readers in again, keeping the other locks."""
        self._release(PENDING)

    def unlock(self) -> None:
        """Drop every lock."""
        for span in (SHARED, RESERVED, PENDING):
            self._release(span)

    def is_reserved_elsewhere(self) -> bool:
        """Whether another process runs a write transaction; takes no lock."""
        start, length = RESERVED
        if sys.platform == "darwin":
            query = struct.pack(_FLOCK, start, length, 0, fcntl.F_WRLCK, os.SEEK_SET)
            return bool(struct.unpack(_FLOCK, self._ask(query))[3] != fcntl.F_UNLCK)
        query = struct.pack(_FLOCK, fcntl.F_WRLCK, os.SEEK_SET, start, length, 0)
        return bool(struct.unpack(_FLOCK, self._ask(query))[0] != fcntl.F_UNLCK)

    def _ask(self, query: bytes) -> bytes:
        return fcntl.fcntl(self.fd, fcntl.F_GETLK, query)

    def _try(self, kind: int, span: tuple[int, int]) -> bool:
        try:
            fcntl.lockf(self.fd, kind | fcntl.LOCK_NB, span[1], span[0])
        except (BlockingIOError, PermissionError):
            return False
        return True

    def _release(self, span: tuple[int, int]) -> None:
        fcntl.lockf(self.fd, fcntl.LOCK_UN, span[1], span[0])


class OpenFiles:
    """The database files this process has open, one descriptor each; for one thread only."""

    def __init__(self) -> None:
        """Open nothing yet."""
        self._files: dict[Path, DatabaseFile] = {}

    def get(self, path: Path) -> DatabaseFile | None:
        """Return the open file, opened anew if it was replaced; ``None`` if there is none."""
        file = self._files.get(path)
        try:
            inode = path.stat().st_ino
            if file is not None and file.inode == inode:
                return file
            self.forget(path)
            self._files[path] = DatabaseFile(path)
        except FileNotFoundError:
            self.forget(path)
            return None
        return self._files[path]

    def forget(self, path: Path) -> None:
        """Close the file of ``path``, if it is open."""
        file = self._files.pop(path, None)
        if file is not None:
            file.close()


def has_journal(path: Path) -> bool:
    """Whether the database ``path`` has a rollback journal that is not finished."""
    try:
        fd = os.open(f"{path}-journal", os.O_RDONLY)
    except FileNotFoundError:
        return False
    try:
        return os.read(fd, 1) not in (b"", b"\0")
    finally:
        os.close(fd)


def is_hot(file: DatabaseFile) -> bool:
    """Whether a crashed writer left a journal; ask with the SHARED lock held."""
    return has_journal(file.path) and not file.is_reserved_elsewhere()


def recover(path: Path) -> None:
    """Let SQLite roll back what a crash left; drops every lock this process has on ``path``."""
    if not has_journal(path):
        return
    with suppress(sqlite3.Error):
        connection = sqlite3.connect(
            path.as_uri() + "?mode=rw", uri=True, timeout=_RECOVERY_TIMEOUT
        )
        try:
            connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
        finally:
            connection.close()
