"""The process of one node: an HTTP server, and a loop that follows, waits or leads."""

from __future__ import annotations

import argparse
import os
import signal
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from litefs_celery.emulator.api import Server
from litefs_celery.emulator.follower import Follower
from litefs_celery.emulator.layout import NodeLayout
from litefs_celery.emulator.leader import Leader
from litefs_celery.emulator.lease import Lease, Note, hold
from litefs_celery.emulator.locks import OpenFiles, recover
from litefs_celery.emulator.state import NodeState

if TYPE_CHECKING:
    from collections.abc import Callable

_T = TypeVar("_T")
_RETRY = 0.01  # seconds
_START_TIMEOUT = 5.0  # seconds for a port or lock that the last process has only just left
_LINGER = 0.2  # seconds a stopping daemon gives its fences; the cluster goes on with them


class Daemon:
    """One node; ``run`` returns after ``stop`` or when the parent is gone."""

    def __init__(
        self, state: NodeState, *, failover_gap: float, handoff_gap: float, parent: int | None
    ) -> None:
        """Only assigns; the gaps are seconds without any primary."""
        self._state = state
        self._gaps = {"": 0.0, "handoff": handoff_gap, "released": handoff_gap}
        self._failover_gap = failover_gap
        self._parent = parent
        self._stopping = threading.Event()
        self._files = OpenFiles()
        self._lease = Lease(state.layout)
        self._follower = Follower(state, self._lease, self._files)
        self._leader: Leader | None = None
        self._leads_at = 0.0

    def stop(self, *_: object) -> None:
        """Ask ``run`` to return soon; may be called by a signal handler."""
        self._stopping.set()

    def run(self) -> None:
        """Serve until stopped, then resign and unmount; raises ``OSError``."""
        layout = self._state.layout
        for name in layout.databases():
            recover(layout.database(name))
        layout.primary_file.unlink(missing_ok=True)
        self._follower.start()
        layout.mount_live()
        server = _until(lambda: Server(self._state))
        threading.Thread(target=server.serve_forever, daemon=True).start()
        while not self._stopping.is_set() and not self._orphaned():
            self._stopping.wait(self._tick())
        self._leave()

    def _orphaned(self) -> bool:
        return self._parent is not None and os.getppid() != self._parent

    def _tick(self) -> float:
        if self._leader is not None:
            return self._lead(self._leader)
        if not self._lease.held:
            last = self._lease.acquire(candidate=self._state.faults.candidate)
            if last is not None:
                self._won(last)
        elif time.monotonic() >= self._leads_at:
            self._follower.stop()
            self._leader = Leader(self._state, self._lease, self._files)
            self._leader.start()
        return self._follower.tick() if self._leader is None else 0.0

    def _won(self, last: Note) -> None:
        self._lease.write("candidate", self._state.layout.name)
        self._leads_at = time.monotonic() + self._gaps.get(last.state, self._failover_gap)

    def _lead(self, leader: Leader) -> float:
        target, self._state.handoff_to = self._state.handoff_to, ""
        fences = leader.hand_over(target) if target else None
        if fences is None:
            return leader.tick()
        self._leader = None
        self._follower = Follower(self._state, self._lease, self._files)
        self._follower.start(fences)
        return 0.0

    def _leave(self) -> None:
        if self._leader is not None:
            self._follower.start(self._leader.resign())
        deadline = time.monotonic() + _LINGER
        while self._follower.fencing and time.monotonic() < deadline:
            self._follower.fence()
            time.sleep(_RETRY)
        self._state.layout.primary_file.unlink(missing_ok=True)
        self._state.layout.mount_empty()


def _until(make: Callable[[], _T | None]) -> _T:
    """Try until ``make`` returns something; then its last error, or ``TimeoutError``."""
    deadline = time.monotonic() + _START_TIMEOUT
    while True:
        try:
            made = make()
        except OSError:
            if time.monotonic() > deadline:
                raise
            made = None
        if made is not None:
            return made
        if time.monotonic() > deadline:
            msg = "another daemon of this node is still running"
            raise TimeoutError(msg)
        time.sleep(_RETRY)


def main() -> int:
    """Run one node of an emulated LiteFS cluster; never for production."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--root", type=Path, required=True, help="the cluster's directory")
    parser.add_argument("--name", required=True, help="the node's name, and its hostname")
    parser.add_argument("--port", type=int, required=True, help="the port on 127.0.0.1")
    parser.add_argument("--failover-gap", type=float, default=1.0, help="seconds; default 1.0")
    parser.add_argument("--handoff-gap", type=float, default=0.3, help="seconds; default 0.3")
    parser.add_argument(
        "--watch-parent", type=int, metavar="PID", help="exit when this parent process is gone"
    )
    arguments = parser.parse_args()
    layout = NodeLayout(arguments.root, arguments.name)
    layout.create()
    _until(lambda: hold(layout.alive))
    daemon = Daemon(
        NodeState(layout, arguments.port),
        failover_gap=arguments.failover_gap,
        handoff_gap=arguments.handoff_gap,
        parent=arguments.watch_parent,
    )
    signal.signal(signal.SIGTERM, daemon.stop)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that started this one
    daemon.run()
    return 0


if __name__ == "__main__":
    sys.exit(main())
