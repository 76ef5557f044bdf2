"""What the broker says of itself, judged: persistence, eviction, memory, clock, access."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from kombu.exceptions import OperationalError

from .clocks import Reading, judge_clock
from .findings import OK, UNKNOWN, UNSAFE, WARNING, Finding
from .machine import is_loopback
from .tasks import connection_for

if TYPE_CHECKING:
    from kombu.connection import Connection

    from .database import LiteFSCelery

# Where writing more is refused before long: as much as a queue may grow in a failover.
FULL_SHARE = 0.8
# kombu's default for Redis (kombu 5.7.0, transport/redis.py), and its reason: an hour's tasks.
VISIBILITY_TIMEOUT = 3600.0
# Transports whose messages live in one process.
IN_PROCESS = ("memory",)


def examine(dbs: list[LiteFSCelery], timeout: float) -> list[Finding]:
    """Ask the broker, once for all databases of the application; ``timeout`` in seconds."""
    app = dbs[0].app
    found = [finding for db in dbs for finding in visibility(db)]
    with connection_for(app, timeout=timeout) as connection:
        errors = (OSError, OperationalError, *connection.connection_errors,
                  *connection.channel_errors)
        kind = connection.transport.driver_type
        try:
            connection.ensure_connection(max_retries=1, interval_start=0, timeout=timeout)
        except errors as error:
            return [*found, Finding(
                "broker", UNSAFE, f"it cannot be reached: {error}", "writes called on a replica "
                "fail, or wait in the outbox; its persistence was not judged",
                "start it, or correct broker_url",
            )]
        found += access(connection)
        if kind == "redis":
            return [*found, *_redis(connection, has_outbox(dbs), errors)]
    return [*found, other(kind)]


def has_outbox(dbs: list[LiteFSCelery]) -> bool:
    """Whether every database keeps submitted writes on the node's own disk."""
    return all(db.settings.outbox_dir for db in dbs)


def visibility(db: LiteFSCelery) -> Iterator[Finding]:
    """Judge when the broker delivers again against how long the ledger remembers."""
    if db.app.connection_for_write().transport.driver_type != "redis":
        return
    options: Mapping[str, Any] = db.app.conf.broker_transport_options or {}
    hidden = float(options.get("visibility_timeout", VISIBILITY_TIMEOUT))
    kept = db.settings.ledger_retention
    what = f"visibility_timeout {hidden:g} s, litefs_ledger_retention {kept:g} s"
    if kept <= hidden:
        yield Finding(
            "redelivery", UNSAFE, what, "a write delivered again after its row was pruned is told "
            "as expired although it was made: its caller makes it a second time, under a new id",
            f"set litefs_ledger_retention well above {hidden:g} (default 86400)",
        )
    elif hidden < VISIBILITY_TIMEOUT:
        yield Finding(
            "redelivery", WARNING, what, "your own tasks that take longer than this run twice at "
            "once; writes need no short timeout, the next consumer gives them back at once",
            "leave visibility_timeout at 3600 or above your longest task and countdown",
        )
    else:
        yield Finding("redelivery", OK, what)


def access(connection: Connection) -> Iterator[Finding]:
    """Judge who else may reach the broker."""
    host = str(connection.hostname or "")
    if connection.password or is_loopback(host) or not host or host.startswith("/"):
        return
    yield Finding(
        "broker access", WARNING, f"the broker at {host} is used without a password",
        "whoever can write to it can call the registered write methods with any arguments",
        "set a password (and TLS), and let only the cluster reach it",
    )


def other(kind: str) -> Finding:
    """Say what is known of a broker that is no Redis."""
    if kind in IN_PROCESS:
        return Finding("broker", UNSAFE, f"{kind}: it lives in one process", "no other node sees "
                       "what is sent", "use Redis (or RabbitMQ) as the broker")
    return Finding(
        "broker persistence", UNKNOWN, f"{kind}: a client cannot see it",
        "the queue of writes is declared durable and its messages persistent; whether it is "
        "replicated, and how the broker syncs, is the broker's setting",
        "on RabbitMQ: `rabbitmqctl list_queues name durable type policy`; quorum queues survive "
        "a lost node, litefs_outbox_dir a broker that forgets",
    )


