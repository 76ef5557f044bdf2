"""What the workers say of themselves, judged: who is there, their pools, clocks and settings."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from kombu.exceptions import OperationalError

from .clocks import Reading, judge_clock
from .control import ask, connected
from .findings import OK, UNKNOWN, UNSAFE, WARNING, Finding
from .overview import namesakes
from .surroundings import AGREED, surroundings

if TYPE_CHECKING:
    from .database import LiteFSCelery

Rows = list[dict[str, Any]]
# A primary without another candidate is one without failover.
LEAST_CANDIDATES = 2
_UNSAFE_TO_DIFFER = {
    "primary_queue": "writes wait in a queue that the primary does not consume",
    "read_queue_prefix": "reads sent to that node wait in a queue that nobody consumes",
}
_DIFFER = "the nodes answer the same call differently"
_ASK = "start `celery -A yourapp worker` on each node, or ask with a longer --timeout"


def examine(dbs: list[LiteFSCelery], timeout: float) -> list[Finding]:
    """Ask every worker, twice ``timeout`` seconds long, and judge each database's answers."""
    try:
        replies, times, pools = _ask(dbs[0], timeout)
    except OperationalError as error:
        return [Finding("workers", UNKNOWN, f"not asked: {error}", "pools, versions, clocks and "
                        "candidates are only known there", "mend the broker, then ask again")]
    found = list(_pools(pools))
    for db in dbs:
        rows = [{**reply[db.name], "worker": worker} for worker, reply in sorted(replies.items())
                if db.name in reply]
        found += judge(db, rows)
        found += _clocks(rows, times)
    return found


def _ask(db: LiteFSCelery, timeout: float) -> tuple[dict[str, Any], dict[str, Any], dict[str, str]]:
    """Each worker's answer, when it was asked and answered, and its pool."""
    times: dict[str, Any] = {}
    with connected(db.app, timeout) as connection:
        asked = time.time()

        def arrived(reply: dict[str, Any]) -> None:
            times.update(dict.fromkeys(reply, (asked, time.time())))

        replies = ask(db.app, connection, "litefs", timeout=timeout, arrived=arrived)
        stats = ask(db.app, connection, "stats", timeout=timeout)
    return replies, times, {
        worker: str((reply.get("pool") or {}).get("implementation", ""))
        for worker, reply in stats.items()
    }


def _clocks(rows: Rows, times: dict[str, Any]) -> Iterator[Finding]:
    for row in rows:
        if "time" in row and row["worker"] in times:
            asked, answered = times[row["worker"]]
            yield judge_clock(row["worker"], Reading(asked, row["time"], answered))


def _pools(pools: dict[str, str]) -> Iterator[Finding]:
    forking = sorted(worker for worker, pool in pools.items() if "prefork" in pool)
    if forking:
        yield Finding(
            "pool", WARNING, f"prefork: {', '.join(forking)}", "writes from the queue run in the "
            "worker's main process, but your own tasks and @read run in forked children: what was "
            "opened before the fork must not be used there, and a child killed by a time limit or "
            "for its memory may be writing (in WAL mode that can block all later commits)",
            "start workers with -P threads (or solo); with prefork open nothing at import, and "
            "set no hard task_time_limit on tasks that write",
        )
    elif pools:
        yield Finding("pool", OK, ", ".join(sorted({pool.split(".")[-1].split(":")[0] for pool in
                                                   pools.values() if pool})))


def judge(db: LiteFSCelery, rows: Rows) -> Iterator[Finding]:
    """Judge the answers of one database's workers, rows as of ``Parts.status``."""
    if not rows:
        yield Finding("workers", UNKNOWN, f"none that has the database {db.name} answered",
                      "pools, versions, clocks and candidates are only known there; without a "
                      "worker on the primary no write is made", _ASK)
        return
    nodes = sorted({row["node"] for row in rows})
    if db.settings.node in nodes:
        yield Finding("workers", OK, f"of {', '.join(nodes)}")
    else:
        yield Finding(
            "workers", UNSAFE, f"none of this node ({db.settings.node}) answered, only of "
            f"{', '.join(nodes)}", "if this node wins the election, nobody makes the writes; its "
            "outbox is not sent, and its reads wait", _ASK,
        )
    for node, workers in namesakes(rows):
        yield Finding(
            "node name", UNSAFE, f"{' and '.join(workers)} all say they are node {node}",
            "both take the role that LiteFS tells of one of them, and share a queue of reads",
            "give each node a litefs_node of its own, the name LiteFS has there (lease.hostname)",
        )
    yield from names(rows)
    yield from candidates(rows, fixed=db.settings.has_fixed_role)
    yield from agreement(db, rows)
    yield from supervisors(rows)


