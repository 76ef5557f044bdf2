"""A small disk of its own for one directory, which can be filled to the last byte."""

from __future__ import annotations

import errno
import subprocess
from pathlib import Path

BLOCK = 4096
BALLAST = ".ballast"


class Disk:
    """A tmpfs on a directory; needs the right to mount."""

    def __init__(self, directory: Path, megabytes: int) -> None:
        self.directory = directory
        self._megabytes = megabytes

    def mount(self) -> bool:
        """Mount it; False where that is not permitted."""
        self.directory.mkdir(parents=True, exist_ok=True)
        options = f"size={self._megabytes}m,mode=0755"
        command = ("mount", "-t", "tmpfs", "-o", options, "chaos", str(self.directory))
        try:
            return subprocess.run(command, capture_output=True, check=False).returncode == 0
        except FileNotFoundError:
            return False

    def fill(self) -> None:
        """Leave no room."""
        with (self.directory / BALLAST).open("ab", buffering=0) as ballast:
            for size in (BLOCK * 256, BLOCK):
                try:
                    while True:
                        ballast.write(b"\0" * size)
                except OSError as error:
                    if error.errno != errno.ENOSPC:
                        raise

    def free(self) -> None:
        """Give the room back."""
        (self.directory / BALLAST).unlink(missing_ok=True)

    def unmount(self) -> None:
        """Take it away, also while somebody has files open."""
        subprocess.run(
            ("umount", "-l", str(self.directory)), capture_output=True, check=False
        )


def may_mount(directory: Path) -> bool:
    """Whether this process may mount a disk there."""
    disk = Disk(directory / "probe", 1)
    mounted = disk.mount()
    if mounted:
        disk.unmount()
    return mounted
