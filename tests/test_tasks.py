"""A message is published, or the error tells whether it may have been."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from contextlib import ExitStack, closing

import pytest
from celery import Celery
from support import NO_BROKER

from litefs_celery.forward import Unsent
from litefs_celery.tasks import PRODUCER_LIMIT, Sender, primary_queue
from litefs_celery.wire import Write


def a_write() -> Write:
    """Return a write with a deadline far away."""
    return Write.new("m.go", "[[1], {}]", origin="n2", deadline=2e9)


@pytest.fixture
def app() -> Iterator[Celery]:
    """Yield an app whose broker is this process's memory."""
    with Celery("unit", broker="memory://localhost", set_as_current=False) as app:
        yield app


@pytest.fixture
def sender(app: Celery) -> Iterator[Sender]:
    """Yield what publishes to a queue of its own."""
    with closing(Sender(app, f"q-{uuid.uuid4()}", timeout=0.2)) as made:
        yield made


def waiting(app: Celery, sender: Sender) -> int:
    """Return how many messages are in the sender's queue."""
    queue = primary_queue(sender._queue.name)
    with app.connection_for_read() as connection, connection.SimpleQueue(queue) as simple:
        return simple.qsize()


def test_what_is_published_is_in_the_queue(app: Celery, sender: Sender) -> None:
    """Several writes are one message."""
    sender.publish([a_write(), a_write(), a_write()])
    assert waiting(app, sender) == 1


def test_connections_that_are_all_in_use_are_told(app: Celery, sender: Sender) -> None:
    """Where no connection comes free in time, nothing was sent, and the error knows it."""
    with ExitStack() as held:
        for _ in range(PRODUCER_LIMIT):
            held.enter_context(sender._producers().acquire(block=True, timeout=1.0))
        with pytest.raises(Unsent) as caught:
            sender.publish([a_write()])
        assert caught.value.maybe_sent is False
    sender.publish([a_write()])
    assert waiting(app, sender) == 1


def test_a_broker_that_cannot_be_reached_has_nothing() -> None:
    """Where no connection is made, nothing was sent, and the error knows it."""
    with (
        Celery("unit", broker=NO_BROKER, set_as_current=False) as app,
        closing(Sender(app, "q", timeout=0.2)) as sender,
    ):
        for _ in range(PRODUCER_LIMIT + 1):
            with pytest.raises(Unsent) as caught:
                sender.publish([a_write()])
            assert caught.value.maybe_sent is False
