"""Submitted writes of nodes with an outbox, on every kind of cluster."""

from __future__ import annotations

import uuid
from typing import Any

import pytest

from tests.cluster.site import PATIENCE, QUEUE, Site, everywhere, known, region, visits
from worker.fleet import wait_until

COUNT = 20


def outbox(site: Site, node: str) -> Any:
    """What that node says of its outbox."""
    return site.on(node).call("db.status")["outbox"]


def test_submitted_writes_survive_a_broker_that_forgets(kept_site: Site) -> None:
    """A broker emptied before the primary took anything loses and doubles no submitted write."""
    site, replica = kept_site, kept_site.replicas()[0]
    name, caller, broker = region(site, "forgot"), site.on(replica), site.redis.client()
    worker = site.processes[site.primary()].worker
    worker.kill()
    ids = [caller.call("regions.visit", name, delay=True) for _ in range(COUNT)]
    wait_until(lambda: broker.llen(QUEUE) >= COUNT, PATIENCE)
    broker.flushall()
    worker.start()
    for write_id in ids:
        caller.call("db.await_outcome", write_id, 60)
    assert visits(site, name) == COUNT
    wait_until(lambda: outbox(site, replica)["waiting"] == 0, PATIENCE, site.tails)


def test_submitting_needs_no_broker(kept_site: Site) -> None:
    """While the broker is away a write is submitted all the same, and goes out when it is back."""
    site, replica = kept_site, kept_site.replicas()[0]
    name, caller = region(site, "away"), site.on(replica)
    site.redis.kill()
    try:
        ids = [caller.call("regions.visit", name, delay=True) for _ in range(3)]
        assert outbox(site, replica)["waiting"] >= len(ids)
    finally:
        site.redis.start()
    for write_id in ids:
        caller.call("db.await_outcome", write_id, 60)
    assert visits(site, name) == len(ids)


def test_submitted_writes_of_one_key_keep_their_order(kept_site: Site) -> None:
    """Through a killed worker, an emptied broker and a handoff, each comes after the one before."""
    site, (origin, heir) = kept_site, sorted(kept_site.replicas())
    keys = {key: region(site, key) for key in ("first", "second")}
    caller, broker = site.on(origin), site.redis.client()
    worker = site.processes[site.primary()].worker
    faults = {15: worker.kill, 30: broker.flushall, 45: worker.start,
              60: lambda: site.cluster.promote(heir, PATIENCE)}
    ids = []
    for number in range(90):
        faults.get(number, lambda: None)()
        ids += [
            caller.call("gates.append", name, f",{number}", delay=True, order_key=key)
            for key, name in keys.items()
        ]
    for write_id in ids:
        caller.call("db.await_outcome", write_id, 60)
    site.heal()
    for name in keys.values():
        [(text,)] = everywhere(site, "SELECT name FROM regions WHERE code = ?", name)
        assert text.split(",")[1:] == [str(number) for number in range(90)]


@pytest.mark.parametrize("call", ["submitted", "awaited"])
@pytest.mark.parametrize("origin_is", ["a replica", "the old primary"])
def test_a_write_that_a_stale_winner_lacks_is_made_again(
    kept_site: Site, origin_is: str, call: str
) -> None:
    """Seen by its origin and lost in an election, a kept write takes effect once after all."""
    site, before = kept_site, kept_site.primary()
    other, stale = site.cluster.replicas()
    origin = before if origin_is == "the old primary" else other.name
    name, caller = region(site, "stale"), site.on(origin)
    # Down, not only paused: what a paused one has in its sockets it would still read.
    stale.kill()
    try:
        write_id = str(uuid.uuid4())
        # Its deadline has passed by the time that its loss is noticed.
        options = {"delay": True} if call == "submitted" else {"timeout": 10}
        caller.call("regions.visit", name, write_id=write_id, **options)
        wait_until(lambda: known(site, origin, write_id), PATIENCE, site.tails)
        wait_until(lambda: outbox(site, origin)["waiting"] == 0, PATIENCE, site.tails)
        other.pause()
        site.cluster.node(before).kill()
        stale.start()
        wait_until(lambda: site.primary() == stale.name, PATIENCE)
    finally:
        other.resume()
    # In WAL mode a worker can end with its LiteFS (SIGBUS): a supervisor starts it again.
    site.processes[stale.name].worker.start()
    assert not known(site, stale.name, write_id)
    site.cluster.node(before).start()
    wait_until(lambda: known(site, stale.name, write_id), PATIENCE, site.tails)
    site.heal()
    assert visits(site, name) == 1
    query = "SELECT count(*) FROM _litefs_celery_ledger WHERE write_id = ?"
    assert everywhere(site, query, write_id) == [(1,)]
