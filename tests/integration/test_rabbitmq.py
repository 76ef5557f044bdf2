"""Writes on RabbitMQ: quorum queues, confirms, time limits, and what a consumer gives back."""

from __future__ import annotations

import os
import signal
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any

import pytest
from celery import Celery
from kombu import Consumer, Queue
from support import TIMEOUT, User, member, rows, standalone, until

from litefs_celery import LiteFSCelery, Repository, amqp_queue, observe, write
from litefs_celery.forward import Unsent
from litefs_celery.message import bundles
from litefs_celery.redis_queue import acknowledge, restore_unacknowledged
from litefs_celery.tasks import Sender, connection_for, primary_queue
from litefs_celery.wire import Write
from tests.cluster.brokers import RabbitBroker, missing_rabbit

pytestmark = pytest.mark.skipif(
    bool(missing_rabbit()), reason=f"RABBITMQ DID NOT RUN: {', '.join(missing_rabbit())} not found"
)
QUEUE = "litefs-primary"
REJECTED = "litefs-rejected"
BROKER_TIMEOUT = 1.0
# Bounds what must not hang; what is promised is a few times the timeout.
SOON = 10.0


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RabbitBroker]:
    """Yield a RabbitMQ for all of these tests."""
    running = RabbitBroker(tmp_path_factory.mktemp("rabbitmq"), (QUEUE, REJECTED))
    try:
        running.start()
        yield running
    finally:
        running.stop()


@pytest.fixture
def rabbit(server: RabbitBroker) -> RabbitBroker:
    """Return a RabbitMQ that holds nothing."""
    server.start()
    server.delete()
    return server


@pytest.fixture
def app(rabbit: RabbitBroker) -> Iterator[Celery]:
    """Yield an app on it."""
    with Celery("unit", broker=rabbit.url, set_as_current=False) as app:
        yield app


@pytest.fixture
def sender(app: Celery) -> Iterator[Sender]:
    """Yield what publishes to the queue of writes."""
    with closing(Sender(app, QUEUE, timeout=BROKER_TIMEOUT)) as made:
        yield made


@pytest.fixture
def silent(rabbit: RabbitBroker) -> Callable[[], Any]:
    """Return a block in which RabbitMQ takes connections and answers nothing."""

    @contextmanager
    def silence() -> Iterator[None]:
        group = os.getpgid(rabbit.pid)
        os.killpg(group, signal.SIGSTOP)
        try:
            yield
        finally:
            os.killpg(group, signal.SIGCONT)

    return silence


Join = Callable[..., LiteFSCelery]


@pytest.fixture
def join(rabbit: RabbitBroker, tmp_path: Path) -> Iterator[Join]:
    """Yield what makes nodes on one file; "n1" is their primary."""
    standalone(tmp_path).close()
    with ExitStack() as stack:

        def make(name: str, **settings: Any) -> LiteFSCelery:
            options = {"broker_timeout": BROKER_TIMEOUT, **settings}
            made = member(tmp_path, name, rabbit.url, **options)
            stack.callback(made.close)
            return made

        yield make


GATE = threading.Event()


def users(db: LiteFSCelery) -> Any:
    """Return a repository of users on ``db``."""

    class Users(Repository[User], db=db):
        @write
        def add(self, name: str) -> str:
            self.session.add(User(name=name))
            return name

        @write
        def add_slowly(self, name: str) -> str:
            GATE.wait(TIMEOUT)
            self.session.add(User(name=name))
            return name

    return Users()


def consume(db: LiteFSCelery) -> None:
    """Be what the primary's worker is: detector and consumer."""
    db.start_node(f"worker@{db.settings.node}", lambda: False)


def a_write(text: str = "[[1], {}]", **options: Any) -> Write:
    """Return a write with a deadline far away."""
    return Write.new("m.go", text, origin="n2", deadline=2e9, **options)


def taken(connection: Any, count: int) -> list[Any]:
    """Take so many messages of writes."""
    found: list[Any] = []
    channel = connection.default_channel
    consumer = Consumer(
        channel, [primary_queue(QUEUE)], on_message=found.append, accept=["json"]
    )
    consumer.consume()
    deadline = time.monotonic() + TIMEOUT
    while len(found) < count and time.monotonic() < deadline:
        connection.drain_events(timeout=TIMEOUT)
    return found


# What is published.


def sends(sender: Sender) -> bool:
    """Try to publish a write; whether the broker confirmed it."""
    try:
        sender.publish([a_write()])
    except Unsent:
        return False
    return True


