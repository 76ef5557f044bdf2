"""Other nodes' terms, heard of through the broker: of two primaries the earlier one stands back."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass

from sqlalchemy.exc import SQLAlchemyError

from . import observe, write_lock
from .engines import Engines
from .errors import LiteFSCeleryError
from .litefs import LiteFSNode

TERM_HELD = "litefs_term_held"
# One small message to each worker; what a primary takes beside a later one is mostly in vain.
ANNOUNCE_INTERVAL = 5.0
# A rival that is not heard of for so long is gone: it may have died before its term was replicated.
SILENCE_LIMIT = 15.0
POLL = 0.1  # how late the lock is let go


@dataclass(frozen=True)
class Rival:
    """A term of another node: since when that is primary (its clock, Unix), last heard of when."""

    node: str
    epoch: int
    since: float
    heard: float


class Rivals:
    """
    What this node's worker has heard of others that hold a term and consume.

    LiteFS's lease has one holder: whoever got it later has it, and an earlier one was not told
    (packets between it and Consul are lost). Epochs cannot tell them apart, because a winner
    without the last term uses its epoch again; the times of their beginnings can, where clocks
    differ by less than a lease lasts.
    """

    def __init__(self, node: str, engines: Engines, litefs: Callable[[], LiteFSNode]) -> None:
        self._node = node
        self._engines = engines
        self._litefs = litefs
        self._last: Rival | None = None
        self._locker: threading.Thread | None = None

    def hear(self, node: str, epoch: int, since: float) -> bool:
        """Note that a node says it holds a term; whether that is news of another's."""
        if node == self._node:
            return False
        last = self._last
        self._last = Rival(node, epoch, since, time.monotonic())
        return last is None or (last.node, last.since) != (node, since)

    def keep_out(self, since: float) -> str:
        """
        Why a node that is primary since that Unix time must stand back; empty if it need not.

        Meanwhile no process of this node commits: SQLite's write lock is held, until LiteFS
        knows that this node is not primary, or the rival is not heard of any more.
        """
        rival = self._later_than(since)
        if rival is None:
            return ""
        if self._locker is None or not self._locker.is_alive():
            self._locker = threading.Thread(
                target=self._lock, args=(since,), name="litefs-stand-back", daemon=True
            )
            self._locker.start()
        return (
            f"LiteFS says primary here, but {rival.node} holds epoch {rival.epoch}, which it began "
            "later: this node is cut off from the lease's Consul"
        )

    def _later_than(self, since: float) -> Rival | None:
        rival = self._last
        if rival is None or time.monotonic() - rival.heard > SILENCE_LIMIT:
            return None
        return rival if rival.since > since else None

    def _lock(self, since: float) -> None:
        try:
            with closing(self._litefs()) as node, write_lock.held(self._engines.setup):
                while self._later_than(since) is not None and node.info().is_primary:
                    threading.Event().wait(POLL)
        except (SQLAlchemyError, LiteFSCeleryError) as error:
            observe.logger.warning("other processes of this node may still commit: %s", error)
