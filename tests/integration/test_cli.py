"""`celery litefs …` against a cluster with real workers and a real Redis."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest
from celery import Celery

from litefs_celery import overview
from litefs_celery.emulator import EmulatedCluster
from worker.fleet import NodeProcesses, RedisServer, wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

TIMEOUT = 60.0  # seconds; a deadline, not a pause


@dataclass
class Fleet:
    """A cluster, its Redis, and its nodes' workers."""

    cluster: EmulatedCluster
    redis: RedisServer
    nodes: dict[str, NodeProcesses]
    folder: Path

    def run(self, node: str, *arguments: str, **environ: str) -> subprocess.CompletedProcess[str]:
        """Run `celery litefs` as an operator on that node does."""
        return self.nodes[node].litefs(*arguments, environ=environ)

    def status(self, node: str = "a", *options: str) -> tuple[int, dict[str, Any]]:
        """Return exit code and document of `status --json`."""
        ended = self.run(node, "status", "--json", "--timeout", "3", *options)
        return ended.returncode, json.loads(ended.stdout)

    def consuming(self) -> str:
        """Wait until all workers answer and the primary's consumes; return its name."""
        inspect = Celery(broker=self.redis.url, set_as_current=False).control.inspect(timeout=1.0)

        def one_consumes() -> str:
            said = inspect._request("litefs") or {}
            rows = [row for reply in said.values() for row in reply.values()]
            named = [row["node"] for row in rows if row["consuming"]]
            agreed = {row["primary"] for row in rows} == set(named)
            return named[0] if len(rows) == 3 and len(named) == 1 and agreed else ""

        return wait_until(
            one_consumes, TIMEOUT, lambda: [node.worker.tail(5) for node in self.nodes.values()]
        )

    def other(self) -> str:
        """Return a node that is not primary."""
        return self.cluster.replicas()[0].name


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    """Three nodes with tables and workers, shared by the tests that leave them well."""
    folder = tmp_path_factory.mktemp("cli")
    redis = RedisServer(folder / "redis")
    redis.start()
    try:
        with EmulatedCluster(folder / "litefs", failover_gap=0.5) as cluster:
            nodes = {
                node.name: NodeProcesses(node, folder / node.name, broker_url=redis.url)
                for node in cluster.nodes
            }
            fleet = Fleet(cluster, redis, nodes, folder)
            try:
                _python(fleet, cluster.primary().name, "worker.setup_database")
                cluster.wait_synced()
                for node in nodes.values():
                    node.worker.start()
                fleet.consuming()
                yield fleet
            finally:
                for node in nodes.values():
                    node.stop()
    finally:
        redis.stop()


def test_status_of_a_healthy_cluster(fleet: Fleet) -> None:
    """Exit code 0, the primary's name, every node, and empty queues by their names."""
    code, document = fleet.status()
    found = document["databases"]["default"]
    assert (code, found["problems"]) == (0, [])
    assert found["primary"] == fleet.cluster.primary().name
    assert [row["node"] for row in found["nodes"]] == ["a", "b", "c"]
    assert [row["consuming"] for row in found["nodes"]].count(True) == 1
    assert document["queues"] == {
        name: {"messages": 0, "problem": ""}
        for name in ("litefs-primary", "litefs-read-a", "litefs-read-b", "litefs-read-c",
                     "litefs-rejected")
    }


def test_status_for_people(fleet: Fleet) -> None:
    """A line of headings, a line for each node, and the queues."""
    ended = fleet.run("b", "status", "--timeout", "3")
    lines = ended.stdout.splitlines()
    assert ended.returncode == 0
    assert lines[0].split() == list(overview.COLUMNS)
    assert [line.split()[0] for line in lines[1:4]] == ["a", "b", "c"]
    assert "  litefs-primary: 0" in lines


def test_status_without_a_broker(fleet: Fleet) -> None:
    """Exit code 3 and the way out; `--local` works all the same."""
    dead = {"CELERY_BROKER_URL": "redis://127.0.0.1:1/0"}
    ended = fleet.run("a", "status", **dead)
    assert (ended.returncode, ended.stdout) == (3, "")
    assert "--local" in ended.stderr
    ended = fleet.run("a", "status", "--local", "--json", **dead)
    found = json.loads(ended.stdout)["databases"]["default"]
    assert ended.returncode == 0
    assert found["primary"] == fleet.cluster.primary().name
    assert [row["node"] for row in found["nodes"]] == ["a"]


def test_status_without_workers(fleet: Fleet) -> None:
    """Exit code 3 where the broker answers and no worker does."""
    other = fleet.redis.url.removesuffix("0") + "1"
    ended = fleet.run("a", "status", CELERY_BROKER_URL=other)
    assert ended.returncode == 3
    assert "no worker answered" in ended.stdout


