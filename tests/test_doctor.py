"""What `celery litefs doctor` makes of what it sees: each unsafe setting, and how to mend it."""

from __future__ import annotations

import json
import os
import socket
import sqlite3
import tempfile
import threading
import time
from contextlib import closing
from ipaddress import ip_address
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from support import NO_API, celery_app

from litefs_celery import (
    LiteFSCelery,
    Settings,
    doctor,
    doctor_broker,
    doctor_config,
    doctor_litefs,
    doctor_node,
    doctor_storage,
    doctor_workers,
    findings,
    litefs_config,
    machine,
)
from litefs_celery.clocks import Reading, judge_clock
from litefs_celery.litefs import NodeInfo
from litefs_celery.surroundings import supervisor, surroundings

if TYPE_CHECKING:
    from collections.abc import Iterable

    from litefs_celery.findings import Finding

CONSUL = "type: consul, hostname: a, consul: {ttl: 10s, lock-delay: 1s}"


def levels(found: Iterable[Finding]) -> dict[str, str]:
    """Return the worst level of each check; each that is not ok has why and remedy."""
    sorted_out = findings.worst_first(found)
    for finding in sorted_out:
        assert finding.level in findings.LEVELS
        assert finding.level == "ok" or (finding.why and finding.remedy), finding
    return {finding.check: finding.level for finding in reversed(sorted_out)}


def bad(found: Iterable[Finding]) -> dict[str, str]:
    """Return the checks that are not ok."""
    return {check: level for check, level in levels(found).items() if level != "ok"}


def judged(folder: Path, lease: str, more: str = "", **settings: Any) -> dict[str, str]:
    """Return what a litefs.yml with this lease is judged to be, for a node "a"."""
    data = folder / "data"
    data.mkdir(exist_ok=True)
    path = folder / "litefs.yml"
    path.write_text(
        f"lease: {{{lease}}}\nfuse: {{dir: {folder}/mount}}\ndata: {{dir: {data}}}\n{more}"
    )
    values = {"node": "a", "api_url": "http://127.0.0.1:20202", **settings}
    return bad(doctor_config.examine(path, Settings(**values), folder / "mount" / "app.db"))


def test_a_good_litefs_yml_has_nothing_to_mend(tmp_path: Path) -> None:
    """Consul with its default times, and names and directories that agree, is fine."""
    assert judged(tmp_path, CONSUL) == {}


@pytest.mark.parametrize(
    ("lease", "settings", "expected"),
    [
        ("type: static, hostname: a, candidate: true", {}, {"lease": "unsafe"}),
        ("type: static, hostname: a, candidate: true", {"fixed_primary": "a"},
         {"lease": "warning"}),
        ("type: static, hostname: b, candidate: false", {"fixed_primary": "b"},
         {"lease": "warning"}),
        ("type: static, hostname: b, candidate: true", {"fixed_primary": "b"}, {"lease": "unsafe"}),
        ("type: static, hostname: b, candidate: false", {"fixed_primary": "c"},
         {"lease": "warning", "node name": "unsafe"}),
        ("type: raft, hostname: a", {}, {"lease": "unsafe"}),
        (CONSUL, {"fixed_primary": "a"}, {"lease": "unsafe"}),
        (CONSUL, {"node": "b"}, {"node name": "unsafe"}),
        ("type: consul, consul: {ttl: 10s}", {"node": "somebody"}, {"node name": "unsafe"}),
        ("type: consul, hostname: a, consul: {ttl: 2s}", {}, {"lease ttl": "warning"}),
        ("type: consul, hostname: a, consul: {ttl: 60s}", {}, {"lease ttl": "warning"}),
        ("type: consul, hostname: a, consul: {ttl: 60s}", {"write_timeout": 200.0}, {}),
        ("type: consul, hostname: a, consul: {lock-delay: 10ms}", {}, {"lease ttl": "warning"}),
        ("type: consul, hostname: a, consul: {ttl: 10}", {}, {"lease ttl": "unsafe"}),
        (f"{CONSUL}, advertise-url: 'http://localhost:20202'", {}, {"advertise-url": "warning"}),
        (f"{CONSUL}, advertise-url: 'http://10.0.0.1:20202'", {}, {}),
        (f"{CONSUL}, candidates: true", {}, {"litefs.yml": "unsafe"}),
        ("type: consul, hostname: '${NO_SUCH_VARIABLE}'", {}, {"litefs.yml": "unknown"}),
    ],
)
def test_the_lease_is_judged(
    tmp_path: Path, lease: str, settings: dict[str, Any], expected: dict[str, str]
) -> None:
    """No failover, a second authority, other names and wrong times are each named."""
    assert judged(tmp_path, lease, **settings) == expected


