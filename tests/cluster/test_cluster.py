"""What the whole promises, on every kind of cluster, through whatever dies."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import threading
import time
import uuid

import pytest

from tests.cluster.brokers import GARBAGE
from tests.cluster.site import (
    PATIENCE,
    QUEUE,
    READING,
    REJECTED,
    CallError,
    OpenTransaction,
    Site,
    Writers,
    code,
    everywhere,
    region,
    visit_in_tasks,
)
from worker.fleet import ROOT, wait_until


def litefs(site: Site, *arguments: str) -> subprocess.CompletedProcess[str]:
    """`celery -A worker litefs …` on the primary."""
    return site.processes[site.primary()].litefs(*arguments, cwd=ROOT, timeout=PATIENCE)


def test_status_names_one_primary_that_consumes(site: Site) -> None:
    """`celery litefs status` shows every node and exactly one consuming primary."""
    result = litefs(site, "status", "--json", "--timeout", "5")
    assert result.returncode == 0, result.stdout + result.stderr
    text = json.loads(result.stdout)
    assert site.primary() in json.dumps(text)
    for name in site.callers:
        assert site.on(name).call("db.status")["role"] == (
            "primary" if name == site.primary() else "replica"
        )


def test_a_write_on_the_primary_is_seen_on_the_replicas(site: Site) -> None:
    """What the primary's own process writes is replicated to every node."""
    name = region(site, "local")
    assert site.on(site.primary()).call("regions.visit", name) == 1
    assert everywhere(site, "SELECT visits FROM regions WHERE code = ?", name) == [(1,)]


def test_a_write_from_a_replica_is_readable_there_when_it_returns(site: Site) -> None:
    """A caller on a replica reads its own write from its own node at once, every time."""
    for name in site.replicas():
        key = code("own")
        inserted = site.on(name).call("db.insert", {"code": key, "name": key})
        assert inserted["id"] > 0
        for visit in range(1, 6):
            assert site.on(name).call("regions.visit", key) == visit
            assert site.on(name).call("db.visits", key) == visit


def test_bulk_writes_travel(site: Site) -> None:
    """Many rows and criteria-based updates from a replica are one write each."""
    caller, country = site.on(site.replicas()[0]), code("C")
    rows = [{"code": code("bulk"), "name": "x", "country": country} for _ in range(300)]
    assert len(caller.call("db.insert_all", rows)) == 300
    assert caller.call("db.update_all", country, 7) == 300
    query = "SELECT count(*), sum(visits) FROM regions WHERE country = ?"
    assert everywhere(site, query, country) == [(300, 2100)]


def test_a_transaction_from_a_replica_is_all_or_nothing(site: Site) -> None:
    """A method of several statements commits whole, or leaves nothing when its last one fails."""
    caller = site.on(site.replicas()[0])
    giver, taker = code("giver"), code("taker")
    caller.call("db.account", giver, 100)
    caller.call("db.account", taker, 0)
    assert caller.call("accounts.transfer", giver, taker, 60) == 40
    with pytest.raises(CallError) as refused:
        caller.call("accounts.transfer", giver, taker, 60)
    assert refused.value.kind == "IntegrityError"
    query = "SELECT owner, balance FROM accounts WHERE owner IN (?, ?) ORDER BY owner"
    assert everywhere(site, query, giver, taker) == [(giver, 40), (taker, 60)]


def test_an_exception_on_the_primary_is_caught_on_the_replica(site: Site) -> None:
    """The method's own exception, and SQLite's with its error name, reach the caller."""
    caller = site.on(site.replicas()[0])
    with pytest.raises(CallError) as unknown:
        caller.call("regions.visit", "nowhere")
    assert unknown.value.kind == "UnknownRegion"
    name = region(site, "twice")
    with pytest.raises(CallError) as doubled:
        caller.call("db.insert", {"code": name, "name": name})
    assert (doubled.value.kind, doubled.value.sqlite_errorname) == (
        "IntegrityError", "SQLITE_CONSTRAINT_UNIQUE",
    )


def test_waiting_inside_a_read_transaction_is_refused(site: Site) -> None:
    """A wait that would stop this node's replication is refused before anything is sent."""
    name = region(site, "open")
    with pytest.raises(CallError) as refused:
        site.on(site.replicas()[0]).call("db.read_in_session_and_write", name)
    assert refused.value.kind == "OpenReadTransaction"
    assert everywhere(site, "SELECT visits FROM regions WHERE code = ?", name) == [(0,)]


