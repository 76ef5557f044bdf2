"""The emulator keeps LiteFS's promises: each test states one of them."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from contextlib import closing, contextmanager
from http.client import HTTPConnection
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlsplit

import pytest

from litefs_celery.emulator import EmulatedCluster, EmulatedNode
from litefs_celery.pytest_plugin import LiteFSClusterOptions
from litefs_celery.pytest_plugin import litefs_cluster as cluster

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = ["cluster"]  # the plugin's fixture, under a short name

TIMEOUT = 20.0  # seconds; a deadline, not a pause: reached only when a promise is broken
T = TypeVar("T")
GAP = 0.5  # seconds without a primary after a kill
NEVER = 2_147_483_647


@pytest.fixture
def litefs_cluster_options(tmp_path: Path) -> LiteFSClusterOptions:
    """Three nodes with short gaps."""
    return LiteFSClusterOptions(root=tmp_path / "litefs", failover_gap=GAP, handoff_gap=0.2)


def until(look: Callable[[], T], what: str) -> T:
    """Poll until ``look`` returns something true, at most ``TIMEOUT`` seconds."""
    deadline = time.monotonic() + TIMEOUT
    while time.monotonic() < deadline:
        if found := look():
            return found
        time.sleep(0.005)
    pytest.fail(f"not within {TIMEOUT} seconds: {what}")


@contextmanager
def connect(node: EmulatedNode, database: str = "app.db") -> Iterator[sqlite3.Connection]:
    """Return an autocommit connection through the node's mount."""
    path = node.database(database)
    with closing(sqlite3.connect(path, timeout=TIMEOUT, isolation_level=None)) as connection:
        yield connection


def execute(node: EmulatedNode, statement: str, *arguments: object) -> list[Any]:
    """Run one statement on a connection of its own."""
    with connect(node) as connection:
        return connection.execute(statement, arguments).fetchall()


def values(node: EmulatedNode) -> list[int]:
    """Return what the table holds on this node."""
    return [row[0] for row in execute(node, "SELECT x FROM t ORDER BY x")]


def txid(node: EmulatedNode) -> int:
    """Return the TXID the node shows."""
    return (node.position() or (0, 0))[0]


def insert(node: EmulatedNode, value: int) -> None:
    """Write one row, and let ``-pos`` show it, which takes some milliseconds."""
    execute(node, "INSERT INTO t VALUES (?)", value)
    node.settle()


def seeded(cluster: EmulatedCluster) -> tuple[EmulatedNode, EmulatedNode, EmulatedNode]:
    """Create the table with one row everywhere; returns the primary and the replicas."""
    primary = cluster.primary(TIMEOUT)
    execute(primary, "CREATE TABLE t(x)")
    insert(primary, 1)
    cluster.wait_synced(TIMEOUT)
    first, second = cluster.replicas()
    return primary, first, second


def primary_file(node: EmulatedNode) -> str | None:
    """Return the content of ``.primary``, or None without one or with a dead mount."""
    try:
        return (node.mount / ".primary").read_text()
    except OSError:
        return None


def lag(node: EmulatedNode) -> int:
    """Return the node's lag in milliseconds."""
    return int((node.mount / ".lag").read_text())


def request(node: EmulatedNode, method: str, path: str) -> tuple[int, dict[str, str], str]:
    """Status, headers and text of one request."""
    connection = HTTPConnection(urlsplit(node.api_url).netloc, timeout=TIMEOUT)
    with closing(connection):
        connection.request(method, path)
        response = connection.getresponse()
        return response.status, dict(response.getheaders()), response.read().decode()


@contextmanager
def events(node: EmulatedNode) -> Iterator[Callable[[], dict[str, Any]]]:
    """Return a function that returns the next event of the node."""
    connection = HTTPConnection(urlsplit(node.api_url).netloc, timeout=TIMEOUT)
    with closing(connection):
        connection.request("GET", "/events")
        with connection.getresponse() as response:
            yield lambda: json.loads(response.readline())


def test_write_appears_on_replicas(cluster: EmulatedCluster) -> None:
    """A row committed on the primary can be read on every replica, on open connections too."""
    primary, first, second = seeded(cluster)
    with connect(first) as reader:
        assert reader.execute("SELECT x FROM t").fetchall() == [(1,)]
        insert(primary, 2)
        cluster.wait_synced(TIMEOUT)
        assert reader.execute("SELECT x FROM t").fetchall() == [(1,), (2,)]
    assert values(second) == [1, 2]


