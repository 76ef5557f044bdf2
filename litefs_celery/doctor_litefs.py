"""What the running LiteFS of this node shows, judged: mount, API, journal mode, disk."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeoutError
from contextlib import closing, suppress
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar
from urllib.parse import urlsplit

from . import machine
from .doctor_config import names_agree
from .doctor_storage import data_directory, disk
from .errors import LiteFSCeleryError, LiteFSUnreachable, MountUnavailable
from .findings import OK, UNKNOWN, UNSAFE, WARNING, Finding
from .litefs import LiteFSNode, NodeInfo
from .machine import Address

if TYPE_CHECKING:
    from .config import Settings
    from .database import LiteFSCelery
    from .engines import OnConnect

T = TypeVar("T")
# LiteFS's default port, where litefs_api_url names none.
PORT = 20202
# A mount that answers does so in microseconds; a frozen one never does.
MOUNT_TIMEOUT = 5.0
# The bytes of a SQLite file that name its journal mode (sqlite.org/fileformat2.html, 1.3.3).
VERSIONS = slice(18, 20)
_NO_ROLE = "without it nobody can tell that this node is primary, and it makes no writes"


def examine(db: LiteFSCelery) -> list[Finding]:
    """Look at this node's mount, API and database file; changes nothing."""
    settings, node = db.settings, db.litefs()
    try:
        found = [_mount(node, settings)]
        alive = found[0].level == OK
        found += _api(node, settings, machine.addresses())
        if alive:
            found += [journal(db.path), disk(db.path.parent)]
        return [*found, hook(db._on_connect)]
    finally:
        node.close()


def _mount(node: LiteFSNode, settings: Settings) -> Finding:
    try:
        mounted = within(MOUNT_TIMEOUT, node.is_mounted)
    except MountUnavailable as error:
        return Finding("mount", UNSAFE, str(error), "reads and writes fail on this node",
                       "restart LiteFS on this node")
    except FutureTimeoutError:
        return Finding(
            "mount", UNSAFE, f"{node.mount} did not answer within {MOUNT_TIMEOUT:g} s",
            "LiteFS hangs or is stopped: all that reads there hangs with it",
            "see LiteFS's log and state on this node, and restart it",
        )
    if mounted:
        return Finding("mount", OK, f"{node.mount} answers")
    return Finding(
        "mount", UNSAFE, f"{node.mount} shows no sign of LiteFS",
        "a database made there is replicated nowhere" if settings.mode == "litefs" else
        "in the mode auto or standalone, writes go to a file that is replicated nowhere",
        "start LiteFS on this node, or correct the database's URL",
    )


def _api(node: LiteFSNode, settings: Settings, own: list[Address]) -> Iterator[Finding]:
    parts = urlsplit(settings.api_url)
    host = parts.hostname or ""
    if not machine.is_loopback(host) and machine.is_own(host, own) is not True:
        yield Finding(
            "api_url", WARNING, f"litefs_api_url={settings.api_url} is not on this machine",
            "unless that is the LiteFS of this node's mount, another node's role is taken for this "
            "one's", "use http://127.0.0.1:20202; with LiteFS in a container of its own, see that "
            "no other node's address is named",
        )
    try:
        info = node.info()
    except LiteFSUnreachable as error:
        level = UNKNOWN if settings.has_fixed_role else UNSAFE
        yield Finding("api", level, str(error), _NO_ROLE, "start LiteFS, or correct "
                      "litefs_api_url; then whether this node is a candidate can be seen")
        return
    yield from role(info, settings)
    if info.path:
        yield data_directory(Path(info.path), settings)
    port = parts.port or PORT
    yield exposure(own, port, [address for address in own if _answers(node, address, port)])


def role(info: NodeInfo, settings: Settings) -> Iterator[Finding]:
    """Judge what ``/info`` says of this node."""
    yield Finding("candidate", OK, "this node can become primary") if info.candidate else Finding(
        "candidate", WARNING, "this node is no candidate", "it does not take over when the primary "
        "is lost", "set lease.candidate to true where this node runs a worker",
    )
    # LiteFS 0.5.14 tells its own name on the primary alone.
    if info.is_primary and info.primary:
        yield names_agree(info.primary, settings.node, "litefs_node")
    elif info.primary == settings.node and not settings.has_fixed_role:
        yield Finding(
            "node name", UNSAFE, f"LiteFS says the primary is {info.primary}, which is not this "
            "node but has its name", "two nodes share a name, or the lease is static: this node's "
            "role stays unknown", "give each node a name of its own: lease.hostname, litefs_node",
        )
    if not info.is_primary and not info.primary:
        yield Finding(
            "primary", WARNING, "LiteFS knows no primary", "writes wait until there is one",
            "after a crash another follows within some 20 s: ask again; if it stays so, see "
            "LiteFS's log and its Consul",
        )


