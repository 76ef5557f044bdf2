"""The queue where messages are kept that are no writes, or not by who may write."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from . import observe
from .tasks import connection_for, kept_queue

if TYPE_CHECKING:
    from .database import LiteFSCelery


def set_aside(db: LiteFSCelery, source: str, content: Any, reason: str) -> None:
    """Keep ``content``, which came from the queue ``source``, and tell of it; never raises."""
    queue, timeout = db.settings.rejected_queue, db.settings.broker_timeout
    observe.emit(observe.MessageSetAside(db.name, source, reason))
    try:
        with (
            connection_for(db.app, timeout=timeout) as connection,
            connection.SimpleQueue(kept_queue(queue)) as simple,
        ):
            simple.put({"reason": reason, "queue": source, "message": repr(content)})
    except Exception:  # noqa: BLE001 - what comes after it must go on; it is logged whole
        observe.logger.exception("could not set a message aside (%s): %r", reason, content)
