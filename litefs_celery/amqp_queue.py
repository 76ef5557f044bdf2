"""What AMQP needs and kombu leaves to its user: confirms, limits, heartbeats, a kind of queue."""

from __future__ import annotations

import select
from collections.abc import Collection
from typing import Any

from kombu import Connection
from kombu.exceptions import OperationalError
from kombu.message import Message
from kombu.transport import pyamqp

# Replicated, always on disk, never in part. Redis has one kind and ignores it.
QUORUM = {"x-queue-type": "quorum"}
# After two of these without a word either side takes the other for gone; RabbitMQ gives back then
# what a frozen worker holds. Its own default is 60 s.
HEARTBEAT = 10.0
NO_ROUTE = 312
PRECONDITION_FAILED = 406


def is_amqp(connection: Connection) -> bool:
    """Whether the broker speaks AMQP 0.9.1, as RabbitMQ does."""
    return bool(connection.transport.driver_type == "amqp")


def with_limits(connection: Connection, timeout: float, *, publishes: bool) -> Connection:
    """
    The same connection with time limits, not yet made.

    One that publishes waits for the broker's word that it has the message: without it, what is
    sent to a broker that is just dying is believed. One that consumes has heartbeats.
    """
    options = {
        "read_timeout": timeout,
        "write_timeout": timeout,
        **(connection.transport_options or {}),
        # On one that consumes, waiting would hand out messages in the middle of something else.
        "confirm_publish": publishes,
    }
    return connection.clone(
        transport_options=options, connect_timeout=timeout,
        heartbeat=0 if publishes else HEARTBEAT,
    )


def drop_if_closed(connection: Connection, timeout: float) -> None:
    """
    Drop a connection that the broker has closed meanwhile, so that it is made anew.

    Otherwise the next message goes into it, and nobody knows whether it arrived.
    """
    if not is_amqp(connection) or not connection.connected:
        return
    look = select.poll()
    try:
        look.register(connection.connection.sock, select.POLLIN)
        while look.poll(0):
            connection.drain_events(timeout=timeout)
    except errors(connection):
        connection.collect()


def drop(connection: Connection) -> None:
    """
    Drop a connection on which publishing failed.

    A channel does not survive most errors, and a confirmation that comes late would be taken for
    that of the next message (amqp 5.3.1, 5.4.2).
    """
    if is_amqp(connection):
        connection.collect()


def beat(connection: Connection, *, reads: bool = True) -> None:
    """Send a heartbeat when it is time, and raise when none came; not where nobody ``reads``."""
    if not is_amqp(connection):
        return
    if not reads:
        connection.connection.prev_recv = None
    connection.heartbeat_check()


def acknowledge_first(messages: list[Message], held: Collection[Any]) -> list[Message]:
    """
    Acknowledge all messages that came before any of those ``held``, at once; the others.

    ``held`` are the delivery tags of what was taken on the same channel and is not to be
    acknowledged yet. Only AMQP can do it: elsewhere the others are all of them.
    """
    if not messages or not isinstance(messages[0].channel, pyamqp.Channel):
        return messages
    before = min(held, default=None)
    first = [m for m in messages if before is None or m.delivery_tag < before]
    if first:
        max(first, key=lambda message: int(message.delivery_tag)).ack(multiple=True)
    return [message for message in messages if message not in first]


def errors(connection: Connection) -> tuple[type[BaseException], ...]:
    """What can be raised by an operation on the broker."""
    found = (*connection.connection_errors, *connection.channel_errors)
    if not is_amqp(connection):
        return found
    # A message that the broker did not take is in neither; and amqp "sometimes raises
    # AttributeError if the connection is lost" (kombu 5.7.0, transport/pyamqp.py).
    return (*found, *connection.recoverable_connection_errors, AttributeError)


def is_surely_unsent(error: BaseException | None) -> bool:
    """Whether the broker said that it did not take the message."""
    return getattr(error, "reply_code", None) in (NO_ROUTE, PRECONDITION_FAILED)


def explained(error: BaseException, queue: str) -> OperationalError:
    """The error as kombu's, with the remedy where the queue is of another kind than ours."""
    if getattr(error, "reply_code", None) == PRECONDITION_FAILED and "x-queue-type" in str(error):
        return OperationalError(
            f"the queue {queue} is there, and is no quorum queue ({error}): stop the writers, let "
            f"the queue run empty, and delete it (`rabbitmqctl delete_queue {queue}`); it is made "
            "anew as a quorum queue"
        )
    return OperationalError(str(error) or repr(error))