def exposure(own: list[Address], port: int, answering: list[Address]) -> Finding:
    """Judge where the API answers, of this machine's addresses beside loopback."""
    why = (
        "LiteFS's API has no authentication, and offers import, halt and handoff: whoever reaches "
        "it can replace the database"
    )
    named = ", ".join(map(str, answering))
    # A firewall is not seen from the machine that it protects.
    firewall = (f"let only the cluster reach port {port} (firewall, http.addr); to see: `curl -m 3 "
                f"http://ADDRESS:{port}/info` from outside must fail")
    public = [address for address in answering if address.is_global]
    if public:
        return Finding("api exposure", UNSAFE, f"port {port} listens on the public address "
                       f"{', '.join(map(str, public))}", why, f"bind http.addr to a private one; "
                       f"{firewall}")
    if answering:
        return Finding("api exposure", WARNING, f"port {port} listens on {named}", why, firewall)
    if not own:
        return Finding("api exposure", UNKNOWN, "this machine's addresses cannot be seen", why,
                       firewall)
    return Finding("api exposure", OK, f"port {port} listens on loopback alone")


def _answers(node: LiteFSNode, address: Address, port: int) -> bool:
    host = f"[{address}]" if address.version == 6 else str(address)  # noqa: PLR2004 - IPv6
    asked = LiteFSNode(node.mount, f"http://{host}:{port}", http_timeout=node.http_timeout)
    with closing(asked), suppress(LiteFSUnreachable):
        return bool(asked.info())
    return False


def journal(path: Path) -> Finding:
    """Judge the journal mode in the file's header; MEMORY and OFF leave no trace there."""
    try:
        with path.open("rb") as file:
            versions = tuple(file.read(VERSIONS.stop)[VERSIONS])
    except OSError as error:
        return Finding("journal mode", UNKNOWN, f"{path}: {error}", "each mode costs something "
                       "else", "create the database with db.create_all() on the primary, or wait "
                       "until it has been replicated here")
    if versions == (1, 1):
        return Finding("journal mode", OK, "delete: a lost role is an error at COMMIT")
    if versions == (2, 2):
        return Finding(
            "journal mode", WARNING, "wal", "where the role is lost at COMMIT, a commit may "
            "succeed and be lost; a worker can end with its LiteFS (SIGBUS); a writer that is "
            "killed can leave the database unwritable until the next term",
            "run workers under a supervisor; never change the mode of a live database: replicas' "
            "LiteFS exit for good. Where this is too much, copy the rows into a new database "
            'made with journal_mode="delete"',
        )
    if 3 in versions:  # noqa: PLR2004 - see the emulator's fence
        return Finding("journal mode", WARNING, "the emulator's", "it is a LiteFS of ordinary "
                       "files, for laptops and tests", "use LiteFS in production")
    return Finding("journal mode", UNKNOWN, f"the header of {path} says {versions}",
                   "it may be empty, damaged or no database", "see it with `sqlite3 FILE .dbinfo`, "
                   "or create it with db.create_all() on the primary")


def hook(on_connect: OnConnect | None) -> Finding:
    """Judge the PRAGMAs of ``on_connect``, called with a database in memory."""
    if on_connect is None:
        return Finding("on_connect", OK, "none")
    pragmas: dict[str, str] = {}

    def note(action: int, name: str | None, value: str | None, *_: object) -> int:
        if action == sqlite3.SQLITE_PRAGMA and name and value is not None:
            pragmas[name.lower()] = value.lower()
        return sqlite3.SQLITE_OK

    with closing(sqlite3.connect(":memory:", isolation_level=None)) as connection:
        connection.set_authorizer(note)
        try:
            on_connect(connection)
        except Exception as error:  # noqa: BLE001 - the application's own code
            return Finding("on_connect", UNKNOWN, f"it raised {error!r} on a database in memory",
                           "a PRAGMA there may change the journal mode", "look for journal_mode, "
                           "locking_mode and synchronous in it")
    for name in ("journal_mode", "locking_mode"):
        if name in pragmas:
            return Finding(
                "on_connect", UNSAFE, f"it sets {name}={pragmas[name]} on every connection",
                "LiteFS does not take a changed journal mode of a live database (replicas exit "
                "for good), sees no commit in memory or off, and no exclusive locking",
                "remove that PRAGMA; the mode is chosen once: db.create_all(journal_mode=…)",
            )
    if pragmas.get("synchronous") in ("off", "0"):
        return Finding("on_connect", WARNING, "it sets synchronous=off", "a crash of the machine "
                       "may damage the primary's database", "remove that PRAGMA")
    return Finding("on_connect", OK, "its PRAGMAs do not concern LiteFS")


def within(timeout: float, look: Callable[[], T]) -> T:
    """What ``look`` returns; a frozen mount holds a thread for ever, but not this one."""
    future: Future[T] = Future()

    def run() -> None:
        try:
            future.set_result(look())
        except (LiteFSCeleryError, OSError, ValueError) as error:
            future.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    return future.result(timeout)
