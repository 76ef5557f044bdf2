"""SQLAlchemy engines on one SQLite file: for reads, for local Sessions, and for the one writer."""

from __future__ import annotations

import contextlib
import sqlite3
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import quote

from sqlalchemy import Connection, Engine, create_engine, event
from sqlalchemy.engine import ExceptionContext, make_url
from sqlalchemy.exc import DisconnectionError, SQLAlchemyError
from sqlalchemy.pool import NullPool, QueuePool

from .errors import ConfigurationError, DatabaseMissing, MountUnavailable
from .guard import Guard
from .write_lock import begin_immediate

# SQLite's primary result codes after which a connection is not to be used again: LiteFS went
# away or changed its role under it (litefs 0.5.14: a connection opened on a replica stays
# read-only after a promotion).
READONLY, IOERR, FULL, CANTOPEN = 8, 10, 13, 14
LOGIC = 1  # SQLITE_ERROR; also a savepoint that a failed virtual table has spoilt (3.40.1)
BUSY, CORRUPT, NOTADB, PROTOCOL, NOMEM = 5, 11, 26, 15, 7
# PROTOCOL among them: a WAL opened while LiteFS was starting keeps a stale index, and says so at
# every statement, after ten seconds of trying.
LOST = frozenset({READONLY, IOERR, CANTOPEN, CORRUPT, NOTADB, PROTOCOL})
# Not LOCKED among them: on a connection of its own it is the method's doing, as is a damaged
# virtual table (SQLITE_CORRUPT_VTAB).
INFRASTRUCTURE = LOST | {FULL, BUSY, NOMEM}
ONE_MAY_CAUSE = frozenset({FULL, CORRUPT, NOMEM})
CORRUPT_VTAB = 267

# After a snapshot of another node the file's change counter can be what it was, and SQLite then
# goes on with the pages it has (litefs 0.5.14): a connection this old is replaced at its next use.
READER_AGE = 5

# How often it is looked whether the mount is another: a look takes a fifth of a short read, and
# LiteFS can be there again 25 ms after it was killed.
MOUNT_INTERVAL = 0.01

OnConnect = Callable[[sqlite3.Connection], None]


_NOT_REPLICATED = ("memory", "off")


