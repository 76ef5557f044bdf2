"""Many writes, one commit: each takes effect once, alone, or not at all."""

from __future__ import annotations

import sqlite3
import threading
import time
import uuid
from contextlib import closing, suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import text
from sqlalchemy.exc import IntegrityError
from support import TIMEOUT, rows

from litefs_celery import ledger, observe
from litefs_celery.committer import PRUNE_BATCH, Committer
from litefs_celery.config import Settings
from litefs_celery.detector import Term
from litefs_celery.engines import Engines
from litefs_celery.errors import MethodMisuse, NotAcknowledged, WriteConflict
from litefs_celery.savepoint import current_session
from litefs_celery.wire import Committed, Expired, Outcome, Refused, Wire, Write

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from concurrent.futures import Future
    from pathlib import Path

    from sqlalchemy.orm import Session


class Bench:
    """A committer on a real file, whose methods are this object's."""

    def __init__(self, path: Path, on_connect: Any = None, **settings: Any) -> None:
        self.path = path
        self.engines = Engines(path, lock_timeout=1.0, on_connect=on_connect)
        self.engines.may_create = True
        with self.engines.setup.begin() as connection:
            ledger.create(connection)
            connection.execute(text("CREATE TABLE IF NOT EXISTS t(x UNIQUE)"))
        self.wire = Wire(max_bytes=100_000)
        self.unconfirmed: Exception | None = None
        self.term = Term(1, "n1", "A")
        self.ran: list[str] = []
        self.methods: dict[str, Callable[..., Any]] = {
            "put": lambda session, x: (
                session.execute(text("INSERT INTO t VALUES (:x)"), {"x": x}) and x
            ),
            "count": lambda session: session.scalar(text("SELECT count(*) FROM t")),
        }
        self.committer = Committer(
            self,
            "default",
            Settings(node="n1", **settings),
            self.engines,
            self.wire,
            run=self.run,
            confirm=self.confirm,
        )

    def run(self, write: Write) -> Any:
        """Run a method by its name."""
        session = current_session(self)
        self.ran.append(write.id)
        (args, kwargs) = self.wire.loads(write.arguments)
        return self.methods[write.method](session, *args, **kwargs)

    def confirm(self, term: Term) -> None:
        """Confirm, unless told not to."""
        if self.unconfirmed is not None:
            raise self.unconfirmed

    def write(self, method: str, *args: Any, lasts: float = 60.0, write_id: str = "") -> Write:
        """Return a write of that method."""
        arguments = self.wire.dumps([list(args), {}], "arguments")
        return Write.new(
            method, arguments, origin="n1", deadline=time.time() + lasts, write_id=write_id
        )

    def submit(self, write: Write) -> Future[Outcome]:
        """Hand a write in."""
        return self.committer.submit(write, self.term)

    def outcome(self, method: str, *args: Any) -> Outcome:
        """Return the outcome of one write, alone."""
        return self.submit(self.write(method, *args)).result(TIMEOUT)

    def group(self, *writes: Write) -> list[Future[Outcome]]:
        """Hand writes in so that they come in one group: while a commit is being made."""
        entered, go = threading.Event(), threading.Event()

        def hold(_: Session) -> None:
            entered.set()
            assert go.wait(TIMEOUT)

        self.methods["hold"] = hold
        first = self.submit(self.write("hold"))
        assert entered.wait(TIMEOUT)
        futures = [self.submit(write) for write in writes]
        go.set()
        first.result(TIMEOUT)
        return futures

    def values(self) -> list[Any]:
        """Return what the table holds, asked past the committer."""
        return [row[0] for row in rows(self.path, "SELECT x FROM t ORDER BY x")]

    def recorded(self) -> dict[str, str]:
        """Return the ledger: outcome text by id."""
        return dict(rows(self.path, f"SELECT write_id, outcome FROM {ledger.LEDGER}"))

    def close(self) -> None:
        """End the threads and close the connections."""
        self.committer.stop()
        self.engines.dispose()


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    """Return a committer on a file of its own."""
    made = Bench(tmp_path / "app.db")
    yield made
    made.close()


def refusal(outcome: Outcome) -> Exception:
    """Return the exception of a refused outcome."""
    assert isinstance(outcome, Refused), outcome
    return outcome.exception


