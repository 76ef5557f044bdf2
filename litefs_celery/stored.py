"""Outcomes in Celery's result backend: what tells "committed" from "unknown" beside the ledger."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from celery import Celery, states
from celery.backends.base import DisabledBackend
from celery.backends.redis import RedisBackend

from . import observe
from .wire import Outcome, Refused, Wire, Write

# Past its deadline nobody waits for a write, but its caller may still be about to look.
EXPIRES_AFTER_DEADLINE = 60.0
PROBLEM = "litefs_problem"


class Stored:
    """
    The outcomes that the primary's worker keeps in the result backend, where there is one.

    A failure is logged, and no more: the ledger has the outcomes all the same.
    """

    def __init__(self, app: Celery, wire: Wire, *, timeout: float) -> None:
        self._app = app
        self._wire = wire
        self._timeout = timeout
        self._client: Any = None

    def keep(self, done: Sequence[tuple[Write, Outcome]]) -> None:
        """Store outcomes; on Redis in one round trip, until shortly after the deadlines."""
        backend = self._app.backend
        if isinstance(backend, DisabledBackend) or not done:
            return
        try:
            if isinstance(backend, RedisBackend):
                # The outcome itself as well: Celery's form of an exception is not ours.
                self._keep_in_redis(backend, [
                    (write, *self._result(outcome), {"litefs": self._encoded(outcome)})
                    for write, outcome in done
                ])
                return
            for write, outcome in done:
                backend.store_result(write.id, *self._result(outcome))
        except Exception as error:  # noqa: BLE001 - each backend raises its own
            ids = ", ".join(write.id for write, _ in done)
            observe.logger.warning("results could not be stored (%r): %s", error, ids)

    def note(self, failed: Sequence[tuple[Write, str]]) -> None:
        """Store why the primary could not commit these writes, which come again: no outcome."""
        backend = self._app.backend
        if isinstance(backend, DisabledBackend) or not failed:
            return
        try:
            kept: list[tuple[Write, Any, str, dict[str, Any]]] = [
                (write, {PROBLEM: problem}, states.STARTED, {}) for write, problem in failed
            ]
            if isinstance(backend, RedisBackend):
                self._keep_in_redis(backend, kept)
                return
            for write, result, state, _ in kept:
                backend.store_result(write.id, result, state)
        except Exception as error:  # noqa: BLE001 - each backend raises its own
            observe.logger.warning("a problem could not be stored: %r", error)

    def find(self, ids: Sequence[str]) -> dict[str, Outcome | str]:
        """
        The outcomes known of ``ids``; of those that could not be committed so far, a text why.

        What it does not know, or cannot be asked, is missing.
        """
        backend = self._app.backend
        found: dict[str, Outcome | str] = {}
        if isinstance(backend, DisabledBackend) or not ids:
            return found
        try:
            for write_id, meta in self._metas(backend, ids):
                outcome = self._outcome(meta)
                if outcome is not None:
                    found[write_id] = outcome
        except Exception as error:  # noqa: BLE001 - each backend raises its own
            observe.logger.warning("the result backend could not be asked: %r", error)
        return found

    def close(self) -> None:
        """Close the connections; idempotent."""
        client, self._client = self._client, None
        if client is not None:
            client.connection_pool.disconnect()

    def _keep_in_redis(
        self, backend: Any, kept: Sequence[tuple[Write, Any, str, dict[str, Any]]]
    ) -> None:
        """
        Do what RedisBackend.store_result does (celery 5.6.3, 5.7.0), in one round trip for all.

        It reads each key first and keeps each for a day: at hundreds of writes a second that is
        half of the worker's time, and gigabytes of the broker's memory.
        """
        pipe = self._redis(backend).pipeline(transaction=False)
        now = time.time()
        for write, result, state, more in kept:
            meta = backend._get_result_meta(
                result=backend.encode_result(result, state), state=state, traceback=None,
                request=None,
            )
            key = backend.get_key_for_task(write.id)
            value = backend.encode({**meta, "task_id": write.id, **more})
            left = int(max(0.0, write.deadline - now) + EXPIRES_AFTER_DEADLINE)
            pipe.set(key, value, ex=left)
            pipe.publish(key, value)
        pipe.execute()

    def _metas(self, backend: Any, ids: Sequence[str]) -> list[tuple[str, dict[str, Any]]]:
        if not isinstance(backend, RedisBackend):
            return [(write_id, backend.get_task_meta(write_id)) for write_id in ids]
        keys = [backend.get_key_for_task(write_id) for write_id in ids]
        values = self._redis(backend).mget(keys)
        return [
            (write_id, backend.decode(value))
            for write_id, value in zip(ids, values, strict=True)
            if value is not None
        ]

    def _redis(self, backend: Any) -> Any:
        # The backend's own client may wait two minutes for a silent Redis; callers wait for this.
        if self._client is None:
            limits = {"socket_timeout": self._timeout, "socket_connect_timeout": self._timeout}
            self._client = backend._create_client(**{**backend.connparams, **limits})
        return self._client

    def _result(self, outcome: Outcome) -> tuple[Any, str]:
        if isinstance(outcome, Refused):
            return outcome.exception, states.FAILURE
        return {"litefs": self._encoded(outcome)}, states.SUCCESS

    def _encoded(self, outcome: Outcome) -> list[Any]:
        return [self._wire.dump_outcome(outcome), outcome.epoch]

    def _outcome(self, meta: dict[str, Any]) -> Outcome | str | None:
        result = meta.get("result")
        if isinstance(result, dict) and PROBLEM in result:
            return str(result[PROBLEM])
        own = meta.get("litefs") or (result.get("litefs") if isinstance(result, dict) else None)
        if own is not None:
            text, epoch = own
            return self._wire.load_outcome(text, int(epoch))
        if meta.get("status") == states.FAILURE and isinstance(result, Exception):
            return Refused(result)
        return None
