"""Celery's AsyncResult of submitted writes and reads."""

from __future__ import annotations

import asyncio
from collections.abc import Generator
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from celery import states
from celery.result import AsyncResult

from .errors import WriteExpired
from .wire import Committed, Outcome, Refused

if TYPE_CHECKING:
    from .database import LiteFSCelery

R = TypeVar("R")


class WriteResult(AsyncResult, Generic[R]):
    """Celery's AsyncResult of a submitted write, which asks this node's ledger first."""

    def __init__(self, db: LiteFSCelery, write_id: str) -> None:
        super().__init__(write_id, app=db.app)
        self._db = db

    def outcome(self) -> Outcome | None:
        """What is known here: `Committed`, `Refused`, `Expired`, or None for "not known"."""
        return self._db.outcome(self.id)

    def get(self, timeout: float | None = None) -> R:
        """The method's value once this node can read it; raises its exception, or times out."""
        wait = self._db.settings.write_timeout if timeout is None else timeout
        result: R = self._db.await_outcome(self.id, wait)
        return result

    def _get_task_meta(self) -> dict[str, Any]:
        # What Celery's state, result, ready(), successful() and failed() are made of.
        outcome = self.outcome()
        if isinstance(outcome, Committed):
            return {"status": states.SUCCESS, "result": outcome.value}
        if isinstance(outcome, Refused):
            return {"status": states.FAILURE, "result": outcome.exception}
        if outcome is None:
            return {"status": states.PENDING, "result": None}
        return {"status": states.FAILURE, "result": WriteExpired("the deadline passed", self.id)}

    def __await__(self) -> Generator[Any, None, R]:
        """The method's value, without blocking the event loop."""
        return asyncio.to_thread(self.get).__await__()


class ReadResult(AsyncResult, Generic[R]):
    """Celery's AsyncResult of a submitted read; needs a result backend."""

    def __init__(self, db: LiteFSCelery, task_id: str) -> None:
        super().__init__(task_id, app=db.app)
        self._db = db

    def get(self, timeout: float | None = None) -> R:
        """The method's value; raises its exception."""
        result: R = self._db.wire.loads(super().get(timeout=timeout))
        return result
