"""The engines never make a file where none may be, and the writer's transaction is guarded."""

from __future__ import annotations

import sqlite3
import threading
from typing import TYPE_CHECKING

import pytest
from sqlalchemy import event, text
from sqlalchemy.exc import DatabaseError, OperationalError
from sqlalchemy.orm import Session

from litefs_celery.engines import FULL, LOST, READONLY, Engines, database_path, primary_code
from litefs_celery.errors import ConfigurationError, DatabaseMissing

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Return where the database is, or is to be; the name needs quoting in a URI."""
    return tmp_path / "a b%20?#.db"


@pytest.fixture
def engines(path: Path) -> Iterator[Engines]:
    """Return engines on an existing database with one table."""
    made = Engines(path, lock_timeout=0.05)
    made.may_create = True
    with made.setup.begin() as connection:
        connection.execute(text("CREATE TABLE t(x)"))
    made.may_create = False
    yield made
    made.dispose()


@pytest.mark.parametrize("name", ["reader", "local", "writer", "setup"])
def test_a_missing_file_is_never_created(path: Path, name: str) -> None:
    """No engine makes a file or a directory; the error names the file and the remedy."""
    engines = Engines(path, lock_timeout=0.05)
    with pytest.raises(DatabaseMissing, match="create_all") as caught:
        getattr(engines, name).connect()
    assert str(path) in str(caught.value)
    assert list(path.parent.iterdir()) == []


@pytest.mark.parametrize("name", ["reader", "local", "writer", "setup"])
def test_a_missing_file_is_created_where_told(path: Path, name: str) -> None:
    """With ``may_create`` the file is made under exactly that name."""
    engines = Engines(path, lock_timeout=0.05)
    engines.may_create = True
    with getattr(engines, name).begin() as connection:
        connection.execute(text("CREATE TABLE t(x)"))
    engines.dispose()
    assert [found.name for found in path.parent.iterdir()] == [path.name]


def test_a_file_that_cannot_be_opened_is_sqlites_error(path: Path) -> None:
    """Where the file is there and does not open, SQLite's own error is told."""
    path.mkdir()
    with pytest.raises(OperationalError, match="unable to open"):
        Engines(path, lock_timeout=0.05).reader.connect()


def test_reads_hold_no_transaction(engines: Engines) -> None:
    """After each statement of the reader no read transaction is left open."""
    with engines.reader.connect() as connection:
        connection.execute(text("SELECT * FROM t")).all()
        assert not connection.connection.dbapi_connection.in_transaction
        with engines.setup.begin() as other:
            other.execute(text("INSERT INTO t VALUES (1)"))
        assert connection.scalar(text("SELECT count(*) FROM t")) == 1


def test_the_writer_takes_the_lock_at_its_begin(engines: Engines) -> None:
    """A second writer is told at its begin, after the lock timeout, that the database is locked."""
    with (
        engines.writer.begin(),
        pytest.raises(OperationalError, match="locked"),
        engines.setup.begin(),
    ):
        pass


def test_a_local_session_is_known_to_hold_a_transaction(engines: Engines) -> None:
    """An open local Session is known in its own thread, until it is closed there or elsewhere."""
    with Session(engines.local) as session:
        assert not engines.holds_local_session()
        session.execute(text("SELECT 1"))
        assert engines.holds_local_session()
        seen: list[bool] = []
        thread = threading.Thread(target=lambda: seen.append(engines.holds_local_session()))
        thread.start()
        thread.join()
        assert seen == [False]
        session.commit()
        assert not engines.holds_local_session()
        session.execute(text("SELECT 1"))
        thread = threading.Thread(target=session.close)
        thread.start()
        thread.join()
        assert not engines.holds_local_session()


def test_a_local_session_reads_one_state(engines: Engines) -> None:
    """Within a local Session all reads see the same state."""
    with engines.local.connect() as connection:
        assert connection.connection.dbapi_connection.in_transaction is False
        connection.execute(text("SELECT * FROM t")).all()
        assert connection.connection.dbapi_connection.in_transaction is True


@pytest.mark.parametrize(
    "statement",
    ["COMMIT", "END", "ROLLBACK", "BEGIN", "ATTACH ':memory:' AS m", "DETACH main", "VACUUM"],
)
def test_the_closed_guard_denies(engines: Engines, statement: str) -> None:
    """While closed the guard lets no statement end the transaction or leave the file."""
    with engines.writer.connect() as connection:
        transaction = connection.begin()
        engines.guard.closed, engines.guard.denied = True, ""
        with pytest.raises(DatabaseError):
            connection.execute(text(statement))
        if statement != "VACUUM":
            assert engines.guard.denied
        engines.guard.closed = False
        assert connection.connection.dbapi_connection.in_transaction
        connection.execute(text("INSERT INTO t VALUES (1)"))
        transaction.commit()
    with engines.reader.connect() as connection:
        assert connection.scalar(text("SELECT count(*) FROM t")) == 1


def test_the_guard_allows_savepoints_and_statements(engines: Engines) -> None:
    """While closed the guard allows what belongs to a method: statements and savepoints."""
    with engines.writer.begin() as connection:
        engines.guard.closed, engines.guard.denied = True, ""
        with connection.begin_nested():
            connection.execute(text("INSERT INTO t VALUES (1)"))
        engines.guard.closed = False
        assert engines.guard.denied == ""


def test_on_connect_meets_every_connection(path: Path) -> None:
    """The application's hook gets each new sqlite3 connection before it is used."""
    met: list[sqlite3.Connection] = []
    engines = Engines(path, lock_timeout=0.05, on_connect=met.append)
    engines.may_create = True
    for name in ("reader", "local", "writer", "setup"):
        getattr(engines, name).connect().close()
    assert len(met) == 4
    assert {type(connection) for connection in met} == {sqlite3.Connection}
    engines.dispose()


def test_a_lost_file_drops_the_connection(engines: Engines) -> None:
    """After an error that says the file is gone or read-only, the connection is not used again."""
    assert READONLY in LOST
    connected: list[object] = []
    event.listen(engines.writer, "connect", lambda raw, _: connected.append(raw))
    with engines.writer.connect() as connection:
        connection.exec_driver_sql("PRAGMA query_only = 1")
    with pytest.raises(OperationalError, match="readonly"), engines.writer.begin() as connection:
        connection.execute(text("INSERT INTO t VALUES (1)"))
    with engines.writer.begin() as connection:
        connection.execute(text("INSERT INTO t VALUES (1)"))
    assert len(connected) == 2


def test_primary_code_reduces_extended_codes() -> None:
    """The primary result code is found behind SQLAlchemy's and sqlite3's errors; else 0."""
    raw = sqlite3.OperationalError("x")
    raw.sqlite_errorcode = FULL | 5 << 8
    assert primary_code(raw) == FULL
    assert primary_code(OperationalError("s", {}, raw)) == FULL
    assert primary_code(ValueError()) == 0
    assert primary_code(None) == 0


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://h/db", "sqlite://", "sqlite:///:memory:", "sqlite:////x/app.db?mode=ro",
        "/litefs/app.db", "",
    ],
)
def test_other_urls_are_refused(url: str) -> None:
    """A URL that is not exactly one SQLite file is refused with an example."""
    with pytest.raises(ConfigurationError, match=r"use sqlite:////litefs/app\.db"):
        database_path(url)


def test_the_path_is_absolute(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A relative URL is fixed to a place when the database is made."""
    monkeypatch.chdir(tmp_path)
    assert database_path("sqlite:///app.db") == tmp_path / "app.db"