def test_what_is_published_is_in_a_quorum_queue(rabbit: RabbitBroker, sender: Sender) -> None:
    """Writes are kept in a queue of the kind that is replicated and on disk."""
    sender.publish([a_write(), a_write()])
    assert rabbit.control("list_queues", "name", "type", "messages") == [
        {"name": QUEUE, "type": "quorum", "messages": 1}
    ]


def test_what_the_broker_refuses_is_not_taken_for_sent(
    rabbit: RabbitBroker, sender: Sender
) -> None:
    """Publishing ends only with the broker's word; a full queue that refuses is an error."""
    sender.publish([a_write()])
    full = '{"max-length": 1, "overflow": "reject-publish"}'
    rabbit.control("set_policy", "full", f"^{QUEUE}$", full)
    try:
        until(lambda: not sends(sender), "a refusal")
    finally:
        rabbit.control("clear_policy", "full")
    until(lambda: sends(sender), "a confirmation")


def test_a_silent_broker_holds_nobody(sender: Sender, app: Celery, silent: Any) -> None:
    """Each attempt ends near the timeout, and tells whether the message may have got through."""
    sender.publish([a_write()])
    with silent(), closing(Sender(app, QUEUE, timeout=BROKER_TIMEOUT)) as other:
        for one, maybe_sent in ((sender, True), (other, False)):
            started = time.monotonic()
            with pytest.raises(Unsent) as caught:
                one.publish([a_write()])
            assert caught.value.maybe_sent is maybe_sent
            assert time.monotonic() - started < SOON
    sender.publish([a_write()])


def test_what_was_confirmed_survives_a_kill(rabbit: RabbitBroker, app: Celery) -> None:
    """After kill -9 of the broker every write that it confirmed is there, and more can be sent."""
    queue, writes = f"q-{uuid.uuid4()}", [a_write() for _ in range(10)]
    with closing(Sender(app, queue, timeout=BROKER_TIMEOUT)) as sender:
        for one in writes:
            sender.publish([one])
        # RabbitMQ 3.10.8 writes down a new queue's name some seconds late, its messages at once.
        until(lambda: rabbit.has_noted(queue), "the queue's name on disk")
        rabbit.kill()
        with pytest.raises(Unsent) as caught:
            sender.publish([a_write()])
        assert caught.value.maybe_sent is False
        rabbit.start()
        # A quorum queue that has no leader yet refuses.
        until(lambda: sends(sender), "a confirmation")
    there = [message.headers["id"] for message in rabbit.take_all(queue)]
    assert there[:10] == [one.id for one in writes]


def test_a_broker_without_memory_holds_nobody(rabbit: RabbitBroker, sender: Sender) -> None:
    """While RabbitMQ takes nothing, for want of memory, publishing ends at the timeout."""
    sender.publish([a_write()])
    rabbit.control("set_vm_memory_high_watermark", "0.00001")
    try:

        def stops() -> bool:
            started = time.monotonic()
            try:
                sender.publish([a_write()])
            except Unsent as unsent:
                assert unsent.maybe_sent  # noqa: PT017 - one of several attempts
                assert time.monotonic() - started < SOON
                return True
            return False

        until(stops, "the alarm")
    finally:
        rabbit.control("set_vm_memory_high_watermark", "0.4")
    until(lambda: sends(sender), "the end of the alarm")


def test_a_queue_that_was_deleted_is_made_again(rabbit: RabbitBroker, sender: Sender) -> None:
    """Without its queue a write is surely not sent, and the next attempt makes the queue."""
    sender.publish([a_write()])
    rabbit.delete()
    with pytest.raises(Unsent) as caught:
        sender.publish([a_write()])
    assert caught.value.maybe_sent is False
    sender.publish([a_write()])
    assert rabbit.waiting(QUEUE) == 1


def test_a_connection_that_the_broker_closed_costs_nothing(
    rabbit: RabbitBroker, sender: Sender
) -> None:
    """What is published after all connections were closed arrives at the first attempt."""
    sender.publish([a_write()])
    rabbit.control("close_all_connections", "for a test")
    sender.publish([a_write()])
    assert rabbit.waiting(QUEUE) == 2


