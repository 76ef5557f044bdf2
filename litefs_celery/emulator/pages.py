"""The parts of SQLite's file formats that shipping needs: header, pages, rollback journal."""

from __future__ import annotations

import os
import secrets
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

READ_ONLY = 3  # A write version SQLite does not know: every connection becomes read-only.
WRITABLE = 1  # The write version of a rollback-journal database.
_MAGIC = b"SQLite format 3\0"
_JOURNAL_MAGIC = bytes.fromhex("d9d505f920a163d7")
_HEADER_SIZE = 100
_SECTOR_SIZE = 512  # The size of a journal header; SQLite reads it from the header itself.
_WRITE_VERSION_AT = 18
_COUNTER_AT = 24
_VALID_FOR_AT = 92
_LARGEST_PAGE = 65536  # Written as 1, because it does not fit into two bytes.


@dataclass(frozen=True)
class Header:
    """What the first 100 bytes of a database say; sizes in bytes and pages."""

    page_size: int
    pages: int
    write_version: int
    read_version: int
    counter: int


def parse_header(data: bytes) -> Header | None:
    """Parse the start of a database file, or return ``None`` when it is not one (yet)."""
    if len(data) < _HEADER_SIZE or not data.startswith(_MAGIC):
        return None
    size = int.from_bytes(data[16:18], "big")
    counter, pages = struct.unpack_from(">II", data, _COUNTER_AT)
    return Header(_LARGEST_PAGE if size == 1 else size, pages, data[18], data[19], counter)


def read_header(fd: int) -> Header | None:
    """Read the header of an open database file without taking a lock; raises ``OSError``."""
    return parse_header(os.pread(fd, _HEADER_SIZE, 0))


def read_all(fd: int) -> bytes:
    """Read a whole open file; the caller holds a lock. Raises ``OSError``."""
    return os.pread(fd, os.fstat(fd).st_size, 0)


def stamp(image: bytes, counter: int, write_version: int) -> bytes:
    """Return ``image`` with another change counter and write version."""
    page = bytearray(image)
    page[_WRITE_VERSION_AT] = write_version
    struct.pack_into(">I", page, _COUNTER_AT, counter)
    struct.pack_into(">I", page, _VALID_FOR_AT, counter)
    return bytes(page)


def patch(fd: int, counter: int, write_version: int) -> None:
    """Stamp a database file in place; the caller keeps writers out. Raises ``OSError``."""
    number = counter.to_bytes(4, "big")
    os.pwrite(fd, bytes([write_version]), _WRITE_VERSION_AT)
    os.pwrite(fd, number, _VALID_FOR_AT)
    os.pwrite(fd, number, _COUNTER_AT)


def changed_pages(old: bytes, new: bytes, size: int) -> list[int]:
    """Return the indexes, from 0, of the pages of ``size`` bytes that differ."""
    before, after = memoryview(old), memoryview(new)
    end = max(len(old), len(new))
    return [
        at // size for at in range(0, end, size) if before[at : at + size] != after[at : at + size]
    ]


def encode_journal(old: bytes, pages: Sequence[int], size: int) -> bytes:
    """
    Encode the rollback journal that brings back ``pages`` and the length of ``old``.

    With it in place, any SQLite that opens the database after a crash undoes a half-done copy.
    """
    nonce = secrets.randbits(32)
    kept = [page for page in pages if page * size < len(old)]
    head = struct.pack(
        ">8s5I", _JOURNAL_MAGIC, len(kept), nonce, len(old) // size, _SECTOR_SIZE, size
    )
    parts = [head.ljust(_SECTOR_SIZE, b"\0")]
    for page in kept:
        content = old[page * size : (page + 1) * size]
        checksum = (nonce + sum(content[size - 200 : 0 : -200])) & 0xFFFFFFFF
        parts += [struct.pack(">I", page + 1), content, struct.pack(">I", checksum)]
    return b"".join(parts)
