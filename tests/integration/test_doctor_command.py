"""`celery litefs doctor` on a site with real workers and a real Redis: well, and unwell."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from celery import Celery

from litefs_celery import machine
from litefs_celery.emulator import EmulatedCluster
from worker.fleet import NodeProcesses, Process, RedisServer, wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

TIMEOUT = 60.0  # seconds; a deadline, not a pause
NAMES = ("a", "b")


@dataclass
class Site:
    """Two nodes with workers and outboxes, their Redis, and a litefs.yml of each node."""

    cluster: EmulatedCluster
    redis: RedisServer
    nodes: dict[str, NodeProcesses]
    folder: Path

    def run(self, node: str, *arguments: str, **environ: str) -> subprocess.CompletedProcess[str]:
        """Run the command as an operator on that node does; it never ends in a traceback."""
        ended = self.nodes[node].litefs("doctor", *arguments, environ=environ, cwd=self.folder)
        assert "Traceback" not in ended.stdout + ended.stderr, ended.stderr
        return ended

    def findings(self, node: str, *options: str, **environ: str) -> tuple[int, dict[str, str]]:
        """Return the exit code and each check's worst level; what is not ok has a remedy."""
        config = str(self.folder / f"{node}.yml")
        ended = self.run(node, "--json", "--litefs-config", config, *options, **environ)
        found: list[dict[str, Any]] = json.loads(ended.stdout)["findings"]
        assert all(one["why"] and one["remedy"] for one in found if one["level"] != "ok")
        return ended.returncode, {one["check"]: one["level"] for one in reversed(found)}

    def await_workers(self, count: int) -> None:
        """Wait until so many workers answer and one consumes."""
        inspect = Celery(broker=self.redis.url, set_as_current=False).control.inspect(timeout=1.0)

        def ready() -> bool:
            said = (inspect._request("litefs") or {}).values()
            consuming = [row for reply in said for row in reply.values() if row["consuming"]]
            return len(said) == count and bool(consuming)

        wait_until(ready, TIMEOUT, lambda: [n.worker.tail(5) for n in self.nodes.values()])


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """A site on which nothing is unsafe, shared by the tests that leave it so."""
    folder = tmp_path_factory.mktemp("doctor")
    redis = RedisServer(folder / "redis")
    redis.start()
    try:
        with EmulatedCluster(folder / "litefs", NAMES, failover_gap=0.5) as cluster:
            nodes = {node.name: _node(node, folder, redis.url) for node in cluster.nodes}
            site = Site(cluster, redis, nodes, folder)
            try:
                subprocess.run(
                    [sys.executable, "-m", "worker.setup_database"], check=True, timeout=120,
                    env={**os.environ, **nodes[cluster.primary().name].environ},
                )
                cluster.wait_synced()
                for node in nodes.values():
                    node.worker.start()
                site.await_workers(len(NAMES))
                yield site
            finally:
                for node in nodes.values():
                    node.stop()
    finally:
        redis.stop()


def _node(node: Any, folder: Path, broker_url: str) -> NodeProcesses:
    data = folder / "data" / node.name
    data.mkdir(parents=True)
    port = node.api_url.rpartition(":")[2]
    (folder / f"{node.name}.yml").write_text(
        f"fuse: {{dir: {node.mount}}}\ndata: {{dir: {data}}}\nhttp: {{addr: '127.0.0.1:{port}'}}\n"
        f"lease: {{type: consul, hostname: {node.name}, consul: {{key: test}}}}\n"
    )
    environ = {"LITEFS_CELERY_OUTBOX_DIR": str(folder / "outbox" / node.name), "INVOCATION_ID": "1"}
    return NodeProcesses(node, folder / node.name, broker_url=broker_url, environ=environ)


def test_a_healthy_site_has_nothing_unsafe(site: Site) -> None:
    """Exit code 0, all was seen, and on the primary nothing is left to mend."""
    place = machine.filesystem(site.folder)
    if place is None or place.in_memory:
        pytest.skip(f"NOT RUN: {site.folder} is in memory, which is unsafe for an outbox")
    code, found = site.findings(site.cluster.primary().name)
    assert code == 0, found
    # The disk of the machine that tests is no promise.
    assert {check for check, level in found.items() if level != "ok"} <= {"disk"}
    assert {
        "mode", "lease", "lease ttl", "candidate", "candidates", "node name", "mount",
        "journal mode", "pool", "redelivery", "clock", "api exposure", "broker persistence",
        "broker eviction", "disk", "outbox", "workers", "settings", "supervisor", "data.dir",
    } <= set(found)


