"""What this machine says of itself: its addresses, and the file systems its directories are on."""

from __future__ import annotations

import ipaddress
import os
import re
import socket
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

# mountinfo writes blanks and backslashes as three octal digits.
_OCTAL = re.compile(r"\\([0-7]{3})")
MEMORY = frozenset(("tmpfs", "ramfs", "devtmpfs"))
Address = ipaddress.IPv4Address | ipaddress.IPv6Address


@dataclass(frozen=True)
class FileSystem:
    """One mounted file system; ``device`` is a directory's ``st_dev``, sizes are bytes."""

    name: str
    device: int
    free: int
    size: int

    @property
    def in_memory(self) -> bool:
        """Whether it is gone when the machine restarts."""
        return self.name in MEMORY


def filesystem(directory: Path) -> FileSystem | None:
    """
    The file system that ``directory`` is on, or would be made on; None where it cannot be seen.

    A dead mount is None, too.
    """
    for place in (directory.absolute(), *directory.absolute().parents):
        try:
            device, room = place.stat().st_dev, os.statvfs(place)
        except FileNotFoundError:
            continue
        except OSError:
            return None
        name = kind_of(os.path.realpath(place), _mountinfo())
        free, size = room.f_bavail * room.f_frsize, room.f_blocks * room.f_frsize
        return FileSystem(name, device, free, size) if name else None
    return None


def kind_of(place: str, mountinfo: str) -> str:
    """
    Type of the file system at a path without links; empty where none is told.

    By mount point, because on btrfs a directory's ``st_dev`` is not its mount's. Of several on one
    point the last hides the others. See proc_pid_mountinfo(5).
    """
    found = ("", "")
    for line in mountinfo.splitlines():
        own, _, rest = line.partition(" - ")
        point = _OCTAL.sub(lambda match: chr(int(match[1], 8)), own.split(" ")[4])
        inside = place == point or place.startswith(point.rstrip("/") + "/")
        if inside and len(point) >= len(found[0]):
            found = (point, rest.split(" ")[0])
    return found[1]


def _mountinfo() -> str:
    with suppress(OSError):
        path = Path("/proc/self/mountinfo")
        return path.read_text(encoding="utf-8", errors="surrogateescape")
    return ""


def addresses() -> list[Address]:
    """
    This machine's addresses beside loopback and link-local ones, as far as its kernel tells.

    In a container those of the container: what its engine publishes cannot be seen from within.
    """
    texts: set[str] = set()
    with suppress(OSError):
        texts |= _ipv4(Path("/proc/net/fib_trie").read_text(encoding="ascii"))
    with suppress(OSError):
        lines = Path("/proc/net/if_inet6").read_text(encoding="ascii").splitlines()
        texts |= {str(ipaddress.IPv6Address(int(line.split()[0], 16))) for line in lines}
    with suppress(OSError):
        texts |= {str(found[4][0]) for found in socket.getaddrinfo(socket.gethostname(), None)}
    known = {ipaddress.ip_address(text.partition("%")[0]) for text in texts}
    outer = (found for found in known if not (found.is_loopback or found.is_link_local))
    return sorted(outer, key=lambda found: (found.version, int(found)))


def _ipv4(trie: str) -> set[str]:
    """Local IPv4 addresses of the kernel's routing table: a ``|--`` line before ``host LOCAL``."""
    found, last = set(), ""
    for line in trie.splitlines():
        if "|--" in line:
            last = line.split()[-1]
        elif "/32 host LOCAL" in line:
            found.add(last)
    return found


def is_loopback(host: str) -> bool:
    """Whether a host name or address means this machine alone."""
    with suppress(ValueError):
        return ipaddress.ip_address(host).is_loopback
    return host == "localhost"


def is_own(host: str, own: list[Address]) -> bool | None:
    """Whether a host name or address is this machine's; None where it has no address."""
    try:
        found = {ipaddress.ip_address(str(entry[4][0]).partition("%")[0])
                 for entry in socket.getaddrinfo(host, None)}
    except OSError:
        return None
    return all(address.is_loopback or address in own for address in found)