def test_addresses_and_directories_are_judged(tmp_path: Path) -> None:
    """An API on another port, another mount, and data that cannot be seen, are named."""
    assert judged(tmp_path, CONSUL, "http: {addr: ':30303'}") == {"api_url": "unsafe"}
    other = Settings(node="a")
    path = tmp_path / "litefs.yml"
    found = levels(doctor_config.examine(path, other, tmp_path / "elsewhere" / "app.db"))
    assert found["mount"] == "unsafe"
    (tmp_path / "data").rmdir()
    assert levels(doctor_config.examine(path, other, tmp_path))["data.dir"] == "unknown"


def test_a_mount_named_through_a_link_is_the_same(tmp_path: Path) -> None:
    """A link above the mount point makes no other directory of it."""
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    path = tmp_path / "litefs.yml"
    path.write_text(f"lease: {{{CONSUL}}}\nfuse: {{dir: {tmp_path}/real/mount}}\n")
    found = doctor_config.judge(litefs_config.read(path), Settings(node="a"),
                                tmp_path / "link" / "mount" / "app.db")
    assert "mount" not in bad(found)


def test_a_litefs_yml_that_cannot_be_read_is_unknown(tmp_path: Path) -> None:
    """It is not taken for a good one, and the option is named."""
    path = tmp_path / "litefs.yml"
    path.write_text("lease: {")
    (finding,) = doctor_config.examine(path, Settings(node="a"), tmp_path / "app.db")
    assert finding.level == "unknown"
    assert "--litefs-config" in finding.remedy


@pytest.mark.parametrize(
    ("info", "settings", "expected"),
    [
        ((True, True, "a"), {}, {}),
        ((True, True, "x"), {}, {"node name": "unsafe"}),
        ((False, True, "b"), {}, {}),
        ((False, True, "a"), {}, {"node name": "unsafe"}),
        ((False, True, "a"), {"fixed_primary": "a"}, {}),
        ((False, False, "b"), {}, {"candidate": "warning"}),
        ((False, True, ""), {}, {"primary": "warning"}),
    ],
)
def test_info_is_judged(
    info: tuple[bool, bool, str], settings: dict[str, Any], expected: dict[str, str]
) -> None:
    """A node that is no candidate, no known primary, and names that clash, are named."""
    is_primary, candidate, primary = info
    told = NodeInfo(is_primary=is_primary, candidate=candidate, primary=primary, litefs_id="A")
    assert bad(doctor_litefs.role(told, Settings(node="a", **settings))) == expected


@pytest.mark.parametrize(
    ("mode", "level", "named"),
    [("delete", "ok", "delete"), ("wal", "warning", "supervisor"), ("truncate", "ok", "delete")],
)
def test_the_journal_mode_is_read_from_the_file(
    tmp_path: Path, mode: str, level: str, named: str
) -> None:
    """SQLite's own header tells WAL from a rollback journal; nothing is written."""
    path = tmp_path / "app.db"
    with closing(sqlite3.connect(path)) as connection:
        connection.execute(f"PRAGMA journal_mode={mode}")
        connection.execute("CREATE TABLE t (x)")
    before = path.read_bytes()
    finding = doctor_litefs.journal(path)
    assert finding.level == level
    assert named in finding.what + finding.remedy
    assert path.read_bytes() == before


def test_a_journal_mode_that_cannot_be_seen_is_unknown(tmp_path: Path) -> None:
    """A file that is missing, empty or no database is not called good; the emulator's is named."""
    path = tmp_path / "app.db"
    assert doctor_litefs.journal(path).level == "unknown"
    for content, level in ((b"", "unknown"), (b"x" * 100, "unknown"),
                           (bytes(18) + b"\x03\x01", "warning")):
        path.write_bytes(content)
        assert doctor_litefs.journal(path).level == level


