"""The cluster's lease: a file lock that the kernel frees when its holder dies."""

from __future__ import annotations

import fcntl
import json
import os
import time
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from litefs_celery.emulator.layout import NodeLayout

if TYPE_CHECKING:
    from pathlib import Path

_SIZE = 512  # Every note has this size, so that one write replaces it as a whole.
_HANDOFF_GRACE = 3.0  # seconds in which only the chosen node may take the lease


@dataclass(frozen=True)
class Note:
    """What the lease file says: who holds it, and how far that node is in becoming primary."""

    state: str = ""  # candidate, primary, handoff (to ``name``), released; empty in a new cluster
    name: str = ""
    id: str = ""
    port: int = 0
    at: float = 0.0  # seconds since the epoch


class Lease:
    """One node's view of the lease; at most one node of a cluster holds it."""

    def __init__(self, layout: NodeLayout) -> None:
        """Only assigns and opens the file; raises ``OSError``."""
        self._layout = layout
        self._fd = os.open(layout.root / "lease", os.O_RDWR | os.O_CREAT, 0o644)
        self.held = False

    def note(self) -> Note:
        """Read what the holder, or the last holder, wrote."""
        return _read_note(self._fd)

    def write(self, state: str, name: str, *, id: str = "", port: int = 0) -> None:  # noqa: A002
        """Replace the note; only the holder may. Raises ``OSError``."""
        note = Note(state, name, id, port, time.time())
        os.pwrite(self._fd, json.dumps(asdict(note)).encode().ljust(_SIZE), 0)

    def acquire(self, *, candidate: bool) -> Note | None:
        """Take the lease if it is free and this node may; returns the note of the last holder."""
        if not _try_lock(self._fd):
            return None
        note = self.note()
        if candidate and self._may_take(note):
            self.held = True
            return note
        fcntl.flock(self._fd, fcntl.LOCK_UN)
        return None

    def primary(self) -> Note | None:
        """Return the live primary's note, or ``None`` when there is no primary now."""
        note = self.note()
        if note.state != "primary" or not is_locked(NodeLayout(self._layout.root, note.name).alive):
            return None
        return note if is_locked(self._layout.root / "lease") else None

    def release(self, state: str, name: str) -> None:
        """Give the lease up, saying why; raises ``OSError``."""
        self.write(state, name)
        self.held = False
        fcntl.flock(self._fd, fcntl.LOCK_UN)

    def _may_take(self, note: Note) -> bool:
        mine = self._layout.name
        if note.state == "handoff" and note.name != mine:
            return time.time() - note.at > _HANDOFF_GRACE
        # As in LiteFS, a node that never saw the cluster cannot lead it.
        return not note.state or self._layout.joined.exists()


def last_leader(root: Path) -> str:
    """Return the node that last held the lease, or was to get it; empty in a new cluster."""
    try:
        fd = os.open(root / "lease", os.O_RDONLY)
    except FileNotFoundError:
        return ""
    try:
        return _read_note(fd).name
    finally:
        os.close(fd)


def _read_note(fd: int) -> Note:
    text = os.pread(fd, _SIZE, 0).strip()
    return Note(**json.loads(text)) if text else Note()


def _try_lock(fd: int) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def hold(path: Path) -> int | None:
    """Lock the file ``path`` for the life of this process, or return ``None`` if it is taken."""
    fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    if _try_lock(fd):
        return fd
    os.close(fd)
    return None


def is_locked(path: Path) -> bool:
    """Whether a live process holds the lock of ``path``."""
    try:
        fd = os.open(path, os.O_RDWR)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(fd)
    return False
