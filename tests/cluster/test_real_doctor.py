"""`celery litefs doctor` on nodes of real LiteFS, with the litefs.yml they were started with."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from litefs_celery import machine
from litefs_celery.emulator.real import RealCluster, missing_programs
from tests.cluster.site import Site

if TYPE_CHECKING:
    from collections.abc import Iterator

_MISSING = missing_programs()
pytestmark = pytest.mark.skipif(
    bool(_MISSING),
    reason=f"NOT RUN: real LiteFS needs {', '.join(_MISSING)}, which this machine lacks",
)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """Two nodes in WAL mode with workers and outboxes."""
    folder = tmp_path_factory.mktemp("doctor")
    place = machine.filesystem(folder)
    if place is None or place.in_memory:
        pytest.skip(f"NOT RUN: {folder} is in memory, which is unsafe for LiteFS's data")
    environ = {"LITEFS_CELERY_OUTBOX_DIR": str(folder / "outbox")}
    running = Site(RealCluster(folder / "cluster", ("a", "b")), folder, "wal", "threads", environ)
    try:
        running.start()
        yield running
    finally:
        running.stop()


def findings(site: Site, node: str, *options: str, **environ: str) -> tuple[int, dict[str, Any]]:
    """Return the exit code, and the findings by check, of each the worst."""
    ended = site.processes[node].litefs(
        "doctor", "--json", *options, environ=environ, cwd=site.cluster.root
    )
    assert "Traceback" not in ended.stderr, ended.stderr
    told = reversed(json.loads(ended.stdout)["findings"])
    return ended.returncode, {finding["check"]: finding for finding in told}


def config(site: Site, node: str) -> tuple[str, str]:
    """Return the option with the file that this node's LiteFS was started with."""
    return "--litefs-config", str(site.cluster.node(node).directory / "litefs.yml")


def test_a_healthy_node_of_litefs(site: Site) -> None:
    """Exit code 0 on each node; names, lease, directories and candidates are seen to be right."""
    for node in ("a", "b"):
        code, found = findings(site, node, *config(site, node))
        assert code == 0, found
        fine = ("litefs.yml", "lease", "lease ttl", "node name", "mount", "data.dir", "candidate",
                "candidates", "workers", "api exposure", "on_connect")
        assert {found[check]["level"] for check in fine} == {"ok"}
        assert found["journal mode"]["what"] == "wal"
        # Started for one machine, as this cluster is.
        assert found["advertise-url"]["level"] == "warning"


def test_litefs_tells_most_without_its_file(site: Site) -> None:
    """The primary's own name and the data directory are in the API's answer."""
    primary = site.primary()
    code, found = findings(site, primary)
    assert (code, found["litefs.yml"]["level"]) == (0, "unknown")
    assert str(site.cluster.node(primary).directory / "data") in found["data.dir"]["what"]
    code, found = findings(site, primary, LITEFS_CELERY_NODE="other")
    assert (code, found["node name"]["level"]) == (1, "unsafe")


def test_another_nodes_file_is_noticed(site: Site) -> None:
    """Its name, its mount and its API are not this node's."""
    code, found = findings(site, "a", *config(site, "b"))
    assert code == 1
    assert {found[check]["level"] for check in ("node name", "mount", "api_url")} == {"unsafe"}


def test_a_frozen_litefs_does_not_freeze_the_command(site: Site) -> None:
    """Every access to the mount blocks; the command ends all the same, and says so."""
    (replica,) = site.cluster.replicas()
    replica.pause()
    try:
        code, found = findings(site, replica.name)
    finally:
        replica.resume()
    assert (code, found["mount"]["level"], found["api"]["level"]) == (1, "unsafe", "unsafe")
    assert "did not answer" in found["mount"]["what"]


def test_a_dead_litefs_is_named(site: Site) -> None:
    """ENOTCONN is a dead mount, not a missing database."""
    (replica,) = site.cluster.replicas()
    replica.kill()
    try:
        code, found = findings(site, replica.name)
    finally:
        site.heal()
    assert (code, found["mount"]["level"]) == (1, "unsafe")
    assert "ENOTCONN" in found["mount"]["what"]