def test_position_promises_visibility(cluster: EmulatedCluster) -> None:
    """A read begun after a replica's ``-pos`` shows the transaction sees it."""
    primary, first, _ = seeded(cluster)
    for value in range(2, 30):
        insert(primary, value)
        reached = txid(primary)
        deadline = time.monotonic() + TIMEOUT
        while txid(first) < reached:
            assert time.monotonic() < deadline, "the replica's -pos"
        assert values(first)[-1] == value


@pytest.mark.parametrize("opened", ["before", "after"])
def test_replica_refuses_writes(cluster: EmulatedCluster, opened: str) -> None:
    """A replica's connection cannot write, whether it had read before or is new."""
    _, first, _ = seeded(cluster)
    with connect(first) as connection:
        if opened == "before":
            connection.execute("SELECT * FROM t").fetchall()
        with pytest.raises(sqlite3.OperationalError, match="attempt to write a readonly database"):
            connection.execute("INSERT INTO t VALUES (2)")


def test_open_reader_blocks_its_node_only(cluster: EmulatedCluster) -> None:
    """An open read transaction keeps its node at the old state, and no other."""
    primary, first, second = seeded(cluster)
    with connect(first) as reader:
        reader.execute("BEGIN")
        reader.execute("SELECT * FROM t").fetchall()
        insert(primary, 2)
        until(lambda: second.position() == primary.position() and values(second) == [1, 2], "rows")
        assert first.position() != primary.position()
        assert values(first) == [1], "a second reader gets in, and sees the old state"
        assert reader.execute("SELECT x FROM t").fetchall() == [(1,)]
        reader.execute("COMMIT")
        cluster.wait_synced(TIMEOUT)
        assert reader.execute("SELECT x FROM t").fetchall() == [(1,), (2,)]


def test_kill_leaves_a_gap_without_primary(cluster: EmulatedCluster) -> None:
    """After kill -9 nobody is primary and no node has ``.primary`` for the configured gap."""
    primary, first, second = seeded(cluster)
    assert primary_file(first) == f"{primary.name}\n"
    killed = time.monotonic()
    primary.kill()
    until(lambda: not primary_file(first) and not primary_file(second), "no .primary")
    while True:
        # Read before asking: whoever is named by then is primary when asked after.
        named = primary_file(first), primary_file(second)
        if any(node.info()["isPrimary"] for node in (first, second)):
            break
        assert not any(named)
    assert time.monotonic() - killed >= GAP
    winner = cluster.primary(TIMEOUT)
    (other,) = cluster.replicas()
    until(lambda: primary_file(other) == f"{winner.name}\n", "the other follows the winner")
    insert(winner, 2)
    cluster.wait_synced(TIMEOUT)
    assert values(other) == [1, 2]


def test_rejoining_primary_loses_its_tail(cluster: EmulatedCluster) -> None:
    """What the old primary had not shipped is gone once it is back, also on open connections."""
    primary, first, second = seeded(cluster)
    cluster.freeze(first.name)
    cluster.freeze(second.name)
    with connect(primary) as survivor:
        survivor.execute("INSERT INTO t VALUES (666)")
        primary.kill()
        cluster.thaw(first.name)
        cluster.thaw(second.name)
        winner = cluster.primary(TIMEOUT)
        insert(winner, 2)
        primary.start(TIMEOUT)
        cluster.wait_synced(TIMEOUT)
        assert survivor.execute("SELECT x FROM t").fetchall() == [(1,), (2,)]
        with pytest.raises(sqlite3.OperationalError, match="readonly"):
            survivor.execute("INSERT INTO t VALUES (3)")
    assert primary.position() == winner.position()
    assert execute(primary, "PRAGMA integrity_check") == [("ok",)]


