"""What litefs.yml says, judged: the lease, names, directories and addresses."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from . import litefs_config
from .doctor_storage import data_directory
from .findings import OK, UNKNOWN, UNSAFE, WARNING, Finding
from .litefs_config import LiteFSConfig
from .machine import is_loopback

if TYPE_CHECKING:
    from .config import Settings

# Consul's shortest session (session_ttl_min), and LiteFS's default.
LEAST_TTL = 10.0
# LiteFS's default: what keeps an old primary and a new one apart where a call is still under way.
LEAST_LOCK_DELAY = 1.0
# LiteFS renews and retries about once a second: added to what Consul waits (litefs 0.5.14).
RETRY = 1.0


def examine(given: Path | None, settings: Settings, database: Path) -> list[Finding]:
    """Judge the litefs.yml at ``given``, by default where LiteFS looks for it."""
    path = litefs_config.find(given)
    if path is None:
        return [_unread("no litefs.yml in the working directory, the home directory or /etc")]
    try:
        config = litefs_config.read(path)
    except (OSError, ValueError) as error:
        return [_unread(f"{path} cannot be read: {error}")]
    return [*_fields(config), *judge(config, settings, database)]


def judge(config: LiteFSConfig, settings: Settings, database: Path) -> Iterator[Finding]:
    """Judge one litefs.yml for one database of this node."""
    kind = config.text("lease.type")
    if kind == "consul":
        yield from _consul(config, settings)
    elif kind == "static":
        yield _static(config, settings)
    elif kind is not None:
        yield Finding(
            "lease", UNSAFE, f"lease.type is {kind!r}", "LiteFS knows consul and static, and does "
            "not start with anything else", "set lease.type to consul",
        )
    yield from _name(config, settings, kind)
    yield from _directories(config, settings, database)
    yield from _addresses(config, settings)


def _unread(what: str) -> Finding:
    return Finding(
        "litefs.yml", UNKNOWN, what, "lease type, TTL, lease.hostname, data.dir and the address "
        "of the API are only there", "name LiteFS's own file with --litefs-config, and run this "
        "as a user who may read it",
    )


def _fields(config: LiteFSConfig) -> Iterator[Finding]:
    if config.strangers:
        yield Finding(
            "litefs.yml", UNSAFE, f"{config.path} has {', '.join(config.strangers)}",
            "LiteFS 0.5.14 refuses a field that it does not know: this node does not come back "
            "from its next restart", "correct the name, or take the field out",
        )
    if config.unset:
        yield Finding(
            "litefs.yml", UNKNOWN, f"{config.path} names {', '.join(config.unset)}, not set here",
            "what depends on them was not judged; LiteFS puts nothing in their place if it does "
            "not have them either", "run this with LiteFS's environment",
        )
    if not (config.strangers or config.unset):
        yield Finding("litefs.yml", OK, str(config.path))


def _consul(config: LiteFSConfig, settings: Settings) -> Iterator[Finding]:
    if settings.has_fixed_role:
        yield Finding(
            "lease", UNSAFE, "LiteFS elects its primary (lease.type consul), the settings name one",
            "after an election the named node consumes writes that it cannot make, and the "
            "elected one does not", "remove litefs_fixed_primary and litefs_primary_region",
        )
    else:
        yield Finding("lease", OK, "consul: another candidate follows a primary that is gone")
    try:
        ttl, delay = (config.seconds(f"lease.consul.{name}") for name in ("ttl", "lock-delay"))
    except ValueError as error:
        yield Finding(
            "lease ttl", UNSAFE, f"lease.consul: {error}", "LiteFS does not start with it",
            'write ttl: "10s" and lock-delay: "1s"',
        )
        return
    if ttl is not None and delay is not None:
        yield _times(ttl or LEAST_TTL, delay or LEAST_LOCK_DELAY, settings.write_timeout)


def _times(ttl: float, delay: float, write_timeout: float) -> Finding:
    gap = 2 * ttl + delay + RETRY
    what = f"ttl {ttl:g} s, lock-delay {delay:g} s: up to {gap:g} s without a primary"
    if ttl < LEAST_TTL:
        return Finding(
            "lease ttl", WARNING, what, "a pause of this length on the primary or the network "
            "moves the role, and each move may lose what was not replicated; Consul refuses less "
            "than 10 s unless its session_ttl_min is lowered", "set lease.consul.ttl to 10s",
        )
    if delay < LEAST_LOCK_DELAY:
        return Finding(
            "lease ttl", WARNING, what, "an old primary that has not noticed yet may commit beside "
            "the new one", "set lease.consul.lock-delay to 1s",
        )
    if gap > write_timeout:
        return Finding(
            "lease ttl", WARNING, what, f"calls give up after litefs_write_timeout "
            f"({write_timeout:g} s), before a failover is over", "shorten lease.consul.ttl (10s is "
            "the shortest) or raise litefs_write_timeout",
        )
    return Finding("lease ttl", OK, what)


def _static(config: LiteFSConfig, settings: Settings) -> Finding:
    mine = config.is_true("lease.candidate")
    if settings.fixed_primary and mine is not None:
        fixed = settings.fixed_primary == settings.node
        if mine != fixed:
            return Finding(
                "lease", UNSAFE, f"lease.candidate is {str(mine).lower()} here, "
                f"litefs_fixed_primary is {settings.fixed_primary}, this node {settings.node}",
                "with a static lease the candidate is the primary: writes go to a node that cannot "
                "make them", "let both name the same node",
            )
    if settings.has_fixed_role:
        return Finding(
            "lease", WARNING, "static, and the primary is fixed in the settings",
            "no other node takes over: while the primary is down, writes wait and calls time out",
            "if a failover is wanted, set lease.type to consul",
        )
    return Finding(
        "lease", UNSAFE, "static", "no other node takes over when the primary is lost, and on "
        "every node LiteFS gives the primary's name for its own",
        "set lease.type to consul; if a fixed primary is meant, say so with litefs_fixed_primary",
    )


def _name(config: LiteFSConfig, settings: Settings, kind: str | None) -> Iterator[Finding]:
    named = config.hostname()
    if named is None or kind not in ("consul", "static"):
        return
    # With a static lease it is the primary's name, on every node.
    setting = "litefs_fixed_primary" if kind == "static" else "litefs_node"
    expected = settings.fixed_primary if kind == "static" else settings.node
    if not expected:
        return
    yield names_agree(named, expected, setting)


def names_agree(named: str, expected: str, setting: str) -> Finding:
    """Compare LiteFS's name of this node with the setting's."""
    if named == expected:
        return Finding("node name", OK, f"lease.hostname and {setting} are {named}")
    return Finding(
        "node name", UNSAFE, f"lease.hostname is {named}, {setting} is {expected}",
        "routing compares these names: the other nodes know this one by LiteFS's, and what is "
        "sent to it waits in a queue that nobody consumes",
        f"set {setting} (LITEFS_CELERY_{setting.removeprefix('litefs_').upper()}) to {named}",
    )


def _directories(
    config: LiteFSConfig, settings: Settings, database: Path
) -> Iterator[Finding]:
    fuse, data = config.text("fuse.dir"), config.text("data.dir")
    if fuse is not None and _resolved(Path(fuse)) != _resolved(database.parent):
        yield Finding(
            "mount", UNSAFE, f"fuse.dir is {fuse}, the database is {database}",
            "a file outside of the mount is replicated nowhere",
            f"let the database's URL name a file in {fuse}, or name that LiteFS's litefs.yml",
        )
    if data is not None:
        yield data_directory(Path(data), settings)


def _resolved(path: Path) -> str:
    # Its parent's links only: the mount itself may be dead, or hang.
    return os.path.join(os.path.realpath(path.absolute().parent), path.name)  # noqa: PTH118


def _addresses(config: LiteFSConfig, settings: Settings) -> Iterator[Finding]:
    address, advertised = config.text("http.addr"), config.text("lease.advertise-url")
    asked = urlsplit(settings.api_url)
    port = (address or "").rpartition(":")[2]
    if port.isdigit() and asked.port not in (int(port), None):
        yield Finding(
            "api_url", UNSAFE, f"http.addr is {address}, litefs_api_url is {settings.api_url}",
            "what is asked there is not this node's LiteFS: it may tell another node's role",
            f"set litefs_api_url to http://127.0.0.1:{port}",
        )
    host = urlsplit(advertised or "").hostname
    if host and is_loopback(host):
        yield Finding(
            "advertise-url", WARNING, f"lease.advertise-url is {advertised}",
            "nodes on other machines ask themselves instead of this node, and cannot replicate "
            "from it", "advertise an address that the other nodes reach",
        )
