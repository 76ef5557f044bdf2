"""One write run in one savepoint of the group's transaction, and kept or undone."""

from __future__ import annotations

import contextlib
import contextvars
import sqlite3
import time
from collections.abc import Callable, Iterator
from typing import Any, cast

from celery.utils.saferepr import saferepr
from sqlalchemy import Connection, Engine
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session

from .engines import INFRASTRUCTURE, primary_code
from .errors import ArgumentError, MethodMisuse, RemoteError
from .guard import SAVEPOINT, Guard, engine_over
from .refusals import class_name
from .wire import Committed, Expired, Outcome, Refused, Wire, Write


class TransactionEnded(MethodMisuse):
    """The group's transaction is gone, and with it what the writes before in it had done."""


RunMethod = Callable[[Write], Any]

_MISUSE = (
    "a write method called {}: its transaction is not its own. Return to commit, raise to roll "
    "back; session.begin_nested() gives a part of its own. Nothing was changed"
)


class WriteSession(Session):
    """
    The Session a write method gets, inside one savepoint of the group's transaction.

    The method cannot end it, by whichever of the Session's methods; what goes past the Session
    meets `Guard`.
    """

    def commit(self) -> None:
        """Refused: the commit is made for the method when it returns."""
        raise MethodMisuse(_MISUSE.format("commit()"))

    def rollback(self) -> None:
        """Refused: raise an exception instead, and everything is rolled back."""
        raise MethodMisuse(_MISUSE.format("rollback()"))

    def close(self) -> None:
        """Refused: what came before would be rolled back, and what comes after kept."""
        raise MethodMisuse(_MISUSE.format("close()"))

    def end(self) -> None:
        """Let go of the instances: for the committer, which ends the savepoint itself."""
        super().close()


_current: contextvars.ContextVar[tuple[object, Session] | None] = contextvars.ContextVar(
    "litefs_celery_session", default=None
)


def current_session(owner: object) -> Session | None:
    """The Session of the write of ``owner`` that runs in this context, if one does."""
    current = _current.get()
    if current is None:
        return None
    if current[0] is not owner:
        raise MethodMisuse(
            "a write method called a repository of another database: one transaction cannot span "
            "two. Call it outside. Nothing was changed"
        )
    return current[1]


def refuse_inside_write(what: str) -> None:
    """Raise `MethodMisuse` in a write method: it would wait for the thread that it runs in."""
    if _current.get() is not None:
        raise MethodMisuse(
            f"a write method called {what}: call the method itself, which joins this transaction, "
            "or submit it after this one has returned. Nothing was changed"
        )


class Savepoints:
    """
    Runs the writes of ``owner``, each in a savepoint of its own.

    ``run`` calls the method of a write, which finds its Session by `current_session`.
    """

    def __init__(self, owner: object, guard: Guard, wire: Wire, run: RunMethod) -> None:
        self._owner = owner
        self._guard = guard
        self._wire = wire
        self._run = run
        self._engine: tuple[sqlite3.Connection, Engine] | None = None

    def execute(self, connection: Connection, write: Write, epoch: int) -> tuple[Outcome, str]:
        """
        The outcome of ``write`` and its text for the ledger.

        What the method raises is an outcome; what SQLite raises because the file or the role is
        gone is raised, and nothing of the group counts. Nor does it where the method ended the
        group's transaction (`TransactionEnded`): `refuse` makes an outcome of that.
        """
        outcome: Outcome
        if time.time() > write.deadline:
            outcome = Expired(epoch, write.deadline)
            return outcome, self._wire.dump_outcome(outcome)
        raw = _raw(connection)
        session = WriteSession(self._engine_over(raw), expire_on_commit=False)
        raw.execute(f"SAVEPOINT {SAVEPOINT}")
        try:
            # Begun here, so that a method cannot begin and commit a transaction of its own.
            session.begin()
            value = self._call(session, write)
            text = self._wire.dump_outcome(Committed(value))
            # Decoded again, so that a caller on the primary gets what any other node gets.
            outcome = self._wire.load_outcome(text, epoch)
        except BaseException as error:
            if isinstance(error, DBAPIError) and primary_code(error) in INFRASTRUCTURE:
                raise
            _check_transaction(raw, write)
            raw.execute(f"ROLLBACK TO {SAVEPOINT}")
            outcome, text = self._refused(Refused(_as_exception(error), epoch))
        else:
            _check_transaction(raw, write)
        finally:
            session.end()
        raw.execute(f"RELEASE {SAVEPOINT}")
        return outcome, text

    def refuse(self, error: Exception, epoch: int) -> tuple[Outcome, str]:
        """The outcome of a write that is refused without being run, and its text."""
        return self._refused(Refused(error, epoch))

    def _engine_over(self, raw: sqlite3.Connection) -> Engine:
        if self._engine is None or self._engine[0] is not raw:
            self._engine = (raw, engine_over(raw, self._guard))
        return self._engine[1]

    def _refused(self, outcome: Refused) -> tuple[Outcome, str]:
        try:
            text = self._wire.dump_outcome(outcome)
        except ArgumentError as error:
            outcome = Refused(error, outcome.epoch)
            text = self._wire.dump_outcome(outcome)
        except Exception as error:  # noqa: BLE001 - an application's class may fail in any way
            name = class_name(type(outcome.exception))
            told = f"{name}, which cannot be told: {type(error).__name__}"
            outcome = Refused(RemoteError(told, exception=name), outcome.epoch)
            text = self._wire.dump_outcome(outcome)
        # The very exception here, with its traceback, unless no other node could raise it.
        elsewhere = self._wire.load_outcome(text, outcome.epoch)
        rebuilt = isinstance(elsewhere, Refused) and type(elsewhere.exception) is type(
            outcome.exception
        )
        return (outcome if rebuilt else elsewhere), text

    def _call(self, session: WriteSession, write: Write) -> Any:
        guard = self._guard
        with _guarded(guard), _entered(self._owner, session):
            try:
                value = self._run(write)
                session.flush()
            except Exception as error:
                if guard.denied:
                    raise MethodMisuse(_MISUSE.format(guard.denied)) from error
                raise
        if guard.denied or guard.rolled_back:
            raise MethodMisuse(_MISUSE.format(guard.denied or "rollback() of the connection"))
        return value


@contextlib.contextmanager
def _guarded(guard: Guard) -> Iterator[None]:
    guard.closed, guard.denied, guard.rolled_back = True, "", False
    try:
        yield
    finally:
        guard.closed = False


@contextlib.contextmanager
def _entered(owner: object, session: Session) -> Iterator[None]:
    token = _current.set((owner, session))
    try:
        yield
    finally:
        _current.reset(token)


def _as_exception(error: BaseException) -> Exception:
    if isinstance(error, Exception):
        return error
    return MethodMisuse(
        f"a write method raised {saferepr(error)}: everything it did was rolled back"
    )


def _raw(connection: Connection) -> sqlite3.Connection:
    return cast("sqlite3.Connection", connection.connection.dbapi_connection)


def _check_transaction(raw: sqlite3.Connection, write: Write) -> None:
    # SQLite rolls back by itself on some errors, also on those that a method has caught.
    if not raw.in_transaction:
        raise TransactionEnded(
            f"SQLite ended the transaction during {write.method}: a statement rolled it back "
            "(OR ROLLBACK), or an error that ends it was caught. Everything was rolled back"
        )
