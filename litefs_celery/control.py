"""Celery's remote control of the nodes' workers, on connections with time limits."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

from celery import Celery
from kombu import Connection
from kombu.exceptions import OperationalError

from .tasks import connection_for

# Redis answers an idle BRPOP after a second; a shorter socket timeout would break it off.
LEAST_SOCKET_TIMEOUT = 3.0


@contextlib.contextmanager
def connected(app: Celery, timeout: float) -> Iterator[Connection]:
    """A connection to the broker; whatever fails in the block is kombu's `OperationalError`."""
    limit = max(timeout, LEAST_SOCKET_TIMEOUT)
    with connection_for(app, timeout=limit) as connection:
        try:
            connection.ensure_connection(max_retries=1, interval_start=0, timeout=limit)
            yield connection
        except OperationalError:
            raise
        except (OSError, *connection.connection_errors, *connection.channel_errors) as error:
            raise OperationalError(str(error)) from error


def ask(
    app: Celery, connection: Connection, command: str, *, timeout: float,
    arrived: Callable[[dict[str, Any]], None] | None = None,
) -> dict[str, Any]:
    """
    What each worker that answers within ``timeout`` seconds replies, by the worker's name.

    ``arrived`` is called with each reply as it comes.
    """
    inspect = app.control.inspect(timeout=timeout, connection=connection, callback=arrived)
    return inspect._request(command) or {}


def tell(app: Celery, command: str, arguments: dict[str, Any], *, timeout: float) -> None:
    """Send a command to all workers, and wait for no reply."""
    with connected(app, timeout) as connection:
        app.control.broadcast(command, arguments=arguments, connection=connection)


def order(
    app: Celery, command: str, arguments: dict[str, Any], *, worker: str, timeout: float
) -> Any:
    """Send a command to one worker; its reply, or None where none came in ``timeout`` seconds."""
    with connected(app, timeout) as connection:
        replies = app.control.broadcast(
            command, arguments=arguments, destination=[worker], connection=connection,
            reply=True, timeout=timeout, limit=1,
        )
    return replies[0][worker] if replies else None
