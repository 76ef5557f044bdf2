"""
Notes when a write takes each of its steps, by wrapping the package's methods from outside.

Times are ``time.monotonic_ns()``, which all processes of one machine share.
"""

from __future__ import annotations

import functools
import json
import os
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

from sqlalchemy import event

from litefs_celery.committer import Committer
from litefs_celery.consumer import PrimaryConsumer
from litefs_celery.engines import Engines
from litefs_celery.forward import Forwarder
from litefs_celery.litefs import LiteFSNode
from litefs_celery.methods import BoundWrite
from litefs_celery.tasks import Sender
from litefs_celery.telling import Telling
from litefs_celery.visibility import Visibility

Ids = Callable[..., list[str]]


class Trace:
    """A file of JSON lines: a step, the writes that took it, and when."""

    def __init__(self, path: str) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)

    def note(self, step: str, ids: list[str], at: int | None = None) -> None:
        """Append a line, in one system call: threads and processes do not mix theirs."""
        line = {"step": step, "ids": ids, "at": time.monotonic_ns() if at is None else at}
        os.write(self._file, json.dumps(line).encode() + b"\n")


def install(trace: Trace) -> None:
    """Wrap every step of a write, for this process."""
    local = threading.local()
    _around(trace, Sender, "publish", before="publish", after="published", ids=_of_writes)
    _around(trace, PrimaryConsumer, "_receive", before="received", ids=_of_message)
    _around(trace, Telling, "ended", before="answered", ids=_of_write)
    _around(trace, Committer, "_resolve", before="confirmed", ids=_of_committed)
    _trace_calls(trace, local)
    _trace_commits(trace, local)
    _trace_signs(local)
    _trace_arrivals(trace, local)


def _around(
    trace: Trace, owner: type, name: str, *, before: str = "", after: str = "", ids: Ids
) -> None:
    inner = getattr(owner, name)

    @functools.wraps(inner)
    def wrapper(self: Any, *args: Any, **options: Any) -> Any:
        if before:
            trace.note(before, ids(*args, **options))
        result = inner(self, *args, **options)
        if after:
            trace.note(after, ids(*args, **options))
        return result

    setattr(owner, name, wrapper)


def _before(owner: type, name: str, action: Callable[..., None]) -> None:
    inner = getattr(owner, name)

    @functools.wraps(inner)
    def wrapper(self: Any, *args: Any, **options: Any) -> Any:
        action(*args, **options)
        return inner(self, *args, **options)

    setattr(owner, name, wrapper)


def _trace_calls(trace: Trace, local: threading.local) -> None:
    inner = Forwarder.call

    def begin(*_args: Any, **_options: Any) -> None:
        local.began = time.monotonic_ns()

    def call(self: Forwarder, write: Any, timeout: float) -> Any:
        trace.note("call", [write.id], local.began)
        result = inner(self, write, timeout)
        trace.note("returned", [write.id])
        return result

    _before(BoundWrite, "__call__", begin)
    Forwarder.call = call  # type: ignore[method-assign]


def _trace_commits(trace: Trace, local: threading.local) -> None:
    make = Engines.__init__

    def note_commit(_connection: Any) -> None:
        trace.note("commit", local.group)

    def begin(group: Any) -> None:
        local.group = _of_group(group)

    def engines(self: Engines, *args: Any, **options: Any) -> None:
        make(self, *args, **options)
        event.listen(self.writer, "commit", note_commit)

    _around(trace, Committer, "_commit", before="begin", after="committed", ids=_of_group)
    _before(Committer, "_commit", begin)
    Engines.__init__ = engines  # type: ignore[method-assign]


def _trace_signs(local: threading.local) -> None:
    """Remember when the last event was heard."""
    events = LiteFSNode.events
    heard = [0]

    def noted_events(self: LiteFSNode) -> Iterator[Any]:
        for item in events(self):
            if item.type == "tx":
                heard[0] = time.monotonic_ns()
            yield item

    def look() -> None:
        local.look, local.heard = time.monotonic_ns(), heard[0]

    LiteFSNode.events = noted_events  # type: ignore[method-assign]
    _before(Visibility, "_look_for_all", look)


def _trace_arrivals(trace: Trace, local: threading.local) -> None:
    """Note when a row was found, and the signs that led to the look which found it."""

    def appeared(pending: Any, _row: Any) -> None:
        ids = [pending.write.id]
        for step in ("heard", "look"):
            trace.note(step, ids, getattr(local, step, 0))
        trace.note("appeared", ids)

    _before(Forwarder, "_appeared", appeared)


def _of_write(write: Any, *_args: Any) -> list[str]:
    return [write.id]


def _of_writes(writes: Any) -> list[str]:
    return [write.id for write in writes]


def _of_message(message: Any) -> list[str]:
    return [entry["id"] for entry in (message.headers or {})["litefs"]]


def _of_committed(done: Any, _failure: Any) -> list[str]:
    return _of_group(done.group)


def _of_group(group: Any) -> list[str]:
    return [job.write.id for job in group]
