"""
Import records on one node, by many callers at once.

    python -m worker.importer --records regions.jsonl --part 1/2 --callers 16 --log acked.jsonl

Each record is one synchronous write under an id of its own. Where an error leaves open whether
it took effect, the same id is called again until that is known: this is all an application needs
for writes that take effect once.
"""

from __future__ import annotations

import argparse
import json
import queue
import sys
import threading
import time
import uuid
from pathlib import Path
from typing import Any

from sqlalchemy.exc import SQLAlchemyError

from litefs_celery import (
    BrokerUnavailable,
    DatabaseMissing,
    LiteFSCeleryError,
    MountUnavailable,
    NotYetVisible,
    WriteExpired,
    WriteTimeout,
)

from .celeryapp import db
from .repositories import regions

# After these the outcome is open, or nothing was sent: the same id is called again.
OPEN = (WriteTimeout, NotYetVisible, BrokerUnavailable, MountUnavailable, DatabaseMissing)
RETRY_INTERVAL = 0.2


class Importer:
    """Takes records off a queue in several threads, and writes down which are acknowledged."""

    def __init__(self, records: list[dict[str, str]], log: Path, *, give_up_after: float) -> None:
        self._records: queue.SimpleQueue[dict[str, str]] = queue.SimpleQueue()
        for record in records:
            self._records.put(record)
        self._log = log
        self._give_up_after = give_up_after
        self._lock = threading.Lock()
        self.failures: list[str] = []

    def run(self, callers: int) -> None:
        """Return when every record is acknowledged or has failed for good."""
        threads = [threading.Thread(target=self._call_all, daemon=True) for _ in range(callers)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    def _call_all(self) -> None:
        while True:
            try:
                record = self._records.get_nowait()
            except queue.Empty:
                return
            try:
                self._write_down(self._bring(record))
            except (LiteFSCeleryError, SQLAlchemyError, OSError) as error:
                with self._lock:
                    self.failures.append(f"{record['code']}: {type(error).__name__}: {error}")

    def _bring(self, record: dict[str, str]) -> dict[str, Any]:
        started = time.monotonic()
        write_id, calls = str(uuid.uuid4()), 0
        while True:
            calls += 1
            try:
                regions.bring.options(write_id=write_id)(**record)
            except WriteExpired:
                # It never ran and never will: a new id is a new write.
                write_id = str(uuid.uuid4())
            except OPEN as error:
                if time.monotonic() - started > self._give_up_after:
                    raise
                sys.stderr.write(f"{record['code']} [{write_id}]: calling again: {error}\n")
                time.sleep(RETRY_INTERVAL)
            else:
                now = time.monotonic()
                return {
                    "code": record["code"], "write_id": write_id, "calls": calls,
                    "latency": now - started, "at": now,
                }

    def _write_down(self, acknowledged: dict[str, Any]) -> None:
        with self._lock, self._log.open("a") as file:
            file.write(json.dumps(acknowledged) + "\n")


def main() -> int:
    """Import this part; 1 when a record failed for good."""
    parser = argparse.ArgumentParser(description="Import records through this node.")
    parser.add_argument("--records", type=Path, required=True, help="JSON lines")
    parser.add_argument("--part", default="1/1", metavar="i/n", help="every n-th record, from i")
    parser.add_argument("--callers", type=int, default=16, help="threads; default 16")
    parser.add_argument("--log", type=Path, required=True, help="a JSON line per acknowledged one")
    parser.add_argument("--give-up-after", type=float, default=300.0, help="seconds per record")
    options = parser.parse_args()
    part, parts = (int(number) for number in options.part.split("/"))
    lines = options.records.read_text(encoding="utf-8").splitlines()
    records = [json.loads(line) for line in lines[part - 1 :: parts]]
    importer = Importer(records, options.log, give_up_after=options.give_up_after)
    importer.run(options.callers)
    db.close()
    for failure in importer.failures:
        sys.stderr.write(f"failed: {failure}\n")
    return 1 if importer.failures else 0


if __name__ == "__main__":
    sys.exit(main())
