"""What one daemon knows about itself, shared by its replication loop and its HTTP server."""

from __future__ import annotations

import hashlib
import queue
import secrets
import threading
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

    from litefs_celery.emulator.layout import NodeLayout
    from litefs_celery.emulator.pages import Header
    from litefs_celery.emulator.position import Position

Event = dict[str, Any]
_BUFFER = 1024  # events; LiteFS disconnects a reader that is further behind


@dataclass(frozen=True)
class Faults:
    """Faults on demand; they last until they are changed or the daemon ends."""

    lag_seconds: float = 0.0
    frozen: bool = False
    candidate: bool = True


class NodeState:
    """Role, faults and events of one node; safe to use from every thread."""

    def __init__(self, layout: NodeLayout, port: int) -> None:
        """Only assigns."""
        self.layout = layout
        self.port = port
        self.id = f"{secrets.randbits(64):016X}"
        root = str(layout.root.resolve()).encode()
        self.cluster_id = "LFSC" + hashlib.sha256(root).hexdigest()[:16].upper()
        self.faults = Faults()
        self.is_primary = False
        self.hostname = ""
        self.primary_port = 0
        self.handoff_to = ""
        self._lock = threading.Lock()
        self._rounds = threading.Condition()
        self._round = 0
        self._subscribers: set[queue.Queue[Event | None]] = set()

    def info(self) -> dict[str, Any]:
        """Return the document of ``GET /info``."""
        with self._lock:
            return {
                "clusterID": self.cluster_id,
                "isPrimary": self.is_primary,
                "candidate": self.faults.candidate,
                "path": str(self.layout.data),
                "primary": {"hostname": self.layout.name if self.is_primary else self.hostname},
            }

    def set_role(self, *, is_primary: bool, hostname: str = "", port: int = 0) -> None:
        """Change the role; ``hostname`` is the primary's, empty on the primary and when unknown."""
        with self._lock:
            self.primary_port = port
            if (self.is_primary, self.hostname) == (is_primary, hostname):
                return
            self.is_primary, self.hostname = is_primary, hostname
            self._publish({"type": "primaryChange", "data": self._role()})

    def applied(self, database: str, position: Position, header: Header) -> None:
        """Tell the subscribers that ``database`` reached ``position``."""
        now = datetime.now(UTC).isoformat(timespec="milliseconds")
        data = {
            "txID": f"{position.txid:016x}",
            "postApplyChecksum": f"{position.checksum:016x}",
            "pageSize": header.page_size,
            "commit": header.pages,
            "timestamp": now.replace("+00:00", "Z"),
        }
        with self._lock:
            self._publish({"type": "tx", "db": database, "data": data})

    def end_round(self, *, behind: bool) -> None:
        """Tell waiters that the primary has looked at everything, unless it is ``behind``."""
        with self._rounds:
            self._round += not behind
            self._rounds.notify_all()

    def settle(self, timeout: float) -> bool:
        """Wait, at most ``timeout`` seconds, for a whole round that begins after this call."""
        with self._rounds:
            target = self._round + 2  # the round that runs now may already have looked
            return self._rounds.wait_for(lambda: self._round >= target, timeout)

    @contextmanager
    def subscription(self) -> Iterator[queue.Queue[Event | None]]:
        """Events from now on, the first one ``init``; ``None`` tells a slow reader to leave."""
        events: queue.Queue[Event | None] = queue.Queue()
        with self._lock:
            events.put({"type": "init", "data": self._role()})
            self._subscribers.add(events)
        try:
            yield events
        finally:
            with self._lock:
                self._subscribers.discard(events)

    def _role(self) -> Event:
        hostname = {"hostname": self.hostname} if self.hostname else {}
        return {"isPrimary": self.is_primary} | hostname

    def _publish(self, event: Event) -> None:
        for events in list(self._subscribers):
            if events.qsize() < _BUFFER:
                events.put(event)
            else:
                self._subscribers.discard(events)
                events.put(None)
