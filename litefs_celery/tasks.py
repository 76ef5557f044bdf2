"""The Celery tasks behind write and read methods, and how a write is published as one."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from celery import Celery, Task
from celery.exceptions import Ignore
from kombu import Connection, Queue
from kombu.exceptions import LimitExceeded, OperationalError
from kombu.pools import ProducerPool

from . import amqp_queue
from .forward import Unsent
from .message import HEADER, arguments, header
from .redis_queue import keep_client
from .signing import WriteSigner
from .wire import Write

# Callers of one process share this many connections; each publishes for about a millisecond.
PRODUCER_LIMIT = 10


def primary_queue(name: str) -> Queue:
    """
    The queue of writes, published to directly.

    An own Queue object, never looked up in ``app.amqp.queues``: a look-up would add it there,
    and a worker without ``-Q`` consumes all that is there from its next reconnect on.
    """
    return kept_queue(name)


def kept_queue(name: str) -> Queue:
    """A queue whose messages must not be lost: on RabbitMQ a quorum queue."""
    arguments = dict(amqp_queue.QUORUM)
    return Queue(name, exchange="", routing_key=name, durable=True, queue_arguments=arguments)


def read_queue(name: str) -> Queue:
    """The queue of one node's submitted reads, which its worker consumes beside its own."""
    return Queue(name, exchange="", routing_key=name, durable=True)


def connection_for(app: Celery, *, timeout: float, name: str = "") -> Connection:
    """
    A connection of our own to the app's broker, with time limits.

    Without them a silent broker holds the caller for ever (redis-py and amqp have none by
    default). With ``name`` it is one to consume through: on Redis that gives unacknowledged
    messages a key of their own, so that they can be restored without touching those of the app's
    other tasks.
    """
    connection = app.connection_for_read() if name else app.connection_for_write()
    if amqp_queue.is_amqp(connection):
        return amqp_queue.with_limits(connection, timeout, publishes=not name)
    if connection.transport.driver_type != "redis":
        return connection
    options = {
        "socket_timeout": timeout,
        "socket_connect_timeout": timeout,
        "socket_keepalive": True,
        **(connection.transport_options or {}),
    }
    if name:
        options |= {
            "unacked_key": f"{name}-unacked",
            "unacked_index_key": f"{name}-unacked-index",
            "unacked_mutex_key": f"{name}-unacked-mutex",
        }
    return connection.clone(transport_options=options)


class Sender:
    """Publishes the writes of one process to the queue of the primary."""

    def __init__(
        self, app: Celery, queue: str, *, timeout: float, signer: WriteSigner | None = None
    ) -> None:
        self._app = app
        self._signer = signer
        self._queue = primary_queue(queue)
        self._timeout = timeout
        self._pool: tuple[int, ProducerPool] | None = None

    def publish(self, writes: Sequence[Write]) -> None:
        """
        Send ``writes`` once, in one message.

        Raises `Unsent`, which tells whether it may have got through.
        """
        connected = False
        try:
            with self._producers().acquire(block=True, timeout=self._timeout) as producer:
                connection = producer.connection
                amqp_queue.drop_if_closed(connection, self._timeout)
                # kombu would sleep 2 s before its one retry; retrying is the forwarder's.
                connection.ensure_connection(
                    max_retries=1, interval_start=0, timeout=self._timeout
                )
                connected = True
                with self._library_errors(connection):
                    keep_client(producer.channel)
                    self._send(producer, writes)
        except LimitExceeded as error:
            raise Unsent(error, maybe_sent=False) from error  # all connections are in use
        except (OperationalError, OSError, TimeoutError) as error:
            unsent = amqp_queue.is_surely_unsent(error.__cause__)
            raise Unsent(error, maybe_sent=connected and not unsent) from error

    def _send(self, producer: Any, writes: Sequence[Write]) -> None:
        # Not app.send_task, which takes twice as long for routes, options and results that do
        # not apply here (celery 5.7.0: 0.57 against 0.34 ms).
        app, first = self._app, writes[0]
        sent_events = app.conf.task_send_sent_event
        message = _task_message(app, first, arguments(writes), sent_event=sent_events)
        app.amqp.send_task_message(
            producer, first.method, message, queue=self._queue, retry=False, serializer="json",
            headers={HEADER: header(writes, self._signer)},
            mandatory=True,  # AMQP: else it confirms what it drops, as the queue is not there
        )
        if sent_events and len(writes) > 1:
            dispatcher = app.events.Dispatcher(enabled=False)
            for write in writes[1:]:
                event = _task_message(app, write, (), sent_event=True).sent_event
                dispatcher.publish(
                    "task-sent", {**event, "queue": self._queue.name}, producer, retry=False
                )

    @contextlib.contextmanager
    def _library_errors(self, connection: Connection) -> Iterator[None]:
        """Each transport raises its own library's errors; here they are all kombu's."""
        try:
            yield
        except OperationalError:
            amqp_queue.drop(connection)
            raise
        except amqp_queue.errors(connection) as error:
            amqp_queue.drop(connection)
            raise amqp_queue.explained(error, self._queue.name) from error

    def _producers(self) -> ProducerPool:
        # By process: sockets inherited over a fork must not be written to by two processes.
        if self._pool is None or self._pool[0] != os.getpid():
            connection = connection_for(self._app, timeout=self._timeout)
            pool = ProducerPool(connection.Pool(PRODUCER_LIMIT), limit=PRODUCER_LIMIT)
            self._pool = (os.getpid(), pool)
        return self._pool[1]

    def close(self) -> None:
        """Close this process's connections; idempotent."""
        pool, self._pool = self._pool, None
        if pool is not None and pool[0] == os.getpid():
            with contextlib.suppress(OSError, OperationalError):
                pool[1].connections.force_close_all()


def _task_message(app: Celery, write: Write, args: tuple[str, ...], *, sent_event: bool) -> Any:
    return app.amqp.as_task_v2(
        write.id, write.method, args=args, argsrepr=write.shown[0], kwargsrepr=write.shown[1],
        ignore_result=True, create_sent_event=sent_event,
    )


def register_write(
    app: Celery, name: str, republish: Callable[[Task, tuple[str, ...]], None]
) -> None:
    """
    Register the task of a write method, so that it has its name in Flower and in logs.

    Its body runs only where a message went astray, on a worker that is not asked by our own
    consumer; ``republish`` puts it where it belongs.
    """

    def body(self: Task, *arguments: str) -> None:
        republish(self, arguments)
        raise Ignore

    app.task(body, name=name, bind=True, shared=False, acks_late=True, ignore_result=True)


def register_read(app: Celery, name: str, run: Callable[[str], str]) -> None:
    """Register the task of a read method; ``run`` takes and returns JSON text."""

    def body(arguments: str) -> str:
        return run(arguments)

    app.task(body, name=name, shared=False)
