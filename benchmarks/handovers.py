"""How long callers wait while the role is handed over by command, with nothing under way."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from benchmarks.site import HANDED, TIMEOUT, Site
from benchmarks.stats import Book

BEFORE = 1.0  # the callers' threads have all written by then
AFTER = 2.0  # longer than the nodes that only watch need to follow
THREADS = 2


def measure(site: Site, book: Book, count: int, tell: Callable[[str], None]) -> None:
    """Hand the role over ``count`` times while every node's process writes."""
    longest = []
    for number in range(count):
        tell(f"drained handover {number + 1} of {count}")
        longest.append(_longest_call(site, site.replicas()[number % 2].name))
    book.add({"handover": longest})


def _longest_call(site: Site, target: str) -> float:
    site.settle()
    with tempfile.TemporaryDirectory() as directory:
        end = Path(directory) / "end"
        for caller in site.callers.values():
            caller.send("lasting", threads=THREADS, code=HANDED, until=str(end))
        time.sleep(BEFORE)
        try:
            ended = site.nodes[target].litefs("promote", "--node", target, timeout=TIMEOUT)
            ended.check_returncode()
            time.sleep(AFTER)
        finally:
            end.touch()
            durations = [max(caller.answer()) for caller in site.callers.values()]
    return max(durations)
