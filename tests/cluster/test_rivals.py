"""A primary that hears of another node's later term, on every kind of cluster."""

from __future__ import annotations

import time

import pytest
from celery import Celery

from litefs_celery.rivals import TERM_HELD
from tests.cluster.site import PATIENCE, QUEUE, CallError, Site, region, visits
from worker.fleet import wait_until


def announce(site: Site, since: float) -> None:
    """Say to all workers what a primary's worker says, of a node that is none."""
    facts = {"queue": QUEUE, "node": "stranger", "epoch": 1, "since": since}
    with Celery("stranger", broker=site.broker.url, set_as_current=False) as app:
        ask = {"destination": [f"worker@{site.primary()}"], "reply": True, "limit": 1}

        def answers() -> bool:
            return bool(app.control.broadcast("ping", timeout=1, **ask))

        # Commands are taken in order: who answers the second ping has heard.
        wait_until(answers, PATIENCE, site.tails)
        app.control.broadcast(TERM_HELD, arguments=facts)
        wait_until(answers, PATIENCE, site.tails)


def test_a_false_alarm_ends_by_itself(site: Site) -> None:
    """While it hears of a later term a primary takes and makes no writes; soon after, it does."""
    primary, replica = site.primary(), site.replicas()[0]
    name = region(site, "alarm")
    announce(site, time.time())
    wait_until(lambda: not site.consumes(primary), PATIENCE, site.tails)
    for node in (primary, replica):
        with pytest.raises(CallError) as caught:
            site.on(node).call("regions.visit", name, timeout=2)
        assert caught.value.kind == "WriteTimeout"
    assert site.primary() == primary
    assert site.on(replica).call("regions.visit", name, timeout=60) == 1
    assert site.consumes(primary)
    assert visits(site, name) == 1


def test_an_earlier_term_alarms_nobody(site: Site) -> None:
    """What comes late, or from a primary that was one before, does not hold up a write."""
    primary, replica = site.primary(), site.replicas()[0]
    name = region(site, "earlier")
    log = site.processes[primary].worker.log
    ended = log.read_text(errors="replace").count("TermEnded")
    announce(site, time.time() - 86_400)
    announce(site, 0.0)
    assert site.on(replica).call("regions.visit", name) == 1
    assert site.on(primary).call("regions.visit", name) == 2
    assert log.read_text(errors="replace").count("TermEnded") == ended