def failure(future: Future[Outcome]) -> NotAcknowledged:
    """Return the error of a write that was not acknowledged."""
    error = future.exception(TIMEOUT)
    assert isinstance(error, NotAcknowledged), error
    return error


def commits(records: list[observe.Record]) -> list[int]:
    """Return how many writes each commit had."""
    return [one.writes for one in records if isinstance(one, observe.GroupCommitted)]


def test_a_group_is_one_commit(bench: Bench, records: list[observe.Record]) -> None:
    """Writes that arrive during a commit are committed together, in their order, each once."""
    bench.outcome("count")
    counter = sqlite3.connect(bench.path)
    with closing(counter):
        version = "PRAGMA data_version"
        before = counter.execute(version).fetchone()[0]
        futures = bench.group(*(bench.write("put", i) for i in range(5)), bench.write("count"))
        outcomes = [future.result(TIMEOUT) for future in futures]
        assert counter.execute(version).fetchone()[0] > before
    assert outcomes == [Committed(value, 1) for value in (0, 1, 2, 3, 4, 5)]
    assert bench.values() == [0, 1, 2, 3, 4]
    assert len(bench.recorded()) == 8
    assert commits(records) == [1, 1, 6]


def test_a_group_is_bounded(tmp_path: Path, records: list[observe.Record]) -> None:
    """No commit holds more writes than ``group_limit``."""
    with closing(Bench(tmp_path / "app.db", group_limit=3)) as bench:
        futures = bench.group(*(bench.write("put", i) for i in range(7)))
        for future in futures:
            future.result(TIMEOUT)
    assert commits(records) == [1, 3, 3, 1]


def test_a_refused_write_leaves_the_others(bench: Bench) -> None:
    """A method that raises is rolled back and recorded as refused; its group is committed."""

    def half(session: Session) -> None:
        session.execute(text("INSERT INTO t VALUES (100)"))
        raise LookupError("no such thing")

    bench.methods["half"] = half
    futures = bench.group(
        bench.write("put", 1), bench.write("half"), bench.write("put", 1), bench.write("put", 2)
    )
    first, refused, double, last = (future.result(TIMEOUT) for future in futures)
    assert (first, last) == (Committed(1, 1), Committed(2, 1))
    assert repr(refusal(refused)) == "LookupError('no such thing')"
    assert refusal(double).orig.sqlite_errorname == "SQLITE_CONSTRAINT_UNIQUE"
    assert bench.values() == [1, 2]
    assert sum("refused" in outcome for outcome in bench.recorded().values()) == 2


def test_a_result_that_cannot_be_sent_is_a_refusal(bench: Bench) -> None:
    """A method whose result cannot be sent is rolled back, and told which part it was."""

    def odd(session: Session) -> object:
        session.execute(text("INSERT INTO t VALUES (1)"))
        return {"a": object()}

    bench.methods["odd"] = odd
    assert "the result['committed']['a']" in str(refusal(bench.outcome("odd")))
    assert bench.values() == []


def test_the_primary_gets_what_every_node_gets(bench: Bench) -> None:
    """The value of a committed write is the decoded one, not the method's own object."""
    shared: list[int] = [1]
    bench.methods["own"] = lambda _: shared
    outcome = bench.outcome("own")
    assert outcome == Committed([1], 1)
    assert outcome.value is not shared


def raw(session: Session) -> Any:
    """Return the sqlite3 connection beneath a Session."""
    return session.connection().connection.dbapi_connection


def swallow(session: Session) -> None:
    """Commit, and hide that it failed."""
    with suppress(Exception):
        session.execute(text("COMMIT"))


def exit_now(_: Session) -> None:
    """Raise what is no Exception."""
    raise SystemExit(3)


def interrupt(_: Session) -> None:
    """Raise what is no Exception."""
    raise KeyboardInterrupt


