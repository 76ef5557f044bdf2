"""Each kind of fault: what it needs, how it begins, and how it ends."""

from __future__ import annotations

import signal
from collections.abc import Callable
from dataclasses import dataclass

from tests.chaos.scene import Scene
from tests.chaos.storm import Kind
from tests.cluster.site import PATIENCE
from worker.fleet import wait_until

# So many acknowledged writes are to be unknown to the stale node that wins.
MISSED = 10


@dataclass(frozen=True)
class Begun:
    """A fault that has begun: whom it meets, and what ends it."""

    whom: str
    end: Callable[[], None]


Begin = Callable[[Scene, float], Begun]


def _nothing() -> None:
    pass


def worker_killed(scene: Scene, pick: float) -> Begun:
    """``kill -9`` of a node's worker."""
    name = scene.choose_node(pick)
    worker = scene.site.processes[name].worker
    scene.held.add(f"worker {name}")
    worker.kill()
    return Begun(name, lambda: scene.held.discard(f"worker {name}"))


def litefs_killed_on_primary(scene: Scene, pick: float) -> Begun:
    """``kill -9`` of the primary's LiteFS: another node wins."""
    return _litefs_killed(scene, scene.site.primary())


def litefs_killed_on_replica(scene: Scene, pick: float) -> Begun:
    """``kill -9`` of a replica's LiteFS."""
    scene.site.primary()
    return _litefs_killed(scene, scene.choose(pick, scene.site.replicas()))


def _litefs_killed(scene: Scene, name: str) -> Begun:
    node = scene.site.cluster.node(name)
    scene.held.add(f"node {name}")
    node.kill()

    def end() -> None:
        node.start()
        scene.held.discard(f"node {name}")

    return Begun(name, end)


def handoff(scene: Scene, pick: float) -> Begun:
    """The primary hands its role to a replica."""
    before = scene.site.primary()
    target = scene.choose(pick, scene.site.replicas())
    scene.site.cluster.promote(target, PATIENCE)
    return Begun(f"{before} to {target}", _nothing)


def broker_restarted(scene: Scene, pick: float) -> Begun:
    """``kill -9`` of the broker, which comes back with what it had."""
    scene.site.broker.kill()
    return Begun("", scene.site.broker.start)


def broker_emptied(scene: Scene, pick: float) -> Begun:
    """``FLUSHALL``, a purge: every message is gone, on Redis every stored result as well."""
    scene.site.broker.forget()
    return Begun("", _nothing)


def origin_killed(scene: Scene, pick: float) -> Begun:
    """``kill -9`` of a calling process in the middle of its calls."""
    name = scene.choose(pick, scene.able())
    scene.site.restart_caller(name)
    return Begun(name, _nothing)


def primary_cut_off(scene: Scene, pick: float) -> Begun:
    """The primary's worker and callers reach no broker; connections stay open and silent."""
    name = scene.primary()
    scene.links[name].cut()
    return Begun(name, scene.links[name].join)


def replica_cut_off(scene: Scene, pick: float) -> Begun:
    """The same, of another node."""
    name = scene.choose(pick, [name for name in scene.names if name != scene.primary()])
    scene.links[name].cut()
    return Begun(name, scene.links[name].join)


def worker_paused_past_its_term(scene: Scene, pick: float) -> Begun:
    """SIGSTOP of the primary's worker, which goes on when another node has long been primary."""
    name = scene.site.primary()
    target = scene.choose(pick, scene.site.replicas())
    scene.held.add(f"worker {name}")
    scene.signal_worker(name, signal.SIGSTOP)
    scene.site.cluster.promote(target, PATIENCE)

    def end() -> None:
        scene.signal_worker(name, signal.SIGCONT)
        scene.held.discard(f"worker {name}")

    return Begun(f"{name}, while {target} is primary", end)


def litefs_paused(scene: Scene, pick: float) -> Begun:
    """SIGSTOP of the primary's LiteFS, which goes on as the primary that it was."""
    name = scene.site.primary()
    node = scene.site.cluster.node(name)
    scene.held.add(f"node {name}")
    node.pause()

    def end() -> None:
        node.resume()
        scene.held.discard(f"node {name}")

    return Begun(name, end)


