"""One database of one replica: pulled from the primary, kept back, written page by page."""

from __future__ import annotations

import os
import time
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING

from litefs_celery.emulator import pages
from litefs_celery.emulator.layout import NodeLayout, overwrite, read_bytes
from litefs_celery.emulator.locks import DatabaseFile, OpenFiles, has_journal, is_hot, recover
from litefs_celery.emulator.position import Base, Position, read_base, write_base

if TYPE_CHECKING:
    from pathlib import Path

    from litefs_celery.emulator.state import NodeState

# Seconds in which new readers are kept out so that the running ones drain, then as long in which
# they are let in: an application that reads for hours must not lock out the others.
_PENDING_WINDOW = 0.05
_SHARE_TRIES = 20
_SHARE_PAUSE = 0.0005  # seconds; shorter than SQLite's own pause between two tries
_WAL_VERSION = 2  # The read version of a database in WAL mode, which cannot be shipped.


@dataclass(frozen=True)
class Image:
    """A database as it was at ``taken`` (monotonic seconds)."""

    content: bytes
    position: Position
    taken: float


class Copy:
    """Keeps this node's file of one database equal to the primary's."""

    def __init__(
        self, state: NodeState, source: NodeLayout, database: str, files: OpenFiles
    ) -> None:
        """Only assigns; a new copy begins with a full snapshot."""
        self._state = state
        self._source = source
        self._own = state.layout
        self._database = database
        self._files = files
        self._seen = b""
        self._images: deque[Image] = deque()
        self._expected: pages.Header | None = None
        self._pending_until = 0.0
        self._rest_until = 0.0

    @property
    def blocked(self) -> bool:
        """Whether an image is due and not written yet."""
        return bool(self._due())

    @property
    def waiting(self) -> bool:
        """Whether an image waits for readers to leave."""
        return bool(self._pending_until)

    def pull(self) -> Image | None:
        """Read the primary's file if its position moved; the caller confirms it with ``accept``."""
        line = read_bytes(self._source.pos(self._database))
        if not line or line == self._seen:
            return None
        file = self._files.get(self._source.database(self._database))
        if file is None or not _share(file):
            return None
        try:
            content = b"" if is_hot(file) else pages.read_all(file.fd)
        finally:
            file.unlock()
        header = pages.parse_header(content)
        if header is None or header.read_version == _WAL_VERSION:
            return None
        base = read_base(self._source, self._database)
        self._seen = line
        return Image(content, base.at(self._database, header.counter), time.monotonic())

    def accept(self, image: Image) -> None:
        """Keep an image that came from a node that was still primary after it was read."""
        if not self._state.faults.lag_seconds:
            self._images.clear()
        self._images.append(image)

    def apply(self) -> bool:
        """Write the newest image that is due; True when the file changed or was confirmed."""
        due = self._due()
        if not due:
            return False
        image = self._images[due - 1]
        path = self._own.database(self._database)
        if not path.exists():
            self._create(path, image.content)
        file = self._files.get(path)
        if file is None or not self._exclude_readers(file):
            return False
        if has_journal(path):
            file.unlock()
            recover(path)
            return False
        self._write(file, image)
        for _ in range(due):
            self._images.popleft()
        return True

    def diverged(self) -> bool:
        """Whether somebody else changed this node's file since the last image; then pull again."""
        file = self._files.get(self._own.database(self._database))
        if self._expected is None or (file and pages.read_header(file.fd) == self._expected):
            return False
        self._expected, self._seen = None, b""
        return True

    def cancel(self) -> None:
        """Forget what was not written yet, and let readers in."""
        self._images.clear()
        self._seen = b""
        if not self._pending_until:
            return
        self._pending_until = 0.0
        file = self._files.get(self._own.database(self._database))
        if file is not None:
            file.release_pending()

    def _due(self) -> int:
        limit = time.monotonic() - self._state.faults.lag_seconds
        return sum(image.taken <= limit for image in self._images)

    def _exclude_readers(self, file: DatabaseFile) -> bool:
        now = time.monotonic()
        if now < self._rest_until:
            return False
        if not self._pending_until:
            if not file.try_pending():
                return False
            self._pending_until = now + _PENDING_WINDOW
        if file.try_exclusive():
            self._pending_until = 0.0
            return True
        if now > self._pending_until:
            file.release_pending()
            self._pending_until, self._rest_until = 0.0, now + _PENDING_WINDOW
        return False

    def _write(self, file: DatabaseFile, image: Image) -> None:
        header = self._replace_pages(file, image.content)
        base = Base(header.counter, *image.position, lineage=self._state.id)
        file.unlock()
        self._expected = header
        line = image.position.encode()
        write_base(self._own, self._database, base)
        if line != read_bytes(self._own.pos(self._database)):
            overwrite(self._own.pos(self._database), line)
            self._state.applied(self._database, image.position, header)

    def _create(self, path: Path, content: bytes) -> None:
        """Let a new database appear as a whole, and read-only from the first moment."""
        header = pages.parse_header(content)
        assert header is not None, "pull checked it"
        fresh = self._own.home / f"{self._database}.new"
        fresh.write_bytes(pages.stamp(content, header.counter, pages.READ_ONLY))
        fresh.replace(path)

    def _replace_pages(self, file: DatabaseFile, content: bytes) -> pages.Header:
        old = pages.read_all(file.fd)
        before, after = pages.parse_header(old), pages.parse_header(content)
        assert after is not None, "pull checked it"
        counter = before.counter if before else after.counter
        new = pages.stamp(content, counter, pages.READ_ONLY)
        if new != old:
            # Connections keep their cache while the counter is the same, so it never comes back.
            counter = (counter + bool(before)) & 0xFFFFFFFF
            new = pages.stamp(content, counter, pages.READ_ONLY)
            self._overwrite(file, old if before else b"", new, (before or after).page_size)
        header = pages.read_header(file.fd)
        assert header is not None, "just written"
        return header

    def _overwrite(self, file: DatabaseFile, old: bytes, new: bytes, size: int) -> None:
        changed = pages.changed_pages(old, new, size)
        journal = self._own.journal(self._database)
        if not old:
            os.ftruncate(file.fd, 0)
        journal.write_bytes(pages.encode_journal(old, changed, size))
        for page in changed:
            os.pwrite(file.fd, new[page * size : (page + 1) * size], page * size)
        os.ftruncate(file.fd, len(new))
        journal.unlink()


def _share(file: DatabaseFile) -> bool:
    """Take the SHARED lock between two commits of a busy writer."""
    for _ in range(_SHARE_TRIES):
        if file.try_shared():
            return True
        time.sleep(_SHARE_PAUSE)
    return False