def test_a_queue_of_another_kind_is_told_with_the_remedy(
    rabbit: RabbitBroker, app: Celery, sender: Sender, join: Join,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Where the queue is a classic one, publisher and consumer say so and what to do."""
    with app.connection_for_write() as connection:
        Queue(QUEUE, exchange="", routing_key=QUEUE)(connection.default_channel).declare()
    with pytest.raises(Unsent, match=r"no quorum queue.*rabbitmqctl delete_queue") as caught:
        sender.publish([a_write()])
    assert caught.value.maybe_sent is False
    primary, caller = join("n1"), users(join("n2"))
    users(primary)
    consume(primary)
    until(lambda: "no quorum queue" in caplog.text, "the consumer's word")
    rabbit.delete()
    assert caller.add("Ada") == "Ada"


def test_what_shares_a_message_fits_its_headers(rabbit: RabbitBroker, sender: Sender) -> None:
    """However much is shown of their arguments, the writes of a message fit AMQP's one frame."""
    shown = ("x" * 1_024, "é" * 1_024)
    writes = [a_write(f"[[{number}], {{}}]", shown=shown) for number in range(128)]
    parts = list(bundles(writes, max_writes=128, max_bytes=1_000_000))
    for part in parts:
        sender.publish(part)
    assert rabbit.waiting(QUEUE) == len(parts)


# What is consumed.


def test_several_acknowledgements_are_one(
    rabbit: RabbitBroker, app: Celery, sender: Sender
) -> None:
    """What is done is acknowledged, at once where it came first; what is held comes again."""
    for _ in range(5):
        sender.publish([a_write()])
    with connection_for(app, timeout=BROKER_TIMEOUT, name=QUEUE) as connection:
        restore_unacknowledged(connection.default_channel)
        messages = taken(connection, 5)
        first, second, third, fourth, fifth = messages
        done, held = [second, fourth, first], [third.delivery_tag, fifth.delivery_tag]
        rest = amqp_queue.acknowledge_first(done, held)
        assert rest == [fourth]
        acknowledge(rest)
        until(lambda: rabbit.unacknowledged(QUEUE) == 2, "three acknowledgements")
    until(lambda: rabbit.waiting(QUEUE) == 2, "what was held")
    with connection_for(app, timeout=BROKER_TIMEOUT, name=QUEUE) as connection:
        again = taken(connection, 2)
        assert amqp_queue.acknowledge_first(again, []) == []
        ids = [message.headers["id"] for message in again]
        assert sorted(ids) == sorted([third.headers["id"], fifth.headers["id"]])
        until(lambda: rabbit.unacknowledged(QUEUE) == 0, "the acknowledgements")


def test_a_long_write_costs_no_connection(
    join: Join, records: list[observe.Record], monkeypatch: pytest.MonkeyPatch
) -> None:
    """While the primary takes no more than it has, heartbeats go on."""
    monkeypatch.setattr(amqp_queue, "HEARTBEAT", 1.0)
    primary, caller = join("n1", prefetch_limit=1), users(join("n2"))
    users(primary)
    GATE.clear()
    consume(primary)
    result = caller.add_slowly.delay("Ada")
    until(lambda: primary.consuming, "the consumer")
    ends = time.monotonic() + 5 * amqp_queue.HEARTBEAT
    until(lambda: time.monotonic() > ends, "some heartbeats")
    GATE.set()
    assert result.get(timeout=TIMEOUT) == "Ada"
    moves = [one.consuming for one in records if isinstance(one, observe.ConsumerMoved)]
    assert moves == [True]


def test_a_consumer_notices_a_silent_broker(
    join: Join, records: list[observe.Record], silent: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without heartbeats from the broker its connection is given up, and made anew later."""
    monkeypatch.setattr(amqp_queue, "HEARTBEAT", 1.0)
    primary, caller = join("n1"), users(join("n2"))
    users(primary)
    consume(primary)
    assert caller.add("Ada") == "Ada"
    with silent():
        until(
            lambda: [one.consuming for one in records if isinstance(one, observe.ConsumerMoved)]
            == [True, False],
            "the end of consuming",
        )
    assert caller.add("Bob") == "Bob"


def test_what_is_no_write_is_set_aside(rabbit: RabbitBroker, join: Join) -> None:
    """Whatever else lies in the queue is set aside once, and the write behind it is made."""
    primary, caller = join("n1"), users(join("n2"))
    users(primary)
    first = caller.add.delay("Ada")
    rabbit.put_raw(QUEUE, b"not json", b"\xff", b"", b"[[], {}, {}]")
    consume(primary)
    assert caller.add("Bob") == "Bob"
    assert first.get(timeout=TIMEOUT) == "Ada"
    until(lambda: rabbit.waiting(REJECTED) == 4, "what was set aside")
    until(lambda: rabbit.unacknowledged(QUEUE) == 0, "the acknowledgements")
    assert len(rows(primary.path, "SELECT 1 FROM users")) == 2
    assert {"name": REJECTED, "type": "quorum"} in rabbit.control("list_queues", "name", "type")
