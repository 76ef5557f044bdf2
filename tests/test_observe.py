"""Whoever subscribes hears each record, whatever the other hooks do."""

from __future__ import annotations

import logging
import uuid
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from kombu import Queue
from support import NO_API, User, member, standalone, until

from litefs_celery import LiteFSCelery, Repository, Settings, WriteTimeout, observe, write
from litefs_celery.detector import Detector
from litefs_celery.litefs import LiteFSNode

RECORD = observe.TermStarted("default", 1, "n1")


def heard(records: list[observe.Record], kind: type[observe.Record]) -> list[Any]:
    """Return the records of that kind."""
    return [one for one in records if isinstance(one, kind)]


def test_every_hook_hears_every_record_until_it_ends() -> None:
    """A hook hears what is emitted while it is subscribed; ending it twice is as good as once."""
    first: list[observe.Record] = []
    second: list[observe.Record] = []
    ends = [observe.subscribe(first.append), observe.subscribe(second.append)]
    observe.emit(RECORD)
    ends[0]()
    ends[0]()
    observe.emit(RECORD)
    ends[1]()
    observe.emit(RECORD)
    assert (len(first), len(second)) == (1, 2)
    assert set(first + second) == {RECORD}


def test_a_hook_that_raises_is_logged_and_disturbs_nobody(
    records: list[observe.Record], caplog: pytest.LogCaptureFixture
) -> None:
    """An exception of a hook is in the log with its record; the other hooks still hear it."""

    def fail(_: observe.Record) -> None:
        raise LookupError("the hook's own")

    later: list[observe.Record] = []
    ends = [observe.subscribe(fail), observe.subscribe(later.append)]
    try:
        observe.emit(RECORD)
    finally:
        for end in ends:
            end()
    assert RECORD in records
    assert later == [RECORD]
    (failure,) = [one for one in caplog.records if one.exc_info]
    assert "the hook's own" in str(failure.exc_info)
    assert "TermStarted" in failure.getMessage()


def test_a_write_survives_a_hook_that_raises(db: LiteFSCelery) -> None:
    """A hook that fails on every record costs no write."""

    class Users(Repository[User], db=db):
        """Users."""

    def fail(_: observe.Record) -> None:
        raise LookupError("the hook's own")

    end = observe.subscribe(fail)
    try:
        assert [Users().insert(User(name=name)).id for name in "abc"] == [1, 2, 3]
    finally:
        end()


def test_a_hook_may_end_itself(records: list[observe.Record]) -> None:
    """A hook that unsubscribes while it is called disturbs no other."""
    met: list[observe.Record] = []

    def once(record: observe.Record) -> None:
        met.append(record)
        end()

    end = observe.subscribe(once)
    observe.emit(RECORD)
    observe.emit(RECORD)
    assert met == [RECORD]
    assert heard(records, observe.TermStarted) == [RECORD, RECORD]


@pytest.mark.parametrize(
    ("record", "level"),
    [
        (observe.GroupCommitted("default", 1, 1, 0, 0.1), logging.DEBUG),
        (RECORD, logging.INFO),
        (observe.TermEnded("default", 1, "n1", "x"), logging.WARNING),
        (observe.MessageSetAside("default", "q", "x"), logging.ERROR),
    ],
)
def test_a_record_is_logged_at_its_level(
    caplog: pytest.LogCaptureFixture, record: observe.Record, level: int
) -> None:
    """What happens at every write is DEBUG, what an operator should see is more."""
    with caplog.at_level(logging.DEBUG, "litefs_celery"):
        observe.emit(record)
    (logged,) = caplog.records
    assert (logged.levelno, logged.litefs_record) == (level, record)


def test_a_role_that_changes_is_heard(tmp_path: Path, records: list[observe.Record]) -> None:
    """A detector tells the role it finds, once."""
    detector = Detector(
        "default", Settings(node="n2", fixed_primary="n1"),
        lambda: LiteFSNode(tmp_path, NO_API),
        begin_term=lambda _: pytest.fail("a replica begins no term"), newest_term=lambda: None,
    )
    detector.start()
    try:
        until(lambda: heard(records, observe.RoleChanged), "the role")
    finally:
        detector.stop()
    assert heard(records, observe.RoleChanged) == [
        observe.RoleChanged("default", "replica", "n1", "litefs_fixed_primary")
    ]


def users_of(db: LiteFSCelery) -> Any:
    """Return a repository of users in that database."""

    class Users(Repository[User], db=db):
        @write
        def add(self, name: str) -> None:
            self.session.add(User(name=name))

    return Users()


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[tuple[LiteFSCelery, LiteFSCelery]]:
    """Yield a primary and a replica on one file, with this process's memory as their broker."""
    standalone(tmp_path).close()
    own = uuid.uuid4().hex
    settings = {
        "primary_queue": f"q-{own}", "rejected_queue": f"r-{own}", "resend_interval": 0.1,
    }
    broker = "memory://localhost"
    with (
        closing(member(tmp_path, "n1", broker, **settings)) as primary,
        closing(member(tmp_path, "n2", broker, **settings)) as replica,
    ):
        yield primary, replica


def test_a_write_that_nobody_takes_is_heard(
    pair: tuple[LiteFSCelery, LiteFSCelery], records: list[observe.Record]
) -> None:
    """Each further attempt is told, and what its caller was told at last."""
    with pytest.raises(WriteTimeout) as caught:
        users_of(pair[1]).add.options(timeout=0.5)("Ada")
    (failed,) = until(lambda: heard(records, observe.ForwardFailed), "the failure")
    assert failed.error is caught.value
    assert failed.write_id == caught.value.write_id
    resent = heard(records, observe.Resent)
    assert [one.attempt for one in resent] == list(range(2, len(resent) + 2))
    assert {one.write_id for one in resent} == {caught.value.write_id}


def test_a_consumer_that_moves_is_heard(
    pair: tuple[LiteFSCelery, LiteFSCelery], records: list[observe.Record]
) -> None:
    """Consuming is told when it begins and when it ends, once each."""
    primary, replica = pair
    users_of(primary)
    primary.start_node("worker@n1", lambda: False)
    until(lambda: primary.consuming, "the consumer")
    users_of(replica).add("Ada")
    primary.stop_node()
    moved = heard(records, observe.ConsumerMoved)
    assert [(one.queue, one.consuming) for one in moved] == [
        (primary.queue, True), (primary.queue, False)
    ]


def test_a_message_that_is_no_write_is_heard(
    pair: tuple[LiteFSCelery, LiteFSCelery], records: list[observe.Record]
) -> None:
    """What is set aside is told with the reason, and the writes after it are made."""
    primary, replica = pair
    users_of(primary)
    name = primary.queue
    with (
        primary.app.connection_for_write() as connection,
        connection.SimpleQueue(Queue(name, "", name)) as simple,
    ):
        simple.put({"hello": "world"})
    primary.start_node("worker@n1", lambda: False)
    users_of(replica).add("Ada")
    (aside,) = heard(records, observe.MessageSetAside)
    assert (aside.queue, "no write" in aside.reason) == (name, True)
    rejected = primary.settings.rejected_queue
    with (
        primary.app.connection_for_read() as connection,
        connection.SimpleQueue(Queue(rejected, "", rejected)) as simple,
    ):
        message = simple.get(timeout=5.0)
        message.ack()
    assert message.payload["queue"] == name
    assert "world" in message.payload["message"]