def test_submitted_writes_take_effect_once_each(site: Site) -> None:
    """`.delay()` from a replica returns an id whose outcome that node can read later."""
    name, caller = region(site, "delay"), site.on(site.replicas()[0])
    ids = [caller.call("regions.visit", name, delay=True) for _ in range(50)]
    for write_id in ids:
        caller.call("db.await_outcome", write_id, 30)
    assert everywhere(site, "SELECT visits FROM regions WHERE code = ?", name) == [(50,)]


def test_awaited_writes_share_an_event_loop(site: Site) -> None:
    """`.aio()` from a replica gives each awaiting call its value, which is readable there."""
    name, caller = region(site, "aio"), site.on(site.replicas()[0])
    assert caller.call("db.visit_together", name, 20) == [*range(1, 21), 20]


def test_a_read_runs_beside_the_data_of_the_node_it_names(site: Site) -> None:
    """A submitted read runs in the worker of the node it names, else of its caller's own node."""
    workers = {name: processes.worker.pid for name, processes in site.processes.items()}
    for here in site.callers:
        for node in ("", *site.callers):
            # The worker's own process, or one of its pool.
            assert os.getpgid(site.on(here).call("db.where", node)) == workers[node or here]
        assert os.getpgid(site.on(here).call("db.where_now")) not in workers.values()


def test_promote_with_writers_running(site: Site) -> None:
    """A graceful handoff under load loses and doubles nothing, and raises at no caller."""
    before = site.primary()
    writers = Writers(site, sorted(site.callers), code("promote"), threads=2)
    writers.wait_for(20)
    target = site.replicas()[0]
    site.cluster.promote(target, PATIENCE)
    site_moves(site, away_from=before)
    writers.wait_for(20)
    writers.stop()
    site.heal()
    assert not writers.errors
    writers.check()


def site_moves(site: Site, *, away_from: str) -> None:
    wait_until(lambda: site.primary() != away_from, PATIENCE)


def test_worker_of_the_primary_is_killed_in_the_middle_of_groups(site: Site) -> None:
    """After kill -9 of the consuming worker its successor finishes what it held, once."""
    writers = Writers(site, site.replicas(), code("worker"), threads=8)
    worker = site.processes[site.primary()].worker
    for _ in range(3):
        writers.wait_for(40)
        worker.kill()
        worker.start()
    writers.wait_for(20)
    writers.stop()
    site.heal()
    assert not writers.errors
    writers.check()


def test_broker_is_restarted(site: Site) -> None:
    """A broker that dies and comes back costs no write and leaves every worker consuming."""
    writers = Writers(site, site.replicas(), code("broker"))
    writers.wait_for(20)
    site.broker.kill()
    refused_at = time.monotonic()
    wait_until(lambda: time.monotonic() - refused_at > 2, PATIENCE)
    site.broker.start()
    for processes in site.processes.values():
        processes.worker.start()  # a supervisor's part: celery 5.7.0 may exit
    writers.wait_for(20)
    writers.stop()
    site.heal()
    writers.check()


def test_callers_wait_while_there_is_no_primary(site: Site) -> None:
    """Writes called for while nobody is primary, for 20 s, take effect once one is."""
    name, before, caller = region(site, "gap"), site.primary(), site.on(site.replicas()[0])
    emulated = hasattr(site.cluster, "set_candidate")
    if emulated:
        for replica in site.replicas():
            site.cluster.set_candidate(replica, candidate=False)
    site.cluster.node(before).kill()
    killed_at = time.monotonic()
    waiting = [caller.submit("regions.visit", name, timeout=80) for _ in range(10)]
    if emulated:
        wait_until(lambda: time.monotonic() - killed_at > 20, PATIENCE)
        assert not any(future.done() for future in waiting)
        for node in site.cluster.replicas():
            site.cluster.set_candidate(node.name, candidate=True)
    site_moves(site, away_from=before)
    assert sorted(future.result(PATIENCE) for future in waiting) == list(range(1, 11))
    site.heal()
    assert everywhere(site, "SELECT visits FROM regions WHERE code = ?", name) == [(10,)]


def test_a_timeout_hides_nothing(site: Site) -> None:
    """A caller that timed out learns later that its write expired and never ran."""
    name, caller = region(site, "late"), site.on(site.replicas()[0])
    worker = site.processes[site.primary()].worker
    worker.send(signal.SIGSTOP)
    try:
        with pytest.raises(CallError) as timeout:
            caller.call("regions.visit", name, timeout=1.0)
        assert timeout.value.kind == "WriteTimeout"
        assert caller.call("db.outcome", timeout.value.write_id) == "NoneType"
    finally:
        worker.send(signal.SIGCONT)
    outcome = wait_until(
        lambda: (found := caller.call("db.outcome", timeout.value.write_id)) != "NoneType"
        and found,
        PATIENCE, site.tails,
    )
    assert outcome == "Expired"
    assert everywhere(site, "SELECT visits FROM regions WHERE code = ?", name) == [(0,)]


