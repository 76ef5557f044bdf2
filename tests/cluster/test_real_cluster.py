"""Real LiteFS nodes under a real Consul behave as the rest of the tests take for granted."""

from __future__ import annotations

import errno
import os
import random
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from contextlib import closing, suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from litefs_celery.emulator.real import RealCluster, RealNode, missing_programs
from tests.cluster.site import Site, everywhere, region, visits

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_MISSING = missing_programs()
pytestmark = pytest.mark.skipif(
    bool(_MISSING),
    reason=f"NOT RUN: real LiteFS needs {', '.join(_MISSING)}, which this machine lacks",
)

# A killed primary's lease ends after twice its 10 s, then 1 s of lock delay and a retry.
_FAILOVER_TIMEOUT = 40.0


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealCluster]:
    """
    Three running nodes, shared by the tests that leave them all alive.
    """
    with RealCluster(tmp_path_factory.mktemp("real")) as running:
        yield running


@pytest.fixture
def fast(tmp_path: Path) -> RealCluster:
    """
    Two nodes with a lease of two seconds, not yet started.
    """
    return RealCluster(tmp_path / "a root", ("a", "b"), lease_ttl=2.0)


def test_three_nodes_form_a_cluster_with_one_primary(cluster: RealCluster) -> None:
    """
    Of three nodes one is primary and the others name it in `.primary`.
    """
    primary = cluster.primary()
    replicas = cluster.replicas()
    assert len(replicas) == 2
    for node in replicas:
        _until(10.0, partial(_names, node, primary))
    assert not (primary.mount / ".primary").exists()


@pytest.mark.parametrize("mode", ["delete", "wal"])
def test_a_row_written_on_the_primary_appears_on_the_replicas(
    cluster: RealCluster, mode: str
) -> None:
    """
    Once `wait_synced` returns, a new connection to each replica reads the row.
    """
    name = f"{mode}.db"
    _create(cluster.primary().database(name), mode)
    cluster.wait_synced()
    position = cluster.primary().position(name)
    assert position is not None
    for node in cluster.replicas():
        assert _rows(node.database(name)) == [(1,)]
        assert node.position(name) == position


def test_a_promotion_moves_the_primary(cluster: RealCluster) -> None:
    """
    After `promote` returns, that node alone is primary and takes writes.
    """
    heir = cluster.replicas()[0]
    cluster.promote(heir.name)
    assert cluster.primary() is heir
    _create(heir.database("promoted.db"), "delete")
    cluster.wait_synced()
    assert [_rows(node.database("promoted.db")) for node in cluster.nodes] == [[(1,)]] * 3


def test_a_stopped_node_leaves_an_empty_directory_and_comes_back(cluster: RealCluster) -> None:
    """
    `stop` unmounts even under an open file, and `start` brings the node back with its data.
    """
    _create(cluster.primary().database("kept.db"), "delete")
    cluster.wait_synced()
    node = cluster.replicas()[0]
    descriptor = os.open(node.database("kept.db"), os.O_RDONLY)
    try:
        node.stop()
        assert not node.is_alive()
        assert list(node.mount.iterdir()) == []
    finally:
        # Its file system is gone, and so closing it is told that nobody answers.
        with suppress(OSError):
            os.close(descriptor)
    node.start()
    cluster.wait_synced()
    assert _rows(node.database("kept.db")) == [(1,)]


def test_a_paused_node_does_not_hang_the_cluster(cluster: RealCluster) -> None:
    """
    With a paused replica `wait_synced` ends at its deadline and says which node it waited for.
    """
    _create(cluster.primary().database("paused.db"), "delete")
    node = cluster.replicas()[0]
    node.pause()
    try:
        with pytest.raises(TimeoutError, match=f"node {node.name}"):
            cluster.wait_synced(timeout=2.0)
    finally:
        node.resume()
    cluster.wait_synced()


def test_a_killed_primary_is_replaced_and_rejoins_as_a_replica(cluster: RealCluster) -> None:
    """
    Kill -9 leaves a dead mount, another node takes over, and the old one comes back behind it.
    """
    old = cluster.primary()
    old.kill()
    with pytest.raises(OSError, match=os.strerror(errno.ENOTCONN)) as caught:
        old.mount.stat()
    assert caught.value.errno == errno.ENOTCONN
    new = cluster.primary(_FAILOVER_TIMEOUT)
    assert new is not old
    old.start()
    _until(20.0, partial(_names, old, new))
    assert cluster.primary() is new
    assert old in cluster.replicas()


def test_stop_leaves_no_process_and_no_mount(fast: RealCluster) -> None:
    """
    After `stop` nothing of the cluster runs or is mounted, also with a dead and a paused node.
    """
    with fast:
        primary, (replica,) = fast.primary(), fast.replicas()
        primary.kill()
        replica.pause()
    assert _left_of(fast.root) == []
    fast.stop()


