"""Workers under every pool, beside the user's own tasks, and with several databases."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from celery import Celery
from support import Base, User

from litefs_celery import LiteFSCelery, Repository, Settings, UnknownMethod
from litefs_celery.emulator import EmulatedCluster
from tests.cluster.site import (
    PATIENCE,
    QUEUE,
    OpenTransaction,
    Site,
    region,
    visit_in_tasks,
    visits,
)
from worker.fleet import Process, RedisServer, wait_until

POOLS = ["solo", "prefork", "threads", "gevent"]


@pytest.fixture
def redis(tmp_path: Path) -> Iterator[RedisServer]:
    """Return a Redis of its own."""
    server = RedisServer(tmp_path / "redis")
    server.start()
    yield server
    server.stop()


@pytest.mark.parametrize("pool", POOLS)
def test_every_pool_carries_writes(pool: str, tmp_path: Path) -> None:
    """Writes travel and the consumer moves under each pool, also while tasks fill its slots."""
    if importlib.util.find_spec("gevent") is None and pool == "gevent":
        pytest.skip("gevent is not installed")
    cluster = EmulatedCluster(tmp_path / "cluster", names=("a", "b"), failover_gap=0.2)
    site = Site(cluster, tmp_path, "delete", pool)
    try:
        site.start()
        replica = site.replicas()[0]
        site.on(replica).call("db.insert", {"code": "X", "name": "X"})
        assert visit_in_tasks(site, "X", tasks=6, visits=3) == [3] * 6
        cluster.promote(replica)
        site.heal()
        assert site.on(site.replicas()[0]).call("regions.visit", "X") == 19
    except BaseException:
        print(site.tails())
        raise
    finally:
        site.stop()


@pytest.fixture
def site(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Site]:
    """Return two emulated nodes with their workers, which may be given more of an environment."""
    cluster = EmulatedCluster(tmp_path / "cluster", names=("a", "b"), failover_gap=0.2)
    running = Site(cluster, tmp_path, "delete", "threads", getattr(request, "param", None))
    try:
        running.start()
        yield running
    finally:
        running.stop()


def test_two_databases_on_two_mounts_share_a_worker(tmp_path: Path, redis: RedisServer) -> None:
    """One worker consumes each database's queue where that database's primary is."""
    with (
        EmulatedCluster(tmp_path / "people", names=("a", "b"), failover_gap=0.2) as people,
        EmulatedCluster(tmp_path / "places", names=("a", "b"), failover_gap=0.2) as places,
    ):
        environ = {"CELERY_BROKER_URL": redis.url, "PYTHONPATH": os.pathsep.join(sys.path)}
        for name, cluster in (("people", people), ("places", places)):
            node = cluster.primary()
            environ |= {
                f"{name}_URL": f"sqlite:///{node.database()}",
                f"{name}_NODE": node.name, f"{name}_API": node.api_url,
            }
        program = (
            "from two_databases import *; from support import Base\n"
            "people.create_all(Base.metadata); places.create_all(Base.metadata)\n"
        )
        here = Path(__file__).parent
        subprocess.run([sys.executable, "-c", program], env={**os.environ, **environ}, check=True,
                       cwd=here)
        command = [sys.executable, "-m", "celery", "-A", "two_databases", "worker", "-P", "solo"]
        worker = Process(command, tmp_path / "worker.log", environ, cwd=here)
        worker.start()
        try:
            people.wait_synced()
            places.wait_synced()
            for name, cluster in (("people", people), ("places", places)):
                node = cluster.replicas()[0]
                environ |= {
                    f"{name}_URL": f"sqlite:///{node.database()}",
                    f"{name}_NODE": node.name, f"{name}_API": node.api_url,
                }
            program = (
                "from two_databases import *; from support import *\n"
                "print(Users().insert(User(name='Ada')).id, Teams().insert(Team(name='T')).id)\n"
            )
            done = subprocess.run(
                [sys.executable, "-c", program], env={**os.environ, **environ}, cwd=here,
                capture_output=True, text=True, timeout=PATIENCE, check=False,
            )
            assert done.stdout.split() == ["1", "1"], done.stderr + worker.tail()
        finally:
            worker.stop()


def test_a_method_the_primary_does_not_know_is_refused(site: Site) -> None:
    """An older version on the primary says so at once; nothing is changed."""
    node = site.cluster.replicas()[0]
    app = Celery("newer", broker=site.redis.url, set_as_current=False)
    settings = Settings(node=node.name, api_url=node.api_url, mode="litefs")
    db = LiteFSCelery(app, f"sqlite:///{node.database()}", settings=settings)

    class Newer(Repository[User], db=db):
        """A repository that the worker does not have."""

    with pytest.raises(UnknownMethod, match="older version"):
        Newer().insert(User(name="Ada"))
    db.close()
    assert Base.metadata.tables


def test_stopping_the_primarys_worker_hands_its_writes_on(site: Site) -> None:
    """SIGTERM of a consuming worker loses nothing that waits in its queue."""
    replica, worker = site.replicas()[0], site.processes[site.primary()].worker
    site.on(replica).call("db.insert", {"code": "X", "name": "X"})
    waiting = [site.on(replica).submit("regions.visit", "X") for _ in range(60)]
    worker.stop()
    worker.start()
    assert sorted(future.result(PATIENCE) for future in waiting) == list(range(1, 61))
    wait_until(lambda: site.redis.client().llen(QUEUE) == 0, PATIENCE)


SOURCES = ["events", "info", "info,file"]


@pytest.mark.parametrize(
    "site", [{"LITEFS_CELERY_SOURCES": sources} for sources in SOURCES], indirect=True, ids=SOURCES
)
def test_writes_follow_the_primary_by_whatever_source(site: Site) -> None:
    """A promote moves the consumer and every node's writes, also where few sources are on."""
    first, second, name = site.primary(), site.replicas()[0], region(site, "source")
    assert site.on(second).call("regions.visit", name) == 1
    site.cluster.promote(second)
    assert site.on(first).call("regions.visit", name, timeout=15) == 2
    assert site.on(second).call("regions.visit", name, timeout=15) == 3
    site.heal()
    assert visits(site, name) == 3