def litefs_paused_past_its_lease(scene: Scene, pick: float) -> Begun:
    """The same, and another node wins meanwhile: when it goes on there are two for a moment."""
    candidates = scene.site.replicas()
    begun = litefs_paused(scene, pick)
    # The replicas of a silent primary do not look for another while its connections are open
    # (litefs 0.5.14), nor does one that is started before the lease has run out.
    winner = scene.choose(pick, candidates)
    node = scene.site.cluster.node(winner)
    scene.held.add(f"node {winner}")
    node.kill()
    wait_until(lambda: not scene.site.cluster.is_leased(), PATIENCE)
    node.start()
    scene.held.discard(f"node {winner}")
    wait_until(lambda: scene.site.primary() == winner, PATIENCE)
    return Begun(f"{begun.whom}, while {winner} is primary", begun.end)


def outbox_disk_full(scene: Scene, pick: float) -> Begun:
    """No room on the disk of a node's outbox."""
    name = scene.choose_node(pick)
    scene.outboxes[name].fill()
    return Begun(name, scene.outboxes[name].free)


def data_disk_full(scene: Scene, pick: float) -> Begun:
    """No room on the disk where the primary's LiteFS keeps the database."""
    name = scene.primary()
    scene.data[name].fill()
    return Begun(name, scene.data[name].free)


def stale_winner(scene: Scene, pick: float) -> Begun:
    """A node wins that missed acknowledged writes; LiteFS takes them from the others as well."""
    site, before = scene.site, scene.site.primary()
    site.cluster.wait_synced(PATIENCE)
    stale = scene.choose(pick, site.replicas())
    [other] = [name for name in scene.names if name not in (before, stale)]
    nodes = {name: site.cluster.node(name) for name in scene.names}
    scene.held |= {f"node {name}" for name in scene.names}
    # Down, not only paused: what a paused one has in its sockets it would still read.
    nodes[stale].kill()
    goal = scene.log.acknowledged + MISSED
    wait_until(lambda: scene.log.acknowledged >= goal, PATIENCE, site.tails)
    nodes[other].pause()
    nodes[before].kill()
    nodes[stale].start()
    wait_until(lambda: site.primary() == stale, PATIENCE)
    scene.held.discard(f"node {stale}")

    def end() -> None:
        nodes[other].resume()
        nodes[before].start()
        scene.held -= {f"node {name}" for name in scene.names}

    return Begun(f"{stale} instead of {before}", end)


def all_kinds(scene: Scene) -> dict[str, tuple[Kind, Begin]]:
    """What can happen on this site; on real LiteFS an election takes its time."""
    real = scene.real
    moves = (8.0, 14.0) if real else (2.0, 5.0)
    kinds: dict[str, tuple[Kind, Begin]] = {
        "worker killed": (Kind("worker", (0.5, 4.0)), worker_killed),
        "LiteFS killed on primary": (Kind("cluster", moves), litefs_killed_on_primary),
        "LiteFS killed on replica": (Kind("cluster", (1.0, 5.0)), litefs_killed_on_replica),
        "handoff": (Kind("cluster", (1.0, 2.0)), handoff),
        "broker restarted": (Kind("broker", (0.5, 4.0)), broker_restarted),
        "broker emptied": (Kind("broker"), broker_emptied),
        "origin killed": (Kind("origin"), origin_killed),
        "primary cut off": (Kind("link", (3.0, 7.0)), primary_cut_off),
        "replica cut off": (Kind("link", (3.0, 7.0)), replica_cut_off),
        "worker paused past its term": (Kind("cluster", (2.0, 5.0)), worker_paused_past_its_term),
        "LiteFS paused": (Kind("cluster", moves), litefs_paused),
        "stale winner": (Kind("cluster", (2.0, 4.0)), stale_winner),
    }
    if real:  # an emulated lease lasts as long as its process
        kinds["LiteFS paused past its lease"] = (
            Kind("cluster", (0.5, 3.0)), litefs_paused_past_its_lease
        )
    if scene.has_disks:
        kinds["outbox disk full"] = (Kind("disk", (1.0, 4.0)), outbox_disk_full)
        kinds["data disk full"] = (Kind("cluster", (1.0, 4.0)), data_disk_full)
    return kinds