def _redis(connection: Connection, outbox: bool, errors: tuple[type[BaseException], ...]  # noqa: FBT001
           ) -> Iterator[Finding]:
    client = connection.default_channel.client
    try:
        before = time.time()
        seconds, microseconds = client.time()
        reading = Reading(before, seconds + microseconds / 1e6, time.time())
        info = client.info()
    except errors as error:
        yield _refused(f"INFO: {error}", "appendonly, maxmemory and maxmemory_policy")
        return
    yield judge_clock("the broker", reading)
    try:
        config = client.config_get("append*")
    except errors as error:
        config = None
        if info.get("aof_enabled"):
            yield _refused(f"CONFIG GET: {error}", "appendfsync")
    yield from redis_settings(info, config, outbox=outbox)


def _refused(what: str, names: str) -> Finding:
    return Finding(
        "broker persistence", UNKNOWN, f"the broker refuses {what}",
        f"{names} decide what it forgets, and cannot be seen",
        "look at them where it is administered: appendonly yes, maxmemory-policy noeviction",
    )


def redis_settings(
    info: Mapping[str, Any], config: Mapping[str, str] | None, *, outbox: bool
) -> Iterator[Finding]:
    """Judge Redis's ``INFO`` and ``CONFIG GET append*`` (None where it was refused)."""
    yield _persistence(info, config or {}, outbox=outbox)
    policy = info.get("maxmemory_policy")
    if policy is None:
        yield _refused("to tell maxmemory_policy", "maxmemory-policy")
    else:
        yield _eviction(str(policy))
    limit, used = int(info.get("maxmemory", 0)), int(info.get("used_memory", 0))
    if limit and used / limit > FULL_SHARE:
        yield Finding(
            "broker memory", WARNING, f"{used / limit:.0%} of maxmemory ({limit} bytes) used",
            "at the limit Redis refuses what is sent, or evicts", "raise maxmemory, or see what "
            "fills it: `celery litefs status` shows the queues' lengths",
        )
    else:
        yield Finding("broker memory", OK, f"{used / limit:.0%} of maxmemory used" if limit else
                      f"Redis {info.get('redis_version', '?')}, no maxmemory")


def _persistence(info: Mapping[str, Any], config: Mapping[str, str], *, outbox: bool) -> Finding:
    if "aof_enabled" not in info:
        return _refused("to tell aof_enabled", "appendonly")
    if not info["aof_enabled"]:
        return Finding(
            "broker persistence", WARNING if outbox else UNSAFE, "Redis with appendonly no",
            "a Redis that restarts has forgotten its queues"
            + ("; writes in the outboxes are sent again, your own tasks are not" if outbox else
               ": submitted (.delay) writes are lost, and litefs_outbox_dir is not set"),
            "set appendonly yes" + ("" if outbox else ", or litefs_outbox_dir, or both"),
        )
    sync = config.get("appendfsync")
    if sync == "no":
        return Finding(
            "broker persistence", WARNING, "AOF with appendfsync no", "a crash of its machine "
            "loses what the kernel had not written, up to half a minute", "set appendfsync "
            "everysec, or always where the last second matters",
        )
    return Finding("broker persistence", OK, "AOF" + (f", appendfsync {sync}" if sync else ""))


def _eviction(policy: str) -> Finding:
    remedy = "set maxmemory-policy noeviction"
    if policy.startswith("allkeys"):
        return Finding("broker eviction", UNSAFE, f"maxmemory-policy {policy}", "at maxmemory "
                       "Redis drops any key, also whole queues with the writes in them", remedy)
    if policy != "noeviction":
        return Finding("broker eviction", WARNING, f"maxmemory-policy {policy}", "at maxmemory "
                       "Redis drops keys that expire: stored results, and a wait for them times "
                       "out; queues have no expiry and stay", remedy)
    return Finding("broker eviction", OK, "noeviction")
