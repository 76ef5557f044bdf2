"""What is told of a write never costs the write."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from celery import signals
from kombu import Connection
from support import User, member, standalone

from litefs_celery import LiteFSCelery, Repository, write
from litefs_celery.telling import Telling
from litefs_celery.wire import Committed, Expired, Outcome, Refused, Write


class Silent:
    """A value that cannot be shown."""

    def __repr__(self) -> str:
        raise LookupError("no repr")


class SilentError(Exception):
    """An exception that cannot be shown."""

    def __repr__(self) -> str:
        raise LookupError("no repr")


@pytest.fixture
def db(tmp_path: Path) -> Iterator[LiteFSCelery]:
    """Yield a node whose broker is this process's memory, and which sends task events."""
    standalone(tmp_path).close()
    with closing(member(tmp_path, "n1", "memory://localhost")) as made:
        made.parts.sends_events = lambda: True

        class Users(Repository[User], db=made):
            @write
            def add(self, name: str) -> None:
                """Only its name is needed."""

        made.method = Users().add.task_name
        yield made


@pytest.fixture
def telling(db: LiteFSCelery) -> Iterator[Telling]:
    """Yield what tells, through a connection of its own."""
    made = Telling(db, "worker@n1")
    with Connection("memory://localhost") as connection:
        made.through(connection)
        yield made


@pytest.fixture
def heard(db: LiteFSCelery) -> Iterator[Callable[[], list[tuple[str, str]]]]:
    """Yield a function that returns the events sent since: type and id."""
    found: list[tuple[str, str]] = []

    def note(event: Any) -> None:
        found.append((event["type"], event["uuid"]))

    with Connection("memory://localhost") as connection:
        receiver = db.app.events.Receiver(connection, handlers={"*": note})
        with receiver.consumer_context() as (own, _, _):

            def hear() -> list[tuple[str, str]]:
                try:
                    while True:
                        own.drain_events(timeout=0.1)
                except TimeoutError:
                    return found

            yield hear


def told(db: LiteFSCelery) -> Write:
    """Return a write of a method of that database."""
    return Write.new(db.method, "[[], {}]", origin="n2", deadline=2e9)


OUTCOMES: dict[str, Outcome] = {
    "committed": Committed(1, 1),
    "expired": Expired(1),
    "refused": Refused(ValueError("x"), 1),
    "a value without repr": Committed(Silent(), 1),
    "a part without repr": Committed([{"a": Silent()}], 1),
    "an error without repr": Refused(SilentError(), 1),
    "an error with an argument without repr": Refused(ValueError(Silent()), 1),
}


@pytest.mark.parametrize("outcome", OUTCOMES.values(), ids=OUTCOMES)
def test_whatever_an_outcome_holds_it_is_told(
    db: LiteFSCelery, telling: Telling, heard: Any, outcome: Outcome
) -> None:
    """A value or an error that cannot be shown raises nothing, and the next write is told."""
    one, another = told(db), told(db)
    for write_, ended in ((one, outcome), (another, Committed(2, 1))):
        telling.begun(write_)
        telling.ended(write_, ended, 0.1)
    telling.flush()
    events = heard()
    assert ("task-received", one.id) in events
    assert ("task-started", one.id) in events
    assert ("task-succeeded", another.id) in events


def test_what_flower_is_shown_never_raises(db: LiteFSCelery) -> None:
    """A result that has no text of its own is shown as something."""
    assert db.shown_result(told(db), "x" * 5) == "'xxxxx'"
    assert len(db.shown_result(told(db), "x" * 100_000)) < 2_000
    for value in (Silent(), [Silent()], {"a": Silent()}):
        assert "Silent" in db.shown_result(told(db), value)


@pytest.mark.parametrize("signal", ["task_prerun", "task_success", "task_failure", "task_postrun"])
def test_a_receiver_that_fails_costs_nothing(
    db: LiteFSCelery, telling: Telling, signal: str
) -> None:
    """An application's receiver that raises changes neither this write nor the next."""
    met: list[str] = []

    def fail(*_: Any, **__: Any) -> None:
        met.append(signal)
        raise LookupError("the application's own")

    getattr(signals, signal).connect(fail, weak=False)
    try:
        for outcome in (Committed(1, 1), Refused(ValueError("x"), 1)):
            write_ = told(db)
            telling.begun(write_)
            telling.ended(write_, outcome, 0.1)
        telling.flush()
    finally:
        getattr(signals, signal).disconnect(fail)
    assert met
