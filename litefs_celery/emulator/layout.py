"""Where one emulated node keeps its files, and how its mount looks alive, dead or unmounted."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path


def overwrite(path: Path, data: bytes) -> None:
    """
    Replace the first bytes of a fixed-size file in one system call.

    A reader sees the old bytes or the new ones, never half a line. Raises ``OSError``.
    """
    fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        os.pwrite(fd, data, 0)
        os.ftruncate(fd, len(data))
    finally:
        os.close(fd)


def read_bytes(path: Path) -> bytes:
    """Read a small file, or return ``b""`` when it does not exist; other ``OSError`` are raised."""
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return b""


@dataclass(frozen=True)
class NodeLayout:
    """The paths of the node ``name`` in the cluster directory ``root``; nothing is opened here."""

    root: Path
    name: str

    @property
    def home(self) -> Path:
        """The node's own directory."""
        return self.root / self.name

    @property
    def data(self) -> Path:
        """The directory that really holds the files."""
        return self.home / "data"

    @property
    def mount(self) -> Path:
        """The path applications use: a link to ``data`` while the node lives."""
        return self.home / "mount"

    @property
    def log(self) -> Path:
        """What the daemon wrote to standard error."""
        return self.home / "daemon.log"

    @property
    def alive(self) -> Path:
        """A file whose lock the daemon holds as long as it lives."""
        return self.home / "alive"

    @property
    def joined(self) -> Path:
        """A file that exists once the node has been part of a cluster with a primary."""
        return self.home / "joined"

    @property
    def primary_file(self) -> Path:
        """The ``.primary`` file."""
        return self.data / ".primary"

    @property
    def lag_file(self) -> Path:
        """The ``.lag`` file."""
        return self.data / ".lag"

    def database(self, name: str) -> Path:
        """Return the database file ``name``."""
        return self.data / name

    def journal(self, name: str) -> Path:
        """Return the rollback journal of the database ``name``."""
        return self.data / f"{name}-journal"

    def pos(self, name: str) -> Path:
        """Return the position file of the database ``name``."""
        return self.data / f"{name}-pos"

    def base(self, name: str) -> Path:
        """Return the node's private note on how positions follow from change counters."""
        return self.home / "positions" / name

    def databases(self) -> list[str]:
        """Return the names of the database files of this node, sorted."""
        try:
            return sorted(path.name for path in self.data.iterdir() if path.suffix == ".db")
        except FileNotFoundError:
            return []

    def create(self) -> None:
        """Create the node's directories where they are missing; raises ``OSError``."""
        self.data.mkdir(parents=True, exist_ok=True)
        (self.home / "positions").mkdir(exist_ok=True)

    def mount_live(self) -> None:
        """Make the mount show the node's files."""
        self._link("data")

    def mount_dead(self) -> None:
        """Make every path under the mount fail with an ``OSError`` that is not "not found"."""
        self._link("mount")

    def mount_empty(self) -> None:
        """Make the mount a plain empty directory, as an unmounted mount point is."""
        if self.mount.is_symlink():
            self.mount.unlink()
        elif self.mount.is_dir():
            shutil.rmtree(self.mount)
        self.mount.mkdir()

    def _link(self, target: str) -> None:
        if self.mount.is_dir() and not self.mount.is_symlink():
            # Files an application left in the empty mount point: a real mount would hide them.
            hidden = self.home / "hidden"
            shutil.rmtree(hidden, ignore_errors=True)
            self.mount.rename(hidden)
        fresh = self.home / "mount.new"
        fresh.unlink(missing_ok=True)
        fresh.symlink_to(target)
        fresh.rename(self.mount)