def test_a_start_that_fails_leaves_nothing_behind(fast: RealCluster) -> None:
    """
    When a node cannot start, the error shows the end of its log and everything is gone.
    """
    fast.root.mkdir()
    (fast.root / "b").mkdir()
    (fast.root / "b" / "data").write_text("not a directory")
    with pytest.raises(RuntimeError, match=r"(?s)node b did not start.*litefs\.log.*not a dir"):
        fast.start()
    assert _left_of(fast.root) == []


def test_the_cluster_ends_with_a_parent_that_is_killed(tmp_path: Path) -> None:
    """
    Kill -9 of the process that started a cluster takes its nodes, Consul and mounts along.
    """
    script = (
        "import pathlib, sys, time\n"
        "from litefs_celery.emulator.real import RealCluster\n"
        "cluster = RealCluster(pathlib.Path(sys.argv[1]), ('a',))\n"
        "cluster.start()\n"
        "print('up', flush=True)\n"
        "time.sleep(600)\n"
    )
    command = (sys.executable, "-c", script, str(tmp_path))
    with subprocess.Popen(command, stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        assert parent.stdout.readline() == b"up\n"
        assert len(_left_of(tmp_path)) >= 3
        parent.send_signal(signal.SIGKILL)
    _until(15.0, lambda: _left_of(tmp_path) == [])


def test_a_write_mends_what_a_killed_writer_left_of_a_wal(tmp_path: Path) -> None:
    """
    Where kill -9 of another writer made every plain write fail, one of the library takes effect.
    """
    cluster = RealCluster(tmp_path / "cluster", ("a", "b"), lease_ttl=2.0)
    site = Site(cluster, tmp_path, "wal", "threads")
    try:
        site.start()
        name, database = region(site, "mended"), cluster.primary().database()
        _plain_write(database, "CREATE TABLE t (x)")
        _kill_writers_until_all_fail(database)
        assert site.on(site.replicas()[0]).call("regions.visit", name) == 1
        _plain_write(database, "INSERT INTO t VALUES ('after')")
        assert visits(site, name) == 1
        everywhere(site, "SELECT count(*), sum(x = 'after') FROM t")
    except BaseException:
        print(site.tails())
        raise
    finally:
        site.stop()


# With synchronous=FULL about one kill in six hits a commit between its last frame and its entry
# in the index: of so many, one does.
KILLS = 150
_WRITER = """
import sqlite3, sys
connection = sqlite3.connect(sys.argv[1], timeout=30, isolation_level=None)
connection.execute("PRAGMA synchronous = full")
while True:
    connection.execute("INSERT INTO t VALUES (randomblob(2000))")
    print("one", flush=True)
"""


def _kill_writers_until_all_fail(database: Path) -> None:
    moments = random.Random(0)
    for _ in range(KILLS):
        command = (sys.executable, "-c", _WRITER, str(database))
        with subprocess.Popen(command, stdout=subprocess.PIPE) as writer:
            assert writer.stdout is not None
            for _ in range(5):
                assert writer.stdout.readline() == b"one\n"
            # Nothing is waited for: each kill is to come at another moment of a commit.
            threading.Event().wait(moments.uniform(0, 0.01))
            writer.kill()
        with suppress(sqlite3.OperationalError):
            _plain_write(database, "INSERT INTO t VALUES ('between')")
            continue
        with pytest.raises(sqlite3.OperationalError, match="disk I/O error"):
            _plain_write(database, "INSERT INTO t VALUES ('again')")
        return
    pytest.fail(f"{KILLS} kills of a busy writer left nothing to mend")


def _plain_write(path: Path, statement: str) -> None:
    with closing(sqlite3.connect(path, timeout=30, isolation_level=None)) as connection:
        connection.execute(statement)


def _create(path: Path, mode: str) -> None:
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute(f"PRAGMA journal_mode={mode}")
        connection.execute("CREATE TABLE t (x INTEGER)")
        connection.execute("INSERT INTO t VALUES (1)")


def _rows(path: Path) -> list[tuple[int]]:
    with closing(sqlite3.connect(f"file:{path}?mode=rw", uri=True)) as connection:
        return connection.execute("SELECT x FROM t").fetchall()


def _names(node: RealNode, primary: RealNode) -> bool:
    try:
        return (node.mount / ".primary").read_text().strip() == primary.name
    except FileNotFoundError:
        return False


def _left_of(root: Path) -> list[str]:
    """
    Whatever still names `root`: command lines of processes, and mounts.
    """
    found = [
        line
        for line in Path("/proc/self/mounts").read_text().splitlines()
        if str(root).replace(" ", "\\040") in line
    ]
    for directory in Path("/proc").glob("[0-9]*"):
        if directory.name == str(os.getpid()):
            continue
        try:
            command = (directory / "cmdline").read_bytes().decode(errors="replace")
        except OSError:
            continue
        if str(root) in command:
            found.append(command.replace("\0", " "))
    return found


def _until(timeout: float, done: Callable[[], bool]) -> None:
    deadline = time.monotonic() + timeout
    while not done():
        assert time.monotonic() < deadline, f"not within {timeout} s"
        time.sleep(0.02)