@pytest.mark.parametrize(
    ("pragma", "level"),
    [
        ("PRAGMA journal_mode = WAL", "unsafe"),
        ("PRAGMA journal_mode = memory", "unsafe"),
        ("PRAGMA locking_mode = EXCLUSIVE", "unsafe"),
        ("PRAGMA synchronous = OFF", "warning"),
        ("PRAGMA foreign_keys = ON", "ok"),
        ("PRAGMA journal_mode", "ok"),
        ("SELECT no_such_function()", "unknown"),
    ],
)
def test_pragmas_of_on_connect_are_seen(pragma: str, level: str) -> None:
    """What every connection would set is known without opening the database."""
    assert doctor_litefs.hook(lambda connection: connection.execute(pragma)).level == level
    assert doctor_litefs.hook(None).level == "ok"


@pytest.mark.parametrize(
    ("own", "answering", "level"),
    [
        (["10.0.0.1"], [], "ok"),
        (["10.0.0.1"], ["10.0.0.1"], "warning"),
        (["10.0.0.1", "8.8.8.8"], ["10.0.0.1", "8.8.8.8"], "unsafe"),
        (["fd00::1"], ["fd00::1"], "warning"),
        (["2600::1"], ["2600::1"], "unsafe"),
        ([], [], "unknown"),
    ],
)
def test_an_api_that_listens_outside_is_named(
    own: list[str], answering: list[str], level: str
) -> None:
    """A private address is to be firewalled, a public one is unsafe, none seen is unknown."""
    finding = doctor_litefs.exposure(
        [ip_address(text) for text in own], 20202, [ip_address(text) for text in answering])
    assert finding.level == level
    assert all(address in finding.what for address in answering if level == "warning")


def test_an_api_on_all_addresses_is_found(tmp_path: Path) -> None:
    """A LiteFS that listens on every address is seen on this machine's own."""
    if not machine.addresses():
        pytest.skip("NOT RUN: this machine has no address beside loopback")
    body = b'{"isPrimary": true, "candidate": true}'
    answer = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body)
    with socket.create_server(("", 0)) as server:
        port = server.getsockname()[1]
        threading.Thread(target=_serve, args=(server, answer), daemon=True).start()
        db = database(tmp_path, api_url=f"http://127.0.0.1:{port}")
        found = levels(doctor_litefs.examine(db))
    assert found["api exposure"] in ("warning", "unsafe")


def _serve(server: socket.socket, answer: bytes) -> None:
    while True:
        try:
            connection, _ = server.accept()
        except OSError:
            return
        with connection:
            connection.recv(4096)
            connection.sendall(answer)


def test_the_kernels_tables_name_this_machines_addresses() -> None:
    """Local addresses are told from networks and broadcasts; loopback is known as such."""
    trie = (
        "Main:\n  +-- 0.0.0.0/0 3 0 5\n     |-- 0.0.0.0\n        /0 universe UNICAST\n"
        "        |-- 10.1.2.3\n           /32 host LOCAL\n"
        "        |-- 10.1.2.255\n           /32 link BROADCAST\n"
    )
    assert machine._ipv4(trie) == {"10.1.2.3"}
    assert machine.is_loopback("127.0.0.1")
    assert machine.is_loopback("::1")
    assert machine.is_loopback("localhost")
    assert not machine.is_loopback("10.1.2.3")
    assert not any(address.is_loopback for address in machine.addresses())


def test_a_directorys_file_system_is_its_innermost_mounts() -> None:
    """Mounts in any order, with blanks in their names, and several on one point."""
    table = (
        "30 1 0:30 / /srv/my\\040data rw - tmpfs tmpfs rw\n"
        "1 0 8:1 / / rw - ext4 /dev/sda rw\n"
        "31 1 0:31 / /srv rw - xfs /dev/sdb rw\n"
        "32 1 0:32 / /mnt rw - tmpfs tmpfs rw\n"
        "33 1 0:33 / /mnt rw - ext4 /dev/sdc rw\n"
    )
    places = {"/srv/my data/x": "tmpfs", "/srv/my": "xfs", "/srv": "xfs", "/": "ext4",
              "/srvs": "ext4", "/mnt/x": "ext4"}
    assert {place: machine.kind_of(place, table) for place in places} == places
    assert machine.kind_of("/srv", "") == ""


