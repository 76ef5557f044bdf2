"""What all nodes say, asked together, and what is wrong with it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from kombu.transport.virtual import Transport as VirtualTransport

from .control import ask, connected
from .litefs import NEVER_REPLICATED_MS

if TYPE_CHECKING:
    from kombu.connection import Connection

    from .database import LiteFSCelery

COLUMNS = (
    "node", "database", "role", "primary", "epoch", "consuming", "lag", "position", "ledger",
    "outbox",
)


def local(dbs: list[LiteFSCelery]) -> dict[str, Any]:
    """Look from this node alone, without broker or workers; ``consuming`` is not known then."""
    found = {}
    for db in dbs:
        row = {**db.node_status(), "consuming": None, "worker": ""}
        problems = [] if row["role"] != "unknown" else [_unknown(row)]
        primary = row["primary"] or None
        found[db.name] = {"primary": primary, "problems": problems, "nodes": [row]}
    return {"answered": True, "databases": found, "queues": {}, "notes": []}


def of_all(dbs: list[LiteFSCelery], timeout: float) -> dict[str, Any]:
    """
    Ask every worker within ``timeout`` seconds, and the broker for the lengths of the queues.

    Raises kombu's `OperationalError` when the broker cannot be reached.
    """
    app = dbs[0].app
    with connected(app, timeout) as connection:
        replies = ask(app, connection, "litefs", timeout=timeout)
        rows = {db.name: _rows(replies, db.name) for db in dbs}
        queues = {name: _length(connection, name) for name in _queue_names(dbs, rows)}
    notes = [
        f"worker {worker} answered with an error: {reply.get('error', reply)}"
        for worker, reply in sorted(replies.items())
        if not any(db.name in reply for db in dbs)
    ]
    if not replies:
        notes.append(
            "no worker answered: start `celery -A yourapp worker` on each node, or ask again with "
            "a longer --timeout; --local shows this node without them"
        )
    return {
        "answered": bool(replies),
        "databases": {db.name: judge(db, rows[db.name], asked=bool(replies)) for db in dbs},
        "queues": queues,
        "notes": notes,
    }


def render(document: dict[str, Any]) -> str:
    """Render the document for people: a table, the queues, then what is wrong and what to do."""
    found = document["databases"]
    rows = [_cells(row) for name in found for row in found[name]["nodes"]]
    widths = [max(map(len, column)) for column in zip(COLUMNS, *rows, strict=True)]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in (COLUMNS, *rows)
        if rows
    ]
    if document["queues"]:
        lines += ["", "queue: waiting messages"]
    for name, queue in document["queues"].items():
        length, problem = queue["messages"], queue["problem"]
        lines.append(f"  {name}: {f'not known ({problem})' if length is None else length}")
    problems = [f"{name}: {text}" for name in found for text in found[name]["problems"]]
    lines += ["", *problems] if problems else []
    lines += ["", *document["notes"]] if document["notes"] else []
    return "\n".join(lines).lstrip("\n")


def _rows(replies: dict[str, Any], name: str) -> list[dict[str, Any]]:
    rows = [{**reply[name], "worker": worker} for worker, reply in replies.items() if name in reply]
    return sorted(rows, key=lambda row: (row["node"], row["worker"]))


def judge(db: LiteFSCelery, rows: list[dict[str, Any]], *, asked: bool) -> dict[str, Any]:
    """Say who is primary according to ``rows``, and what is wrong with that; ``asked``: anybody."""
    leading = sorted({row["node"] for row in rows if row["role"] == "primary"})
    alone = sorted({row["node"] for row in rows if row["role"] == "standalone"})
    named = {row["node"]: row["primary"] for row in rows if row["role"] == "replica"}
    problems = []
    if not rows:
        problems = [f"no worker that answered has a database {db.name!r}"] if asked else []
    elif alone:
        if len({row["node"] for row in rows}) > 1:
            problems.append(
                f"{', '.join(alone)} found no LiteFS and would write to a file of its own: start "
                "LiteFS there and set litefs_mode to 'litefs'"
            )
    elif not leading:
        problems = _nobody(db, rows, sorted(set(named.values())))
    elif len(leading) > 1:
        problems.append(
            f"{' and '.join(leading)} both say they are primary. Ask again in a second; if it "
            "stays so, their LiteFS do not share one lease (compare Consul's address and key), or "
            "a node is cut off: stop the writes on one of them"
        )
    elif not any(row["consuming"] for row in rows if row["node"] == leading[0]):
        problems.append(
            f"{leading[0]} is primary, but does not consume {db.queue}, where writes wait: see its "
            "worker's log"
        )
    problems += _strangers(db, rows, leading)
    for node, primary in sorted(named.items()):
        if leading and primary not in leading:
            problems.append(
                f"{node} says {primary} is primary, {' and '.join(leading)} says otherwise. Ask "
                f"again in a second; if it stays so, {node} follows another lease"
            )
    primary = (leading or alone)[0] if len(leading or alone) == 1 else None
    return {"primary": primary, "problems": problems, "nodes": rows}


def namesakes(rows: list[dict[str, Any]]) -> Iterator[tuple[str, list[str]]]:
    """Names that several nodes have, each with a worker of every one of them."""
    # Several workers of one node are on one host and open one file.
    places: dict[str, dict[tuple[str, str], str]] = defaultdict(dict)
    for row in rows:
        place = (row["worker"].partition("@")[2], row["path"])
        places[row["node"]].setdefault(place, row["worker"])
    for node, workers in sorted(places.items()):
        if len(workers) > 1:
            yield node, sorted(workers.values())


def _strangers(
    db: LiteFSCelery, rows: list[dict[str, Any]], leading: list[str]
) -> Iterator[str]:
    """What single nodes say that does not go with a primary."""
    for node, workers in namesakes(rows):
        yield (
            f"{' and '.join(workers)} all say they are node {node}: give "
            "each node a litefs_node of its own, the name that LiteFS has there "
            "(lease.hostname)"
        )
    # Told without the keys, or a hash of them: what is told here anybody may see.
    bare = sorted({row["node"] for row in rows if row.get("signs") is False})
    if bare and any(row.get("signs") for row in rows):
        yield (
            f"{' and '.join(bare)} neither signs writes nor asks for signatures, others do: set "
            "litefs_signing_keys there and restart its worker and its web processes"
        )
    for row in rows:
        if row["role"] == "unknown" and leading:
            yield _unknown(row)
        if row["consuming"] and row["role"] != "primary":
            yield (
                f"{row['node']} consumes {db.queue}, but is not primary ({row['role']}): ask again "
                "in a second; if it stays so, restart its worker"
            )


def _nobody(db: LiteFSCelery, rows: list[dict[str, Any]], named: list[str]) -> list[str]:
    if named:
        text = (
            f"{' and '.join(named)} is named as primary, but its worker did not answer: start it "
            f"there, or ask with a longer --timeout; writes wait in {db.queue}"
        )
        return [text]
    text = (
        f"no node is primary; writes wait in {db.queue}. After a crash another follows within some "
        "20 s; otherwise see LiteFS's log and its Consul"
    )
    return [text, *(_unknown(row) for row in rows)]


def _unknown(row: dict[str, Any]) -> str:
    return f"{row['node']} does not know the primary: {row['reason'] or 'no reason given'}"


def _queue_names(dbs: list[LiteFSCelery], rows: dict[str, list[dict[str, Any]]]) -> list[str]:
    names = [db.queue for db in dbs]
    for db in dbs:
        names += [db.settings.read_queue_prefix + row["node"] for row in rows[db.name]]
    names += [db.settings.rejected_queue for db in dbs]
    return list(dict.fromkeys(names))


def _length(connection: Connection, name: str) -> dict[str, Any]:
    """Messages waiting; a queue that is absent is empty only where empty queues vanish."""
    errors = (OSError, *connection.connection_errors, *connection.channel_errors)
    try:
        with connection.channel() as channel:
            declared = channel.queue_declare(queue=name, passive=True)
        return {"messages": int(declared.message_count), "problem": ""}
    except errors as error:
        absent = str(getattr(error, "reply_code", "")) == "404"  # kombu's Redis says it as text
        if absent and isinstance(connection.transport, VirtualTransport):
            return {"messages": 0, "problem": ""}
        return {"messages": None, "problem": "it does not exist" if absent else str(error)}


def _cells(row: dict[str, Any]) -> tuple[str, ...]:
    lag = row["lag_ms"]
    cells = {
        **row,
        "consuming": {True: "yes", False: "no"}.get(row["consuming"]),
        "lag": "never" if lag == NEVER_REPLICATED_MS else None if lag is None else f"{lag} ms",
        "outbox": None if row.get("outbox") is None else row["outbox"]["waiting"],
        "position": row["position"] and (row["position"].lstrip("0") or "0"),
    }
    return tuple("-" if cells[name] in (None, "") else str(cells[name]) for name in COLUMNS)
