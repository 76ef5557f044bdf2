"""Exceptions arrive so that the caller's ``except`` works as if the method had run here."""

from __future__ import annotations

import sqlite3
import threading
from contextlib import closing
from typing import Self

import pytest
from sqlalchemy import create_engine, text
from sqlalchemy.exc import IntegrityError, NoResultFound, OperationalError, SQLAlchemyError
from sqlalchemy.pool import NullPool

from litefs_celery.errors import ArgumentError, MethodMisuse, RemoteError, UnknownMethod
from litefs_celery.refusals import TEXT_LIMIT
from litefs_celery.wire import Refused, Wire

WIRE = Wire(max_bytes=1_000_000)


class OutOfStock(Exception):
    """An application's error whose constructor takes keywords only."""

    def __init__(self, *, item: str, left: int) -> None:
        super().__init__(f"{item}: {left} left")
        self.item = item
        self.left = left


class Locked(Exception):
    """An application's error that holds what cannot be sent."""

    def __init__(self) -> None:
        super().__init__("locked", threading.Lock())
        self.lock = threading.Lock()
        self.who = "ada"


class Coded(Exception):
    """An application's error that computes an attribute."""

    @property
    def code(self) -> int:
        """Return the number of arguments."""
        return len(self.args)


class Proud(Exception):
    """An application's error that cannot be made from its arguments."""

    def __new__(cls, *, reason: str) -> Self:
        """Take a keyword only."""
        return super().__new__(cls, reason)

    def __init__(self, *, reason: str) -> None:
        super().__init__(reason)


def arrived(exception: Exception) -> Exception:
    """Return the exception as it is raised at the caller."""
    outcome = WIRE.load_outcome(WIRE.dump_outcome(Refused(exception)), 1)
    assert isinstance(outcome, Refused)
    return outcome.exception


def raised(statement: str, *, times: int = 1) -> Exception:
    """Return what SQLAlchemy raises for a statement on a real SQLite database."""
    engine = create_engine("sqlite://", poolclass=NullPool)
    with closing(engine.connect()) as connection:
        connection.execute(text("CREATE TABLE t(x UNIQUE NOT NULL, y CHECK (y > 0))"))
        for _ in range(times - 1):
            connection.execute(text(statement), {"x": "secret"})
        with pytest.raises(SQLAlchemyError) as caught:
            connection.execute(text(statement), {"x": "secret"})
    return caught.value


@pytest.mark.parametrize(
    ("statement", "times", "kind", "name"),
    [
        ("INSERT INTO t VALUES (:x, 1)", 2, IntegrityError, "SQLITE_CONSTRAINT_UNIQUE"),
        ("INSERT INTO t VALUES (NULL, 1)", 1, IntegrityError, "SQLITE_CONSTRAINT_NOTNULL"),
        ("INSERT INTO t VALUES (:x, 0)", 1, IntegrityError, "SQLITE_CONSTRAINT_CHECK"),
        ("INSERT INTO nowhere VALUES (1)", 1, OperationalError, "SQLITE_ERROR"),
    ],
)
def test_database_errors_keep_class_and_sqlite_name(
    statement: str, times: int, kind: type[Exception], name: str
) -> None:
    """A database error arrives as SQLAlchemy's class, with SQLite's own error, name and code."""
    original = raised(statement, times=times)
    error = arrived(original)
    assert type(error) is kind
    assert isinstance(error.orig, sqlite3.Error)
    assert type(error.orig) is type(original.orig)
    assert error.orig.sqlite_errorname == name
    assert error.orig.sqlite_errorcode == original.orig.sqlite_errorcode
    assert str(error.orig) == str(original.orig)


def test_statement_and_parameters_stay_on_the_primary() -> None:
    """What the statement held does not travel: neither its text nor its values."""
    data = WIRE.dump_outcome(Refused(raised("INSERT INTO t VALUES (:x, 1)", times=2)))
    assert "secret" not in data
    assert "INSERT" not in data


def test_keyword_only_constructors_do_not_matter() -> None:
    """An exception with keyword-only parameters arrives with class, message and attributes."""
    error = arrived(OutOfStock(item="tea", left=2))
    assert type(error) is OutOfStock
    assert (error.item, error.left, str(error)) == ("tea", 2, "tea: 2 left")


def test_unsendable_parts_arrive_as_text() -> None:
    """An argument or attribute that cannot be sent is replaced by its repr; the rest is kept."""
    error = arrived(Locked())
    assert type(error) is Locked
    assert error.who == "ada"
    assert error.args[0] == "locked"
    assert "lock" in error.args[1]
    assert "lock" in error.lock


def test_unknown_class_becomes_remote_error() -> None:
    """An exception whose class is not known here arrives as `RemoteError` with name and text."""

    class Hidden(Exception):
        pass

    error = arrived(Hidden("boo"))
    assert type(error) is RemoteError
    assert error.exception.endswith("Hidden")
    assert "boo" in str(error)


@pytest.mark.parametrize(
    "name",
    ["no.such.module:E", "builtins:SystemExit", "builtins:int", "os:system", "x", "builtins:"],
)
def test_names_of_no_exception_import_and_run_nothing(name: str) -> None:
    """A name that is no exception of a loaded module is never resolved to anything else."""
    data = {"refused": {"class": name, "text": "t", "args": ["true"], "state": {}}}
    outcome = WIRE.load_outcome(WIRE.dumps(data, "it"), 1)
    assert type(outcome.exception) is RemoteError


@pytest.mark.parametrize(
    "exception",
    [
        KeyError("k"),
        ValueError("a", 2, None),
        FileNotFoundError(2, "No such file", "/x"),
        UnicodeDecodeError("ascii", b"\xff", 0, 1, "why"),
        NoResultFound("none"),
        UnknownMethod("m", "id", "meth"),
        ArgumentError("a", "id", "meth"),
        MethodMisuse("m"),
        Coded(1, 2),
    ],
    ids=lambda exception: type(exception).__name__,
)
def test_known_exceptions_arrive_whole(exception: Exception) -> None:
    """Class, arguments, text and attributes of a known exception are the same at the caller."""
    error = arrived(exception)
    assert type(error) is type(exception)
    assert error.args == exception.args
    assert str(error) == str(exception)
    assert vars(error) == vars(exception)


@pytest.mark.parametrize(
    "exception",
    [ExceptionGroup("several", [ValueError("a"), KeyError("b")]), Proud(reason="none")],
    ids=lambda exception: type(exception).__name__,
)
def test_what_cannot_be_rebuilt_becomes_remote_error(exception: Exception) -> None:
    """An exception that cannot be made again is a `RemoteError`, and never breaks the wait."""
    error = arrived(exception)
    assert isinstance(error, RemoteError)
    assert type(exception).__name__ in error.exception


def test_long_and_broken_text_is_kept_short() -> None:
    """A huge or undecodable message is cut to what the ledger can keep."""
    error = arrived(ValueError("\ud800" + "x" * 1_000_000))
    assert len(error.args[0]) <= TEXT_LIMIT
    assert len(WIRE.dump_outcome(Refused(error))) < 3 * TEXT_LIMIT