def test_the_list_is_for_people(site: Site) -> None:
    """Each finding with its level, what is wrong with why and remedy, the count at the end."""
    ended = site.run(site.cluster.primary().name, LITEFS_CELERY_MODE="auto")
    lines = ended.stdout.splitlines()
    start = next(n for n, line in enumerate(lines) if line.startswith("WARNING  mode: auto"))
    assert lines[start + 1].startswith("         why  ")
    assert "LITEFS_CELERY_MODE" in lines[start + 2]
    assert lines[-1].split(", ")[0].endswith("unsafe")


def test_each_unsafe_setting_is_named(site: Site) -> None:
    """Those of this node and those of the broker, in one look, with exit code 1."""
    client = site.redis.client()
    settings = {"appendonly": "no", "maxmemory-policy": "allkeys-lru"}
    before = {name: client.config_get(name)[name] for name in settings}
    try:
        for name, value in settings.items():
            client.config_set(name, value)
        code, found = site.findings(
            "a", LITEFS_CELERY_NODE="x", LITEFS_CELERY_LEDGER_RETENTION="3600",
            LITEFS_CELERY_SUBMIT_TIMEOUT="60", LITEFS_CELERY_PRIMARY_QUEUE="elsewhere",
            LITEFS_CELERY_OUTBOX_DIR="", LITEFS_CELERY_API_URL=site.cluster.node("b").api_url,
        )
    finally:
        for name, value in before.items():
            client.config_set(name, value)
    assert code == 1
    assert {check for check, level in found.items() if level == "unsafe"} >= {
        "broker persistence", "broker eviction", "redelivery", "node name", "workers", "settings",
        "api_url",
    }
    assert found["outbox"] == "warning"


def test_what_a_managed_redis_hides_is_unknown(site: Site) -> None:
    """Without INFO nothing is called safe; exit code 0, and 1 with --strict."""
    site.redis.client().execute_command(
        "ACL", "SETUSER", "app", "on", ">word", "~*", "&*", "+@all", "-config", "-info")
    url = site.redis.url.replace("//", "//app:word@")
    code, found = site.findings("a", CELERY_BROKER_URL=url)
    assert (code, found["broker persistence"]) == (0, "unknown")
    code, found = site.findings("a", "--strict", CELERY_BROKER_URL=url)
    assert (code, found["broker persistence"]) == (1, "unknown")


def test_a_broker_that_is_away_is_unsafe(site: Site) -> None:
    """What needs it is unknown, the rest is judged, and nothing is raised."""
    code, found = site.findings("a", CELERY_BROKER_URL="redis://127.0.0.1:1/0")
    assert (code, found["broker"], found["workers"]) == (1, "unsafe", "unknown")
    assert found["lease"] == found["mount"] == "ok"


def test_a_strange_worker_is_named(site: Site) -> None:
    """One that forks, with another node's name and another queue, is three findings."""
    node = site.nodes["b"]
    command = [*node.worker.command]
    command[command.index("-n") + 1] = "worker@elsewhere"
    command[command.index("-P") + 1] = "prefork"
    environ = {**node.environ, "LITEFS_CELERY_PRIMARY_QUEUE": "elsewhere"}
    strange = Process(command, site.folder / "strange.log", environ)
    strange.start()
    try:
        site.await_workers(len(NAMES) + 1)
        code, found = site.findings("a")
    finally:
        strange.stop()
    site.await_workers(len(NAMES))
    assert code == 1
    assert (found["pool"], found["node name"], found["settings"]) == (
        "warning", "unsafe", "unsafe")


def test_usage(site: Site) -> None:
    """`--help` shows examples; a missing file and contradicting settings are usage errors."""
    ended = site.run("a", "--help")
    assert "celery -A yourapp litefs doctor --json | jq" in ended.stdout
    assert site.run("a", "--litefs-config", "/no/such/litefs.yml").returncode == 2
    ended = site.run("a", LITEFS_CELERY_LEDGER_RETENTION="1")
    assert (ended.returncode, "litefs_ledger_retention=1" in ended.stderr) == (2, True)


def test_a_dead_mount_is_unsafe(site: Site) -> None:
    """Mount and API are named, the rest is judged, and nothing is raised."""
    replica = site.cluster.replicas()[0]
    replica.kill()
    try:
        code, found = site.findings(replica.name)
    finally:
        replica.start()
    assert (code, found["mount"], found["api"]) == (1, "unsafe", "unsafe")
    assert found["broker persistence"] == "ok"
