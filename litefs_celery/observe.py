"""Frozen records of what happened, and the hooks that hear them."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass

logger = logging.getLogger("litefs_celery")


@dataclass(frozen=True)
class Record:
    """Something that happened to the database called ``database`` on this node."""

    database: str


@dataclass(frozen=True)
class ForwardStarted(Record):
    """A write began; ``local`` means this node is primary and runs it itself."""

    write_id: str
    method: str
    local: bool


@dataclass(frozen=True)
class ForwardFinished(Record):
    """A write's outcome is known: ``outcome`` is committed, refused or expired."""

    write_id: str
    method: str
    outcome: str
    duration: float
    """Seconds from the call to the outcome being readable on this node."""


@dataclass(frozen=True)
class ForwardFailed(Record):
    """A write's caller was given an error that is not the write's own outcome."""

    write_id: str
    method: str
    error: BaseException
    duration: float


@dataclass(frozen=True)
class Resent(Record):
    """A write was sent again under its id; ``attempt`` counts from 2."""

    write_id: str
    method: str
    attempt: int


@dataclass(frozen=True)
class DuplicateAnswered(Record):
    """A write arrived again and was answered from the ledger, without running."""

    write_id: str
    method: str


@dataclass(frozen=True)
class GroupCommitted(Record):
    """One commit on the primary: ``writes`` of which ``duplicates`` were known already."""

    epoch: int
    writes: int
    duplicates: int
    duration: float


@dataclass(frozen=True)
class GroupFailed(Record):
    """A commit failed or could not be confirmed; its writes are not acknowledged."""

    epoch: int
    writes: int
    error: BaseException


@dataclass(frozen=True)
class RoleChanged(Record):
    """What the detector holds this node to be: primary, replica, unknown or standalone."""

    role: str
    primary: str
    reason: str


@dataclass(frozen=True)
class TermStarted(Record):
    """This node became primary and wrote its row into the tracking table."""

    epoch: int
    node: str


@dataclass(frozen=True)
class TermEnded(Record):
    """This node stopped being primary."""

    epoch: int
    node: str
    reason: str


@dataclass(frozen=True)
class ConsumerMoved(Record):
    """This node's worker started (or stopped) consuming the queue of writes."""

    queue: str
    consuming: bool


@dataclass(frozen=True)
class MessageSetAside(Record):
    """A message was no write, or not signed as it must be; it is kept in the rejected queue."""

    queue: str
    reason: str


@dataclass(frozen=True)
class OutboxSent(Record):
    """The node's worker sent submitted writes that have no outcome here yet."""

    writes: int


@dataclass(frozen=True)
class WritesLost(Record):
    """``primary`` won without these submitted writes, which others had; they are sent again."""

    primary: str
    write_ids: tuple[str, ...]


@dataclass(frozen=True)
class OutboxGaveUp(Record):
    """The deadline of these submitted writes passed, and no outcome of them became readable."""

    write_ids: tuple[str, ...]


@dataclass(frozen=True)
class HandedOver(Record):
    """This node gave the role to ``target``, and took no writes for ``duration`` seconds before."""

    target: str
    duration: float


@dataclass(frozen=True)
class HandoverFailed(Record):
    """The role was not given to the node ``target``; this node goes on as it was."""

    target: str
    reason: str


Hook = Callable[[Record], None]
_hooks: list[Hook] = []
_lock = threading.Lock()

_LEVELS: dict[type[Record], int] = {
    RoleChanged: logging.INFO,
    TermStarted: logging.INFO,
    TermEnded: logging.WARNING,
    ConsumerMoved: logging.INFO,
    GroupFailed: logging.WARNING,
    ForwardFailed: logging.WARNING,
    MessageSetAside: logging.ERROR,
    Resent: logging.INFO,
    WritesLost: logging.WARNING,
    OutboxGaveUp: logging.ERROR,
    HandedOver: logging.INFO,
    HandoverFailed: logging.WARNING,
}


def log(record: Record) -> None:
    """The default hook: one line a record, at DEBUG for what happens on every write."""
    level = _LEVELS.get(type(record), logging.DEBUG)
    if logger.isEnabledFor(level):
        logger.log(level, "%r", record, extra={"litefs_record": record})


def subscribe(hook: Hook) -> Callable[[], None]:
    """
    Call ``hook`` with every record from now on; returns the function that ends it.

    Hooks run in the thread where it happened, possibly the writer's: they must not block.
    An exception in a hook is logged and does not reach the write.
    """
    with _lock:
        _hooks.append(hook)

    def unsubscribe() -> None:
        with _lock:
            if hook in _hooks:
                _hooks.remove(hook)

    return unsubscribe


def emit(record: Record) -> None:
    """Give ``record`` to the log and to every hook."""
    log(record)
    for hook in tuple(_hooks):
        try:
            hook(record)
        except Exception:
            logger.exception("hook %r failed on %r", hook, record)
