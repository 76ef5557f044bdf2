"""What faults are made with: a link that passes nothing while it is cut, a disk that is full."""

from __future__ import annotations

import errno
import socket
from contextlib import closing
from pathlib import Path

import pytest

from tests.chaos.disk import Disk, may_mount
from tests.chaos.link import Link

SHORT, LONG = 0.2, 20.0


def test_a_cut_link_is_silent_and_passes_on_what_it_held() -> None:
    """Nothing comes through either way, nothing is closed, and at its end all of it arrives."""
    with closing(socket.create_server(("127.0.0.1", 0))) as broker:
        link = Link(broker.getsockname()[1])
        link.start()
        try:
            client = socket.create_connection(("127.0.0.1", link.port), timeout=LONG)
            server, _ = broker.accept()
            server.settimeout(LONG)
            client.sendall(b"one")
            assert server.recv(9) == b"one"
            link.cut()
            client.sendall(b"two")
            server.sendall(b"three")
            for one in (client, server):
                one.settimeout(SHORT)
                with pytest.raises(TimeoutError):
                    one.recv(9)
                one.settimeout(LONG)
            link.join()
            assert (server.recv(9), client.recv(9)) == (b"two", b"three")
            client.close()
            assert server.recv(9) == b""
            server.close()
        finally:
            link.stop()


def test_a_full_disk_takes_nothing_until_it_is_freed(tmp_path: Path) -> None:
    """Another file on it cannot grow; where no disk can be mounted, the storms lack this fault."""
    if not may_mount(tmp_path):
        pytest.skip("NO DISK WAS FILLED: a tmpfs cannot be mounted here")
    disk = Disk(tmp_path / "disk", 1)
    assert disk.mount()
    try:
        file = disk.directory / "file"
        file.write_bytes(b"x" * 10_000)
        disk.fill()
        with pytest.raises(OSError, match="No space") as full:
            file.write_bytes(b"x" * 20_000)
        assert full.value.errno == errno.ENOSPC
        disk.free()
        file.write_bytes(b"x" * 20_000)
    finally:
        disk.unmount()
