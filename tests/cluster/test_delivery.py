"""What becomes of a write between its caller and its row, on every kind of cluster."""

from __future__ import annotations

import json
import uuid
from typing import Any

import pytest

from tests.cluster.site import (
    PATIENCE,
    QUEUE,
    READING,
    CallError,
    OpenTransaction,
    Site,
    everywhere,
    known,
    region,
    visits,
)
from worker.fleet import wait_until

LEDGER = "_litefs_celery_ledger"
# More than a primary takes without acknowledging (prefetch_limit is 256).
MANY = 300


def submit_unserved(site: Site, caller: Any, name: str, **options: Any) -> Any:
    """A visit that waits, with its message in a queue whose consumer is dead."""
    site.processes[site.primary()].worker.kill()
    waiting = caller.submit("regions.visit", name, **options)
    wait_until(site.waiting, PATIENCE)
    return waiting


def test_a_write_whose_message_is_lost_is_sent_again(site: Site) -> None:
    """A waiting write takes effect once though its message was lost, and later turned up."""
    name, caller = region(site, "lost"), site.on(site.replicas()[0])
    write_id = str(uuid.uuid4())
    waiting = submit_unserved(site, caller, name, write_id=write_id, timeout=60)
    message = site.broker.take_all(QUEUE)[0]
    site.processes[site.primary()].worker.start()
    assert waiting.result(PATIENCE) == 1
    assert caller.call("db.resent", write_id)
    site.broker.put(QUEUE, message)
    assert caller.call("regions.visit", name) == 2
    assert visits(site, name) == 2


@pytest.mark.parametrize("tail", ["nobody had it", "the winner lacks it"])
def test_a_write_lost_with_its_primary_is_made_again(site: Site, tail: str) -> None:
    """A waiting write takes effect once though the primary that committed it died with it."""
    before, (winner, other) = site.primary(), site.cluster.replicas()
    name, caller, write_id = region(site, "tail"), site.on(winner.name), str(uuid.uuid4())
    waiting = submit_unserved(site, caller, name, write_id=write_id, timeout=80)
    try:
        winner.pause()
        if tail == "nobody had it":
            other.pause()
        site.processes[before].worker.start()
        wait_until(lambda: known(site, before, write_id), PATIENCE, site.tails)
        if tail == "the winner lacks it":
            wait_until(lambda: known(site, other.name, write_id), PATIENCE)
            other.pause()
        site.cluster.node(before).kill()
        winner.resume()
        wait_until(lambda: site.primary() == winner.name, PATIENCE)
    finally:
        winner.resume()
        other.resume()
    assert waiting.result(PATIENCE) == 1
    site.cluster.node(before).start()
    site.heal()
    assert visits(site, name) == 1
    assert everywhere(site, f"SELECT count(*) FROM {LEDGER} WHERE write_id = ?", write_id) == [(1,)]


def test_what_a_primary_took_and_did_not_run_is_handed_back(site: Site) -> None:
    """With its term a primary gives back what it has not run; the next one runs each once."""
    neighbour, heir = site.replicas()
    caller = site.on(neighbour)
    name = region(site, "back")
    query = "SELECT max(epoch) FROM _litefs_celery_terms"
    [(epoch,)] = everywhere(site, query)
    with site.gate() as gate:
        ids = [caller.call("gates.visit", name, gate.path, delay=True)]
        gate.wait_reached(site.tails)
        ids += [caller.call("regions.visit", name, delay=True) for _ in range(MANY)]
        wait_until(lambda: site.unacknowledged() >= 256, PATIENCE, site.tails)
        # Nobody else takes anything, so that what lies in the queue was given back.
        site.processes[heir].worker.kill()
        site.cluster.promote(heir, PATIENCE)
    wait_until(
        lambda: (site.unacknowledged(), site.waiting()) == (0, len(ids)), PATIENCE,
        lambda: f"{site.unacknowledged()} {site.waiting()} {site.tails()}",
    )
    site.processes[heir].worker.start()
    for write_id in ids:
        caller.call("db.await_outcome", write_id, 60)
    assert visits(site, name) == len(ids)
    query = f"SELECT min(epoch) FROM {LEDGER} WHERE write_id IN (SELECT value FROM json_each(?))"
    [(earliest,)] = everywhere(site, query, json.dumps(ids))
    assert earliest > epoch