MISUSES: dict[str, Callable[[Any], Any]] = {
    "commit": lambda session: session.commit(),
    "rollback": lambda session: session.rollback(),
    "close": lambda session: session.close(),
    "sql commit": lambda session: session.execute(text("COMMIT")),
    "sql commit in a comment's guise": lambda s: s.execute(text("/* x */ cOmMiT")),
    "sql rollback": lambda session: session.execute(text("ROLLBACK")),
    "sql begin": lambda session: session.execute(text("BEGIN")),
    "sql commit, swallowed": swallow,
    "raw commit": lambda session: raw(session).commit(),
    "raw rollback": lambda session: raw(session).rollback(),
    "raw script": lambda session: raw(session).executescript("SELECT 1"),
    "attach": lambda session: session.execute(text("ATTACH ':memory:' AS other")),
    "journal_mode in capitals": lambda s: s.execute(text("PRAGMA JOURNAL_MODE=memory")),
    "locking_mode": lambda session: session.execute(text("pragma locking_mode=exclusive")),
    "writable_schema": lambda session: session.execute(text("pragma writable_schema=1")),
    "raw journal_mode": lambda session: raw(session).execute("pragma Journal_Mode(off)"),
    "SystemExit": exit_now,
    "KeyboardInterrupt": interrupt,
}


@pytest.mark.parametrize("misuse", MISUSES.values(), ids=MISUSES)
def test_misuse_changes_nothing(bench: Bench, misuse: Callable[[Any], Any]) -> None:
    """A method that tries to end its transaction is refused, and nothing it did is kept."""

    def bad(session: Session) -> None:
        session.execute(text("INSERT INTO t VALUES (100)"))
        misuse(session)
        session.execute(text("INSERT INTO t VALUES (101)"))

    bench.methods["bad"] = bad
    futures = bench.group(bench.write("put", 1), bench.write("bad"), bench.write("put", 2))
    first, refused, last = (future.result(TIMEOUT) for future in futures)
    assert isinstance(refusal(refused), MethodMisuse)
    assert (first, last) == (Committed(1, 1), Committed(2, 1))
    assert bench.values() == [1, 2]
    assert bench.outcome("put", 3) == Committed(3, 1)


BENEATH: dict[str, Callable[[Any], Any]] = {
    "connection commit": lambda session: session.connection().commit(),
    "connection rollback": lambda session: session.connection().rollback(),
    "connection close": lambda session: session.connection().close(),
    "savepoint commit": lambda s: s.connection().get_nested_transaction().commit(),
    "savepoint released": lambda s: s.execute(
        text(f"RELEASE {s.connection().get_nested_transaction()._savepoint}")
    ),
}


@pytest.mark.parametrize("misuse", BENEATH.values(), ids=BENEATH)
def test_misuse_of_the_connection_changes_nothing(
    bench: Bench, misuse: Callable[[Any], Any]
) -> None:
    """A method that ends its transaction beneath the Session is refused alone, without a trace."""

    def bad(session: Session) -> None:
        session.execute(text("INSERT INTO t VALUES (100)"))
        misuse(session)

    bench.methods["bad"] = bad
    futures = bench.group(bench.write("put", 1), bench.write("bad"), bench.write("put", 2))
    first, refused, last = (future.result(TIMEOUT) for future in futures)
    assert isinstance(refused, Refused)
    assert (first, last) == (Committed(1, 1), Committed(2, 1))
    assert bench.values() == [1, 2]


def drop_in_use(session: Session) -> None:
    """Drop a table that a cursor of the same connection reads."""
    cursor = raw(session).execute("SELECT x FROM t")
    cursor.fetchone()
    session.execute(text("DROP TABLE t"))


def search_damaged(session: Session) -> None:
    """Search a full-text index whose data is damaged."""
    session.execute(text("DELETE FROM words_content"))
    session.execute(text("SELECT * FROM words WHERE words MATCH 'word'")).all()


def spoil_savepoints(session: Session) -> None:
    """Make a full-text index, use it and fail: SQLite then knows no savepoint any more."""
    session.execute(text("CREATE VIRTUAL TABLE others USING fts5(a)"))
    session.execute(text("INSERT INTO others VALUES ('word')"))
    raise LookupError("after that")


def conflict_rolls_back(session: Session) -> None:
    """Let a conflict end the transaction, as its SQL says."""
    session.execute(text("INSERT OR ROLLBACK INTO t VALUES (1)"))


class Unspeakable(Exception):
    """An exception that has no text."""

    def __str__(self) -> str:
        raise LookupError("no text")


class Unshowable:
    """A value that cannot be shown."""

    def __repr__(self) -> str:
        raise LookupError("no repr")


class OwnIntegrityError(IntegrityError):
    """An application's own, with a constructor of its own."""

    def __init__(self) -> None:
        super().__init__("(no statement)", None, sqlite3.IntegrityError("x"))


