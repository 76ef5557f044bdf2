"""The ledger: one row a write, terms that go on or begin, and cheap pruning."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from sqlalchemy import create_engine
from sqlalchemy.exc import IntegrityError
from sqlalchemy.pool import StaticPool

from litefs_celery import ledger
from litefs_celery.wire import Write

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from sqlalchemy import Connection


@pytest.fixture
def connection() -> Iterator[Connection]:
    """Return a connection to a database with the ledger's tables."""
    engine = create_engine("sqlite://", poolclass=StaticPool)
    with engine.connect() as connection:
        ledger.create(connection)
        yield connection
    engine.dispose()


def entry(write_id: str, committed_at: float = 1.0, **values: object) -> ledger.Entry:
    """Return an entry with that id."""
    return ledger.Entry(
        **{
            "write_id": write_id,
            "method": "m",
            "fingerprint": "f",
            "outcome": "{}",
            "epoch": 1,
            "committed_at": committed_at,
            **values,
        }
    )


def test_creating_again_changes_nothing(connection: Connection) -> None:
    """Both tables are made once; creating them again keeps what they hold."""
    assert ledger.exists(connection)
    ledger.record(connection, [entry("a")])
    ledger.create(connection)
    assert ledger.find(connection, ["a"])


def test_half_a_ledger_is_none(connection: Connection) -> None:
    """The ledger exists when both tables do, and creating it adds the missing one."""
    connection.exec_driver_sql(f"DROP TABLE {ledger.TERMS}")
    assert not ledger.exists(connection)
    ledger.create(connection)
    assert ledger.exists(connection)


def test_rows_are_found_by_id(connection: Connection) -> None:
    """Of many ids, exactly those that have a row are found, with all they hold."""
    entries = [entry(f"{i}", float(i)) for i in range(1000)]
    ledger.record(connection, entries)
    asked = [f"{i}" for i in range(500, 2000)]
    found = ledger.find(connection, asked)
    assert found == {one.write_id: one for one in entries[500:]}
    assert ledger.find(connection, []) == {}


def test_recording_nothing_is_nothing(connection: Connection) -> None:
    """A group of duplicates records no row."""
    ledger.record(connection, [])
    assert ledger.size(connection) == 0


def test_an_id_is_claimed_once(connection: Connection) -> None:
    """SQLite itself refuses a second row under an id."""
    ledger.record(connection, [entry("a")])
    with pytest.raises(IntegrityError):
        ledger.record(connection, [entry("a", method="other")])


def test_a_row_matches_its_own_write_only() -> None:
    """A row is about a write when method and arguments are the same, whatever else differs."""
    write = Write.new("m", "[1]", origin="n1", deadline=1.0)
    again = Write.new("m", "[1]", origin="n2", deadline=2.0, write_id=write.id)
    row = entry(write.id, fingerprint=write.fingerprint)
    assert row.matches(write)
    assert row.matches(again)
    assert not row.matches(Write.new("m", "[2]", origin="n1", deadline=1.0, write_id=write.id))
    assert not row.matches(Write.new("n", "[1]", origin="n1", deadline=1.0, write_id=write.id))


def test_the_same_start_of_litefs_goes_on_under_its_epoch(connection: Connection) -> None:
    """The same node and the same start of LiteFS keep their epoch; any other begins a new one."""
    first = ledger.begin_term(connection, "a", "id1")
    going_on = ledger.begin_term(connection, "a", "id1")
    assert going_on == replace(first, started_at=going_on.started_at)
    assert going_on.started_at > first.started_at
    restarted = ledger.begin_term(connection, "a", "id2")
    other = ledger.begin_term(connection, "b", "id2")
    back = ledger.begin_term(connection, "a", "id1")
    epochs = [first.epoch, restarted.epoch, other.epoch, back.epoch]
    assert epochs == sorted(set(epochs))
    assert ledger.newest_term(connection) == back


def test_a_term_that_goes_on_is_written(tmp_path: Path) -> None:
    """A term that goes on changes the file: only then does its commit prove who is primary."""
    engine = create_engine(f"sqlite:///{tmp_path}/app.db")
    with engine.begin() as connection:
        first = ledger.begin_term(connection, "a", "id1")
    version = "PRAGMA data_version"
    with closing(sqlite3.connect(tmp_path / "app.db")) as other:
        before = other.execute(version).fetchone()
        with engine.begin() as connection:
            going_on = ledger.begin_term(connection, "a", "id1")
        assert other.execute(version).fetchone() != before
        with engine.connect() as connection:
            assert ledger.newest_term(connection) == going_on
        assert going_on.epoch == first.epoch
    engine.dispose()


def test_epochs_are_not_used_again(connection: Connection) -> None:
    """An epoch whose row is gone is not given to another term."""
    gone = ledger.begin_term(connection, "a", "1")
    connection.exec_driver_sql(f"DELETE FROM {ledger.TERMS}")
    assert ledger.newest_term(connection) is None
    assert ledger.begin_term(connection, "b", "2").epoch > gone.epoch


def test_a_term_begins_on_an_empty_database() -> None:
    """The first term makes the tables."""
    engine = create_engine("sqlite://", poolclass=StaticPool)
    with engine.connect() as connection:
        assert ledger.begin_term(connection, "a", "1").epoch == 1
        assert ledger.exists(connection)
    engine.dispose()


def test_pruning_keeps_what_is_young(connection: Connection) -> None:
    """Old rows go, at most ``limit`` of them, and young ones stay."""
    ledger.record(connection, [entry(f"{i}", float(i)) for i in range(10)])
    assert ledger.prune(connection, before=5.0, limit=3) == 3
    assert ledger.prune(connection, before=5.0, limit=100) == 2
    assert ledger.prune(connection, before=5.0, limit=100) == 0
    assert set(ledger.find(connection, [f"{i}" for i in range(10)])) == set("56789")
    assert ledger.size(connection) == 5


def test_pruning_looks_at_the_oldest_rows_only(connection: Connection) -> None:
    """However long the ledger, pruning costs the same: it reads no more than ``limit`` rows."""
    ledger.record(connection, [entry(f"{i}", 100.0) for i in range(5000)])
    ledger.record(connection, [entry("late", 1.0)])
    assert ledger.prune(connection, before=50.0, limit=10) == 0
    raw = connection.connection.dbapi_connection
    assert isinstance(raw, sqlite3.Connection)
    steps: list[int] = []
    raw.set_progress_handler(lambda: steps.append(1) and None, 100)
    ledger.prune(connection, before=50.0, limit=10)
    raw.set_progress_handler(None, 0)
    assert len(steps) < 10, "a thousand instructions, where reading all takes tens of thousands"


def test_the_size_costs_no_scan(connection: Connection) -> None:
    """The size comes from the ledger's ends."""
    assert ledger.size(connection) == 0
    ledger.record(connection, [entry(f"{i}") for i in range(7)])
    assert ledger.size(connection) == 7
