"""How soon after a handover the new primary's worker consumes the queue of writes."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable
from typing import Any

from benchmarks.site import TIMEOUT, Site
from benchmarks.stats import Book
from litefs_celery.litefs import LiteFSNode

LOOK_INTERVAL = 0.003


def measure(site: Site, book: Book, count: int, tell: Callable[[str], None]) -> None:
    """Hand the role over ``count`` times."""
    durations = []
    for number in range(count):
        tell(f"handover {number + 1} of {count}")
        durations.append(_move(site, site.replicas()[number % 2]))
        book.add({"move": durations[-1:]})
    book.add({"moves": durations})


def _move(site: Site, node: Any) -> float:
    """
    Seconds from the last look at which ``node`` was not primary until its worker consumes.

    Counted from when that look was sent, so it is never too short, and too long by a look.
    """
    site.settle()
    began = time.monotonic_ns()
    watch = _Watch(node)
    watch.start()
    try:
        site.cluster.promote(node.name, TIMEOUT)
    finally:
        watch.end()
    return (site.wait_consuming(node.name, began) - watch.last_no) / 1e9


class _Watch(threading.Thread):
    """Asks a node's ``/info`` until it says primary."""

    def __init__(self, node: Any) -> None:
        super().__init__(daemon=True)
        self.last_no = time.monotonic_ns()
        self._client = LiteFSNode(node.database().parent, node.api_url)
        self._ended = threading.Event()

    def run(self) -> None:
        with contextlib.closing(self._client):
            while not self._ended.wait(LOOK_INTERVAL):
                asked = time.monotonic_ns()
                if self._client.info().is_primary:
                    return
                self.last_no = asked

    def end(self) -> None:
        """Wait until the node has said primary; when nobody promoted it, do not wait for ever."""
        self.join(TIMEOUT)
        self._ended.set()