class Hidden(BaseException):
    """What is no Exception, and cannot be shown either."""

    __repr__ = Unshowable.__repr__


def raises(make: Callable[[], BaseException]) -> Callable[[Session], None]:
    """Return a method that raises that."""

    def method(session: Session) -> None:
        session.execute(text("INSERT INTO t VALUES (100)"))
        raise make()

    return method


POISON: dict[str, Any] = {
    "SQLITE_LOCKED": drop_in_use,
    "SQLITE_CORRUPT_VTAB": search_damaged,
    "fts5 made in vain": spoil_savepoints,
    "recursion": raises(lambda: RecursionError("too deep")),
    "INSERT OR ROLLBACK": conflict_rolls_back,
    "no str": raises(Unspeakable),
    "argument without repr": raises(lambda: ValueError(Unshowable())),
    "no Exception, without repr": raises(Hidden),
    "integer too long": raises(lambda: ValueError(10**5000)),
    "cannot be rebuilt": raises(OwnIntegrityError),
}


@pytest.mark.parametrize("poison", POISON.values(), ids=POISON)
def test_a_poisonous_write_is_refused_alone(bench: Bench, poison: Callable[[Any], Any]) -> None:
    """However a method fails, it is refused, and what came with it in its group is committed."""
    bench.methods["poison"] = poison
    with bench.engines.setup.begin() as connection:
        connection.execute(text("CREATE VIRTUAL TABLE words USING fts5(a)"))
        connection.execute(text("INSERT INTO words VALUES ('word')"))
    for value in (1, 2, 3):
        bench.outcome("put", value)
    futures = bench.group(bench.write("put", 4), bench.write("poison"), bench.write("put", 5))
    first, refused, last = (future.result(TIMEOUT) for future in futures)
    assert isinstance(refused, Refused)
    assert (first, last) == (Committed(4, 1), Committed(5, 1))
    assert bench.values() == [1, 2, 3, 4, 5]
    assert bench.term.held
    assert bench.outcome("put", 6) == Committed(6, 1)


def test_begin_and_commit_is_refused(bench: Bench) -> None:
    """A method cannot begin a transaction of its own and commit that."""

    def bad(session: Session) -> None:
        with session.begin():
            session.execute(text("INSERT INTO t VALUES (100)"))

    bench.methods["bad"] = bad
    assert "already begun" in str(refusal(bench.outcome("bad")))
    assert bench.values() == []


def test_a_part_of_its_own_is_allowed(bench: Bench) -> None:
    """Inside a method ``begin_nested`` gives a part that can be rolled back alone."""

    def parts(session: Session) -> int:
        session.execute(text("INSERT INTO t VALUES (1)"))
        with session.begin_nested() as part:
            session.execute(text("INSERT INTO t VALUES (2)"))
            part.rollback()
        with session.begin_nested():
            session.execute(text("INSERT INTO t VALUES (3)"))
        return 3

    bench.methods["parts"] = parts
    assert bench.outcome("parts") == Committed(3, 1)
    assert bench.values() == [1, 3]


def test_a_duplicate_is_answered_from_the_ledger(
    bench: Bench, records: list[observe.Record]
) -> None:
    """A write that comes again, in its group or later, runs once and has one outcome."""
    write, refused = bench.write("put", 1), bench.write("put", 1)
    again = Write.new(
        write.method, write.arguments, origin="n9", deadline=time.time() + 5, write_id=write.id
    )
    futures = bench.group(write, again, refused, refused)
    outcomes = [future.result(TIMEOUT) for future in futures]
    outcomes += [bench.submit(one).result(TIMEOUT) for one in (again, refused)]
    assert outcomes[0] == outcomes[1] == outcomes[4] == Committed(1, 1)
    assert len({repr(refusal(outcome)) for outcome in outcomes[2:4] + outcomes[5:]}) == 1
    assert bench.values() == [1]
    assert (bench.ran.count(write.id), bench.ran.count(refused.id)) == (1, 1)
    assert sum(isinstance(one, observe.DuplicateAnswered) for one in records) == 4


