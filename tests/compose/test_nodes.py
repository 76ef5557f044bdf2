"""
Nodes in containers under pytest-celery: Celery reaches each, and a killed one comes back.

pytest-celery's plug-in is not loaded (`-p no:celery`): its fixtures are imported here, and so
override none of another directory's.
"""

from __future__ import annotations

import subprocess
import time
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import requests

pytest.importorskip(
    "pytest_celery", reason="COMPOSE DID NOT RUN: pip install 'litefs-celery[compose]'"
)

from pytest_celery import *  # noqa: F403 - all its fixtures, each of which needs others
from pytest_celery import (
    CeleryBrokerCluster,
    CeleryTestContainer,
    CeleryTestSetup,
    CeleryTestWorker,
    CeleryWorkerCluster,
    CeleryWorkerContainer,
    RedisTestBroker,
)
from pytest_docker_tools import container, fetch

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from celery import Celery

ROOT = Path(__file__).resolve().parents[2]
IMAGE = "litefs-celery-worker:test"
BUILD_TIMEOUT = 900.0  # seconds; images are fetched and built
PATIENCE = 180  # an election and three workers; whole seconds, as pytest-docker-tools wants
# Unique in the engine, and resolved by the other containers of the network.
HOST = "{default_pytest_celery_network.name}"

pytestmark = pytest.mark.timeout(BUILD_TIMEOUT + 6 * PATIENCE)


class ConsulContainer(CeleryTestContainer):
    """Consul, which holds LiteFS's lease."""

    @property
    def ready_prompt(self) -> str:
        """What it logs once it can be asked for a lease."""
        return "cluster leadership acquired"


class NodeContainer(CeleryWorkerContainer):
    """LiteFS with the example's worker and web process, from `worker/Dockerfile`."""

    @classmethod
    def worker_name(cls) -> str:
        """Return the part of the worker's name before its host."""
        return "worker"

    @property
    def url(self) -> str:
        """Where its web process answers; another port after each restart."""
        self.reload()
        host, port = self.get_addr("8000/tcp")
        return f"http://{host}:{port}"


class Node(CeleryTestWorker):
    """One node; its host name is LiteFS's name of it."""

    def hostname(self) -> str:
        """Return the worker's name as Celery knows it."""
        return f"{self.worker_name}@{self.name()}"


def node_container(letter: str) -> Any:
    """Return the fixture of one node's container, which is ready when its pages and worker are."""
    name = f"{HOST}-{letter}"
    return container(
        image="{node_image}", name=name, hostname=name, wrapper_class=NodeContainer,
        timeout=PATIENCE, network=HOST, extra_hosts={"consul": "{consul.ips.primary}"},
        environment=lambda default_worker_env, default_pytest_celery_network: {
            **default_worker_env,
            "APP_DATABASE_URL": "sqlite:////litefs/app.db",
            "LITEFS_CELERY_MODE": "litefs",
            "LITEFS_CELERY_NODE": f"{default_pytest_celery_network.name}-{letter}",
        },
        ports={"8000/tcp": None},
        # As in docker-compose.yml: LiteFS mounts a FUSE file system.
        cap_add=["SYS_ADMIN"], devices=["/dev/fuse:/dev/fuse:rwm"],
        security_opt=["apparmor:unconfined"],
    )


consul_image = fetch(repository="hashicorp/consul:1.20")
consul = container(
    image="{consul_image.id}", network=HOST, wrapper_class=ConsulContainer, timeout=PATIENCE,
    command=["agent", "-dev", "-client", "0.0.0.0"],
)
node_a = node_container("a")
node_b = node_container("b")
node_c = node_container("c")


@pytest.fixture(scope="session")
def node_image() -> str:
    """Return the image's name; `docker build` made it, as the engine's API knows no BuildKit."""
    built = subprocess.run(
        ["docker", "build", "--tag", IMAGE, "--file", "worker/Dockerfile", "."], cwd=ROOT,
        capture_output=True, text=True, timeout=BUILD_TIMEOUT, check=False,
    )
    assert built.returncode == 0, built.stdout + built.stderr
    return IMAGE


