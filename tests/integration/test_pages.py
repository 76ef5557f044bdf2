"""What people see: the application's page and Flower, in a real browser."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests

from litefs_celery.emulator import EmulatedCluster
from tests.cluster.site import PATIENCE, Site
from worker.fleet import ROOT, Process, free_port, wait_until


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """Return two emulated nodes with their web processes."""
    directory = tmp_path_factory.mktemp("pages")
    cluster = EmulatedCluster(directory / "cluster", names=("a", "b"), failover_gap=0.2)
    running = Site(cluster, directory, "delete", "threads")
    try:
        running.start()
        for processes in running.processes.values():
            processes.web.start()
            wait_until(lambda url=processes.web_url: _answers(url), PATIENCE, processes.web.tail)
        yield running
    finally:
        for processes in running.processes.values():
            processes.web.kill()
        running.stop()


def _answers(url: str) -> bool:
    try:
        return requests.get(url, timeout=5).ok
    except requests.ConnectionError:
        return False


def browse(url: str, profile: Path) -> str:
    """Return the page's document as a browser has it."""
    browser = shutil.which("chromium")
    if browser is None:
        pytest.skip("THE BROWSER TEST DID NOT RUN: chromium not found on PATH")
    done = subprocess.run(
        [
            browser, "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run",
            "--disable-background-networking", "--disable-component-update", "--disable-sync",
            f"--user-data-dir={profile}", "--virtual-time-budget=3000", "--dump-dom", url,
        ],
        capture_output=True, text=True, timeout=PATIENCE, check=True,
    )
    return done.stdout


def test_the_page_of_a_replica_writes(site: Site, tmp_path: Path) -> None:
    """The page says which node it is, and its form's write is on the page that comes back."""
    replica = site.replicas()[0]
    site.on(replica).call("db.insert", {"code": "AT-9", "name": "Vienna"})
    url = site.processes[replica].web_url
    page = browse(url, tmp_path)
    assert f"Regions on node {replica}" in page
    assert 'class="role">replica<' in page
    form = {"code": "AT-9", "name": "Wien"}
    answer = requests.post(f"{url}/rename", data=form, timeout=PATIENCE)
    assert "AT-9 is now Wien" in answer.text
    assert "Wien" in browse(url, tmp_path)


def test_the_api_tells_refusals_from_the_unknown(site: Site) -> None:
    """404 and 409 for what the primary refused, raised there and caught here."""
    url = site.processes[site.replicas()[0]].web_url
    assert requests.post(f"{url}/regions/nowhere/visit", timeout=PATIENCE).status_code == 404
    body = {"code": "AT-1", "name": "Burgenland"}
    first = requests.post(f"{url}/regions", json=body, timeout=PATIENCE)
    second = requests.post(f"{url}/regions", json=body, timeout=PATIENCE)
    assert (first.status_code, second.status_code) == (201, 409)
    assert requests.get(f"{url}/regions/AT-1", timeout=PATIENCE).json()["name"] == "Burgenland"


def test_flower_shows_each_write(site: Site, tmp_path: Path) -> None:
    """Flower lists a write by its method's name, with its arguments and its state."""
    port = free_port()
    environ = {**site.processes["a"].environ, "FLOWER_UNAUTHENTICATED_API": "true"}
    flower = Process(
        [sys.executable, "-m", "celery", "-A", "worker", "flower", "--address=127.0.0.1",
         f"--port={port}"],
        tmp_path / "flower.log", environ, cwd=ROOT,
    )
    flower.start()
    url = f"http://127.0.0.1:{port}"
    try:
        wait_until(lambda: _answers(f"{url}/api/workers?refresh=1"), PATIENCE, flower.tail)
        caller = site.on(site.replicas()[0])

        def shown() -> dict[str, object]:
            caller.call("db.insert", {"code": os.urandom(4).hex(), "name": "x"})
            tasks = requests.get(f"{url}/api/tasks", timeout=PATIENCE).json().values()
            # The first write after Flower turned events on may have been received before.
            whole = [task for task in tasks if task["state"] == "SUCCESS" and task["args"]]
            return whole[0] if whole else {}

        task = wait_until(shown, PATIENCE, flower.tail)
        assert task["name"] == "worker.repositories.Regions.insert"
        assert "Region" in str(task["args"])
        assert "worker.repositories.Regions.insert" in browse(f"{url}/tasks", tmp_path / "browser")
        queues = requests.get(f"{url}/api/workers?refresh=1", timeout=PATIENCE).json()
        names = {
            queue["name"] for worker in queues.values() for queue in worker["active_queues"]
        }
        assert {"litefs-primary", "litefs-read-a", "litefs-read-b"} <= names
    finally:
        flower.stop()