def database(folder: Path, **settings: Any) -> LiteFSCelery:
    """Return a database of a node "a", whose mount is any directory."""
    values = {"node": "a", "mode": "litefs", "api_url": NO_API, **settings}
    return LiteFSCelery(celery_app(), f"sqlite:///{folder}/app.db", settings=Settings(**values))


def test_a_node_without_anything_is_told_and_not_raised(tmp_path: Path) -> None:
    """Without mount, API and broker each of them is named as unsafe, and the rest as unknown."""
    found = levels(doctor.examine([database(tmp_path)], None, 0.5))
    assert {found[check] for check in ("mount", "api", "broker")} == {"unsafe"}
    assert found["workers"] == "unknown"


def test_a_mount_that_hangs_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A read that never returns does not hold the command."""
    monkeypatch.setattr(doctor_litefs, "MOUNT_TIMEOUT", 0.2)
    os.mkfifo(tmp_path / ".lag")  # opening it blocks until somebody writes
    for mode in ("litefs", "auto"):
        found = doctor.examine([database(tmp_path, mode=mode)], None, 0.2)
        assert levels(found)["mount"] == "unsafe"
    with (tmp_path / ".lag").open("wb"):  # lets the threads go
        pass


def test_a_node_that_would_go_alone_is_told(tmp_path: Path) -> None:
    """Where no LiteFS is, that is a warning; where it may only be missing, it is unsafe."""
    default = {"api_url": Settings.api_url}
    alone = database(tmp_path, mode="standalone", **default)
    assert levels(doctor.examine([alone], None, 0.2))["standalone"] == "warning"
    doubtful = database(tmp_path, mode="auto", **default)  # an empty directory
    assert levels(doctor.examine([doubtful], None, 0.2))["mode"] == "unsafe"


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"mode": "litefs"}, {}),
        ({"mode": "auto"}, {"mode": "warning"}),
        ({"mode": "litefs", "write_timeout": 10.0}, {"timeouts": "warning"}),
        ({"mode": "litefs", "submit_timeout": 31.0}, {"timeouts": "warning"}),
    ],
)
def test_the_nodes_own_settings_are_judged(
    tmp_path: Path, settings: dict[str, Any], expected: dict[str, str]
) -> None:
    """The mode for laptops and timeouts shorter than a failover are named."""
    db = database(tmp_path, outbox_dir=str(tmp_path.parent), **settings)
    found = bad(doctor_node.examine(db))
    assert {check: level for check, level in found.items() if check != "outbox"} == expected


def memory() -> Path:
    """Return a directory in memory, which Linux has at this place."""
    place = machine.filesystem(Path("/dev/shm"))
    if place is None or not place.in_memory:
        pytest.skip("NOT RUN: /dev/shm is no tmpfs here")
    return Path(tempfile.mkdtemp(dir="/dev/shm"))


def test_directories_in_memory_are_unsafe(tmp_path: Path) -> None:
    """An outbox or LiteFS's data on a tmpfs is named, below a missing directory too."""
    folder = memory()
    try:
        settings = Settings(node="a", outbox_dir=str(folder / "later" / "outbox"))
        assert bad(doctor_storage.outbox(settings, tmp_path)) == {"outbox": "unsafe"}
        assert doctor_storage.data_directory(folder, settings).level == "unsafe"
    finally:
        folder.rmdir()


def test_the_outbox_is_judged(tmp_path: Path) -> None:
    """None at all, one in the mount and one on a disk that is too small are named."""
    def outbox(**values: Any) -> dict[str, str]:
        return levels(doctor_storage.outbox(Settings(node="a", **values), tmp_path / "mount"))

    assert outbox() == {"outbox": "warning"}
    assert outbox(outbox_dir=str(tmp_path / "mount" / "outbox")) == {"outbox": "unsafe"}
    assert outbox(outbox_dir=str(tmp_path), outbox_limit_bytes=1 << 60) == {"outbox": "warning"}
    place = machine.filesystem(tmp_path)
    assert place is not None
    assert outbox(outbox_dir=str(tmp_path), outbox_limit_bytes=1) == {
        "outbox": "unsafe" if place.in_memory else "ok"}


