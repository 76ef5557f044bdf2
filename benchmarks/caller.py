"""
The application's process on one node: runs one measurement for each line on standard input.

A line is ``{"do": name, …}``, the answer one line of JSON. Times are taken in this process.
"""

from __future__ import annotations

import json
import random
import sqlite3
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sqlalchemy import create_engine, select
from sqlalchemy.orm import Session

from benchmarks import traced  # noqa: F401 - first, so that it can wrap what is imported below
from worker.celeryapp import db
from worker.models import Base, Region
from worker.repositories import regions

VISIBLE_INTERVAL = 0.01  # how finely it is seen that all writes have arrived
VISIBLE_TIMEOUT = 120.0


def create(mode: str) -> None:
    """Make the tables, or wait until they are replicated here."""
    db.create_all(Base.metadata, journal_mode=mode)


def insert(codes: list[str]) -> None:
    """Insert the regions that are going to be visited."""
    regions.insert_all([Region(code=code, name=code) for code in codes])


def one(count: int, code: str) -> list[float]:
    """Seconds of each of ``count`` visits, one after the other."""
    durations = []
    for _ in range(count):
        began = time.perf_counter()
        regions.visit(code)
        durations.append(time.perf_counter() - began)
    return durations


def many(threads: int, code: str, start: float, seconds: float) -> dict[str, int]:
    """Visit from many threads from ``start`` on (monotonic) for ``seconds``; count the visits."""
    counts = {"all": 0, "in_time": 0}
    lock = threading.Lock()

    def visit() -> None:
        time.sleep(max(0.0, start - time.monotonic()))
        while time.monotonic() < start + seconds:
            regions.visit(code)
            with lock:
                counts["all"] += 1
                counts["in_time"] += time.monotonic() <= start + seconds

    _in_threads(threads, visit)
    return counts


def lasting(threads: int, code: str, until: str) -> list[float]:
    """Seconds of each visit from many threads, which go on until that file is there."""
    durations: list[float] = []

    def visit() -> None:
        while not Path(until).exists():
            began = time.perf_counter()
            regions.visit(code)
            durations.append(time.perf_counter() - began)

    _in_threads(threads, visit)
    return durations


def _in_threads(threads: int, work: Callable[[], None]) -> None:
    """Run ``work`` in so many threads at once; raise the first error of any of them."""
    errors: list[Exception] = []

    def run() -> None:
        try:
            work()
        except Exception as error:
            errors.append(error)

    workers = [threading.Thread(target=run) for _ in range(threads)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    if errors:
        raise errors[0]


def delay(count: int, code: str) -> dict[str, float]:
    """Submit visits without waiting: seconds until all were sent, and until all are readable."""
    connection = sqlite3.connect(f"file:{db.path}?mode=ro", uri=True, isolation_level=None)
    query = "SELECT visits FROM regions WHERE code = ?"
    (before,) = connection.execute(query, (code,)).fetchone()
    began = time.monotonic()
    for _ in range(count):
        regions.visit.delay(code)
    sent = time.monotonic()
    while connection.execute(query, (code,)).fetchone()[0] < before + count:
        if time.monotonic() > sent + VISIBLE_TIMEOUT:
            raise TimeoutError(f"not all of {count} submitted writes arrived")
        time.sleep(VISIBLE_INTERVAL)
    arrived = time.monotonic()
    connection.close()
    return {"submit": sent - began, "visible": arrived - began}


def reads(blocks: int, size: int, seed: int) -> dict[str, list[float]]:
    """Seconds of each ``get`` of the repository and of a plain Session, in alternating blocks."""
    with db.local() as session:
        keys = list(session.scalars(select(Region.id)))
    choice = random.Random(seed)
    plain_engine = create_engine(f"sqlite:///{db.path}")

    def plain(key: int) -> Region | None:
        with Session(plain_engine) as session:
            return session.get(Region, key)

    found: dict[str, list[float]] = {"get": [], "plain_get": []}
    pair = [("get", regions.get), ("plain_get", plain)]
    for _, get in pair * 2:
        _timed(get, keys[:1] * size)
    for _ in range(blocks):
        wanted = choice.choices(keys, k=size)
        for name, get in pair:
            found[name] += _timed(get, wanted)
        pair.reverse()
    plain_engine.dispose()
    return found


def _timed(get: Callable[[Any], Any], keys: list[int]) -> list[float]:
    durations = []
    for key in keys:
        began = time.perf_counter()
        get(key)
        durations.append(time.perf_counter() - began)
    return durations


JOBS: dict[str, Callable[..., Any]] = {
    job.__name__: job for job in (create, insert, one, many, lasting, delay, reads)
}


def main() -> None:
    """Answer until standard input ends."""
    for line in sys.stdin:
        job = json.loads(line)
        try:
            answer = {"value": JOBS[job.pop("do")](**job)}
        except Exception as error:
            answer = {"error": repr(error)}
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()
    db.close()


if __name__ == "__main__":
    main()
