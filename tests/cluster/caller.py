"""
A web process's stand-in on one node: runs the calls it is told on standard input, in threads.

Each line is ``{"id", "call", "args", "options", "wait"}``; each answer ``{"id", "value"}`` or
``{"id", "error", "text", "attributes"}``, in the order in which the calls end. Arguments name
modules of a suite's own, each with more ``REPOSITORIES``.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import json
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from litefs_celery import NotYetVisible, OutboxFull, WriteExpired, WriteTimeout, observe
from tests.cluster.gates import gates
from worker.celeryapp import db
from worker.models import Account, Base, Region
from worker.repositories import accounts, regions

THREADS = 80
_print_lock = threading.Lock()
_resent: list[observe.Resent] = []


def plain(value: Any) -> Any:
    """``value`` as JSON data; a model instance as its columns."""
    if isinstance(value, Region | Account):
        return {column.key: getattr(value, column.key) for column in value.__table__.columns}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, dict | str | int | float | bool) or value is None:
        return value
    return repr(value)


def run(call: str, args: list[Any], options: dict[str, Any]) -> Any:
    """One call by name."""
    kind, _, name = call.partition(".")
    if kind == "db":
        return CALLS[name](*args)
    method = getattr(REPOSITORIES[kind], name)
    if options.pop("delay", False):
        return method.options(**options).delay(*args).id if options else method.delay(*args).id
    return method.options(**options)(*args) if options else method(*args)


def insert(fields: dict[str, Any]) -> Any:
    """Insert one region."""
    return regions.insert(Region(**fields))


def insert_all(rows: list[dict[str, Any]]) -> Any:
    """Insert regions in one transaction."""
    return regions.insert_all([Region(**fields) for fields in rows])


def account(owner: str, balance: int) -> Any:
    """Open an account."""
    return accounts.insert(Account(owner=owner, balance=balance))


def outcome(write_id: str) -> str:
    """The class of what is known of a write."""
    return type(db.outcome(write_id)).__name__


def update_all(country: str, visits: int) -> int:
    """Set the visits of all regions of a country, by criteria."""
    return regions.update_all(Region.country == country, {"visits": Region.visits + visits})


def read_in_session_and_write(code: str) -> Any:
    """The mistake of waiting for a write inside an open read transaction."""
    with regions.local() as session:
        session.get(Region, 1)
        return regions.visit(code)


def resent(write_id: str) -> list[int]:
    """The attempts of a write of this process, from its second."""
    return [record.attempt for record in list(_resent) if record.write_id == write_id]


def keep_resent(record: observe.Record) -> None:
    """Keep what `resent` asks for, and no more: memory is measured."""
    if isinstance(record, observe.Resent):
        _resent.append(record)


def where(node: str) -> int:
    """The process that runs a submitted read: the worker's of ``node``, or of this node."""
    method = regions.where.options(node=node) if node else regions.where
    return method.delay().get(timeout=60)


def visit_together(code: str, times: int) -> list[int]:
    """Await that many visits at once on one event loop, and then read the count here."""

    async def together() -> list[int]:
        return await asyncio.gather(*(regions.visit.aio(code) for _ in range(times)))

    values = asyncio.run(together())
    return [*sorted(values), CALLS["visits"](code)]


def overload(code: str, callers: int, seconds: float, timeout: float) -> dict[str, Any]:
    """Call slow visits from so many callers at once, for so long; what they were told."""
    told: dict[str, Any] = {"made": 0, "expired": 0, "unknown": [], "other": [], "latest": 0.0}
    until = time.monotonic() + seconds

    async def call_again_and_again() -> None:
        while time.monotonic() < until:
            began = time.monotonic()
            try:
                await gates.slow.options(timeout=timeout).aio(code)
                told["made"] += 1
            except NotYetVisible:
                told["made"] += 1
            except WriteExpired:
                told["expired"] += 1
            except WriteTimeout as error:
                told["unknown"].append(error.write_id)
            except Exception as error:
                told["other"].append(repr(error))
            told["latest"] = max(told["latest"], time.monotonic() - began)

    async def all_at_once() -> None:
        await asyncio.gather(*(call_again_and_again() for _ in range(callers)))

    asyncio.run(all_at_once())
    return told


def fill_outbox(code: str, limit: int) -> list[str]:
    """Submit slow visits until the outbox takes no more, at most so many; their ids."""
    ids = []
    with contextlib.suppress(OutboxFull):
        while len(ids) < limit:
            ids.append(gates.slow.delay(code).id)
    return ids


REPOSITORIES: dict[str, Any] = {"regions": regions, "accounts": accounts, "gates": gates}
CALLS = {
    "overload": overload,
    "fill_outbox": fill_outbox,
    "insert": insert,
    "insert_all": insert_all,
    "account": account,
    "outcome": outcome,
    "update_all": update_all,
    "await_outcome": db.await_outcome,
    "read_in_session_and_write": read_in_session_and_write,
    "resent": resent,
    "where": where,
    "where_now": regions.where,
    "visit_together": visit_together,
    "status": db.node_status,
    "create_all": lambda mode: db.create_all(Base.metadata, journal_mode=mode),
    "visits": lambda code: getattr(regions.get_by(code=code), "visits", None),
}


def answer(line: str) -> None:
    """Run one line and print its answer."""
    job = json.loads(line)
    reply: dict[str, Any] = {"id": job["id"]}
    try:
        reply["value"] = plain(run(job["call"], job["args"], job["options"]))
    except Exception as error:
        orig = getattr(error, "orig", None)
        reply |= {
            "error": type(error).__name__,
            "text": str(error),
            "write_id": getattr(error, "write_id", ""),
            "sqlite_errorname": getattr(orig, "sqlite_errorname", ""),
            "may_have_been_sent": getattr(error, "may_have_been_sent", None),
        }
    with _print_lock:
        sys.stdout.write(json.dumps(reply) + "\n")
        sys.stdout.flush()


def main() -> None:
    """Answer until standard input ends."""
    for module in sys.argv[1:]:
        REPOSITORIES.update(importlib.import_module(module).REPOSITORIES)
    observe.subscribe(keep_resent)
    with ThreadPoolExecutor(THREADS) as pool:
        for line in sys.stdin:
            pool.submit(answer, line)


if __name__ == "__main__":
    main()