def test_a_full_disk_is_named() -> None:
    """Little in bytes or little of the whole is a warning."""
    assert doctor_storage.room(50 * 10**9, 100 * 10**9).level == "ok"
    assert doctor_storage.room(5 * 10**8, 10**9).level == "warning"
    assert doctor_storage.room(5 * 10**9, 100 * 10**9).level == "warning"
    assert doctor_storage.room(0, 0).level == "warning"


GOOD_REDIS = {"aof_enabled": 1, "maxmemory_policy": "noeviction", "maxmemory": 0,
              "used_memory": 1, "redis_version": "7.0.15"}


@pytest.mark.parametrize(
    ("info", "config", "outbox", "expected"),
    [
        ({}, {"appendfsync": "everysec"}, False, {}),
        ({}, None, False, {}),
        ({"aof_enabled": 0}, {}, False, {"broker persistence": "unsafe"}),
        ({"aof_enabled": 0}, {}, True, {"broker persistence": "warning"}),
        ({}, {"appendfsync": "no"}, True, {"broker persistence": "warning"}),
        ({"aof_enabled": None}, {}, False, {"broker persistence": "unknown"}),
        ({"maxmemory_policy": "allkeys-lru"}, {}, False, {"broker eviction": "unsafe"}),
        ({"maxmemory_policy": "volatile-ttl"}, {}, False, {"broker eviction": "warning"}),
        ({"maxmemory": 100, "used_memory": 81}, {}, False, {"broker memory": "warning"}),
        ({"maxmemory": 100, "used_memory": 79}, {}, False, {}),
    ],
)
def test_redis_is_judged(
    info: dict[str, Any], config: dict[str, str] | None, outbox: bool, expected: dict[str, str]  # noqa: FBT001
) -> None:
    """A broker that forgets or evicts is named; with an outbox forgetting is a warning."""
    told = {name: value for name, value in {**GOOD_REDIS, **info}.items() if value is not None}
    assert bad(doctor_broker.redis_settings(told, config, outbox=outbox)) == expected


def test_the_visibility_timeout_is_held_against_the_ledger(tmp_path: Path) -> None:
    """A ledger that forgets before Redis delivers again is unsafe, a short timeout a warning."""
    def redelivery(options: dict[str, Any], **settings: Any) -> dict[str, str]:
        db = database(tmp_path, **settings)
        db.app.conf.broker_transport_options = options
        return levels(doctor_broker.visibility(db))

    assert redelivery({}) == {"redelivery": "ok"}
    assert redelivery({"visibility_timeout": 86_400}) == {"redelivery": "unsafe"}
    assert redelivery({}, ledger_retention=3600.0, submit_timeout=60.0) == {"redelivery": "unsafe"}
    assert redelivery({"visibility_timeout": 60}) == {"redelivery": "warning"}


def test_what_another_broker_does_is_unknown(tmp_path: Path) -> None:
    """AMQP's queues cannot be seen, and are not called safe; memory is unsafe."""
    assert doctor_broker.other("amqp").level == "unknown"
    db = database(tmp_path)
    db.app.conf.broker_url = "memory://"
    assert levels(doctor_broker.examine([db], 0.5))["broker"] == "unsafe"


def test_clocks_are_judged_by_what_is_certain() -> None:
    """A slow answer is no wrong clock, and a wrong clock is told in either direction."""
    for told, level in ((100.2, "ok"), (101.2, "warning"), (99.2, "warning"), (106.0, "unsafe"),
                        (94.0, "unsafe")):
        assert judge_clock("b", Reading(100.0, told, 100.4)).level == level, told
    assert "behind" in judge_clock("b", Reading(100.0, 94.0, 100.4)).what
    assert "ahead" in judge_clock("b", Reading(100.0, 106.0, 100.4)).what
    assert judge_clock("b", Reading(100.0, 104.0, 108.0)).level == "ok"
    assert judge_clock("b", Reading(100.0, 107.0, 108.0)).level == "unknown"


def row(node: str, **values: Any) -> dict[str, Any]:
    """Return what a good worker of node "a" or "b" answers; "a" is primary."""
    return {
        "node": node, "worker": f"celery@{node}", "path": "/litefs/app.db", "candidate": True,
        "role": "primary" if node == "a" else "replica", "primary": "a",
        **surroundings(Settings(node=node)), "supervisor": "systemd", **values,
    }