def test_an_outcome_keeps_its_own_epoch(bench: Bench) -> None:
    """A duplicate is answered with the epoch that committed it, in whatever term it comes."""
    write = bench.write("put", 1)
    bench.submit(write).result(TIMEOUT)
    bench.term = Term(5, "n1", "B")
    assert bench.submit(write).result(TIMEOUT) == Committed(1, 1)
    assert bench.outcome("put", 2) == Committed(2, 5)


def test_an_id_with_other_content_is_refused(bench: Bench) -> None:
    """An id that belongs to another write is a conflict; the first outcome stays."""
    write = bench.write("put", 1)
    bench.submit(write).result(TIMEOUT)
    other = bench.submit(bench.write("put", 2, write_id=write.id)).result(TIMEOUT)
    assert isinstance(refusal(other), WriteConflict)
    assert refusal(other).write_id == write.id
    assert bench.values() == [1]
    assert bench.submit(write).result(TIMEOUT) == Committed(1, 1)


def test_an_expired_write_never_runs(bench: Bench) -> None:
    """A write past its deadline is recorded as expired, and stays so when it comes again."""
    write = bench.write("put", 1, lasts=-1.0)
    assert bench.submit(write).result(TIMEOUT) == Expired(1)
    alive = Write.new(
        write.method, write.arguments, origin="n1", deadline=time.time() + 60, write_id=write.id
    )
    assert bench.submit(alive).result(TIMEOUT) == Expired(1)
    assert bench.ran == []
    assert bench.values() == []


def test_what_was_made_and_lost_is_made_although_an_old_copy_expired(bench: Bench) -> None:
    """The copy came late to a primary without it: made again once, and answered from then on."""
    write = bench.write("put", 1, lasts=-1.0)
    assert bench.submit(write).result(TIMEOUT) == Expired(1)
    again = replace(write, deadline=time.time() + 60, made=True)
    first, second = bench.group(again, again)
    assert first.result(TIMEOUT) == second.result(TIMEOUT) != Expired(1)
    assert bench.submit(write).result(TIMEOUT) == first.result(TIMEOUT)
    assert bench.values() == [1]


def test_a_lost_term_fails_the_group(bench: Bench, records: list[observe.Record]) -> None:
    """Under a term that has ended nothing runs and nothing is recorded; the next term does."""
    bench.term.end("another is primary")
    write = bench.write("put", 1)
    assert "another is primary" in str(failure(bench.submit(write)))
    assert bench.ran == []
    assert bench.recorded() == {}
    assert any(isinstance(one, observe.GroupFailed) for one in records)
    bench.term = Term(2, "n1", "A")
    assert bench.submit(write).result(TIMEOUT) == Committed(1, 2)


def test_an_unconfirmed_commit_is_not_acknowledged(bench: Bench) -> None:
    """A commit that cannot be confirmed fails its writes; a retry is answered by the ledger."""
    bench.unconfirmed = NotAcknowledged("/info does not say primary any more")
    write = bench.write("put", 1)
    error = failure(bench.submit(write))
    assert error.write_id == write.id
    assert error.__cause__ is bench.unconfirmed
    bench.unconfirmed = None
    assert bench.submit(write).result(TIMEOUT) == Committed(1, 1)
    assert bench.ran == [write.id]
    assert bench.values() == [1]


def test_a_full_disk_fails_without_recording(tmp_path: Path) -> None:
    """A write too large for the disk fails alone and leaves no row; smaller ones go on."""

    def small(connection: sqlite3.Connection) -> None:
        connection.execute("PRAGMA max_page_count = 40").fetchall()

    with closing(Bench(tmp_path / "app.db", on_connect=small)) as bench:
        bench.methods["fill"] = lambda session, size: bool(
            session.execute(text("INSERT INTO t VALUES (zeroblob(:n))"), {"n": size})
        )
        large = bench.write("fill", 1_000_000)
        first, full, last = bench.group(bench.write("put", 1), large, bench.write("put", 2))
        assert "full" in str(failure(full))
        assert (first.result(TIMEOUT), last.result(TIMEOUT)) == (Committed(1, 1), Committed(2, 1))
        assert large.id not in bench.recorded()
        assert bench.values() == [1, 2]
        assert bench.term.held, "a full disk is no lost role"
        assert bench.outcome("fill", 100) == Committed(value=True, epoch=1)


