"""The Celery tasks behind write and read methods, and how a write is published as one."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from typing import Any

from celery import Celery, Task, states
from celery.exceptions import Ignore
from kombu import Connection, Queue
from kombu.exceptions import OperationalError
from kombu.pools import ProducerPool

from . import observe
from .forward import Unsent
from .wire import Outcome, Refused, Wire, Write

# Callers of one process share this many connections; each publishes for about a millisecond.
PRODUCER_LIMIT = 10


def primary_queue(name: str) -> Queue:
    """
    The queue of writes, published to directly.

    An own Queue object, never looked up in ``app.amqp.queues``: a look-up would add it there,
    and a worker without ``-Q`` consumes all that is there from its next reconnect on.
    """
    return Queue(name, exchange="", routing_key=name, durable=True)


def connection_for(app: Celery, *, timeout: float, name: str = "") -> Connection:
    """
    A connection of our own to the app's broker, with time limits.

    Without them a silent Redis holds the caller for ever (redis-py has none by default).
    ``name`` gives unacknowledged messages a key of their own, so that they can be restored
    without touching those of the app's other tasks.
    """
    connection = app.connection_for_read() if name else app.connection_for_write()
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

    def __init__(self, app: Celery, queue: str, *, timeout: float) -> None:
        self._app = app
        self._queue = primary_queue(queue)
        self._timeout = timeout
        self._pool: tuple[int, ProducerPool] | None = None

    def publish(self, write: Write) -> None:
        """Send ``write`` once; raises `Unsent`, which tells whether it may have got through."""
        connected = False
        try:
            with self._producers().acquire(block=True, timeout=self._timeout) as producer:
                # kombu would sleep 2 s before its one retry; retrying is the forwarder's.
                producer.connection.ensure_connection(
                    max_retries=1, interval_start=0, timeout=self._timeout
                )
                connected = True
                self._app.send_task(
                    write.method,
                    args=(write.arguments,),
                    task_id=write.id,
                    producer=producer,
                    queue=self._queue,
                    headers={"litefs": write.headers()},
                    argsrepr=write.shown[0],
                    kwargsrepr=write.shown[1],
                    retry=False,
                    ignore_result=True,
                    add_to_parent=False,
                    expires=None,
                    serializer="json",
                )
        except (OperationalError, OSError, TimeoutError) as error:
            raise Unsent(error, maybe_sent=connected) from error

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


def register_write(app: Celery, name: str, republish: Callable[[Task, str], None]) -> None:
    """
    Register the task of a write method, so that it has its name in Flower and in logs.

    Its body runs only where a message went astray, on a worker that is not asked by our own
    consumer; ``republish`` puts it where it belongs.
    """

    def body(self: Task, arguments: str) -> None:
        republish(self, arguments)
        raise Ignore

    app.task(body, name=name, bind=True, shared=False, acks_late=True, ignore_result=True)


def register_read(app: Celery, name: str, run: Callable[[str], str]) -> None:
    """Register the task of a read method; ``run`` takes and returns JSON text."""

    def body(arguments: str) -> str:
        return run(arguments)

    app.task(body, name=name, shared=False)


def store_outcome(app: Celery, wire: Wire, write: Write, outcome: Outcome) -> None:
    """
    Keep an outcome in the result backend, if there is one: what tells "committed" from "unknown".

    A failure is logged: the ledger has the outcome all the same.
    """
    backend = app.backend
    if backend.__class__.__name__ == "DisabledBackend":
        return
    try:
        if isinstance(outcome, Refused):
            backend.store_result(write.id, outcome.exception, states.FAILURE)
        else:
            result = {"litefs": wire.dump_outcome(outcome), "epoch": outcome.epoch}
            backend.store_result(write.id, result, states.SUCCESS)
    except Exception as error:  # noqa: BLE001 - each backend raises its own
        observe.logger.warning("the result of %s could not be stored: %r", write.id, error)


def stored_outcome(app: Celery, wire: Wire, write_id: str) -> Outcome | None:
    """The outcome in the result backend; None where it knows nothing or cannot be asked."""
    backend = app.backend
    if backend.__class__.__name__ == "DisabledBackend":
        return None
    try:
        meta: dict[str, Any] = backend.get_task_meta(write_id)
        result = meta.get("result")
        if meta.get("status") == states.FAILURE and isinstance(result, Exception):
            return Refused(result)
        if meta.get("status") == states.SUCCESS and isinstance(result, dict):
            return wire.load_outcome(result["litefs"], int(result["epoch"]))
    except Exception as error:  # noqa: BLE001 - each backend raises its own
        observe.logger.warning("the result backend could not be asked: %r", error)
    return None

