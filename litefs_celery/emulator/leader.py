"""The primary: it publishes its position, and hands over without losing a transaction."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import TYPE_CHECKING

from litefs_celery.emulator.fence import Fence
from litefs_celery.emulator.layout import NodeLayout, overwrite
from litefs_celery.emulator.lease import is_locked
from litefs_celery.emulator.locks import DatabaseFile, OpenFiles, has_journal, is_hot, recover
from litefs_celery.emulator.pages import WRITABLE, Header, patch, read_header
from litefs_celery.emulator.position import Base, read_base, read_position, write_base

if TYPE_CHECKING:
    from collections.abc import Callable

    from litefs_celery.emulator.lease import Lease
    from litefs_celery.emulator.state import NodeState

_POLL = 0.002  # seconds; how late ``-pos`` may be after a commit
_HEARTBEAT = 1.0  # seconds; an idle replica's lag grows to this, as in LiteFS
_DRAIN_TIMEOUT = 1.0  # seconds a demotion lets a running write transaction finish
_CATCH_UP_TIMEOUT = 5.0  # seconds the next primary may take to reach this node's position


class Leader:
    """The primary's side of replication; from ``start`` to ``hand_over`` or ``resign``."""

    def __init__(self, state: NodeState, lease: Lease, files: OpenFiles) -> None:
        """Only assigns."""
        self._state = state
        self._layout = state.layout
        self._lease = lease
        self._files = files
        self._bases: dict[str, Base] = {}
        self._published: dict[str, Header] = {}
        self._beat_at = 0.0
        self._demoting = False

    def start(self) -> None:
        """Make the files writable, continue from their positions, and say so."""
        self._layout.joined.touch()
        self._layout.primary_file.unlink(missing_ok=True)
        for name in self._layout.databases():
            recover(self._layout.database(name))
            self._open(name)
        self._beat()
        self.tick()
        self._state.handoff_to = ""
        self._lease.write("primary", self._layout.name, id=self._state.id, port=self._state.port)
        self._state.set_role(is_primary=True)

    def tick(self) -> float:
        """Publish every position that moved; returns the seconds to wait before the next round."""
        behind = False
        for name in self._layout.databases():
            file = self._files.get(self._layout.database(name))
            if file is not None:
                behind |= not self._publish(name, file)
        self._state.end_round(behind=behind)
        if time.monotonic() - self._beat_at > _HEARTBEAT:
            self._beat()
        return _POLL

    def hand_over(self, target: str) -> dict[str, Fence] | None:
        """Give the lease to ``target`` once it has everything; ``None`` when it could not."""
        successor = NodeLayout(self._layout.root, target)
        if target == self._layout.name or not is_locked(successor.alive):
            return None
        self._drain()
        deadline = time.monotonic() + _CATCH_UP_TIMEOUT
        while not self._has_everything(successor):
            if time.monotonic() > deadline:
                self._unlock()
                return None
            time.sleep(self.tick())
        return self._end("handoff", target)

    def resign(self) -> dict[str, Fence]:
        """Give the lease up without a successor, as at a graceful stop."""
        self._drain()
        return self._end("released", self._layout.name)

    def _open(self, name: str) -> None:
        file = self._files.get(self._layout.database(name))
        header = read_header(file.fd) if file else None
        if file is None or header is None:
            return
        position = read_base(self._layout, name).at(name, header.counter)
        self._bases[name] = Base(header.counter, *position, lineage=self._state.id)
        write_base(self._layout, name, self._bases[name])
        patch(file.fd, header.counter, WRITABLE)

    def _publish(self, name: str, file: DatabaseFile) -> bool:
        """Publish what is committed; False when a commit in progress hides whether it moved."""
        header = read_header(file.fd)
        if header is None or header == self._published.get(name):
            return True
        if not self._is_committed(file, header):
            return False
        if name not in self._bases:
            self._bases[name] = replace(read_base(self._layout, name), lineage=self._state.id)
            write_base(self._layout, name, self._bases[name])
        position = self._bases[name].at(name, header.counter)
        self._published[name] = header
        if position != read_position(self._layout, name):
            overwrite(self._layout.pos(name), position.encode())
            self._state.applied(name, position, header)
        return True

    def _is_committed(self, file: DatabaseFile, header: Header) -> bool:
        """Look without a lock if possible: the end of the journal is the commit."""
        if not has_journal(file.path):
            return read_header(file.fd) == header
        if self._demoting or not file.try_shared():
            return False
        committed = read_header(file.fd) == header and not is_hot(file)
        file.unlock()
        return committed

    def _beat(self) -> None:
        self._beat_at = time.monotonic()
        overwrite(self._layout.lag_file, b"%+010d\n" % 0)

    def _drain(self) -> None:
        """Keep new write transactions out; what still runs at the end can no longer commit."""
        self._demoting = True  # from here on this node keeps its locks
        self._each(DatabaseFile.try_reserved)
        self._each(DatabaseFile.try_shared)
        self.tick()

    def _each(self, lock: Callable[[DatabaseFile], bool]) -> None:
        waiting = {self._layout.database(name) for name in self._layout.databases()}
        deadline = time.monotonic() + _DRAIN_TIMEOUT
        while waiting and time.monotonic() < deadline:
            for path in list(waiting):
                file = self._files.get(path)
                if file is None or lock(file):
                    waiting.remove(path)
            if waiting:
                time.sleep(self.tick())

    def _has_everything(self, successor: NodeLayout) -> bool:
        names = self._published
        return all(
            read_position(successor, name) == read_position(self._layout, name) for name in names
        )

    def _end(self, state: str, name: str) -> dict[str, Fence]:
        # The note goes first: a replica discards what it read after that.
        self._lease.write(state, name)
        self._state.set_role(is_primary=False)
        fences = {database: Fence(self._layout, database) for database in self._layout.databases()}
        for database, fence in fences.items():
            self._hold(database, fence)
        self._lease.release(state, name)
        return fences

    def _hold(self, database: str, fence: Fence) -> None:
        """Step until no commit can complete; a commit that runs right now ends in a moment."""
        deadline = time.monotonic() + _DRAIN_TIMEOUT
        file = self._files.get(self._layout.database(database))
        while file is not None and time.monotonic() < deadline:
            if fence.step(file) or fence.holds:
                return
            time.sleep(_POLL)

    def _unlock(self) -> None:
        self._demoting = False
        for name in self._layout.databases():
            file = self._files.get(self._layout.database(name))
            if file is not None:
                file.unlock()
