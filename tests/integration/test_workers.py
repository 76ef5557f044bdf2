"""Workers under every pool, beside the user's own tasks, and with several databases."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from celery import Celery
from support import Base, User

from litefs_celery import LiteFSCelery, Repository, Settings, UnknownMethod
from litefs_celery.emulator import EmulatedCluster
from tests.cluster.site import PATIENCE, Site, visit_in_tasks
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
        assert visit_in_tasks(site.redis, "X", tasks=6, visits=3) == [3] * 6
        cluster.promote(replica)
        site.heal()
        assert site.on(site.replicas()[0]).call("regions.visit", "X") == 19
    except BaseException:
        print(site.tails())
        raise
    finally:
        site.stop()


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    """Return two emulated nodes with their workers."""
    cluster = EmulatedCluster(tmp_path / "cluster", names=("a", "b"), failover_gap=0.2)
    running = Site(cluster, tmp_path, "delete", "threads")
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
    wait_until(lambda: site.redis.client().llen("litefs-primary") == 0, PATIENCE)
