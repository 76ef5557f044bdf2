"""A caller is told of its commit when the outbox has noted that it is."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable

from . import observe
from .batches import take_all
from .outbox import Outbox

BATCH = 1_000  # callers told after one sync of the outbox


class Told:
    """
    One thread that notes what callers are about to be told, all at once that came meanwhile.

    The outbox sends a write until its deadline, past which nobody may be surprised by it. One that
    somebody was told of is another matter: where it is lost with a primary that had not replicated
    it, before this node's worker has looked for it, it must be made again for ``lasts`` seconds.
    """

    def __init__(self, database: str, outbox: Outbox, *, lasts: float) -> None:
        self._database = database
        self._outbox = outbox
        self._lasts = lasts
        self._waiting: queue.SimpleQueue[tuple[str, Callable[[], None]] | None]
        self._waiting = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._stopped = False

    def tell(self, write_id: str, then: Callable[[], None]) -> None:
        """Note that of ``write_id``, and call ``then`` in the thread that noted it."""
        with self._lock:
            if not self._stopped:
                self._waiting.put((write_id, then))
                self._start()
                return
        then()

    def stop(self) -> None:
        """Note and tell what waits, end the thread; idempotent."""
        with self._lock:
            self._stopped = True
            thread, self._thread = self._thread, None
        if thread is not None:
            self._waiting.put(None)
            thread.join()

    def _start(self) -> None:
        if self._thread is None:
            name = f"litefs-{self._database}-told"
            self._thread = threading.Thread(target=self._loop, name=name, daemon=True)
            self._thread.start()

    def _loop(self) -> None:
        stopping = False
        while not stopping:
            batch, stopping = take_all(self._waiting, limit=BATCH)
            try:
                ids = [write_id for write_id, _ in batch]
                self._outbox.mark_told(ids, time.time() + self._lasts)
            except Exception as error:  # noqa: BLE001 - it is committed: the caller must be told
                observe.logger.warning(
                    "the outbox of %s could not note what was told: %r", self._database, error
                )
            for _, then in batch:
                then()
