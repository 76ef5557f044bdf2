"""A node that is not primary: it fences its files, follows a primary, and waits for the lease."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from litefs_celery.emulator.copying import Copy
from litefs_celery.emulator.fence import Fence
from litefs_celery.emulator.layout import NodeLayout, overwrite
from litefs_celery.emulator.pages import READ_ONLY, read_header

if TYPE_CHECKING:
    from litefs_celery.emulator.lease import Lease, Note
    from litefs_celery.emulator.locks import OpenFiles
    from litefs_celery.emulator.state import NodeState

NEVER = 2_147_483_647  # milliseconds; what LiteFS says before the first replication
_POLL = 0.005  # seconds
_POLL_WAITING = 0.001  # seconds; while readers are being kept out
_LAG_EVERY = 0.05  # seconds between two writes of ``.lag``


class Follower:
    """The replica's side of replication; ``tick`` does one round and never waits."""

    def __init__(self, state: NodeState, lease: Lease, files: OpenFiles) -> None:
        """Only assigns; ``start`` fences."""
        self._state = state
        self._layout = state.layout
        self._lease = lease
        self._files = files
        self._fences: dict[str, Fence] = {}
        self._copies: dict[str, Copy] = {}
        self._primary: Note | None = None
        self._heard_at: float | None = None
        self._lag_written = 0.0

    def start(self, fences: dict[str, Fence] | None = None) -> None:
        """Begin to fence every database, or go on with ``fences`` a demotion has begun."""
        if fences is not None:
            self._fences = fences
            self._heard_at = time.time()
        for name in self._layout.databases():
            self._fences.setdefault(name, Fence(self._layout, name))
        self.fence()

    def tick(self) -> float:
        """Follow the primary for one round; returns the seconds to wait before the next."""
        self.fence()
        self._follow(self._lease.primary())
        if self._state.faults.frozen:
            self._cancel()
        elif self._primary is not None:
            self._replicate(self._primary)
        self._write_lag()
        return _POLL_WAITING if any(copy.waiting for copy in self._copies.values()) else _POLL

    def stop(self) -> None:
        """Forget the primary and release every lock, because this node is about to lead."""
        self._follow(None)
        for name in self._layout.databases():
            file = self._files.get(self._layout.database(name))
            if file is not None:
                file.unlock()

    @property
    def fencing(self) -> bool:
        """Whether a fence still needs its locks."""
        return bool(self._fences)

    def fence(self) -> None:
        """Take every fence as far as possible now."""
        for name, fence in list(self._fences.items()):
            file = self._files.get(self._layout.database(name))
            if file is None or fence.step(file):
                del self._fences[name]

    def _follow(self, primary: Note | None) -> None:
        if primary == self._primary:
            return
        self._primary = primary
        self._cancel()
        self._copies = {}
        if primary is None:
            self._layout.primary_file.unlink(missing_ok=True)
            self._state.set_role(is_primary=False)
            return
        self._layout.joined.touch()
        fresh = self._layout.home / "primary.new"
        fresh.write_text(f"{primary.name}\n", encoding="utf-8")
        fresh.replace(self._layout.primary_file)
        self._state.set_role(is_primary=False, hostname=primary.name, port=primary.port)

    def _replicate(self, primary: Note) -> None:
        source = NodeLayout(self._layout.root, primary.name)
        for name in source.databases():
            if name not in self._copies:
                self._copies[name] = Copy(self._state, source, name, self._files)
        for name, copy in self._copies.items():
            if copy.diverged():
                self._fences.setdefault(name, Fence(self._layout, name))
            image = copy.pull()
            if image is not None and self._lease.primary() == primary:
                copy.accept(image)
            if copy.apply():
                self._fences.pop(name, None)
        self._fence_strangers()
        if not any(copy.blocked for copy in self._copies.values()):
            self._hear(source)

    def _cancel(self) -> None:
        for copy in self._copies.values():
            copy.cancel()

    def _fence_strangers(self) -> None:
        """Close files an application made here; a replica has no databases of its own."""
        for name in set(self._layout.databases()) - set(self._copies) - set(self._fences):
            file = self._files.get(self._layout.database(name))
            header = read_header(file.fd) if file else None
            if header is not None and header.write_version != READ_ONLY:
                self._fences[name] = Fence(self._layout, name)

    def _hear(self, source: NodeLayout) -> None:
        try:
            heard = source.lag_file.stat().st_mtime - self._state.faults.lag_seconds
        except FileNotFoundError:
            return
        self._heard_at = max(heard, self._heard_at or heard)

    def _write_lag(self) -> None:
        now = time.time()
        if now - self._lag_written < _LAG_EVERY:
            return
        self._lag_written = now
        lag = NEVER if self._heard_at is None else round((now - self._heard_at) * 1000)
        overwrite(self._layout.lag_file, b"%+010d\n" % min(lag, NEVER))
