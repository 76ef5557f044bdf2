"""More writes than the primary takes: callers are told, memory is bounded, nothing is lost."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

from tests.cluster.site import PATIENCE, QUEUE, Site, everywhere, region, visits
from worker.fleet import wait_until

# On each replica; the primary makes at most 50 of these writes a second.
CALLERS = 150
STRETCH = 10.0
TIMEOUT = 6.0
# As the product allows (GIVE_UP_GRACE), and as much again for two busy cores.
LATE = 10.0
MORE_THAN_FITS = 20_000
# A call with this timeout is sent at once and after five seconds.
COPIES = 2
# What one stretch more of the same load may add to a process: measured below 2 MB. With 15 kB kept
# of each call it was 5 MB.
GROWTH_BYTES = 3_500_000


def test_more_writes_than_the_primary_takes(small_site: Site) -> None:
    """Callers time out or are refused by their outbox, and then everything drains, once each."""
    site, replicas = small_site, sorted(small_site.replicas())
    called, submitted = region(site, "called"), region(site, "submitted")
    broker = site.redis.client()
    told: list[Any] = []
    ids: list[str] = []
    sizes: list[dict[str, int]] = []
    lengths: list[int] = []
    for _ in range(3):
        futures = [
            site.on(node).submit("db.overload", called, CALLERS, STRETCH, TIMEOUT)
            for node in replicas
        ]
        for node in replicas:
            ids += site.on(node).call("db.fill_outbox", submitted, MORE_THAN_FITS)
        lengths.append(0)
        while not all(future.done() for future in futures):
            lengths[-1] = max(lengths[-1], broker.llen(QUEUE))
            time.sleep(0.1)
        told += [future.result() for future in futures]
        sizes.append(memory(site))
    assert not [error for each in told for error in each["other"]]
    assert all(each["unknown"] for each in told)
    assert max(each["latest"] for each in told) < TIMEOUT + LATE
    assert len(ids) < MORE_THAN_FITS
    assert max(lengths) < len(ids) + COPIES * CALLERS * len(replicas), lengths
    drained(site, replicas)
    growth = {key: size - sizes[1][key] for key, size in sizes[2].items()}
    assert max(growth.values()) < GROWTH_BYTES, growth
    unknown = [write_id for each in told for write_id in each["unknown"]]
    made = sum(each["made"] for each in told) + committed(site, unknown)
    assert visits(site, called) == made
    assert committed(site, ids) == len(ids)
    assert visits(site, submitted) == len(ids)


def drained(site: Site, replicas: list[str]) -> None:
    """Wait until nothing waits any more, in the queue, at the primary or in an outbox."""
    broker = site.redis.client()

    def left() -> list[int]:
        waiting = [site.on(node).call("db.status")["outbox"]["waiting"] for node in replicas]
        return [broker.llen(QUEUE), site.unacknowledged(), *waiting]

    wait_until(lambda: not any(left()), 2 * PATIENCE, lambda: f"{left()} {site.tails()}", 0.2)


def committed(site: Site, ids: list[str]) -> int:
    """How many of these writes the ledger calls committed, on every node."""
    query = (
        "SELECT count(*) FROM json_each(?) CROSS JOIN _litefs_celery_ledger ON write_id = value "
        "WHERE outcome LIKE '%committed%'"
    )
    [(count,)] = everywhere(site, query, json.dumps(ids))
    return int(count)


def memory(site: Site) -> dict[str, int]:
    """The memory of its own of each process, and of Redis's data, in bytes."""
    pids = {f"worker {name}": each.worker.pid for name, each in site.processes.items()}
    pids |= {f"caller {name}": each.pid for name, each in site.callers.items()}
    sizes = {key: private(pid) for key, pid in pids.items()}
    return {**sizes, "redis": int(site.redis.client().info("memory")["used_memory"])}


def private(pid: int) -> int:
    """A process's proportional share of the memory it uses, in bytes (Linux's Pss)."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    [kilobytes] = [line.split()[1] for line in lines if line.startswith("Pss:")]
    return int(kilobytes) * 1024
