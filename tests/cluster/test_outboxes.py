"""What nodes with an outbox and a key keep, and what they refuse, on every kind of cluster."""

from __future__ import annotations

import json
import time
import uuid
from contextlib import closing
from typing import Any

import pytest
from celery import Celery

from litefs_celery.message import HEADER, header
from litefs_celery.signing import WriteSigner
from litefs_celery.tasks import Sender
from litefs_celery.wire import Write
from tests.cluster.site import (
    NEW_KEY,
    OLD_KEY,
    PATIENCE,
    QUEUE,
    REJECTED,
    SIGNING_KEYS,
    Site,
    Writers,
    code,
    everywhere,
    known,
    region,
    visits,
)
from worker.fleet import wait_until

COUNT = 20


def outbox(site: Site, node: str) -> Any:
    """What that node says of its outbox."""
    return site.on(node).call("db.status")["outbox"]


def test_submitted_writes_survive_a_broker_that_forgets(kept_site: Site) -> None:
    """A broker emptied before the primary took anything loses and doubles no submitted write."""
    site, replica = kept_site, kept_site.replicas()[0]
    name, caller = region(site, "forgot"), site.on(replica)
    worker = site.processes[site.primary()].worker
    worker.kill()
    ids = []
    for number in range(COUNT):
        ids.append(caller.call("regions.visit", name, delay=True))
        # Each in a message of its own, or there would be fewer.
        wait_until(lambda count=number: site.waiting() > count, PATIENCE)
    site.broker.forget()
    worker.start()
    for write_id in ids:
        caller.call("db.await_outcome", write_id, 60)
    assert visits(site, name) == COUNT
    wait_until(lambda: outbox(site, replica)["waiting"] == 0, PATIENCE, site.tails)


def test_submitting_needs_no_broker(kept_site: Site) -> None:
    """While the broker is away a write is submitted all the same, and goes out when it is back."""
    site, replica = kept_site, kept_site.replicas()[0]
    name, caller = region(site, "away"), site.on(replica)
    site.broker.kill()
    try:
        ids = [caller.call("regions.visit", name, delay=True) for _ in range(3)]
        assert outbox(site, replica)["waiting"] >= len(ids)
    finally:
        site.broker.start()
    for write_id in ids:
        caller.call("db.await_outcome", write_id, 60)
    assert visits(site, name) == len(ids)


def test_submitted_writes_of_one_key_keep_their_order(kept_site: Site) -> None:
    """Through a killed worker, an emptied broker and a handoff, each comes after the one before."""
    site, (origin, heir) = kept_site, sorted(kept_site.replicas())
    keys = {key: region(site, key) for key in ("first", "second")}
    caller = site.on(origin)
    worker = site.processes[site.primary()].worker
    faults = {15: worker.kill, 30: site.broker.forget, 45: worker.start,
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


def test_litefs_of_the_primary_is_killed_with_writes_in_flight(kept_site: Site) -> None:
    """After kill -9 another node goes on, the old one rejoins, nothing acknowledged is lost."""
    # With outboxes: without, a node that had not replicated the last writes may win.
    site, before = kept_site, kept_site.primary()
    writers = Writers(site, site.replicas(), code("kill"))
    writers.wait_for(30)
    site.cluster.node(before).kill()
    wait_until(lambda: site.primary() != before, PATIENCE)
    writers.wait_for(30)
    site.cluster.node(before).start()
    writers.wait_for(10)
    writers.stop()
    site.heal()
    for name in sorted(site.callers):
        wait_until(lambda name=name: outbox(site, name)["waiting"] == 0, PATIENCE, site.tails)
    writers.check()
    assert site.on(before).call("db.status")["role"] == "replica"


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


def visit(name: str) -> Write:
    """A visit as a process makes it that knows all but the key."""
    return Write.new(
        "worker.repositories.Regions.visit", json.dumps([[name], {}]), origin="b",
        deadline=time.time() + 600.0,
    )


def test_a_forged_write_changes_nothing(kept_site: Site) -> None:
    """Without the key nobody has a write run, on the queue or as a task; with it anybody has."""
    site = kept_site
    name, rejected = region(site, "forged"), site.waiting(REJECTED)
    key = site.processes[site.primary()].environ[SIGNING_KEYS]
    signers = [None, WriteSigner(("guessed-" * 8,), QUEUE), WriteSigner((key,), QUEUE)]
    writes = [visit(name) for _ in range(6)]
    with Celery("forger", broker=site.broker.url, set_as_current=False) as app:
        for signer, sent, astray in zip(signers, writes[:3], writes[3:], strict=True):
            with closing(Sender(app, QUEUE, timeout=5.0, signer=signer)) as sender:
                sender.publish([sent])
            app.send_task(
                astray.method, args=(astray.arguments,), task_id=astray.id,
                headers={HEADER: header([astray], signer)}, ignore_result=True,
            )
    caller = site.on(site.replicas()[0])
    assert caller.call("db.status")["signs"] is True
    for good in (writes[2], writes[5]):
        caller.call("db.await_outcome", good.id, 60)
    wait_until(lambda: site.waiting(REJECTED) == rejected + 4, PATIENCE, site.tails)
    assert caller.call("regions.visit", name) == 3
    assert visits(site, name) == 3
    query = "SELECT count(*) FROM _litefs_celery_ledger WHERE write_id IN (?, ?, ?, ?)"
    assert everywhere(site, query, *[writes[i].id for i in (0, 1, 3, 4)]) == [(0,)]


def test_a_rotation_of_keys_loses_nothing(kept_site: Site) -> None:
    """Node after node, step after step: what waits, what is sent and what is called is made."""
    site = kept_site
    name, rejected, made, ids = region(site, "keys"), site.waiting(REJECTED), 0, []
    nodes = [*site.replicas(), site.primary()]
    before = site.processes[nodes[0]].environ[SIGNING_KEYS]
    after = NEW_KEY if before == OLD_KEY else OLD_KEY
    for keys in (f"{before},{after}", f"{after},{before}", after):
        for node in nodes:
            site.processes[node].environ[SIGNING_KEYS] = keys
            if node == nodes[-1]:
                # Signed by nodes of this step, and taken by a worker that begins with it.
                site.processes[node].worker.stop()
            ids += [site.on(each).call("regions.visit", name, delay=True) for each in nodes]
            site.restart_worker(node)
            made += len([site.on(each).call("regions.visit", name) for each in nodes])
            site.restart_caller(node)
            made += len([site.on(each).call("regions.visit", name) for each in nodes])
    for write_id in ids:
        site.on(nodes[0]).call("db.await_outcome", write_id, 60)
    assert visits(site, name) == made + len(ids)
    assert site.waiting(REJECTED) == rejected
    told = site.logs()
    assert "TermStarted" in told
    assert not [key for key in (before, after) if key in told]