def test_stale_winner_rolls_back_the_others(cluster: EmulatedCluster) -> None:
    """A node that was behind may win; a node that was ahead is overwritten, its TXID goes back."""
    primary, stale, ahead = seeded(cluster)
    cluster.freeze(stale.name)
    for value in (2, 3, 4):
        insert(primary, value)
    until(lambda: ahead.position() == primary.position(), "one replica has the rows")
    high = ahead.position()
    cluster.set_candidate(ahead.name, candidate=False)
    with connect(ahead) as reader:
        assert reader.execute("SELECT count(*) FROM t").fetchone() == (4,)
        primary.kill()
        cluster.thaw(stale.name)
        assert cluster.primary(TIMEOUT) is stale
        cluster.wait_synced(TIMEOUT)
        assert reader.execute("SELECT x FROM t").fetchall() == [(1,)]
    low = ahead.position()
    assert low is not None
    assert high is not None
    assert low[0] < high[0]
    insert(stale, 5)
    cluster.wait_synced(TIMEOUT)
    assert values(ahead) == [1, 5]


def test_reused_txid_has_another_checksum(cluster: EmulatedCluster) -> None:
    """Two histories that share a TXID differ in their checksum."""
    primary, stale, ahead = seeded(cluster)
    cluster.freeze(stale.name)
    insert(primary, 2)
    until(lambda: ahead.position() == primary.position(), "one replica has the row")
    lost = ahead.position()
    cluster.set_candidate(ahead.name, candidate=False)
    primary.kill()
    cluster.thaw(stale.name)
    insert(cluster.primary(TIMEOUT), 3)
    cluster.wait_synced(TIMEOUT)
    kept = ahead.position()
    assert lost is not None
    assert kept is not None
    assert kept[0] == lost[0]
    assert kept[1] != lost[1]
    assert values(ahead) == [1, 3]


def test_lag_delays_what_a_replica_shows(cluster: EmulatedCluster) -> None:
    """A lagging replica shows a write that much later, and says so in ``.lag``."""
    primary, first, second = seeded(cluster)
    cluster.lag(first.name, 1.0)
    begun = time.monotonic()
    insert(primary, 2)
    until(lambda: second.position() == primary.position(), "the other replica is not late")
    until(lambda: lag(first) >= 1000, ".lag")
    until(lambda: values(first) == [1, 2], "the row at last")
    assert time.monotonic() - begun >= 1.0


def test_freeze_and_thaw(cluster: EmulatedCluster) -> None:
    """A frozen node serves its old data with a growing lag, until it is thawed."""
    primary, first, second = seeded(cluster)
    cluster.freeze(first.name)
    insert(primary, 2)
    until(lambda: values(second) == [1, 2], "the other replica is not frozen")
    until(lambda: lag(first) > 1500, "a growing lag")
    assert values(first) == [1]
    cluster.thaw(first.name)
    cluster.wait_synced(TIMEOUT)
    assert values(first) == [1, 2]
    until(lambda: lag(first) < 1500, "a small lag")


def test_paused_primary_stops_shipping(cluster: EmulatedCluster) -> None:
    """While the primary's daemon is stopped nothing is shipped, and the replicas' lag grows."""
    primary, first, _ = seeded(cluster)
    primary.pause()
    execute(primary, "INSERT INTO t VALUES (2)")
    until(lambda: lag(first) > 1500, "a growing lag")
    assert values(first) == [1]
    primary.resume()
    until(lambda: values(first) == [1, 2], "the row after the pause")


def test_lag_and_files_have_litefs_shapes(cluster: EmulatedCluster) -> None:
    """``.lag``, ``-pos`` and ``.primary`` are byte for byte what LiteFS writes."""
    primary, first, _ = seeded(cluster)
    assert (primary.mount / ".lag").read_text() == "+000000000\n"
    until(lambda: lag(first) < NEVER, "a replication")
    assert len((first.mount / ".lag").read_text()) == 11
    position = first.position()
    assert position is not None
    assert (first.mount / "app.db-pos").read_bytes() == b"%016x/%016x\n" % tuple(position)
    assert primary_file(first) == f"{primary.name}\n"
    assert not (primary.mount / ".primary").exists()


def test_never_replicated_says_so(tmp_path: Path) -> None:
    """A node that never met a primary shows the largest lag, and ``/info`` names no primary."""
    with EmulatedCluster(tmp_path, ("a", "b"), failover_gap=GAP) as two:
        leader = two.primary(TIMEOUT)
        (replica,) = two.replicas()
        replica.kill()
        leader.kill()
        replica.start(TIMEOUT)
        assert until(lambda: (replica.mount / ".lag").exists() and lag(replica), ".lag") == NEVER


