"""The role handed over while all nodes write: by command, and by a worker that stops."""

from __future__ import annotations

import subprocess

from tests.cluster.site import PATIENCE, READING, OpenTransaction, Site, Writers, code
from worker.fleet import wait_until


def promote(site: Site, on: str, *options: str) -> subprocess.CompletedProcess[str]:
    """Run the command as an operator on node ``on`` does."""
    return site.processes[on].litefs("promote", *options, timeout=PATIENCE)


def test_promote_of_another_node_with_writers_running(site: Site) -> None:
    """A drained handover gives no caller an error, loses nothing, and harms no LiteFS."""
    old = site.primary()
    target, third = sorted(site.replicas())
    writers = Writers(site, sorted(site.callers), code("drain"), threads=2)
    writers.wait_for(20)
    ended = promote(site, third, "--node", target)
    assert ended.returncode == 0, ended.stdout + ended.stderr + site.tails()
    assert f"{old}: handing over to {target}" in ended.stdout
    assert f"{target}: consumes litefs-primary" in ended.stdout
    writers.wait_for(30)
    writers.stop()
    assert writers.errors == []
    assert site.primary() == target
    assert site.cluster.node(old).is_alive()
    writers.check()


def test_the_primarys_worker_hands_over_when_it_is_stopped(site: Site) -> None:
    """SIGTERM of the primary's worker moves the role to a node whose worker runs."""
    old = site.primary()
    writers = Writers(site, sorted(site.callers), code("leave"), threads=2)
    writers.wait_for(20)
    site.processes[old].worker.stop(PATIENCE)
    assert "HandedOver" in site.processes[old].worker.tail(60)
    assert site.primary() != old
    writers.wait_for(30)
    site.processes[old].worker.start()
    writers.stop()
    assert writers.errors == []
    assert site.cluster.node(old).is_alive()
    writers.check()


def test_a_handover_that_fails_leaves_all_as_it_was(site: Site) -> None:
    """A node that cannot catch up does not become primary, and the primary writes on."""
    old = site.primary()
    target, third = sorted(site.replicas())
    with OpenTransaction(site.cluster.node(target).database(), *READING):
        writers = Writers(site, [old, third], code("stay"), threads=2)
        writers.wait_for(20)
        ended = promote(site, third, "--node", target)
        assert ended.returncode == 1, ended.stdout + ended.stderr
        # A replica in WAL mode on which a transaction is held open lets no other reader in, and
        # its worker's answer is late.
        late = site.journal_mode == "wal" and f"no worker of {target} answered" in ended.stderr
        failed = f"{old}: failed: {target} did not take the role within 5 s" in ended.stderr
        assert failed or late, ended.stderr
        writers.wait_for(20)
        writers.stop()
        assert writers.errors == []
        assert site.primary() == old
        log = site.processes[target].worker.log
        wait_until(lambda: late or "what the primary has" in log.read_text(), PATIENCE)
    writers.check()
