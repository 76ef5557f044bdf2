"""What one LiteFS node says: `.primary`, `-pos`, `.lag`, `/info`, `/events`, `/promote`."""

from __future__ import annotations

import contextlib
import errno
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from http import HTTPStatus
from http.client import HTTPConnection, HTTPException, HTTPResponse, HTTPSConnection
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from .errors import LiteFSUnreachable, MountUnavailable

# LiteFS's .lag of a replica that never replicated: the largest 32-bit integer.
NEVER_REPLICATED_MS = 2_147_483_647


@dataclass(frozen=True)
class Position:
    """A database's replication position; TXIDs can go back after a failover."""

    txid: int
    checksum: int


@dataclass(frozen=True)
class NodeInfo:
    """The answer of ``/info``; ``litefs_id`` is new at every start of LiteFS."""

    is_primary: bool
    candidate: bool
    primary: str
    """The primary's host name, on the primary its own; empty where none is known."""
    litefs_id: str
    path: str = ""
    """LiteFS's data directory."""


@dataclass(frozen=True)
class Event:
    """
    One line of ``/events``: ``init`` and ``primaryChange`` say who is primary, ``tx`` what.

    ``txid`` is 0 on all but ``tx``.
    """

    type: str
    database: str
    txid: int
    is_primary: bool | None
    primary: str
    litefs_id: str


class LiteFSNode:
    """
    One node's LiteFS, read through its mount and its API.

    Nothing is remembered between calls except the HTTP connection: every answer is a fresh one.
    One instance must not be shared by threads, because its connection is one.
    """

    def __init__(self, mount: Path, api_url: str, *, http_timeout: float = 1.0) -> None:
        self.mount = mount
        self.api_url = api_url.rstrip("/")
        self.http_timeout = http_timeout
        parts = urlsplit(self.api_url)
        self._secure, self._address, self._base = parts.scheme == "https", parts.netloc, parts.path
        self._connection: HTTPConnection | None = None

    def primary_file(self) -> str | None:
        """
        The host name in ``.primary``, or None where there is no such file.

        None proves nothing: the file is absent on the primary, where no primary is known, and in
        an empty directory. Raises `MountUnavailable` when the mount does not answer.
        """
        text = self._read(".primary")
        return None if text is None else text.strip()

    def position(self, database: str) -> Position | None:
        """
        The position of ``database`` (a file name), or None where LiteFS has no such database.

        On a replica, a read transaction started after seeing a TXID sees that transaction.
        """
        text = self._read(f"{database}-pos")
        if not text:
            return None
        txid, _, checksum = text.strip().partition("/")
        return Position(int(txid, 16), int(checksum or "0", 16))

    def lag_ms(self) -> int | None:
        """
        Milliseconds since this node last heard of the primary; None without a ``.lag`` file.

        Can be negative where clocks differ; `NEVER_REPLICATED_MS` before the first contact.
        """
        text = self._read(".lag")
        return None if text is None else int(text)

    def is_mounted(self) -> bool:
        """Whether the directory shows LiteFS's ``.lag`` or ``.primary`` file."""
        return self.lag_ms() is not None or self.primary_file() is not None

    def info(self) -> NodeInfo:
        """Ask ``/info``; raises `LiteFSUnreachable`, which names the setting."""
        try:
            response = self._get_info()
            body: dict[str, Any] = json.loads(response.read())
            primary = body.get("primary") or {}
            return NodeInfo(
                is_primary=bool(body["isPrimary"]),
                candidate=bool(body.get("candidate")),
                primary=str(primary.get("hostname", "")),
                litefs_id=response.headers.get("Litefs-Id", ""),
                path=str(body.get("path", "")),
            )
        except (OSError, HTTPException) as error:
            self.close()
            raise self._unreachable("GET", "/info", error) from error
        except (ValueError, KeyError, AttributeError) as error:
            self.close()
            raise LiteFSUnreachable(
                f"{self.api_url}/info answered, but not as LiteFS does ({error!r}): "
                "check litefs_api_url"
            ) from error

    def promote(self) -> None:
        """Ask LiteFS to make this node primary; accepted is not done: poll `info`."""
        # Here only: it costs 6 MB and a millisecond a request, which a worker need not spend
        # on the one question that it asks after every commit.
        import requests  # noqa: PLC0415

        try:
            with requests.Session() as session:
                # A proxy of the environment must never answer for this machine's own LiteFS.
                session.trust_env = False
                session.post(
                    f"{self.api_url}/promote", timeout=self.http_timeout, allow_redirects=False
                ).raise_for_status()
        except requests.RequestException as error:
            raise self._unreachable("POST", "/promote", error) from error

    def events(self) -> Iterator[Event]:
        """
        The event stream, until it ends or breaks; a hint, because LiteFS drops what is late.

        Raises `LiteFSUnreachable`. There is no heartbeat, so a dead peer is not noticed: poll
        `info` beside it.
        """
        try:
            with contextlib.closing(self._connect()) as connection:
                connection.request("GET", f"{self._base}/events")
                response = _checked(connection.getresponse())
                connection.sock.settimeout(None)
                litefs_id = response.headers.get("Litefs-Id", "")
                while line := response.readline():
                    if line.strip():
                        yield _event(json.loads(line), litefs_id)
        except (OSError, HTTPException, ValueError) as error:
            raise self._unreachable("GET", "/events", error) from error

    def close(self) -> None:
        """Close the HTTP connection."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def __del__(self) -> None:
        self.close()

    def _get_info(self) -> HTTPResponse:
        if self._connection is not None:
            # LiteFS may have closed what was idle: then once more, on a new connection.
            with contextlib.suppress(ConnectionError):
                return self._ask(self._connection)
            self._connection.close()
        self._connection = self._connect()
        return self._ask(self._connection)

    def _ask(self, connection: HTTPConnection) -> HTTPResponse:
        connection.request("GET", f"{self._base}/info")
        return _checked(connection.getresponse())

    def _connect(self) -> HTTPConnection:
        kind = HTTPSConnection if self._secure else HTTPConnection
        return kind(self._address, timeout=self.http_timeout)

    def _unreachable(self, verb: str, path: str, error: Exception) -> LiteFSUnreachable:
        return LiteFSUnreachable(
            f"LiteFS did not answer {verb} {self.api_url}{path}: {error}; "
            "check that LiteFS runs and litefs_api_url names it"
        )

    def _read(self, name: str) -> str | None:
        # Opening, not os.path.exists: a dead mount fails with ENOTCONN, which exists() calls False.
        try:
            descriptor = os.open(f"{self.mount}/{name}", os.O_RDONLY | os.O_CLOEXEC)
            try:
                return os.read(descriptor, 4096).decode("ascii")
            finally:
                os.close(descriptor)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise MountUnavailable(
                f"{self.mount}: {errno.errorcode.get(error.errno or 0, '?')} reading {name}: "
                "the LiteFS mount is dead or unreadable; restart LiteFS on this node"
            ) from error


def _checked(response: HTTPResponse) -> HTTPResponse:
    if response.status != HTTPStatus.OK:
        raise HTTPException(f"{response.status} {response.reason}")
    return response


def _event(line: dict[str, Any], litefs_id: str) -> Event:
    data = line.get("data") or {}
    return Event(
        type=str(line.get("type", "")),
        database=str(line.get("db", "")),
        txid=int(data.get("txID", "0"), 16),
        is_primary=data.get("isPrimary"),
        primary=str(data.get("hostname", "")),
        litefs_id=litefs_id,
    )