def names(rows: Rows) -> Iterator[Finding]:
    """Compare the name that replicas have of the primary with its own."""
    leading = sorted({row["node"] for row in rows if row["role"] == "primary"})
    named = sorted({row["primary"] for row in rows if row["role"] == "replica"})
    if len(leading) == 1 and named and leading != named:
        yield Finding(
            "node name", UNSAFE, f"LiteFS calls the primary {', '.join(named)}, its own "
            f"litefs_node is {leading[0]}", "routing compares these names; or, for a moment, the "
            "role has just moved", "ask again; if it stays so, set litefs_node there to LiteFS's "
            "lease.hostname",
        )


def candidates(rows: Rows, *, fixed: bool) -> Iterator[Finding]:
    """Count the nodes that can win an election."""
    if fixed or any(row["role"] == "standalone" for row in rows):
        return
    can = {row["node"]: row.get("candidate") for row in rows}
    unclear = sorted(node for node, candidate in can.items() if candidate is None)
    able = sorted(node for node, candidate in can.items() if candidate)
    if len(able) >= LEAST_CANDIDATES:
        yield Finding("candidates", OK, ", ".join(able))
    elif unclear or len(can) < LEAST_CANDIDATES:
        yield Finding(
            "candidates", UNKNOWN, f"{', '.join(able) or 'none'} of the nodes that answered"
            + (f"; not known of {', '.join(unclear)}" if unclear else ""),
            "with a single candidate nobody follows a primary that is lost", _ASK,
        )
    else:
        yield Finding(
            "candidates", UNSAFE, f"only {', '.join(able) or 'none'}, of {', '.join(sorted(can))}",
            "nobody follows a primary that is lost: writes wait until it is back",
            "set lease.candidate to true on two nodes or more, and run a worker on each",
        )


def agreement(db: LiteFSCelery, rows: Rows) -> Iterator[Finding]:
    """Compare what the nodes must have alike: settings and the version of this package."""
    mine = {"node": db.settings.node, **surroundings(db.settings)}
    values: dict[str, dict[str, set[str]]] = defaultdict(lambda: defaultdict(set))
    for row in (mine, *rows):
        for name in AGREED:
            if name in row.get("settings", {}):
                values[name][str(row["settings"][name])].add(row["node"])
        told = row.get("versions", {}).get("litefs-celery", "not told")
        values["version"][told].add(row["node"])
    for name, nodes in values.items():
        if len(nodes) == 1:
            continue
        what = "; ".join(f"{value} on {', '.join(sorted(nodes[value]))}" for value in sorted(nodes))
        if name == "version":
            yield Finding("versions", WARNING, f"litefs-celery {what}", "an older primary may not "
                          "know what a newer node sends", "install one version on all nodes")
            continue
        yield Finding(
            "settings", UNSAFE if name in _UNSAFE_TO_DIFFER else WARNING, f"litefs_{name}: {what}",
            _UNSAFE_TO_DIFFER.get(name, _DIFFER), f"set litefs_{name} alike on all nodes",
        )
    if all(len(nodes) == 1 for nodes in values.values()):
        yield Finding("settings", OK, "alike on the nodes that answered")


def supervisors(rows: Rows) -> Iterator[Finding]:
    """Say of which workers a supervisor shows."""
    alone = sorted(row["worker"] for row in rows if not row.get("supervisor"))
    if alone:
        yield Finding(
            "supervisor", UNKNOWN, f"none shows itself to {', '.join(alone)}",
            "Celery 5.7.0 exits when Redis goes away while a message of your own tasks is "
            "unacknowledged, and in WAL mode a worker can end with its LiteFS: then nobody makes "
            "the writes of that node", "run workers under systemd, supervisord or a container "
            "engine that starts them again, and see that it does: kill one",
        )
    else:
        named = ", ".join(sorted({row["supervisor"] for row in rows}))
        yield Finding("supervisor", OK, f"signs of {named}; whether it starts them was not tried")
