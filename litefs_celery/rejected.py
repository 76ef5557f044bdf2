"""Keeps what is no write, or not by who may write, for people to look at: the newest of it."""

from __future__ import annotations

from typing import Any

from celery import Celery
from celery.utils.saferepr import saferepr
from kombu import Connection, Producer

from . import observe
from .config import Settings
from .redis_queue import trim
from .tasks import connection_for, kept_queue


class Rejected:
    """
    The rejected queue, filled by the consumer of the writes of ``database``.

    It goes through the consumer's own connection: a connection for each message would let whoever
    sends rubbish keep the writes waiting. At most ``rejected_limit`` are kept where the broker is
    Redis, the newest, each cut at ``max_payload_bytes``.
    """

    def __init__(self, database: str, settings: Settings, source: str) -> None:
        self._database = database
        self._settings = settings
        self._source = source
        self._producer: Producer | None = None

    def through(self, connection: Connection) -> None:
        """Send through ``connection`` from now on."""
        self._producer = Producer(connection.default_channel)
        kept_queue(self._settings.rejected_queue).bind(connection.default_channel).declare()

    def keep(self, content: Any, reason: str) -> None:
        """Keep ``content`` as text, with ``reason``; where that fails it is in the log."""
        observe.emit(observe.MessageSetAside(self._database, self._source, reason))
        queue, limit = self._settings.rejected_queue, self._settings.max_payload_bytes
        shown = _shown(content)[:limit]
        try:
            assert self._producer is not None, "through() comes first"
            self._producer.publish(
                {"reason": reason, "queue": self._source, "message": shown},
                routing_key=queue, serializer="json",
            )
            trim(self._producer.channel, queue, self._settings.rejected_limit)
        except Exception:  # noqa: BLE001 - the queue must go on; it is logged
            observe.logger.exception("could not set a message aside (%s): %s", reason, shown)

    def keep_alone(self, app: Celery, content: Any, reason: str) -> None:
        """Do the same through a connection made for it: for what comes seldom, elsewhere."""
        try:
            timeout = self._settings.broker_timeout
            with connection_for(app, timeout=timeout) as connection:
                self.through(connection)
                self.keep(content, reason)
        except Exception:  # noqa: BLE001 - it is logged
            observe.logger.exception("could not set a message aside (%s)", reason)


def _shown(content: Any) -> str:
    try:
        return repr(content)
    except RecursionError:
        return str(saferepr(content))
