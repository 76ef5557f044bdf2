"""A primary that is cut off by dropped packets: from Consul and the others, the broker, or all."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from typing import Any

import pytest
import requests

from litefs_celery.emulator.real import RealCluster, missing_programs
from tests.cluster.network import Network, missing_network
from tests.cluster.site import PATIENCE, QUEUE, CallError, Site, Writers, code, region, visits
from worker.fleet import wait_until

MISSING = ", ".join(missing_programs()) or missing_network()
pytestmark = pytest.mark.skipif(
    bool(MISSING), reason=f"SPLIT BRAIN DID NOT RUN: no LiteFS in network namespaces ({MISSING})"
)
NAMES = ("a", "b", "c")
# How much later than its deadline a caller may be told: the last look, on two busy cores.
LATE = 5.0


class Cut:
    """A site in a network, and the node of it that is primary when the packets stop."""

    def __init__(self, site: Site, network: Network) -> None:
        self.site = site
        self.network = network
        self.old = site.primary()
        self.others = site.replicas()

    def off(self, *more: str) -> None:
        """Cut the old primary off from Consul and the other nodes, and from what is named."""
        self.network.cut(self.old, "consul", *self.others, *more)
        for name in self.others:
            self.network.reset(name, self.old)

    def mend(self) -> None:
        """Let all packets through."""
        for name in NAMES:
            self.network.mend(name)

    def second(self) -> str:
        """Wait until another node is primary, beside the old one; its name."""
        name: str = wait_until(lambda: set(self.primaries()) - {self.old}, PATIENCE).pop()
        assert self.old in self.primaries()
        return name

    def primaries(self) -> list[str]:
        """Whose LiteFS says it is primary."""
        return [name for name in NAMES if self._says_primary(name)]

    def _says_primary(self, name: str) -> bool:
        with requests.Session() as session:
            session.trust_env = False
            url = f"{self.site.cluster.node(name).api_url}/info"
            return bool(session.get(url, timeout=5).json().get("isPrimary"))

    def status(self) -> Any:
        """What `litefs status` says on another node."""
        node = self.site.processes[self.others[0]]
        ended = node.litefs("status", "--json", "--timeout", "3", timeout=PATIENCE)
        return json.loads(ended.stdout)["databases"]["default"]

    def settle(self, writers: Writers) -> None:
        """Everything back, and each write that was acknowledged once on every node."""
        self.mend()
        writers.wait_for(20)
        writers.stop()
        # In WAL mode LiteFS may end itself when it loses the role, and a worker with it.
        wait_until(lambda: len(self.primaries_alive()) == 1, PATIENCE, self.site.tails)
        self.site.heal()
        broker = self.site.redis.client()
        wait_until(
            lambda: not broker.llen(QUEUE) and not self.site.unacknowledged(), PATIENCE,
            self.site.tails,
        )
        failures = [""]

        def right() -> bool:
            try:
                writers.check()
            except AssertionError as error:
                failures.append(str(error))
                return False
            return True

        wait_until(right, PATIENCE, lambda: failures[-1])

    def primaries_alive(self) -> list[str]:
        """The same, of the nodes that are alive."""
        alive = [node.name for node in self.site.cluster.nodes if node.is_alive()]
        return [name for name in alive if self._says_primary(name)]


@pytest.fixture(scope="module", params=["delete", "wal"])
def running(
    request: pytest.FixtureRequest, tmp_path_factory: Any
) -> Iterator[tuple[Site, Network]]:
    """A site of three nodes in namespaces, each with an outbox that keeps all."""
    directory = tmp_path_factory.mktemp("split")
    network = Network(NAMES)
    hosts = {}
    environ = {
        "LITEFS_CELERY_OUTBOX_DIR": str(directory / "outbox"),
        "LITEFS_CELERY_OUTBOX_RESEND_INTERVAL": "3",
        "LITEFS_CELERY_OUTBOX_KEEPS": "all",
    }
    site = None
    try:
        network.start()
        hosts = {name: network.host(name) for name in (*NAMES, "consul", "redis")}
        cluster = RealCluster(directory / "cluster", NAMES, hosts=hosts)
        site = Site(cluster, directory, request.param, "threads", environ, hosts=hosts)
        site.start()
        yield site, network
    finally:
        if site is not None:
            site.stop()
        network.stop()


@pytest.fixture
def cut(running: tuple[Site, Network]) -> Iterator[Cut]:
    """The site, healthy, nobody cut off yet."""
    site, network = running
    site.heal()
    cut = Cut(site, network)
    try:
        yield cut
    finally:
        cut.mend()


def test_a_primary_cut_off_from_consul_stands_back_when_it_hears_of_another(cut: Cut) -> None:
    """Two are primary; the earlier one takes no more writes, and what it told is made again."""
    site, old = cut.site, cut.old
    writers = Writers(site, list(NAMES), code("consul"), threads=2)
    name = region(site, "told")
    writers.wait_for(50)
    cut.off()
    assert site.on(old).call("regions.visit", name) == 1
    submitted = site.on(old).call("regions.visit", name, delay=True)
    new = cut.second()
    wait_until(lambda: site.consumes(new) and not site.consumes(old), PATIENCE, site.tails)
    # Its own processes do not commit either; its outbox sends it to the other primary.
    with pytest.raises(CallError, match="NotYetVisible"):
        site.on(old).call("regions.visit", name, timeout=15)
    assert set(cut.primaries()) == {old, new}
    for other in cut.others:
        assert site.on(other).call("regions.visit", region_on(site, other)) == 1
    found = cut.status()
    rows = {row["node"]: row for row in found["nodes"]}
    assert found["primary"] == new
    assert [row["node"] for row in found["nodes"] if row["consuming"]] == [new]
    assert rows[new]["epoch"] > rows[old]["epoch"]
    assert [text for text in found["problems"] if f"{new} holds epoch" in text and old in text]
    cut.settle(writers)
    site.on(old).call("db.await_outcome", submitted, 60)
    wait_until(lambda: visits(site, name) == 3, PATIENCE, site.tails)


def test_a_primary_cut_off_from_its_broker_stops_consuming(cut: Cut) -> None:
    """The role stays, callers elsewhere wait until their deadlines, then all goes on."""
    site, old, (one, two) = cut.site, cut.old, cut.others
    writers = Writers(site, list(NAMES), code("broker"), threads=2)
    name = region(site, "waits")
    epoch = site.on(old).call("db.status")["epoch"]
    writers.wait_for(50)
    cut.network.cut(old, "redis")
    wait_until(lambda: not site.consumes(old), PATIENCE, site.tails)
    assert told(site, one, name, 3.0).kind == "WriteTimeout"
    cut.network.cut(two, "redis")
    error = told(site, two, name, 3.0)
    assert (error.kind, error.may_have_been_sent) == ("BrokerUnavailable", True)
    assert site.on(old).call("regions.visit", name) == 1
    assert cut.primaries() == [old]
    cut.settle(writers)
    assert site.primary() == old
    assert site.on(one).call("db.status")["epoch"] == epoch
    assert site.on(two).call("regions.visit", name) == 2


def test_what_a_primary_cut_off_from_everything_told_is_made_again(cut: Cut) -> None:
    """The others go on under a new primary, and after the cut nothing is lost or doubled."""
    site, old = cut.site, cut.old
    writers = Writers(site, list(NAMES), code("all"), threads=2)
    name = region(site, "alone")
    writers.wait_for(50)
    cut.off("redis")
    new = cut.second()
    for count in range(1, 6):
        assert site.on(old).call("regions.visit", name) == count
    submitted = site.on(old).call("regions.visit", name, delay=True)
    wait_until(lambda: site.consumes(new), PATIENCE, site.tails)
    for other in cut.others:
        assert site.on(other).call("regions.visit", region_on(site, other)) == 1
    cut.settle(writers)
    assert site.primary() == new
    site.on(old).call("db.await_outcome", submitted, 60)
    wait_until(lambda: visits(site, name) == 6, PATIENCE, site.tails)


def region_on(site: Site, node: str) -> str:
    """A new region's code, inserted by a call on that node."""
    name = code("new")
    site.on(node).call("db.insert", {"code": name, "name": name})
    return name


def told(site: Site, node: str, name: str, timeout: float) -> CallError:
    """What a visit called on a node raises, at its deadline."""
    began = time.monotonic()
    with pytest.raises(CallError) as caught:
        site.on(node).call("regions.visit", name, timeout=timeout)
    assert time.monotonic() - began < timeout + LATE
    assert caught.value.write_id
    return caught.value