def test_committed_but_not_here_yet_is_told_apart(site: Site) -> None:
    """A replica that does not replicate gets NotYetVisible, and the outcome once it does."""
    name, replica = region(site, "frozen"), site.replicas()[0]
    caller, node = site.on(replica), site.cluster.node(replica)
    with OpenTransaction(node.database(), *READING, mode="ro"):
        with pytest.raises(CallError) as early:
            caller.call("regions.visit", name, timeout=2.0)
        assert early.value.kind == "NotYetVisible"
    caller.call("db.await_outcome", early.value.write_id, 30)
    assert everywhere(site, "SELECT visits FROM regions WHERE code = ?", name) == [(1,)]


def test_the_same_message_three_times_takes_effect_once(site: Site) -> None:
    """Whatever the broker delivers again is answered from the ledger."""
    name, caller = region(site, "thrice"), site.on(site.replicas()[0])
    worker = site.processes[site.primary()].worker
    worker.kill()
    waiting = caller.submit("regions.visit", name, timeout=60)
    wait_until(site.waiting, PATIENCE)
    message = site.broker.take_all(QUEUE)[0]
    site.broker.put(QUEUE, message, message, message)
    worker.start()
    assert waiting.result(PATIENCE) == 1
    wait_until(lambda: site.waiting() == 0, PATIENCE, site.tails)
    assert site.on(site.primary()).call("regions.visit", name) == 2
    assert everywhere(site, "SELECT visits FROM regions WHERE code = ?", name) == [(2,)]


def test_what_is_no_write_is_set_aside(site: Site) -> None:
    """Malformed, foreign and truncated messages are kept aside; writing goes on."""
    name, caller = region(site, "junk"), site.on(site.replicas()[0])
    pid = site.processes[site.primary()].worker.pid
    before = site.waiting(REJECTED)
    for garbage in GARBAGE:
        site.broker.put_raw(QUEUE, garbage)
    assert caller.call("regions.visit", name) == 1
    wait_until(
        lambda: site.waiting(REJECTED) == before + len(GARBAGE), PATIENCE,
        lambda: f"{site.waiting(REJECTED)} {site.tails()}",
    )
    assert site.processes[site.primary()].worker.pid == pid
    assert site.processes[site.primary()].worker.is_alive()


def test_many_callers_at_once(site: Site) -> None:
    """64 callers on two replicas all get their own answer, and nothing is lost or doubled."""
    name = region(site, "many")
    calls = [
        site.on(node).submit("regions.visit", name)
        for node in site.replicas()[:2] for _ in range(32)
    ]
    assert sorted(call.result(PATIENCE) for call in calls) == list(range(1, 65))


def test_a_write_needs_no_slot_of_the_users_pool(site: Site) -> None:
    """Tasks that fill every slot of the pool can still write and wait for it."""
    name, replica = region(site, "slots"), site.replicas()[0]
    assert visit_in_tasks(site, name, tasks=8, visits=5) == [5] * 8
    assert site.on(replica).call("regions.visit", name) == 41


def test_callers_on_every_node_at_once_after_two_moves(site: Site) -> None:
    """Moving the primary to and fro leaves one consumer, and every node still writes."""
    first = site.primary()
    for target in (site.replicas()[0], first):
        site.cluster.promote(target, PATIENCE)
        wait_until(lambda target=target: site.primary() == target, PATIENCE)
    name = region(site, "moves")
    barrier = threading.Barrier(3)

    def write(node: str) -> int:
        barrier.wait()
        value: int = site.on(node).call("regions.visit", name)
        return value

    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(3) as pool:
        assert sorted(pool.map(write, sorted(site.callers))) == [1, 2, 3]


def test_a_node_reads_on_after_its_litefs_was_killed(site: Site) -> None:
    """Once LiteFS is back on a node, the processes there read at once, and ask for outcomes."""
    name, replica, write_id = region(site, "reads"), site.replicas()[0], str(uuid.uuid4())
    caller, node = site.on(replica), site.cluster.node(replica)
    assert caller.call("regions.visit", name, write_id=write_id) == 1
    assert caller.call("db.visits", name) == 1
    node.kill()
    node.start()
    site.cluster.wait_synced(PATIENCE)
    back_at = time.monotonic()
    assert caller.call("db.outcome", write_id) == "Committed"
    assert caller.call("db.visits", name) == 1
    # SQLite itself tries for ten seconds to read a WAL that was opened before.
    assert time.monotonic() - back_at < 5
