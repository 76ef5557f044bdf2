"""What kombu's Redis transport does one message at a time, too late or not at all."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from kombu.message import Message
from kombu.transport import virtual
from kombu.utils.encoding import bytes_to_str
from kombu.utils.json import dumps, loads

# kombu's BRPOP ends after a second by itself; a message it popped after our cancel is given back
# by kombu only if somebody still reads (kombu 5.6.2, 5.7.0).
BRPOP_END = 1.2


def keep_client(channel: Any) -> None:
    """
    Let the channel use one Redis client; idempotent.

    kombu makes one for every command it sends, which takes as long as the command (5.7.0).
    """
    if "conn_or_acquire" in vars(channel) or not hasattr(channel, "conn_or_acquire"):
        return
    kept = channel._create_client()

    @contextlib.contextmanager
    def conn_or_acquire(client: Any = None) -> Iterator[Any]:
        yield client or kept

    channel.conn_or_acquire = conn_or_acquire


class Popped:
    """
    What was popped from Redis and has not become a message yet.

    Between the two kombu can fail: on JSON that is no message of its own, on any other text, and
    on a connection that breaks before the message is noted as unacknowledged. It is gone then
    (kombu 5.6.2, 5.7.0), unless somebody looks here. AMQP needs none of it.
    """

    def __init__(self) -> None:
        self._item: bytes | None = None

    def watch(self, channel: Any) -> None:
        """Remember each item that ``channel`` pops; its client is the same as long as it lives."""
        client = getattr(channel, "client", None)
        if client is None or not hasattr(channel, "_brpop_read"):
            return
        parse = client.parse_response

        def remember(connection: Any, command: str, **options: Any) -> Any:
            found = parse(connection, command, **options)
            if command == "BRPOP" and found:
                self._item = found[1]
            return found

        client.parse_response = remember

    @property
    def holds(self) -> bool:
        """Whether there is one."""
        return self._item is not None

    def take(self) -> bytes | None:
        """The item, if there is one; it is this caller's now."""
        item, self._item = self._item, None
        return item

    def is_message(self, channel: Any) -> bool:
        """Whether kombu can make a message of the item and note it as unacknowledged."""
        try:
            message = channel.Message(loads(bytes_to_str(self._item)), channel=channel)
            delivery = message.delivery_info
            dumps([message._raw, delivery["exchange"], delivery["routing_key"]])
            message.delivery_tag.encode()  # a field's name in Redis
        except Exception:  # noqa: BLE001 - decoding anything may raise anything
            return False
        return True

    def put_back(self, channel: Any, queue: str) -> None:
        """Put the item, if there is one, where it is popped next."""
        if self._item is not None:
            with channel.conn_or_acquire() as client:
                client.rpush(queue, self._item)
            self._item = None


def trim(channel: Any, queue: str, limit: int) -> None:
    """Let only the newest ``limit`` messages stay in ``queue``, where the broker is Redis."""
    if hasattr(channel.qos, "restore_by_tag"):
        with channel.conn_or_acquire() as client:
            # kombu adds the prefix to most commands, not to this one (5.6.2, 5.7.0).
            client.ltrim(f"{channel.global_keyprefix}{queue}", 0, limit - 1)


def acknowledge(messages: list[Message]) -> None:
    """Acknowledge all at once where the broker is Redis: one round trip instead of one each."""
    if not messages:
        return
    channel = messages[0].channel
    if not _is_redis(channel):
        for message in messages:
            message.ack()
        return
    tags = [message.delivery_tag for message in messages]
    with channel.conn_or_acquire() as client, client.pipeline() as pipe:
        # What kombu's QoS.ack() of Redis does (5.6.2, 5.7.0), for many tags.
        pipe.zrem(channel.qos.unacked_index_key, *tags)
        pipe.hdel(channel.qos.unacked_key, *tags)
        pipe.execute()
    for tag in tags:
        virtual.QoS.ack(channel.qos, tag)


def restore_unacknowledged(channel: Any) -> None:
    """
    Give back what an earlier primary took and did not acknowledge (Redis; AMQP does it itself).

    kombu would do so after the visibility timeout, an hour. What is still being worked on
    comes twice; the ledger answers it.
    """
    if not _is_redis(channel):
        return
    qos = channel.qos
    with channel.conn_or_acquire() as client:
        # kombu adds the prefix to most commands, not to this one (5.6.2, 5.7.0).
        for tag in client.hkeys(f"{channel.global_keyprefix}{qos.unacked_key}"):
            qos.restore_by_tag(tag, client)
    # The periodic sweep is not needed then, and would cost an idle node commands.
    qos.restore_visible = lambda *_args, **_options: None


def late_for(channel: Any) -> float:
    """How long after a cancelled consumer messages may still come to it; AMQP keeps the order."""
    return BRPOP_END if _is_redis(channel) else 0.0


def _is_redis(channel: Any) -> bool:
    return hasattr(getattr(channel, "qos", None), "restore_by_tag")