NO_API = {"LITEFS_CELERY_FIXED_PRIMARY": "a", "LITEFS_CELERY_API_URL": "http://127.0.0.1:1"}


@pytest.mark.parametrize("site", [NO_API], indirect=True, ids=["a"])
def test_a_fixed_primary_is_forwarded_to(site: Site) -> None:
    """Where the settings name the primary, a replica's write goes there; no API is asked."""
    assert site.primary() == "a"
    name = region(site, "fixed")
    assert site.on("b").call("regions.visit", name) == 1
    assert site.on("b").call("db.visits", name) == 1
    assert site.on("a").call("regions.visit", name) == 2


LOCKED_FOR = 6.0  # seconds; without pauses there would be 30 attempts in them


@pytest.mark.parametrize("site", [{"LITEFS_CELERY_LOCK_TIMEOUT": "0.2"}], indirect=True, ids=[""])
def test_commits_that_fail_are_not_tried_again_hot(site: Site) -> None:
    """A locked database makes the queue wait longer each time; once it is free, all is made."""
    name, replica = region(site, "locked"), site.replicas()[0]
    log = site.processes[site.primary()].worker.log

    def failures() -> int:
        return log.read_text(errors="replace").count("GroupFailed(")

    with OpenTransaction(site.cluster.primary().database(), "BEGIN IMMEDIATE"):
        # The one that nobody waits for is not sent again by anybody: its message must come back.
        submitted = site.on(replica).call("regions.visit", name, delay=True)
        waiting = [site.on(replica).submit("regions.visit", name, timeout=60) for _ in range(20)]
        wait_until(failures, PATIENCE, site.tails)
        end = time.monotonic() + LOCKED_FOR
        wait_until(lambda: time.monotonic() > end, PATIENCE)
        assert 2 <= failures() <= 10, site.tails()
    site.on(replica).call("db.await_outcome", submitted, 30)
    for future in waiting:
        future.result(PATIENCE)
    assert visits(site, name) == 21
    assert failures() <= 11


def test_a_worker_that_exits_is_started_again_and_serves(site: Site) -> None:
    """A broker that goes away under the application's tasks costs a supervised site nothing."""
    name, replica, broker = region(site, "exit"), site.replicas()[0], site.redis.client()
    app = Celery("client", broker=site.redis.url, set_as_current=False)

    def supervise() -> bool:
        for processes in site.processes.values():
            processes.worker.start()
        return True

    with site.gate() as gate:
        held = site.on(replica).submit("gates.visit", name, gate.path, timeout=80)
        gate.wait_reached(site.tails)
        for _ in range(12):
            app.send_task("worker.tasks.visit_all", args=([name],))
        app.close()
        # Taken by the workers without a slot free for them: on that celery 5.7.0 exits.
        wait_until(lambda: broker.hlen("unacked"), PATIENCE, site.tails)
        site.redis.kill()
        killed = time.monotonic()
        wait_until(lambda: time.monotonic() > killed + 2, PATIENCE)
    site.redis.start()
    reads = [site.on(replica).submit("db.where", node) for node in site.callers]
    wait_until(
        lambda: supervise() and held.done() and all(read.done() for read in reads), PATIENCE,
        site.tails,
    )
    assert held.result() >= 1
    assert [read.result() for read in reads] == [
        site.processes[node].worker.pid for node in site.callers
    ]
    site.heal()
    assert site.on(replica).call("regions.visit", name) == visits(site, name)