def test_promotion_under_load_loses_nothing(cluster: EmulatedCluster) -> None:
    """Every commit that succeeded before a graceful handoff is on all nodes after it."""
    primary, first, second = seeded(cluster)
    committed: list[int] = [1]

    def write() -> None:
        with closing(sqlite3.connect(primary.database(), timeout=TIMEOUT)) as connection:
            try:
                for value in range(2, 100_000):
                    connection.execute("INSERT INTO t VALUES (?)", (value,))
                    connection.commit()
                    committed.append(value)
            except sqlite3.OperationalError:
                return

    writer = threading.Thread(target=write)
    writer.start()
    until(lambda: len(committed) > 20, "a running writer")
    cluster.promote(first.name, TIMEOUT)
    writer.join(TIMEOUT)
    assert not writer.is_alive(), "the old primary refuses writes"
    assert cluster.primary(TIMEOUT) is first
    cluster.wait_synced(TIMEOUT)
    assert values(first) == committed
    assert values(second) == committed
    insert(first, 0)
    cluster.wait_synced(TIMEOUT)
    assert values(primary)[0] == 0


def test_open_transaction_cannot_commit_after_kill(cluster: EmulatedCluster) -> None:
    """A transaction that was open when its node died cannot commit any more."""
    primary, _, _ = seeded(cluster)
    with closing(sqlite3.connect(primary.database(), timeout=0.1)) as connection:
        connection.execute("INSERT INTO t VALUES (2)")
        primary.kill()
        with pytest.raises(sqlite3.OperationalError):
            connection.commit()
        connection.rollback()
    winner = cluster.primary(TIMEOUT)
    primary.start(TIMEOUT)
    cluster.wait_synced(TIMEOUT)
    assert values(winner) == values(primary) == [1]


def test_non_candidate_never_leads(cluster: EmulatedCluster) -> None:
    """A node that is no candidate refuses a promotion, and the others win."""
    primary, first, second = seeded(cluster)
    cluster.set_candidate(first.name, candidate=False)
    assert request(first, "POST", "/promote")[0] == 409
    with pytest.raises(ValueError, match="not eligible"):
        cluster.promote(first.name)
    primary.kill()
    assert cluster.primary(TIMEOUT) is second


def test_dead_mount_is_an_error(cluster: EmulatedCluster) -> None:
    """A dead mount is an OSError but not "not found", and SQLite cannot open anything in it."""
    primary, _, _ = seeded(cluster)
    with connect(primary) as survivor:
        primary.kill()
        with pytest.raises(OSError, match=r"\.primary") as caught:
            (primary.mount / ".primary").read_text()
        assert not isinstance(caught.value, FileNotFoundError)
        with pytest.raises(sqlite3.OperationalError) as refused:
            execute(primary, "SELECT 1 FROM sqlite_master")
        assert refused.value.sqlite_errorcode & 0xFF == sqlite3.SQLITE_CANTOPEN
        with pytest.raises(sqlite3.OperationalError, match="readonly"):
            survivor.execute("INSERT INTO t VALUES (2)")
    assert not primary.is_alive()
    assert primary.pid is None


def test_stop_leaves_an_empty_directory(cluster: EmulatedCluster) -> None:
    """A graceful stop gives the lease up and leaves an empty mount point."""
    primary, _, _ = seeded(cluster)
    primary.stop()
    assert list(primary.mount.iterdir()) == []
    assert cluster.primary(TIMEOUT) is not primary
    (primary.mount / "app.db").write_bytes(b"written without LiteFS")
    primary.start(TIMEOUT)
    cluster.wait_synced(TIMEOUT)
    assert values(primary) == [1]


def test_sole_node_keeps_its_data(tmp_path: Path) -> None:
    """A node that was killed and is alone leads again, with its data and its position."""
    with EmulatedCluster(tmp_path, ("only",), failover_gap=GAP) as alone:
        node = alone.primary(TIMEOUT)
        execute(node, "CREATE TABLE t(x)")
        insert(node, 1)
        before = node.position()
        assert txid(node) == 2
        node.kill()
        node.start(TIMEOUT)
        assert alone.primary(TIMEOUT) is node
        assert node.position() == before
        insert(node, 2)
        assert values(node) == [1, 2]