@pytest.fixture
def default_worker_container_cls() -> type[NodeContainer]:
    """Return the class that pytest-celery asks for names and the environment."""
    return NodeContainer


@pytest.fixture
def celery_broker_cluster(celery_redis_broker: RedisTestBroker) -> Iterator[CeleryBrokerCluster]:
    """One Redis, and not every broker that pytest-celery knows."""
    cluster = CeleryBrokerCluster(celery_redis_broker)
    yield cluster
    cluster.teardown()


@pytest.fixture
def celery_backend_cluster() -> None:
    """No result backend: writes need none."""


@pytest.fixture
def celery_worker_cluster(
    node_a: NodeContainer, node_b: NodeContainer, node_c: NodeContainer, celery_setup_app: Celery
) -> Iterator[CeleryWorkerCluster]:
    """Three nodes of one LiteFS cluster."""
    containers = (node_a, node_b, node_c)
    cluster = CeleryWorkerCluster(*(Node(one, celery_setup_app) for one in containers))
    yield cluster
    cluster.teardown()


def test_celery_reaches_the_worker_of_every_node(celery_setup: CeleryTestSetup) -> None:
    """Three workers answer a ping under their nodes' names, and all name one primary."""
    names = {node.hostname() for node in celery_setup.worker_cluster}
    control = celery_setup.app.control
    until(celery_setup, lambda: names == {
        name for reply in control.ping(timeout=2.0) for name in reply
    }, f"answers of {names}")
    primary = until(celery_setup, lambda: agreed(*celery_setup.worker_cluster), "one primary")
    assert f"worker@{primary}" in names


def test_a_write_outlives_the_node_that_committed_it(celery_setup: CeleryTestSetup) -> None:
    """What was written before and after a primary is killed is on every node, also on that one."""
    nodes = {node.name(): node for node in celery_setup.worker_cluster}
    primary = nodes[until(celery_setup, lambda: agreed(*nodes.values()), "one primary")]
    others = [node for node in nodes.values() if node is not primary]
    before, after = f"T-{uuid.uuid4().hex[:8]}", f"T-{uuid.uuid4().hex[:8]}"
    create(celery_setup, others[0], before)
    primary.kill()
    create(celery_setup, others[1], after)
    until(celery_setup, lambda: agreed(*others), "another primary")
    primary.restart()
    for node in nodes.values():
        for code in (before, after):
            until(celery_setup, lambda node=node, code=code: ask(node, f"/regions/{code}"),
                  f"{code} on {node.name()}")


def create(setup: CeleryTestSetup, node: Node, code: str) -> None:
    """Write a region through that node, under one id until it is acknowledged."""
    body = {"code": code, "name": "Test", "write_id": str(uuid.uuid4())}

    def created() -> bool:
        response = requests.post(f"{node.container.url}/regions", json=body, timeout=60)
        return response.status_code == requests.codes.created

    until(setup, created, f"a write of {code} through {node.name()}")


def ask(node: Node, path: str) -> Any:
    """Return what a node's web process answers, None unless it is 200."""
    response = requests.get(node.container.url + path, timeout=10)
    return response.json() if response.status_code == requests.codes.ok else None


def agreed(*nodes: Node) -> str:
    """Return the name of the primary that all these nodes name, which is one of them."""
    named = {(ask(node, "/status") or {}).get("primary") or "" for node in nodes}
    found = named.pop() if len(named) == 1 else ""
    return found if found in {node.name() for node in nodes} else ""


def until(setup: CeleryTestSetup, look: Callable[[], Any], what: str) -> Any:
    """Poll until `look` returns something true; at the deadline fail with the containers' logs."""
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        try:
            if found := look():
                return found
        except (requests.RequestException, ValueError):
            pass
        time.sleep(0.2)
    ends = [f"{node.name()}:\n{node.logs()[-4000:]}" for node in setup.worker_cluster]
    pytest.fail(f"not within {PATIENCE} seconds: {what}\n" + "\n".join(ends))