def test_a_full_disk_that_a_method_hides_is_no_success(tmp_path: Path) -> None:
    """A method that catches "disk is full" and goes on does not commit half of its work."""

    def small(connection: sqlite3.Connection) -> None:
        connection.execute("PRAGMA max_page_count = 40").fetchall()

    def hide(session: Session) -> str:
        session.execute(text("INSERT INTO t VALUES (1)"))
        try:
            with session.begin_nested():
                session.execute(text("INSERT INTO t VALUES (zeroblob(1000000))"))
        except Exception:
            pass
        return "done"

    with closing(Bench(tmp_path / "app.db", on_connect=small)) as bench:
        bench.methods["hide"] = hide
        future = bench.submit(bench.write("hide"))
        done = future.exception(TIMEOUT) is None and isinstance(future.result(), Committed)
        assert bench.values() == ([1] if done else [])


def test_a_read_only_file_ends_the_term(tmp_path: Path) -> None:
    """SQLite saying "readonly" is a lost role: the term ends before the detector sees it."""
    with closing(Bench(tmp_path / "app.db")) as bench:
        bench.engines.dispose()
        header = bytearray(bench.path.read_bytes())
        header[18] = 3  # the write version of a newer SQLite: this one may only read
        bench.path.write_bytes(header)
        assert "readonly" in str(failure(bench.submit(bench.write("put", 1))))
        assert not bench.term.held
        header[18] = 1
        bench.path.write_bytes(header)
        bench.term = Term(2, "n1", "B")
        assert bench.outcome("put", 1) == Committed(1, 2)


def test_a_locked_database_keeps_the_term(bench: Bench) -> None:
    """Another process's lock fails the group after ``lock_timeout``; the role is kept."""
    with closing(sqlite3.connect(bench.path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        write = bench.write("put", 1)
        assert "locked" in str(failure(bench.submit(write)))
        assert bench.term.held
        other.execute("ROLLBACK")
    assert bench.submit(write).result(TIMEOUT) == Committed(1, 1)


def test_the_ledger_is_pruned_in_the_commit(tmp_path: Path) -> None:
    """Rows older than the retention go with a later commit, young ones stay."""
    with closing(Bench(tmp_path / "app.db", prune_interval=1e-6)) as bench:
        old, young = str(uuid.uuid4()), bench.write("put", 1)
        with bench.engines.setup.begin() as connection:
            ledger.record(connection, [ledger.Entry(old, "m", "f", "{}", 1, time.time() - 1e6)])
        bench.submit(young).result(TIMEOUT)
        bench.outcome("count")
        assert old not in bench.recorded()
        assert young.id in bench.recorded()


def test_a_long_ledger_is_pruned_group_by_group(tmp_path: Path) -> None:
    """Where more is old than one commit may prune, each next one goes on until nothing old is."""
    query = f"SELECT count(*) FROM {ledger.LEDGER} WHERE committed_at < ?"
    now = time.time()
    with closing(Bench(tmp_path / "app.db", prune_interval=5.0)) as bench:
        old = [
            ledger.Entry(f"old{number}", "m", "f", "{}", 1, now - 1e6)
            for number in range(2 * PRUNE_BATCH + 1)
        ]
        with bench.engines.setup.begin() as connection:
            ledger.record(connection, old)
        left = []
        for _ in range(3):
            bench.outcome("count")
            left.append(rows(bench.path, query, now - 1e5)[0][0])
        assert left == [PRUNE_BATCH + 1, 1, 0]
        assert len(bench.recorded()) == 3


def test_a_session_belongs_to_its_write(bench: Bench) -> None:
    """The running write's Session is known to its own database, and refused to another."""
    seen: list[Any] = []

    def inner(session: Session) -> None:
        seen.append(current_session(bench) is session)
        current_session(object())

    bench.methods["inner"] = inner
    assert isinstance(refusal(bench.outcome("inner")), MethodMisuse)
    assert seen == [True]
    assert current_session(bench) is None


def test_stopping_finishes_what_was_handed_in(bench: Bench) -> None:
    """Stopping leaves no caller waiting, and the committer can be used again."""
    futures = [bench.submit(bench.write("put", i)) for i in range(20)]
    bench.committer.stop()
    bench.committer.stop()
    assert all(future.done() for future in futures)
    assert bench.values() == list(range(20))
    assert bench.outcome("put", 20) == Committed(20, 1)