def test_cluster_restarts_with_its_data(tmp_path: Path) -> None:
    """A cluster that is started again goes on under its last primary."""
    with EmulatedCluster(tmp_path, ("a", "b")) as two:
        two.promote("b", TIMEOUT)
        execute(two.node("b"), "CREATE TABLE t(x)")
    two.stop()
    with EmulatedCluster(tmp_path, ("a", "b")) as two:
        assert two.primary(TIMEOUT).name == "b"
        insert(two.node("b"), 1)
        two.wait_synced(TIMEOUT)
        assert values(two.node("a")) == [1]


def test_info_has_litefs_shape(cluster: EmulatedCluster) -> None:
    """``/info`` has LiteFS's fields, and ``Litefs-Id`` is new at every start."""
    primary, first, _ = seeded(cluster)
    status, headers, text = request(first, "GET", "/info")
    assert status == 200
    info = json.loads(text)
    assert set(info) == {"clusterID", "isPrimary", "candidate", "path", "primary"}
    assert info["clusterID"].startswith("LFSC")
    assert len(info["clusterID"]) == 20
    assert (info["isPrimary"], info["candidate"]) == (False, True)
    assert info["primary"] == {"hostname": primary.name}
    assert json.loads(request(primary, "GET", "/info")[2])["isPrimary"] is True
    first.kill()
    first.start(TIMEOUT)
    assert request(first, "GET", "/info")[1]["Litefs-Id"] != headers["Litefs-Id"]
    assert request(first, "POST", "/info")[0] == 405
    assert request(first, "GET", "/nothing")[0] == 404


def test_events_have_litefs_shape(cluster: EmulatedCluster) -> None:
    """``/events`` begins with ``init`` and then tells transactions and changes of primary."""
    primary, first, _ = seeded(cluster)
    with events(primary) as leading, events(first) as following:
        assert leading() == {"type": "init", "data": {"isPrimary": True}}
        init = {"type": "init", "data": {"isPrimary": False, "hostname": primary.name}}
        assert following() == init
        insert(primary, 2)
        for event in (leading(), following()):
            assert (event["type"], event["db"]) == ("tx", "app.db")
            assert set(event["data"]) == {
                "txID", "postApplyChecksum", "pageSize", "commit", "timestamp"
            }  # fmt: skip
            assert int(event["data"]["txID"], 16) == 3
            assert event["data"]["commit"] == 2
        cluster.promote(first.name, TIMEOUT)
        assert following() == {"type": "primaryChange", "data": {"isPrimary": False}}
        assert following() == {"type": "primaryChange", "data": {"isPrimary": True}}
        assert leading() == {"type": "primaryChange", "data": {"isPrimary": False}}
        changed = {"isPrimary": False, "hostname": first.name}
        assert leading() == {"type": "primaryChange", "data": changed}


def test_txid_is_monotonic(cluster: EmulatedCluster) -> None:
    """TXIDs only grow on one primary, and go on growing after a graceful handoff."""
    primary, first, _ = seeded(cluster)
    seen = [txid(primary)]
    for value in range(2, 20):
        insert(primary, value)
        seen.append(txid(primary))
    assert seen == list(range(2, 21)), "one TXID for each commit"
    cluster.promote(first.name, TIMEOUT)
    assert first.position() == (20, (primary.position() or (0, 0))[1])
    insert(first, 99)
    assert txid(first) == 21


def test_several_databases_and_vacuum(cluster: EmulatedCluster) -> None:
    """Every ``*.db`` is shipped, and a database that shrinks or is large arrives whole."""
    primary, first, _ = seeded(cluster)
    with connect(primary, "other.db") as other:
        other.execute("CREATE TABLE big(x)")
        other.execute("BEGIN")
        other.executemany("INSERT INTO big VALUES (randomblob(1000))", [()] * 5000)
        other.execute("COMMIT")
        until(lambda: primary.position("other.db"), "a position of its own")
        cluster.wait_synced(TIMEOUT)
        with connect(first, "other.db") as copy:
            assert copy.execute("SELECT count(*) FROM big").fetchone() == (5000,)
            other.execute("DELETE FROM big WHERE rowid > 10")
            other.execute("VACUUM")
            count = "SELECT count(*) FROM big"
            until(lambda: copy.execute(count).fetchone() == (10,), "the smaller database")
            assert copy.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    cluster.wait_synced(TIMEOUT)
    size = (primary.mount / "other.db").stat().st_size
    until(lambda: (first.mount / "other.db").stat().st_size == size, "the same size")


