"""This node's directories, judged: LiteFS's data, the room for it, and the outbox."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from .findings import OK, UNKNOWN, UNSAFE, WARNING, Finding
from .machine import filesystem

if TYPE_CHECKING:
    from .config import Settings

# Room for a day's ledger and ten minutes of transactions; and what is usually called nearly full.
LEAST_FREE, LEAST_SHARE = 1_000_000_000, 0.1
_LOST = "what was not replicated is lost when this machine (or container) restarts"


def data_directory(directory: Path, settings: Settings) -> Finding:
    """Judge where LiteFS keeps its own copy of the database."""
    place = filesystem(directory) if directory.is_dir() else None
    if place is None:
        return Finding(
            "data.dir", UNKNOWN, f"{directory} cannot be seen", f"in memory, {_LOST}",
            f"see `findmnt -T {directory}` where LiteFS runs",
        )
    if place.in_memory:
        return Finding(
            "data.dir", UNSAFE, f"{directory} is on {place.name}, in memory",
            f"{_LOST}; when all nodes restart, so is the database",
            "move data.dir to a disk (in a container, to a volume)",
        )
    outbox = filesystem(Path(settings.outbox_dir)) if settings.outbox_dir else None
    shared = outbox is not None and outbox.device == place.device
    more = ", which the outbox shares: both are full at once" if shared else ""
    return Finding("data.dir", OK, f"{directory} on {place.name}{more}")


def disk(mount: Path) -> Finding:
    """Judge the room for LiteFS's data directory, which its mount tells as its own."""
    place = filesystem(mount)
    if place is None:
        return Finding("disk", UNKNOWN, f"the room behind {mount} cannot be seen", "a full disk "
                       "stops writes on the primary and replication elsewhere", f"see `df {mount}`")
    return room(place.free, place.size)


def room(free: int, size: int) -> Finding:
    """Judge free bytes of so many."""
    share = free / size if size else 0.0
    what = f"{free / 1e9:.1f} GB ({share:.0%}) free for LiteFS's data"
    if free >= LEAST_FREE and share >= LEAST_SHARE:
        return Finding("disk", OK, what)
    return Finding(
        "disk", WARNING, what, "LiteFS keeps each transaction once more (data.retention, 10 "
        "minutes); a full disk stops writes on the primary, and replication elsewhere",
        "make room, or move data.dir to a larger disk",
    )


def outbox(settings: Settings, mount: Path) -> Iterator[Finding]:
    """Judge the outbox's directory; where there is none, the broker's persistence decides."""
    if not settings.outbox_dir:
        yield Finding(
            "outbox", WARNING, "litefs_outbox_dir is not set", "a submitted (.delay) write lives "
            "in the broker alone, and none is made again when a node without it wins an election",
            "set litefs_outbox_dir to a directory on this node's own disk",
        )
        return
    directory = Path(settings.outbox_dir).absolute()
    if mount in (directory, *directory.parents):
        yield Finding("outbox", UNSAFE, f"{directory} lies in the LiteFS mount", "it must outlive "
                      "what LiteFS rolls back", "use a directory on this node's own disk")
        return
    place = filesystem(directory)
    if place is None:
        yield Finding("outbox", UNKNOWN, f"the file system of {directory} cannot be seen",
                      "in memory it would be lost with the machine",
                      f"see `findmnt -T {directory}`")
    elif place.in_memory:
        yield Finding(
            "outbox", UNSAFE, f"{directory} is on {place.name}, in memory", "what was submitted "
            "is lost when this machine (or container) restarts", "move it to a disk or a volume",
        )
    elif place.free < settings.outbox_limit_bytes:
        yield Finding(
            "outbox", WARNING, f"{directory} has {place.free} bytes free, less than "
            f"litefs_outbox_limit_bytes ({settings.outbox_limit_bytes})",
            "the disk is full before the outbox is: .delay() then fails with an error of the disk "
            "instead of OutboxFull",
            "make room, or lower the limit",
        )
    else:
        yield Finding("outbox", OK, f"{directory}, {place.free / 1e9:.1f} GB free")