def test_a_database_that_is_not_there_is_a_usage_error(fleet: Fleet) -> None:
    """Exit code 2, naming those that are there."""
    ended = fleet.run("a", "status", "--database", "orders")
    assert ended.returncode == 2
    assert "there are default" in ended.stderr


def test_promote_makes_this_node_primary(fleet: Fleet) -> None:
    """The node whose settings are used becomes primary and its worker consumes; again is fine."""
    heir = fleet.other()
    ended = fleet.run(heir, "promote", "--timeout", "60")
    assert ended.returncode == 0, ended.stderr
    assert f"{heir}: is primary" in ended.stdout
    assert f"{heir}: consumes litefs-primary" in ended.stdout
    assert fleet.cluster.primary().name == fleet.consuming() == heir
    ended = fleet.run(heir, "promote", "--json")
    assert ended.returncode == 0
    assert json.loads(ended.stdout) == {"primary": heir, "consuming": {"default": True}}
    assert f"{heir}: is primary already" in ended.stderr


def test_promote_of_a_node_that_may_not(fleet: Fleet) -> None:
    """Exit code 1 and the remedy for a node that is no candidate."""
    name = fleet.other()
    fleet.cluster.set_candidate(name, candidate=False)
    try:
        ended = fleet.run(name, "promote")
    finally:
        fleet.cluster.set_candidate(name, candidate=True)
    assert ended.returncode == 1
    assert "lease.candidate" in ended.stderr


def test_prune_deletes_on_the_primary_only(fleet: Fleet) -> None:
    """A replica refuses and names the primary, what may be needed is kept, the rest goes."""
    primary = fleet.consuming()
    records = fleet.folder / "records.jsonl"
    lines = [json.dumps({"code": f"X-{number}", "name": "x"}) for number in range(5)]
    records.write_text("\n".join(lines))
    _python(fleet, fleet.other(), "worker.importer", "--records", str(records), "--log",
            str(fleet.folder / "log"))
    ended = fleet.run(fleet.other(), "prune")
    assert (ended.returncode, ended.stdout) == (1, "")
    assert f"the primary is {primary}" in ended.stderr
    assert "default: 0 rows pruned, 5 left" in fleet.run(primary, "prune").stdout
    found = json.loads(fleet.run(primary, "prune", "--json").stdout)
    assert found == {"default": {"pruned": 0, "left": 5}}
    ended = fleet.run(primary, "prune", "--older-than", "0", "--force", "--batch", "2")
    assert ended.stdout.splitlines() == [
        "default: 2 rows pruned, 3 left", "default: 4 rows pruned, 1 left",
        "default: 5 rows pruned, 0 left",
    ]


def test_prune_keeps_what_may_come_again(fleet: Fleet) -> None:
    """Without --force, an age below the longer of both timeouts is refused with exit code 2."""
    primary = fleet.consuming()
    for timeouts, least in (
        ({}, 3600),
        ({"LITEFS_CELERY_WRITE_TIMEOUT": "5000"}, 5000),
        ({"LITEFS_CELERY_SUBMIT_TIMEOUT": "20"}, 30),
    ):
        ended = fleet.run(primary, "prune", "--older-than", str(least - 1), **timeouts)
        assert (ended.returncode, ended.stdout) == (2, "")
        assert f"a write may come again for {least} s" in ended.stderr
        ended = fleet.run(primary, "prune", "--older-than", str(least), **timeouts)
        assert ended.returncode == 0, ended.stderr


def test_the_help_shows_examples_of_json(fleet: Fleet) -> None:
    """`--help` of each command has an example with --json."""
    for command in ("status", "promote", "prune"):
        ended = fleet.run("a", command, "--help")
        assert f"celery -A yourapp litefs {command} --json | jq" in ended.stdout


def test_status_when_nobody_is_primary(fleet: Fleet) -> None:
    """Exit code 1, and where the writes wait, while no candidate is left."""
    old = fleet.cluster.primary()
    replicas = fleet.cluster.replicas()
    for node in replicas:
        fleet.cluster.set_candidate(node.name, candidate=False)
    old.kill()
    try:
        wait_until(
            lambda: not any(node.info()["primary"]["hostname"] for node in replicas), TIMEOUT
        )
        code, document = fleet.status(replicas[0].name)
    finally:
        old.start()
        for node in replicas:
            fleet.cluster.set_candidate(node.name, candidate=True)
    found = document["databases"]["default"]
    assert (code, found["primary"]) == (1, None)
    assert "writes wait in litefs-primary" in found["problems"][0]


def _python(fleet: Fleet, node: str, module: str, *arguments: str) -> None:
    ended = subprocess.run(
        [sys.executable, "-m", module, *arguments],
        env={**os.environ, **fleet.nodes[node].environ}, capture_output=True, text=True,
        check=False, timeout=120,
    )
    assert ended.returncode == 0, ended.stderr