def test_hot_journal_is_not_shipped(cluster: EmulatedCluster) -> None:
    """What a writer left that was killed in the middle of a transaction never reaches a replica."""
    primary, first, _ = seeded(cluster)
    crash = (
        "import sqlite3, os, sys; c = sqlite3.connect(sys.argv[1], isolation_level=None);"
        "c.execute('PRAGMA cache_size=1'); c.execute('BEGIN');"
        "c.executemany('INSERT INTO t VALUES (?)', [(n,) for n in range(50000)]);"
        "os.kill(os.getpid(), 9)"
    )
    ended = subprocess.run([sys.executable, "-c", crash, primary.database()], check=False)
    assert ended.returncode == -signal.SIGKILL
    assert (primary.mount / "app.db-journal").exists()
    assert values(first) == [1]
    insert(primary, 2)
    cluster.wait_synced(TIMEOUT)
    assert values(first) == [1, 2]
    assert execute(first, "PRAGMA integrity_check") == [("ok",)]


def test_replicas_never_see_corruption(cluster: EmulatedCluster) -> None:
    """Readers on replicas find a whole database at any time, also while daemons are killed."""
    primary, first, second = seeded(cluster)
    ending = threading.Event()
    problems: list[str] = []
    checks: list[int] = []

    def write() -> None:
        with connect(primary) as connection:
            connection.execute("CREATE TABLE s(k INTEGER PRIMARY KEY, v, w)")
            connection.execute("CREATE INDEX i ON s(w)")
            round_ = 0
            while not ending.is_set():
                round_ += 1
                connection.execute("BEGIN IMMEDIATE")
                rows = [(os.urandom(300), os.urandom(20)) for _ in range(50)]
                connection.executemany("INSERT INTO s(v, w) VALUES (?, ?)", rows)
                connection.execute("DELETE FROM s WHERE k % 7 = ?", (round_ % 7,))
                connection.execute("COMMIT")

    def read(node: EmulatedNode) -> None:
        with connect(node) as connection:
            while not ending.is_set():
                try:
                    answer = connection.execute("PRAGMA integrity_check").fetchall()
                    checks.append(1)
                except sqlite3.Error as error:
                    answer = [(repr(error),)]
                if answer != [("ok",)]:
                    problems.append(f"{node.name}: {answer}")
                    return

    threads = [threading.Thread(target=write)]
    threads += [threading.Thread(target=read, args=(node,)) for node in (first, first, second)]
    for thread in threads:
        thread.start()
    try:
        for _ in range(5):
            _wait_for_checks(checks, problems)
            second.kill()
            second.start(TIMEOUT)
    finally:
        ending.set()
        for thread in threads:
            thread.join(TIMEOUT)
    assert problems == []
    cluster.wait_synced(TIMEOUT)
    assert execute(first, "SELECT count(*) FROM s") == execute(primary, "SELECT count(*) FROM s")


def _wait_for_checks(checks: list[int], problems: list[str]) -> None:
    target = len(checks) + 20
    until(lambda: len(checks) >= target or problems, "more checks")


def test_primary_timeout_tells_the_answers(cluster: EmulatedCluster) -> None:
    """Without a primary, the error says what each node answered."""
    for node in cluster.nodes:
        node.kill()
    with pytest.raises(TimeoutError, match="a: not running, b: not running, c: not running"):
        cluster.primary(timeout=0.0)


def test_command_runs_a_cluster_that_dies_with_it(tmp_path: Path) -> None:
    """The command prints its nodes, and no daemon outlives it, not even after kill -9."""
    command = [sys.executable, "-m", "litefs_celery.emulator", "--root", str(tmp_path)]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parent.parent)}
    with subprocess.Popen(
        [*command, "--nodes", "x,y"], stdout=subprocess.PIPE, text=True, env=environment
    ) as process:
        assert process.stdout is not None
        table = [process.stdout.readline().split() for _ in range(3)]
        assert [row[0] for row in table] == ["node", "x", "y"]
        process.kill()
    ports = [int(row[2].rsplit(":", 1)[1]) for row in table[1:]]
    until(lambda: not any(map(_listens, ports)), "the daemons' end")


def _listens(port: int) -> bool:
    connection = HTTPConnection("127.0.0.1", port, timeout=1)
    try:
        connection.connect()
    except OSError:
        return False
    connection.close()
    return True