class Engines:
    """
    The engines of one database file.

    ``reader`` is autocommit: no read transaction outlives its statement. ``fresh`` is the same by
    a new connection each time. ``local`` begins a transaction as SQLAlchemy's Sessions expect.
    ``writer`` begins IMMEDIATE, under `Guard`; ``setup`` begins IMMEDIATE on a connection that is
    opened for it and closed after.
    ``relies_on_litefs`` says that LiteFS itself makes commits durable.
    Only ``may_create`` (standalone, or the primary's own set-up) creates a missing file: a file
    made on a replica, or in an empty mount point, would be a phantom whose writes are lost.
    """

    def __init__(
        self,
        path: Path,
        *,
        lock_timeout: float,
        relies_on_litefs: bool = False,
        on_connect: OnConnect | None = None,
    ) -> None:
        self.path = path
        self.guard = Guard()
        self.may_create = False
        self._lock_timeout = lock_timeout
        self._device, self._device_until = -1, 0.0
        self._relies_on_litefs = relies_on_litefs
        self._on_connect = on_connect
        self._holders: dict[int, int] = {}
        self._holders_lock = threading.Lock()
        aged = {"pool_recycle": READER_AGE}
        self.reader = self._engine(isolation_level="AUTOCOMMIT", **aged)
        self.fresh = self._engine(isolation_level="AUTOCOMMIT", poolclass=NullPool)
        self.local = self._engine(**aged)
        self.writer = self._engine(pool_size=1, max_overflow=0)
        self.setup = self._engine(poolclass=NullPool)
        event.listen(self.setup, "begin", begin_immediate(lock_timeout))
        event.listen(self.local, "begin", _begin)
        event.listen(self.local, "checkout", self._held)
        event.listen(self.local, "checkin", self._released)
        event.listen(self.writer, "begin", begin_immediate(lock_timeout))
        event.listen(self.writer, "connect", self._guarded)

    def holds_local_session(self) -> bool:
        """Whether this thread has a connection of ``local`` in use: an open read transaction."""
        return self._holders.get(threading.get_ident(), 0) > 0

    def dispose(self) -> None:
        """Close idle connections; those in use close when they are given back."""
        for engine in (self.reader, self.local, self.writer):
            engine.dispose()

    def forget(self) -> None:
        """After a fork: drop the parent's connections without touching them."""
        for engine in (self.reader, self.local, self.writer):
            engine.dispose(close=False)
        self._holders.clear()

    def _engine(self, **options: Any) -> Engine:
        if "poolclass" not in options:
            # SQLite connections are cheap, and a caller must not wait for another's Session.
            options = {"poolclass": QueuePool, "max_overflow": -1, **options}
        engine = create_engine("sqlite://", creator=self._connect, **options)
        event.listen(engine, "handle_error", _notice_lost_file)
        event.listen(engine, "invalidate", _release_locks)
        event.listen(engine, "connect", self._note_mount)
        event.listen(engine, "checkout", self._check_mount)
        return engine

    def _note_mount(self, _connection: object, record: Any) -> None:
        self._device_until = 0.0
        record.info["litefs_device"] = self._device_now()

    def _check_mount(self, _connection: object, record: Any, _proxy: object) -> None:
        # A mount of its own since LiteFS was started again: what was opened before answers "disk
        # I/O error", in WAL mode "locking protocol" after ten seconds (litefs 0.5.14).
        if record.info["litefs_device"] != self._device_now():
            raise DisconnectionError(f"{self.path} is on another mount now")

    def _device_now(self) -> int:
        if time.monotonic() >= self._device_until:
            self._device_until = time.monotonic() + MOUNT_INTERVAL
            try:
                self._device = self.path.stat().st_dev
            except OSError:
                self._device = -1
        return self._device

    def _connect(self) -> sqlite3.Connection:
        mode = "rwc" if self.may_create else "rw"
        try:
            connection = sqlite3.connect(
                f"file:{quote(str(self.path))}?mode={mode}",
                uri=True,
                timeout=self._lock_timeout,
                check_same_thread=False,
                isolation_level=None,
            )
        except sqlite3.OperationalError as error:
            raise self._explained(error) from error
        mode = _journal_mode(connection)
        if mode == "wal" and self._relies_on_litefs:
            # LiteFS syncs the WAL itself before it replicates a commit (0.5.14, CommitWAL): a sync
            # by SQLite before that costs a fifth of the commit, and makes it four times as likely
            # that a killed writer leaves the index behind (see wal_index).
            connection.execute("PRAGMA synchronous = normal")
        if self._on_connect is not None:
            self._on_connect(connection)
            self._check_journal(connection, _journal_mode(connection))
        return connection

    def uses_wal(self) -> bool:
        """Whether the database is in WAL mode; False also where it cannot be asked."""
        with contextlib.closing(self._connect()) as connection:
            return _journal_mode(connection) == "wal"

    def _check_journal(self, connection: sqlite3.Connection, mode: str) -> None:
        if mode in _NOT_REPLICATED:
            connection.close()
            raise ConfigurationError(
                f"{self.path} is used with journal_mode={mode}: LiteFS does not see such commits, "
                "and the nodes would drift apart. Remove that PRAGMA; use delete or wal, chosen "
                "when the database is created"
            )

    def _explained(self, error: sqlite3.OperationalError) -> Exception:
        try:
            self.path.stat()
        except FileNotFoundError:
            return DatabaseMissing(
                f"{self.path} does not exist: create it on the primary with db.create_all(), "
                "or check the database URL and that LiteFS is mounted"
            )
        except OSError as failure:
            return MountUnavailable(
                f"{self.path} cannot be opened ({failure}): the LiteFS mount is dead or "
                "unreadable; restart LiteFS on this node"
            )
        return error

    def _guarded(self, connection: Any, _record: object) -> None:
        # Once for each connection: setting an authorizer makes SQLite recompile all statements.
        connection.set_authorizer(self.guard)

    def _held(self, _connection: object, record: Any, _proxy: object) -> None:
        ident = threading.get_ident()
        record.info["litefs_holder"] = ident
        with self._holders_lock:
            self._holders[ident] = self._holders.get(ident, 0) + 1

    def _released(self, _connection: object, record: Any) -> None:
        ident = record.info.pop("litefs_holder", None)
        if ident is None:
            return
        with self._holders_lock:
            left = self._holders.get(ident, 1) - 1
            if left:
                self._holders[ident] = left
            else:
                self._holders.pop(ident, None)


def _journal_mode(connection: sqlite3.Connection) -> str:
    try:
        return str(connection.execute("PRAGMA journal_mode").fetchone()[0]).lower()
    except sqlite3.Error:
        return ""  # a dead mount, or no database at all: the statement to come says so better


def database_path(url: str) -> Path:
    """The file behind a SQLAlchemy SQLite URL; raises `ConfigurationError` with the remedy."""
    try:
        parsed = make_url(url)
    except SQLAlchemyError as error:
        raise ConfigurationError(f"{url!r} is no URL: use sqlite:////litefs/app.db") from error
    if parsed.get_backend_name() != "sqlite":
        raise ConfigurationError(f"{url!r} is no SQLite URL: use sqlite:////litefs/app.db")
    if not parsed.database or parsed.database == ":memory:" or parsed.query:
        raise ConfigurationError(
            f"{url!r} must name one file, without options: use sqlite:////litefs/app.db"
        )
    return Path(parsed.database).absolute()


def primary_code(error: BaseException | None) -> int:
    """SQLite's primary result code behind an error; 0 where none is, or it is a virtual table's."""
    orig = getattr(error, "orig", None) or error
    code = int(getattr(orig, "sqlite_errorcode", 0) or 0)
    return 0 if code == CORRUPT_VTAB else code & 0xFF


def _begin(connection: Connection) -> None:
    connection.exec_driver_sql("BEGIN")


def _notice_lost_file(context: ExceptionContext) -> None:
    if primary_code(context.original_exception) in LOST:
        context.is_disconnect = True


def _release_locks(connection: Any, _record: object, _error: object) -> None:
    # Python 3.11 keeps a closed connection's locks while an exception refers to its cursors.
    with contextlib.suppress(sqlite3.Error):
        connection.set_authorizer(None)
        connection.rollback()
