"""Three containers on real LiteFS: what one node's web process writes, another's shows."""

from __future__ import annotations

import subprocess
import time
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import requests

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

ROOT = Path(__file__).resolve().parents[2]
COMPOSE = ("docker", "compose", "-p", "litefs-celery-test")
URLS = {"a": "http://127.0.0.1:8001", "b": "http://127.0.0.1:8002", "c": "http://127.0.0.1:8003"}
BUILD_TIMEOUT = 900.0  # seconds; images are fetched and built
PATIENCE = 180.0  # seconds; an election, three workers and their tables on a small machine


pytestmark = pytest.mark.timeout(BUILD_TIMEOUT + 3 * PATIENCE)


def compose(*arguments: str, timeout: float) -> subprocess.CompletedProcess[str]:
    """Run `docker compose` on the repository's file."""
    return subprocess.run(
        [*COMPOSE, *arguments], cwd=ROOT, capture_output=True, text=True, timeout=timeout,
        check=False,
    )


def until(look: Callable[[], Any], what: str) -> Any:
    """Poll until `look` returns something true; at the deadline fail with the containers' logs."""
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        try:
            if found := look():
                return found
        except (requests.RequestException, ValueError):
            pass
        time.sleep(0.2)
    logs = compose("logs", "--tail", "40", timeout=60.0).stdout
    pytest.fail(f"not within {PATIENCE} seconds: {what}\n{logs}")


def ask(node: str, path: str) -> Any:
    """Return what a node's web process answers, None unless it is 200."""
    response = requests.get(URLS[node] + path, timeout=10)
    return response.json() if response.status_code == requests.codes.ok else None


@pytest.fixture(scope="module")
def primary() -> Iterator[str]:
    """Three nodes that know one primary; yields its name, and removes all at the end."""
    try:
        started = compose("up", "-d", "--build", timeout=BUILD_TIMEOUT)
        assert started.returncode == 0, started.stdout + started.stderr
        for node in URLS:
            until(lambda node=node: _tables_are_there(node), f"the tables on {node}")
        yield until(_agreed, "one primary that all nodes name")
    finally:
        compose("down", "-v", "--remove-orphans", timeout=300.0)


def test_a_write_on_one_node_is_read_on_the_others(primary: str) -> None:
    """A region created through a replica is there when it answers, and soon on every node."""
    code = f"T-{uuid.uuid4().hex[:8]}"
    replica = next(node for node in URLS if node != primary)
    body = {"code": code, "name": "Test", "write_id": str(uuid.uuid4())}

    def created() -> bool:
        # The same id until it answers: a worker that is still starting costs a 503.
        response = requests.post(f"{URLS[replica]}/regions", json=body, timeout=60)
        return response.status_code == requests.codes.created

    until(created, f"a write through {replica}, a replica of {primary}")
    assert ask(replica, f"/regions/{code}")["name"] == "Test"
    for node in URLS:
        found = until(lambda node=node: ask(node, f"/regions/{code}"), f"{code} on {node}")
        assert found["code"] == code


def _tables_are_there(node: str) -> bool:
    """Return whether the node answers "no such region" rather than "no such table"."""
    status = requests.get(f"{URLS[node]}/regions/none", timeout=10).status_code
    return bool(status == requests.codes.not_found)


def _agreed() -> str:
    said = {node: ask(node, "/status") or {} for node in URLS}
    leading = [node for node, status in said.items() if status.get("role") == "primary"]
    named = {status.get("primary") for status in said.values()}
    return leading[0] if len(leading) == 1 and named == set(leading) else ""
