"""Frozen `Settings`: every default once, from Celery's configuration and the environment."""

from __future__ import annotations

import dataclasses
import os
import re
import socket
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from .errors import ConfigurationError

ENV_PREFIX = "LITEFS_CELERY_"
CONF_PREFIX = "litefs_"
SOURCES = ("events", "info", "file", "table")
KEEPS = ("submitted", "all")
ON_STOP = ("hand_over", "stay")
MODES = ("auto", "litefs", "standalone")
# Of hexadecimal digits, as many as make 128 bits.
KEY_LENGTH = 32
# Queue names and Redis keys are built from these names.
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,99}")


@dataclass(frozen=True)
class Settings:
    """
    One database's settings. Durations are seconds, sizes are bytes.

    Each field is read from ``app.conf.litefs_<field>``, and the environment's
    ``LITEFS_CELERY_<FIELD>`` goes before it, so that one image can serve every node.
    """

    node: str = field(default_factory=socket.gethostname)
    """This node's name: what LiteFS calls it (``lease.hostname``, by default the host name)."""
    mode: str = "auto"
    """``litefs`` insists on LiteFS, ``standalone`` on none, ``auto`` looks for it once."""
    api_url: str = "http://127.0.0.1:20202"
    """This node's own LiteFS API; LiteFS's default port."""
    sources: tuple[str, ...] = SOURCES
    """What the detector listens to, of ``events``, ``info``, ``file``, ``table``."""
    fixed_primary: str = ""
    """Name of the one node that is primary, for clusters without an API; empty: detect."""
    primary_region: str = ""
    """Region whose node is primary, compared with ``region``; empty: detect."""
    region: str = ""
    """This node's region."""
    primary_queue: str = "litefs-primary"
    """Queue that only the primary consumes; a database not named "default" adds its name."""
    read_queue_prefix: str = "litefs-read-"
    """Each node consumes this prefix followed by its name."""
    rejected_queue: str = "litefs-rejected"
    """Where messages are set aside that are no writes, or not signed as they must be."""
    rejected_limit: int = 1_000
    """Most messages kept there, the newest (on Redis; elsewhere the broker's own limits hold)."""
    write_timeout: float = 30.0
    """How long a synchronous write waits: longer than the 22 s a LiteFS failover takes."""
    submit_timeout: float = 3600.0
    """How long a submitted write may wait for a primary before it expires."""
    resend_interval: float = 5.0
    """A waiting caller sends again after this long without an outcome, then twice as long, …"""
    visibility_interval: float = 0.002
    """How often a waiting process reads ``-pos``: about 50 us each through FUSE."""
    file_interval: float = 0.05
    """How often the detector reads ``.primary``: must stay well below 250 ms."""
    info_interval: float = 1.0
    """How often the detector asks ``/info`` when nothing else moved."""
    http_timeout: float = 1.0
    """Connect and read timeout of the LiteFS API; it is on this machine."""
    lock_timeout: float = 5.0
    """How long a commit waits for another process's write lock on the primary."""
    group_limit: int = 128
    """Most writes in one commit: where the cost of a commit no longer shows per write."""
    prefetch_limit: int = 256
    """Most writes held unacknowledged: one group running, one waiting."""
    ledger_retention: float = 86_400.0
    """How long outcomes are kept; must exceed any redelivery (``visibility_timeout``)."""
    prune_interval: float = 60.0
    """How often the primary prunes the ledger."""
    max_payload_bytes: int = 1_048_576
    """Largest encoded arguments or result of one write."""
    broker_timeout: float = 2.0
    """Socket timeout of the connections writes are sent through."""
    signing_keys: tuple[str, ...] = field(default=(), repr=False)
    """The first signs the writes that are sent, each is accepted; empty: no write is signed."""

    handover_timeout: float = 5.0
    """How long a handover may hold up writes: until then a handoff of LiteFS itself gives up."""
    on_stop: str = "hand_over"
    """When the primary's worker stops: ``hand_over`` the role to another node, or ``stay``."""

    outbox_dir: str = ""
    """Directory on this node's own disk where submitted writes are kept; empty: in the broker."""
    outbox_keeps: str = "submitted"
    """``submitted`` writes, or ``all``: synchronous ones too, for one to two milliseconds each."""
    outbox_limit_bytes: int = 268_435_456
    """Largest outbox: `OutboxFull` comes before the disk is full."""
    outbox_resend_interval: float = 30.0
    """A kept write is sent again after this long, then twice as long, …; sooner in a new term."""
    outbox_grace: float = 600.0
    """How long a write is kept after it appeared: longer than an election may bring news."""

    @classmethod
    def load(
        cls, conf: Mapping[str, Any] | None = None, environ: Mapping[str, str] | None = None
    ) -> Settings:
        """
        Settings from Celery's configuration and the environment, which goes first.

        Raises `ConfigurationError` with every problem found, not only the first.
        """
        conf = {} if conf is None else conf
        environ = os.environ if environ is None else environ
        values: dict[str, Any] = {}
        problems = _strangers(environ)
        for option in dataclasses.fields(cls):
            raw, name = _raw(option.name, conf, environ)
            if raw is None:
                continue
            try:
                values[option.name] = _typed(str(option.type), raw)
            except (TypeError, ValueError):
                # What the repr hides is a secret.
                shown = repr(raw) if option.repr else "(hidden)"
                problems.append(f"{name}={shown} is not a valid {option.type}")
        settings = dataclasses.replace(cls(), **values)
        problems += settings.problems()
        if problems:
            raise ConfigurationError("\n".join(problems))
        return settings

    def problems(self) -> list[str]:
        """What is wrong with these settings, one sentence each; empty when nothing is."""
        found = []
        if not NAME.fullmatch(self.node):
            found.append(f"litefs_node={self.node!r}: use letters, digits, '.', '_' and '-'")
        if self.mode not in MODES:
            found.append(f"litefs_mode={self.mode!r}: choose one of {', '.join(MODES)}")
        if self.outbox_keeps not in KEEPS:
            found.append(f"litefs_outbox_keeps={self.outbox_keeps!r}: {' or '.join(KEEPS)}")
        if self.on_stop not in ON_STOP:
            found.append(f"litefs_on_stop={self.on_stop!r}: {' or '.join(ON_STOP)}")
        if any(source not in SOURCES for source in self.sources):
            found.append(f"litefs_sources={self.sources!r}: choose from {', '.join(SOURCES)}")
        elif not self.has_fixed_role and not {"events", "info"} & set(self.sources):
            found.append(
                f"litefs_sources={self.sources!r} cannot prove that a node is primary: add 'info' "
                "or 'events', or set litefs_fixed_primary or litefs_primary_region"
            )
        if not self.api_url.startswith(("http://", "https://")):
            found.append(f"litefs_api_url={self.api_url!r}: must start with http://")
        if self.primary_region and not self.region:
            found.append("litefs_primary_region is set, litefs_region is not: set both")
        if self.primary_region and self.fixed_primary:
            found.append("litefs_fixed_primary and litefs_primary_region exclude each other")
        return found + self._weak_keys() + self._wrong_numbers()

    def _weak_keys(self) -> list[str]:
        # An empty one too: "$OLD,$NEW" with a variable that is not set must not pass for a key.
        return [
            f"litefs_signing_keys: key {number} of {len(self.signing_keys)} is not text of at "
            f"least {KEY_LENGTH} ASCII characters; make one with `openssl rand -hex 32`"
            for number, key in enumerate(self.signing_keys, 1)
            if not (isinstance(key, str) and key.isascii() and len(key) >= KEY_LENGTH)
        ]

    def _wrong_numbers(self) -> list[str]:
        found = []
        longest = max(self.write_timeout, self.submit_timeout)
        if self.ledger_retention <= longest:
            found.append(
                f"litefs_ledger_retention={self.ledger_retention:g} must exceed "
                f"litefs_write_timeout and litefs_submit_timeout ({longest:g}): a write that comes "
                "again after its outcome was pruned would take effect twice"
            )
        if self.outbox_grace >= self.ledger_retention:
            found.append(
                f"litefs_outbox_grace={self.outbox_grace:g} must be less than "
                f"litefs_ledger_retention ({self.ledger_retention:g}): a write waits for the "
                "outcome of the one before it under its order_key as long as that is kept"
            )
        for option in dataclasses.fields(self):
            value = getattr(self, option.name)
            if str(option.type) in ("int", "float") and not value > 0:
                found.append(f"litefs_{option.name}={value!r}: must be greater than 0")
        return found

    @property
    def has_fixed_role(self) -> bool:
        """Whether the role comes from these settings instead of from LiteFS."""
        return bool(self.fixed_primary or self.primary_region)

    @property
    def read_queue(self) -> str:
        """The queue of this node's own reads."""
        return f"{self.read_queue_prefix}{self.node}"


def _raw(name: str, conf: Mapping[str, Any], environ: Mapping[str, str]) -> tuple[Any, str]:
    variable = ENV_PREFIX + name.upper()
    if environ.get(variable):
        return environ[variable], variable
    return conf.get(CONF_PREFIX + name), CONF_PREFIX + name


def _typed(kind: str, raw: Any) -> Any:
    if kind == "tuple[str, ...]":
        if raw == "":
            return ()
        parts = raw.split(",") if isinstance(raw, str) else raw
        return tuple(str(part).strip() for part in parts)
    if kind == "float":
        return float(raw)
    if kind == "int":
        return int(raw)
    return str(raw)


def _strangers(environ: Mapping[str, str]) -> list[str]:
    """Misspelt variables of ours: a typo must not silently mean the default."""
    known = {ENV_PREFIX + option.name.upper() for option in dataclasses.fields(Settings)}
    return [
        f"{name} is not a setting; known are {', '.join(sorted(known))}"
        for name in environ
        if name.startswith(ENV_PREFIX) and name not in known
    ]