def differing(**values: Any) -> dict[str, Any]:
    """Return the agreed settings with some changed."""
    return {**surroundings(Settings(node="b"))["settings"], **values}


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        ([row("a"), row("b")], {}),
        ([], {"workers": "unknown"}),
        ([row("b"), row("c")], {"workers": "unsafe"}),
        ([row("a"), row("b"), row("b", worker="celery@other")], {"node name": "unsafe"}),
        ([row("a"), row("b", primary="x")], {"node name": "unsafe"}),
        ([row("a"), row("b", candidate=False)], {"candidates": "unsafe"}),
        ([row("a"), row("b", candidate=None)], {"candidates": "unknown"}),
        ([row("a")], {"candidates": "unknown"}),
        ([row("a"), row("b", settings=differing(primary_queue="other"))], {"settings": "unsafe"}),
        ([row("a"), row("b", settings=differing(ledger_retention=7200.0))],
         {"settings": "warning"}),
        ([row("a"), row("b", versions={"litefs-celery": "0.0.1"})], {"versions": "warning"}),
        ([row("a"), row("b", supervisor="")], {"supervisor": "unknown"}),
    ],
)
def test_workers_are_judged(
    tmp_path: Path, rows: list[dict[str, Any]], expected: dict[str, str]
) -> None:
    """Missing workers, shared names, a single candidate and settings that differ are named."""
    assert bad(doctor_workers.judge(database(tmp_path), rows)) == expected


def test_a_worker_of_an_older_version_is_compared(tmp_path: Path) -> None:
    """One that tells neither version nor settings is named, and breaks nothing."""
    old = {name: value for name, value in row("b").items()
           if name not in ("versions", "settings", "candidate", "supervisor", "time")}
    assert bad(doctor_workers.judge(database(tmp_path), [row("a"), old])) == {
        "versions": "warning", "candidates": "unknown", "supervisor": "unknown"}


def test_a_forking_pool_is_a_warning() -> None:
    """Prefork is named with its workers, threads are fine."""
    pools = {"celery@a": "celery.concurrency.prefork:TaskPool",
             "celery@b": "celery.concurrency.thread:TaskPool"}
    (finding,) = doctor_workers._pools(pools)
    assert (finding.level, "celery@a" in finding.what, "celery@b" in finding.what) == (
        "warning", True, False)
    assert levels(doctor_workers._pools({"celery@b": pools["celery@b"]})) == {"pool": "ok"}


def test_a_supervisor_is_told_by_its_sign() -> None:
    """systemd, supervisord and a container are known; nothing is not taken for "none"."""
    assert supervisor({"INVOCATION_ID": "1"}, 7) == "systemd"
    assert supervisor({"SUPERVISOR_ENABLED": "1"}, 7) == "supervisord"
    assert supervisor({}, 1) == "a container engine"
    assert supervisor({}, 7) == ""


def test_the_process_tells_its_own_time() -> None:
    """The time is between before and after."""
    before = time.time()
    assert before <= surroundings(Settings(node="a"))["time"] <= time.time()


def test_the_findings_are_told_worst_first_and_once() -> None:
    """People see level, why and remedy of each in that order; programs the same as JSON."""
    found = [findings.Finding("c", level, f"is {level}", "w", "r") for level in
             ("ok", "unknown", "warning", "unsafe", "ok")]
    sorted_out = findings.worst_first(found)
    assert [finding.level for finding in sorted_out] == ["unsafe", "warning", "unknown", "ok"]
    lines = findings.render(sorted_out).splitlines()
    assert lines[:3] == ["UNSAFE   c: is unsafe", "         why  w", "         do   r"]
    assert lines[-1] == "1 unsafe, 1 warning, 1 unknown, 1 ok"
    told = json.loads(json.dumps(findings.document("a", sorted_out)))
    assert told["counts"] == {"unsafe": 1, "warning": 1, "unknown": 1, "ok": 1}
    assert told["findings"][0] == {"check": "c", "level": "unsafe", "what": "is unsafe",
                                   "why": "w", "remedy": "r"}
