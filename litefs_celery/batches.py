"""What came while the last was done, taken from a queue all at once."""

from __future__ import annotations

import contextlib
import queue
from typing import TypeVar

T = TypeVar("T")


def take_all(source: queue.SimpleQueue[T | None], *, limit: int) -> tuple[list[T], bool]:
    """Wait for one item, then take all that are there, at most ``limit``; None says stop."""
    taken: list[T] = []
    item = source.get()
    with contextlib.suppress(queue.Empty):
        while item is not None:
            taken.append(item)
            if len(taken) >= limit:
                break
            item = source.get_nowait()
    return taken, item is None
