"""Each write told as a Celery task of its own: events for Flower, signals for the application."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from celery import signals
from celery.utils.saferepr import saferepr
from kombu import Connection

from . import observe
from .wire import Committed, Outcome, Refused, Write

if TYPE_CHECKING:
    from .database import LiteFSCelery


class Telling:
    """Tells of the writes that one consumer runs, while somebody listens."""

    def __init__(self, db: LiteFSCelery, hostname: str) -> None:
        self._db = db
        self._hostname = hostname
        self._events: Any = None

    def through(self, connection: Connection) -> None:
        """Send events through ``connection`` from now on."""
        self._events = self._db.app.events.Dispatcher(
            connection, hostname=self._hostname, enabled=self._db.sends_events(),
            buffer_group=("task",), on_send_buffered=lambda: None,
        )

    def begun(self, write: Write) -> None:
        """The write was taken from the queue and handed to the committer."""
        self._send(write, "received", args=write.shown[0], kwargs=write.shown[1])
        self._send(write, "started")
        task = self._db.app.tasks.get(write.method)
        signals.task_prerun.send(task, task_id=write.id, task=task, args=(), kwargs={})

    def ended(self, write: Write, outcome: Outcome, runtime: float) -> None:
        """The write has its outcome; whatever goes wrong here is logged and changes nothing."""
        try:
            self._ended(write, outcome, runtime)
        except Exception:  # noqa: BLE001 - a value's or a receiver's; the write is committed
            observe.logger.exception("telling of %s failed", write.id)

    def flush(self) -> None:
        """Send what is buffered, and follow whether somebody listens."""
        if self._events is None:
            return
        wanted = self._db.sends_events()
        if wanted and not self._events.enabled:
            self._events.enable()  # not by the attribute: it is what makes the producer
        elif self._events.enabled and not wanted:
            self._events.disable()
        if self._events.enabled:
            self._events.flush()

    def _ended(self, write: Write, outcome: Outcome, runtime: float) -> None:
        task = self._db.app.tasks.get(write.method)
        state = "SUCCESS"
        if isinstance(outcome, Refused):
            state, error = "FAILURE", outcome.exception
            self._send(write, "failed", exception=saferepr(error), traceback="")
            signals.task_failure.send(
                task, task_id=write.id, exception=error, args=(), kwargs={},
                traceback=error.__traceback__, einfo=None,
            )
        else:
            value = outcome.value if isinstance(outcome, Committed) else "expired"
            if self._listened:
                shown = self._db.shown_result(write, value)
                self._send(write, "succeeded", result=shown, runtime=runtime)
            signals.task_success.send(task, result=value)
        signals.task_postrun.send(
            task, task_id=write.id, task=task, args=(), kwargs={}, retval=None, state=state
        )

    @property
    def _listened(self) -> bool:
        return self._events is not None and self._events.enabled

    def _send(self, write: Write, what: str, **fields: Any) -> None:
        if self._listened:
            self._events.send(f"task-{what}", uuid=write.id, name=write.method, **fields)
