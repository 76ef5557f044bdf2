"""litefs.yml as LiteFS itself reads it: where it is, its variables, fields and defaults."""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .standalone import LITEFS_CONFIGS

# Of cmd/litefs/config.go (litefs 0.5.14), which refuses any other field. None: any value.
FIELDS: dict[str, frozenset[str] | None] = {
    "exit-on-error": None, "skip-sync": None, "strict-verify": None, "exec": None,
    "data": frozenset(("dir", "compress", "retention", "retention-monitor-interval")),
    "fuse": frozenset(("dir", "allow-other", "debug")),
    "http": frozenset(("addr", "snapshot-timeout")),
    "proxy": frozenset((
        "addr", "target", "db", "max-lag", "debug", "passthrough", "always-forward",
        "primary-redirect-timeout", "read-timeout", "read-header-timeout", "write-timeout",
        "idle-timeout",
    )),
    "lease": frozenset((
        "type", "hostname", "advertise-url", "candidate", "promote", "reconnect-delay",
        "demote-delay", "databases", "consul", "consul.url", "consul.key", "consul.ttl",
        "consul.lock-delay",
    )),
    "backup": frozenset(("type", "path", "url", "cluster", "auth-token", "full-sync-interval")),
    "log": frozenset(("format", "timestamp", "debug")),
    "tracing": frozenset(("enabled", "path", "max-size", "max-count", "compress")),
}
DEFAULTS = {
    "data.dir": "/var/lib/litefs", "fuse.dir": "/litefs", "http.addr": ":20202",
    "lease.candidate": "true", "lease.consul.ttl": "10s", "lease.consul.lock-delay": "1s",
}
_UNITS = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}
_PART = re.compile(r"(\d+\.?\d*|\.\d+)(ns|us|µs|ms|s|m|h)")
_VARIABLE = re.compile(r"\$(?:\{([^}]*)\}|(\w+))")
_COMPARED = re.compile(r"""(\w+)\s*(==|!=)\s*(?:'(.*)'|"(.*)"|(\w+))""")
_TRUE = ("true", "yes", "on", "y")
# What stands in for a variable that is not set here; LiteFS may have it.
_UNSET = "litefs-celery-unset-"


@dataclass(frozen=True)
class LiteFSConfig:
    """One litefs.yml: its values as text, by dotted names as in ``lease.consul.ttl``."""

    path: Path
    values: Mapping[str, str]
    strangers: tuple[str, ...]
    """Fields that LiteFS refuses, with their sections."""
    unset: tuple[str, ...]
    """Variables it names that are not set in this process; LiteFS may have them."""

    def text(self, name: str) -> str | None:
        """The value, else LiteFS's default, else empty; None where a variable hides it."""
        value = self.values.get(name) or DEFAULTS.get(name, "")
        return None if _UNSET in value else value

    def seconds(self, name: str) -> float | None:
        """A duration; None where a variable hides it. Raises ValueError for what is none."""
        text = self.text(name)
        return None if text is None else duration(text)

    def is_true(self, name: str) -> bool | None:
        """A truth value; None where a variable hides it."""
        text = self.text(name)
        return None if text is None else text.lower() in _TRUE

    def hostname(self) -> str | None:
        """``lease.hostname``, by default the host's; None where a variable hides it."""
        text = self.text("lease.hostname")
        return socket.gethostname() if text == "" else text


def find(given: Path | None) -> Path | None:
    """Return ``given``, else the first file where LiteFS looks, else None."""
    return given or next((path for path in LITEFS_CONFIGS if path.is_file()), None)


def read(path: Path, environ: Mapping[str, str] | None = None) -> LiteFSConfig:
    """Read one litefs.yml; raises OSError, or ValueError for what is no such file."""
    # Here only: no other command, no worker and no web process needs it.
    import yaml  # noqa: PLC0415

    # Values stay text, as they are in the file: a host may be called "no" or "007".
    resolvers = {"<": yaml.SafeLoader.yaml_implicit_resolvers["<"]}
    loader = type("Texts", (yaml.SafeLoader,), {"yaml_implicit_resolvers": resolvers})
    text, unset = expand(path.read_text(encoding="utf-8"), environ)
    try:
        found = yaml.load(text, loader) or {}  # noqa: S506 - a SafeLoader
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is no YAML: {error}") from error
    if not isinstance(found, dict):
        raise ValueError(f"{path} is no mapping of sections")  # noqa: TRY004 - a wrong file
    values = dict(_flat(found, ""))
    return LiteFSConfig(path, values, tuple(_strangers(found)), unset)


def expand(text: str, environ: Mapping[str, str] | None = None) -> tuple[str, tuple[str, ...]]:
    """
    Replace ``$NAME``, ``${NAME}`` and ``${NAME == 'text'}`` as LiteFS does.

    Also returns the variables that are not set: LiteFS puts nothing in their place.
    """
    known = os.environ if environ is None else environ
    unset: list[str] = []

    def value(name: str) -> str:
        if name in known:
            return known[name]
        unset.append(name)
        return f"{_UNSET}{name}"

    def replace(match: re.Match[str]) -> str:
        name = (match[1] if match[1] is not None else match[2]).strip()
        compared = _COMPARED.fullmatch(name)
        if compared is None:
            return value(name)
        left, operator, *texts, variable = compared.groups()
        right = value(variable) if variable else next(t for t in texts if t is not None)
        if (hidden := value(left)).startswith(_UNSET) or right.startswith(_UNSET):
            return hidden if hidden.startswith(_UNSET) else right
        return str((hidden == right) == (operator == "==")).lower()

    lines = (line if line.lstrip().startswith("#") else _VARIABLE.sub(replace, line)
             for line in text.splitlines(keepends=True))
    return "".join(lines), tuple(dict.fromkeys(unset))


def duration(text: str) -> float:
    """Seconds of a duration of Go, such as ``1m30s``; raises ValueError for anything else."""
    if text == "0":
        return 0.0
    if not text or _PART.sub("", text):
        raise ValueError(f"{text!r} is no duration such as 10s")
    return sum(float(number) * _UNITS[unit] for number, unit in _PART.findall(text))


def _flat(found: dict[Any, Any], prefix: str) -> Iterator[tuple[str, str]]:
    for name, value in found.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", "" if value is None else str(value)


def _strangers(found: dict[Any, Any]) -> Iterator[str]:
    for section, value in found.items():
        if section not in FIELDS:
            yield str(section)
            continue
        fields = FIELDS[section]
        names = [name for name, _ in _flat(value, "")] if isinstance(value, dict) else []
        yield from (f"{section}.{name}" for name in names if fields and name not in fields)
