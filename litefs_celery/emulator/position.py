"""Replication positions, and how they follow from SQLite's change counter."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import NamedTuple

from litefs_celery.emulator.layout import NodeLayout, overwrite, read_bytes

_CHECKSUM_FLAG = 1 << 63  # LiteFS sets the highest bit of every checksum.
_HALF = 1 << 31  # A counter that is "ahead" by more than this is behind.


class Position(NamedTuple):
    """How far a database is: ``txid``, and a ``checksum`` that tells histories apart."""

    txid: int
    checksum: int

    def encode(self) -> bytes:
        """Return the 34 bytes of a ``-pos`` file."""
        return b"%016x/%016x\n" % self

    @classmethod
    def decode(cls, line: bytes) -> Position | None:
        """Parse a ``-pos`` file, or return ``None`` when the line is not a whole one."""
        txid, _, checksum = line.partition(b"/")
        try:
            return cls(int(txid, 16), int(checksum, 16))
        except ValueError:
            return None


@dataclass(frozen=True)
class Base:
    """
    The position a node had at one change counter, and the lineage of what follows.

    A change counter belongs to one file of one node and never goes back; a TXID belongs to the
    cluster and does go back when a snapshot overwrites a node. This note connects the two.
    """

    counter: int = 0
    txid: int = 0
    checksum: int = _CHECKSUM_FLAG
    lineage: str = ""

    def at(self, database: str, counter: int) -> Position:
        """Return the position of ``database`` when its file shows ``counter``."""
        moved = (counter - self.counter) & 0xFFFFFFFF
        if moved == 0 or moved > _HALF:
            return Position(self.txid, self.checksum)
        txid = self.txid + moved
        text = f"{self.lineage}/{database}/{txid}".encode()
        digest = hashlib.blake2b(text, digest_size=8).digest()
        return Position(txid, int.from_bytes(digest, "big") | _CHECKSUM_FLAG)


def read_base(layout: NodeLayout, database: str) -> Base:
    """Read a node's note on ``database``; without one, TXID and change counter are the same."""
    fields = read_bytes(layout.base(database)).decode().split()
    if len(fields) != 4:  # noqa: PLR2004 - the four fields of a line
        return Base()
    counter, txid, checksum, lineage = fields
    return Base(int(counter, 16), int(txid, 16), int(checksum, 16), lineage.strip("-"))


def write_base(layout: NodeLayout, database: str, base: Base) -> None:
    """Keep a node's note on ``database``; raises ``OSError``."""
    line = f"{base.counter:08x} {base.txid:016x} {base.checksum:016x} {base.lineage:->16}\n"
    overwrite(layout.base(database), line.encode())


def read_position(layout: NodeLayout, database: str) -> Position | None:
    """Read the ``-pos`` file of a node's data directory, or ``None`` when there is none yet."""
    return Position.decode(read_bytes(layout.pos(database)))
