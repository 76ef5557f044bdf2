"""Whatever lies in the queue, only valid writes run, and whoever consumes it goes on."""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from celery import Celery
from fuzzing import Garbage
from support import User, member, rows, standalone

from litefs_celery import LiteFSCelery, Repository, ledger, observe, write
from litefs_celery.emulator import EmulatedCluster
from litefs_celery.tasks import Sender
from litefs_celery.wire import Write
from tests.cluster.site import Site
from worker.fleet import RedisServer, wait_until

QUEUE = "litefs-primary"
SEED = int(os.environ.get("FUZZ_SEED", "1"))
# Half are surely no writes; one in fifty more is a write.
ITEMS = int(os.environ.get("FUZZ_ITEMS", "40000"))
BATCH = 500
PATIENCE = 600.0  # seconds; a deadline, not a pause
MEMORY_LIMIT = 150_000_000  # bytes more than before


@pytest.fixture
def redis(tmp_path: Path) -> Iterator[tuple[RedisServer, Any]]:
    """Yield a Redis of its own and a client."""
    server = RedisServer(tmp_path / "redis", append_only=False)
    server.start()
    with closing(server.client()) as client:
        yield server, client
    server.stop()


def users_of(db: LiteFSCelery) -> Any:
    """Return a repository with a write method."""

    class Users(Repository[User], db=db):
        @write
        def add(self, name: str) -> str:
            self.session.add(User(name=name))
            self.session.flush()
            return name

    return Users()


def sample(client: Any, url: str) -> bytes:
    """Return an item of the queue as the sender makes it."""
    sender = Sender(Celery("fuzz", broker=url, set_as_current=False), QUEUE, timeout=5.0)
    sender.publish([Write.new("m.go", "[[], {}]", origin="n2", deadline=time.time() + 60.0)])
    sender.close()
    item: bytes = client.lpop(QUEUE)
    return item


def push(client: Any, garbage: Garbage, count: int, sentinels: list[Write]) -> int:
    """Fill the queue with as many of each kind, and writes between; return how many are none."""
    surely, perhaps, none = garbage.surely(), garbage.perhaps(), 0
    for start in range(0, count, BATCH):
        with client.pipeline(transaction=False) as pipe:
            for _ in range(start, min(start + BATCH, count), 2):
                pipe.lpush(QUEUE, next(surely), next(perhaps))
                none += 1
            for _ in range(BATCH // 50):
                sentinels.append(garbage.write(f"sentinel {len(sentinels)}"))
                pipe.lpush(QUEUE, garbage.valid(sentinels[-1]))
            pipe.execute()
    return none


def memory(pid: int | str) -> int:
    """Return the bytes a process has in memory."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def is_idle(client: Any) -> bool:
    """Return whether nothing is in the queue or taken from it."""
    return (client.llen(QUEUE), client.hlen(f"{QUEUE}-unacked")) == (0, 0)


@pytest.mark.timeout(900)
def test_only_writes_run(redis: tuple[RedisServer, Any], tmp_path: Path) -> None:
    """Of tens of thousands of items each valid write runs once, and all else is set aside."""
    print(f"FUZZ_SEED={SEED}")
    server, client = redis
    standalone(tmp_path).close()
    seen: Counter[type] = Counter()
    end = observe.subscribe(lambda record: seen.update([type(record)]))
    touched = tmp_path / "touched"
    with (
        closing(member(tmp_path, "n1", server.url)) as primary,
        closing(member(tmp_path, "n2", server.url)) as caller,
    ):
        users_of(primary)
        method = next(name for name in primary.app.tasks if name.endswith("Users.add"))
        garbage = Garbage(SEED, sample(client, server.url), touched, method=method)
        sentinels: list[Write] = []
        before = memory("self")
        primary.start_node("worker@n1", lambda: True)
        none = push(client, garbage, ITEMS, sentinels)
        pushed = ITEMS + len(sentinels)
        wait_until(lambda: is_idle(client), PATIENCE, lambda: f"{client.llen(QUEUE)} {seen}")
        assert users_of(caller).add("the last") == "the last"
        assert memory("self") - before < MEMORY_LIMIT
        aside = min(seen[observe.MessageSetAside], primary.settings.rejected_limit)
        assert client.llen("litefs-rejected") == aside
    end()
    found = Counter(name for (name,) in rows(primary.path, "SELECT name FROM users"))
    assert not touched.exists(), "pickle or YAML was loaded"
    assert all(found[f"sentinel {number}"] == 1 for number in range(len(sentinels)))
    check(primary.path, garbage, found)
    assert none <= seen[observe.MessageSetAside] <= pushed - len(sentinels)
    assert seen[observe.ConsumerMoved] <= 2, "the consumer was never disturbed"


def check(path: Path, garbage: Garbage, found: Counter[str]) -> None:
    """Check that the ledger holds valid writes only, and the table what those wrote."""
    recorded = rows(path, f"SELECT write_id, method, fingerprint, outcome FROM {ledger.LEDGER}")
    made = 0
    for write_id, method, fingerprint, outcome in recorded:
        if "the last" not in outcome:
            assert (method, fingerprint) in garbage.contents, write_id
        made += outcome.startswith('{"committed"')
    assert made == found.total()
    assert set(found.values()) == {1}


@pytest.mark.timeout(900)
def test_a_worker_outlives_it(tmp_path: Path) -> None:
    """A worker's process stays the same, small and at work, whatever its queue brings."""
    print(f"FUZZ_SEED={SEED}")
    cluster = EmulatedCluster(tmp_path / "cluster", names=("a", "b"), failover_gap=0.2)
    site = Site(cluster, tmp_path, "delete", "threads")
    try:
        site.redis.start()
        template = sample(site.redis.client(), site.redis.url)
        site.start()
        caller, client = site.on(site.replicas()[0]), site.redis.client()
        worker = site.processes[site.primary()].worker
        before = memory(worker.pid)
        touched = tmp_path / "touched"
        # Brought twice, it has two visits.
        garbage = Garbage(
            SEED + 1, template, touched, method="worker.repositories.Regions.bring", more=["name"]
        )
        sentinels: list[Write] = []
        caller.call("db.insert", {"code": "first", "name": "first"})
        push(client, garbage, ITEMS // 5, sentinels)
        wait_until(lambda: is_idle(client), PATIENCE, site.tails)
        assert worker.returncode is None, site.tails()
        assert memory(worker.pid) - before < MEMORY_LIMIT
        visits = dict(rows(cluster.primary().database(), "SELECT code, visits FROM regions"))
        assert all(visits[f"sentinel {number}"] == 1 for number in range(len(sentinels)))
        assert set(visits.values()) <= {0, 1}, "made twice"
        decoys = visits.keys() - {f"sentinel {number}" for number in range(len(sentinels))}
        assert all(code == "first" or code.startswith("decoy ") for code in decoys)
        assert caller.call("regions.visit", "first") == 1
        assert not touched.exists(), "pickle or YAML was loaded"
    finally:
        site.stop()
