"""Fencing: after it, no connection on a node can commit, whenever it was opened."""

from __future__ import annotations

import argparse
import os
import signal
import sys
import time
from dataclasses import replace
from pathlib import Path

from litefs_celery.emulator.layout import NodeLayout
from litefs_celery.emulator.locks import DatabaseFile, OpenFiles, recover
from litefs_celery.emulator.pages import READ_ONLY, patch, read_header
from litefs_celery.emulator.position import read_base, write_base

_STEP = 0.002  # seconds; a commit holds its lock for about this long


class Fence:
    """
    Closes one database to writers, in steps that never wait.

    First the SHARED lock, under which no commit completes; then, when no write transaction runs,
    RESERVED and the header that makes connections read-only; last, for a moment, EXCLUSIVE, which
    proves that no transaction from before is left that could still turn into a writer. The locks
    stay until then. Readers are never kept out.
    """

    def __init__(self, layout: NodeLayout, database: str) -> None:
        """Only assigns; ``step`` does the work."""
        self._layout = layout
        self._database = database
        self._patched = False
        self.holds = False

    def step(self, file: DatabaseFile) -> bool:
        """Go as far as possible now; True when the fence is complete and needs no lock."""
        if not self.holds and not file.try_shared():
            return False
        self.holds = True
        if not file.try_reserved():
            return False
        if not self._patched:
            self._patch(file)
        if not file.try_exclusive():
            return False
        file.unlock()
        return True

    def _patch(self, file: DatabaseFile) -> None:
        self._patched = True
        header = read_header(file.fd)
        if header is None:
            return
        # Open connections look at the header again only when the counter moved; the position
        # must not move with it, so the note on positions moves too.
        base = read_base(self._layout, self._database)
        moved = replace(base, counter=(base.counter + 1) & 0xFFFFFFFF)
        write_base(self._layout, self._database, moved)
        patch(file.fd, (header.counter + 1) & 0xFFFFFFFF, READ_ONLY)


def main() -> int:
    """Fence a node at a line on standard input; prints ``fenced`` when no commit can complete."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--root", type=Path, required=True)
    parser.add_argument("--name", required=True)
    arguments = parser.parse_args()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that started this one
    layout, files, parent = NodeLayout(arguments.root, arguments.name), OpenFiles(), os.getppid()
    _tell("ready")
    sys.stdin.readline()
    for name in layout.databases():
        recover(layout.database(name))
    fences = {name: Fence(layout, name) for name in layout.databases()}
    told = False
    while os.getppid() == parent:
        for name, fence in list(fences.items()):
            file = files.get(layout.database(name))
            if file is None or fence.step(file):
                del fences[name]
        if not told and all(fence.holds for fence in fences.values()):
            told = True
            _tell("fenced")
        if not fences:
            break
        time.sleep(_STEP)
    return 0


def _tell(word: str) -> None:
    sys.stdout.write(f"{word}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