def test_a_worker_killed_in_the_middle_of_a_group(site: Site) -> None:
    """After kill -9 half-way through a group, each of its writes takes effect once."""
    name, caller = region(site, "group"), site.on(site.replicas()[0])
    worker = site.processes[site.primary()].worker
    with site.gate() as first, site.gate() as second:
        ids = [caller.call("gates.visit", name, first.path, delay=True)]
        first.wait_reached(site.tails)
        # What comes while this one runs is the next group; it stops half-way.
        ids += [caller.call("regions.visit", name, delay=True) for _ in range(10)]
        ids += [caller.call("gates.visit", name, second.path, delay=True)]
        ids += [caller.call("regions.visit", name, delay=True) for _ in range(10)]
        wait_until(lambda: site.unacknowledged() == len(ids), PATIENCE, site.tails)
        first.open()
        second.wait_reached(site.tails)
        caller.call("db.await_outcome", ids[0], 30)
        assert site.unacknowledged() >= len(ids) - 1
        worker.kill()
    assert visits(site, name) == 1
    worker.start()
    for write_id in ids:
        caller.call("db.await_outcome", write_id, 60)
    assert visits(site, name) == len(ids)
    wait_until(lambda: site.unacknowledged() == 0, PATIENCE, site.tails)


def test_a_write_that_timed_out_is_found_committed(site: Site) -> None:
    """A caller told "unknown" learns that its write ran, once its node has replicated it."""
    name, replica, write_id = region(site, "unknown"), site.replicas()[0], str(uuid.uuid4())
    caller, results = site.on(replica), site.redis.client()
    with OpenTransaction(site.cluster.node(replica).database(), *READING, mode="ro"):
        waiting = caller.submit("regions.visit", name, write_id=write_id, timeout=4)
        # Beside the row there is the stored result; without it nothing is known here.
        wait_until(lambda: results.delete(f"celery-task-meta-{write_id}"), PATIENCE, site.tails)
        with pytest.raises(CallError) as unknown:
            waiting.result(PATIENCE)
        assert (unknown.value.kind, unknown.value.write_id) == ("WriteTimeout", write_id)
        assert caller.call("db.outcome", write_id) == "NoneType"
    caller.call("db.await_outcome", write_id, 30)
    assert caller.call("db.outcome", write_id) == "Committed"
    assert visits(site, name) == 1


def test_a_submitted_write_runs_until_its_own_deadline(site: Site) -> None:
    """Who stops waiting for a submitted write learns later that it ran, or that it expired."""
    name, caller = region(site, "later"), site.on(site.replicas()[0])
    worker = site.processes[site.primary()].worker
    worker.kill()
    long = caller.call("regions.visit", name, timeout=300, delay=True)
    short = caller.call("regions.visit", name, timeout=1, delay=True)
    for write_id in (long, short):
        with pytest.raises(CallError) as unknown:
            caller.call("db.await_outcome", write_id, 1)
        assert unknown.value.kind == "WriteTimeout"
        assert caller.call("db.outcome", write_id) == "NoneType"
    worker.start()
    caller.call("db.await_outcome", long, 60)
    with pytest.raises(CallError) as expired:
        caller.call("db.await_outcome", short, 60)
    assert expired.value.kind == "WriteExpired"
    outcomes = [caller.call("db.outcome", write_id) for write_id in (long, short)]
    assert outcomes == ["Committed", "Expired"]
    assert visits(site, name) == 1
