"""What a worker costs that has nothing to do, beside a plain Celery worker."""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.site import TIMEOUT, Site, root_environ
from benchmarks.stats import Book
from worker.fleet import Process, RedisServer, wait_until

# A plain worker's own first seconds: its greeting, its first events.
SETTLE = 5.0
PLAIN = "plain"
PLAIN_MODELS = "plain_models"


@dataclass(frozen=True)
class _Worker:
    """A worker that is alone on its Redis."""

    key: str
    redis: RedisServer
    process: Process
    ready: str


def measure(site: Site, book: Book, seconds: float, tell: Callable[[str], None]) -> dict[str, Any]:
    """
    Note commands a second, memory and CPU time of an idle primary's, replica's and plain worker.

    All run at once, each with a Redis of its own; nobody writes. Returns the commands by name.
    """
    tell("idle workers")
    site.stop_processes()
    with contextlib.ExitStack() as stack:
        workers = list(_workers(site))
        for worker in workers:
            stack.callback(worker.redis.stop)
            stack.callback(worker.process.stop)
            worker.redis.start()
            worker.process.start()
        for worker in workers:
            wait_until(lambda w=worker: _is_ready(w), TIMEOUT, worker.process.tail)
        time.sleep(SETTLE)
        return _observe(workers, book, seconds)


def _observe(workers: list[_Worker], book: Book, seconds: float) -> dict[str, Any]:
    before = {worker.key: _commands(worker.redis) for worker in workers}
    spent = {worker.key: _cpu_seconds(worker.process.pid) for worker in workers}
    began = time.monotonic()
    time.sleep(seconds)
    passed = time.monotonic() - began
    after = {worker.key: _commands(worker.redis) for worker in workers}
    for worker in workers:
        cpu = (_cpu_seconds(worker.process.pid) - spent[worker.key]) / passed
        book.add({f"{worker.key}_cpu": [cpu], f"{worker.key}_mb": [_megabytes(worker)]})
    calls = {key: _difference(before[key], after[key], passed) for key in before}
    book.add({f"{key}_commands": [sum(found.values())] for key, found in calls.items()})
    return calls


def _workers(site: Site) -> Iterator[_Worker]:
    nodes = (("primary", site.primary()), ("replica", site.replicas()[0]))
    for key, node in nodes:
        redis = RedisServer(site.directory / f"redis-{key}")
        process = site.processes(node, redis, "idle").worker
        yield _Worker(key, redis, process, "consuming=True" if key == "primary" else " ready.")
    for key in (PLAIN, PLAIN_MODELS):
        directory = site.directory / key
        redis = RedisServer(directory)
        yield _Worker(key, redis, _plain(key, redis, directory), " ready.")


def _plain(key: str, redis: RedisServer, directory: Path) -> Process:
    environ = {"CELERY_BROKER_URL": redis.url, "CELERY_RESULT_BACKEND": redis.url}
    environ |= {"BENCHMARK_SQLALCHEMY": "1"} if key == PLAIN_MODELS else {}
    command = [sys.executable, "-m", "benchmarks.plain"]
    command += ["-n", f"worker@{key}", "-P", "threads", "-c", "2", "-l", "INFO"]
    return Process(command, directory / "worker.log", root_environ() | environ)


def _is_ready(worker: _Worker) -> bool:
    if not worker.process.is_alive():
        raise RuntimeError(f"the {worker.key} worker ended:\n{worker.process.tail()}")
    return worker.ready in worker.process.log.read_text(errors="replace")


def _commands(redis: RedisServer) -> dict[str, int]:
    client = redis.client()
    found = client.info("commandstats")
    client.close()
    return {name.removeprefix("cmdstat_"): stat["calls"] for name, stat in found.items()}


def _difference(
    before: dict[str, int], after: dict[str, int], seconds: float
) -> dict[str, float]:
    # Our own looks are INFO, and what a new connection says of itself.
    own = ("info", "client|setinfo", "hello")
    return {
        name: (calls - before.get(name, 0)) / seconds
        for name, calls in after.items()
        if name not in own and calls > before.get(name, 0)
    }


def _group(pid: int) -> list[int]:
    """List the processes of a worker: it leads a group of its own."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if os.getpgid(int(entry.name)) == pid:
                found.append(int(entry.name))
    return found


def _megabytes(worker: _Worker) -> float:
    """Proportional set size: what is shared by several processes is divided among them."""
    total = 0
    for pid in _group(worker.process.pid):
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
        total += sum(int(line.split()[1]) for line in lines if line.startswith("Pss:"))
    return total / 1024


def _cpu_seconds(pid: int) -> float:
    ticks = 0
    for member in _group(pid):
        fields = Path(f"/proc/{member}/stat").read_text().rpartition(")")[2].split()
        ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")
