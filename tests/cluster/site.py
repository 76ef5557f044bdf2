"""A whole site: a cluster, a broker, a Redis; on each node a worker, and a process that calls."""

from __future__ import annotations

import itertools
import json
import os
import sqlite3
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from contextlib import closing, suppress
from pathlib import Path
from typing import Any, Self

from celery import Celery

from litefs_celery.emulator.real_config import Host
from tests.cluster.brokers import RabbitBroker, RedisBroker
from worker.fleet import NodeProcesses, RedisServer, wait_until

# A failover of real LiteFS takes up to 22 s, and starting three workers on a busy machine long.
PATIENCE = 90.0
QUEUE = "litefs-primary"
REJECTED = "litefs-rejected"
SIGNING_KEYS = "LITEFS_CELERY_SIGNING_KEYS"
OLD_KEY, NEW_KEY = "old-" * 8, "new-" * 8
# An open read transaction, which freezes replication on its node.
READING = ("BEGIN", "SELECT count(*) FROM regions")


class CallError(Exception):
    """What a call on a node raised: ``kind`` is the exception's class name."""

    def __init__(self, reply: dict[str, Any]) -> None:
        super().__init__(f"{reply['error']}: {reply['text']}")
        self.kind: str = reply["error"]
        self.write_id: str = reply["write_id"]
        self.sqlite_errorname: str = reply["sqlite_errorname"]
        self.may_have_been_sent: bool | None = reply["may_have_been_sent"]


class CallerGone(Exception):
    """The calling process ended before it answered: what the call did is not known."""


class Caller:
    """The calling process of one node."""

    def __init__(
        self, environ: dict[str, str], log: Path, modules: Sequence[str] = (),
        prefix: Sequence[str] = (),
    ) -> None:
        self._ids = itertools.count()
        self._futures: dict[int, Future[Any]] = {}
        self._lock = threading.Lock()
        self._gone = False
        self._log = log.open("ab")
        self._child = subprocess.Popen(
            [*prefix, sys.executable, "-m", "tests.cluster.caller", *modules],
            env={**os.environ, **environ},
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._log, text=True,
            cwd=Path(__file__).resolve().parents[2],
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._child.pid

    def submit(self, call: str, *args: Any, **options: Any) -> Future[Any]:
        """Begin a call; the future gets its value, a `CallError` or `CallerGone`."""
        future: Future[Any] = Future()
        with self._lock:
            number = next(self._ids)
            job = {"id": number, "call": call, "args": args, "options": options}
            assert self._child.stdin
            self._futures[number] = future
            with suppress(BrokenPipeError, ValueError):
                self._child.stdin.write(json.dumps(job) + "\n")
                self._child.stdin.flush()
            if self._gone and self._futures.pop(number, None):
                future.set_exception(CallerGone())
        return future

    def call(self, name: str, *args: Any, **options: Any) -> Any:
        """Make a call and wait for it."""
        return self.submit(name, *args, **options).result(PATIENCE)

    def is_alive(self) -> bool:
        """Whether it runs."""
        return self._child.poll() is None

    def close(self) -> None:
        """``kill -9``, and what it has not answered is `CallerGone`."""
        self._child.kill()
        self._child.wait()
        self._reader.join()
        for stream in (self._child.stdin, self._child.stdout, self._log):
            if stream:
                with suppress(BrokenPipeError):
                    stream.close()

    def _read(self) -> None:
        assert self._child.stdout
        for line in self._child.stdout:
            if not line.endswith("\n"):
                break  # killed in the middle of an answer
            reply = json.loads(line)
            future = self._futures.pop(reply["id"])
            if "error" in reply:
                future.set_exception(CallError(reply))
            else:
                future.set_result(reply["value"])
        with self._lock:
            self._gone = True
            unanswered, self._futures = self._futures, {}
        for future in unanswered.values():
            future.set_exception(CallerGone())


class Site:
    """Everything of one cluster kind; `heal` brings it back to health between tests."""

    def __init__(
        self, cluster: Any, directory: Path, journal_mode: str, pool: str,
        environ: Mapping[str, str] | None = None, *, modules: Sequence[str] = (),
        broker: str = "redis", hosts: Mapping[str, Host] | None = None,
    ) -> None:
        self.cluster = cluster
        self.journal_mode = journal_mode
        self._hosts = hosts or {}
        self.redis = RedisServer(directory / "redis", **vars(self._host("redis")))
        self.broker: RedisBroker | RabbitBroker = (
            RabbitBroker(directory / "rabbitmq", (QUEUE, REJECTED)) if broker == "rabbitmq"
            else RedisBroker(self.redis)
        )
        self._directory = directory
        self._pool = pool
        self._environ = environ or {}
        self._modules = modules
        # What a node reaches the broker by, and what else is its own, where that differs.
        self.broker_urls: dict[str, str] = {}
        self.environs: dict[str, dict[str, str]] = {}
        self.processes: dict[str, NodeProcesses] = {}
        self.callers: dict[str, Caller] = {}

    def start(self) -> None:
        """Start all of it and create the tables on the primary."""
        self.cluster.start()
        self.redis.start()
        self.broker.start()
        for node in self.cluster.nodes:
            processes = NodeProcesses(
                node, self._directory / node.name, pool=self._pool,
                broker_url=self.broker_urls.get(node.name, self.broker.url),
                environ={
                    "CELERY_RESULT_BACKEND": (
                        self.redis.url if self.broker.url != self.redis.url
                        else self.broker_urls.get(node.name, self.redis.url)
                    ),
                    **self._environ, **self.environs.get(node.name, {}),
                },
                prefix=self._host(node.name).prefix,
            )
            includes = ",".join(["tests.cluster.gates", *self._modules])
            processes.worker.command += ["--include", includes]
            self.processes[node.name] = processes
            self.start_caller(node.name)
        primary = self.cluster.primary()
        self.callers[primary.name].call("db.create_all", self.journal_mode)
        self.heal()

    def start_caller(self, name: str) -> None:
        """Start a node's calling process; one that was there before must have been closed."""
        log = self._directory / name / "caller.log"
        environ, prefix = self.processes[name].environ, self._host(name).prefix
        self.callers[name] = Caller(environ, log, self._modules, prefix)

    def stop(self) -> None:
        """Stop all of it."""
        for caller in self.callers.values():
            caller.close()
        for processes in self.processes.values():
            processes.kill()
        self.broker.stop()
        self.redis.stop()
        self.cluster.stop()

    def heal(self) -> None:
        """Every node and process alive, one primary whose worker consumes, all in sync."""
        self.redis.start()
        self.broker.start()
        for node in self.cluster.nodes:
            if not node.is_alive():
                node.start()
        for processes in self.processes.values():
            processes.worker.start()
        self.cluster.primary(PATIENCE)
        wait_until(self._consumed, PATIENCE, self.tails)
        self.cluster.wait_synced(PATIENCE)

    def restart_worker(self, name: str) -> None:
        """Stop a node's worker as a supervisor does, and start it with the node's environment."""
        processes = self.processes[name]
        processes.worker.stop()
        processes.worker._environ.update(processes.environ)
        processes.worker.start()

    def restart_caller(self, name: str) -> None:
        """End a node's calling process, and start one with the node's environment."""
        self.callers[name].close()
        self.start_caller(name)

    def _host(self, name: str) -> Host:
        return self._hosts.get(name, Host())

    def logs(self) -> str:
        """All that the workers and the calling processes have logged."""
        return "\n".join(log.read_text(errors="replace") for log in self._directory.glob("*/*.log"))

    def on(self, name: str) -> Caller:
        """The calling process of that node."""
        return self.callers[name]

    def consumes(self, name: str) -> bool:
        """Whether that node's worker says that it consumes the queue of writes."""
        log = self.processes[name].worker.log.read_text(errors="replace")
        return log.rfind("consuming=True") > log.rfind("consuming=False")

    def primary(self) -> str:
        """The primary's name."""
        name: str = self.cluster.primary(PATIENCE).name
        return name

    def replicas(self) -> list[str]:
        """The other live nodes' names."""
        return [node.name for node in self.cluster.replicas()]

    def rows(self, query: str, *parameters: Any) -> dict[str, list[Any]]:
        """The answer of every node's own database file, read by plain sqlite3."""
        self.cluster.wait_synced(PATIENCE)
        answers = {}
        for node in self.cluster.nodes:
            connection = sqlite3.connect(f"file:{node.database()}?mode=ro", uri=True, timeout=10)
            try:
                answers[node.name] = connection.execute(query, parameters).fetchall()
            finally:
                connection.close()
        return answers

    def unacknowledged(self) -> int:
        """How many messages of writes a worker has taken and not acknowledged."""
        return self.broker.unacknowledged(QUEUE)

    def waiting(self, queue: str = QUEUE) -> int:
        """How many messages wait in a queue, by default that of writes."""
        return self.broker.waiting(queue)

    def gate(self) -> Gate:
        """A new gate for ``gates.visit``, closed."""
        return Gate(self._directory / f"gate-{uuid.uuid4().hex[:8]}")

    def tails(self) -> str:
        """The ends of the workers' logs."""
        return "\n".join(
            f"--- worker {name}\n{processes.worker.tail(15)}"
            for name, processes in self.processes.items()
        )

    def _consumed(self) -> bool:
        return self.consumes(self.cluster.primary(PATIENCE).name)


class Gate:
    """Where writes of ``gates.visit`` wait until it is opened; a block opens it at its end."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)
        self._path = path
        self._runs = path.with_name(f"{path.name}.runs")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.open()

    def open(self) -> None:
        """Let them go on."""
        self._path.touch()

    def wait_reached(self, explain: Any = lambda: "") -> None:
        """Wait until a write stands at it, in the middle of its transaction."""
        wait_until(self._runs.exists, PATIENCE, explain)


class OpenTransaction:
    """A transaction that another process has begun on a database and keeps open."""

    def __init__(self, database: object, *statements: str, mode: str = "rw") -> None:
        uri = f"file:{database}?mode={mode}"
        program = (
            "import sqlite3, sys\n"
            f"c = sqlite3.connect({uri!r}, uri=True, isolation_level=None, timeout=30)\n"
            f"for s in {statements!r}: c.execute(s).fetchall()\n"
            "print('held', flush=True); sys.stdin.read()\n"
        )
        self._child = subprocess.Popen(
            [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        assert self._child.stdout
        assert self._child.stdout.readline().strip() == b"held"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.release()

    def release(self) -> None:
        """End the process and with it the transaction."""
        self._child.communicate()


def code(prefix: str) -> str:
    """A new region's code."""
    return f"{prefix}-{uuid.uuid4().hex[:8]}"


def region(site: Site, prefix: str, **fields: object) -> str:
    """A new region's code, inserted on the primary and seen everywhere."""
    name = code(prefix)
    site.on(site.primary()).call("db.insert", {"code": name, "name": name, **fields})
    site.cluster.wait_synced(PATIENCE)
    return name


def everywhere(site: Site, query: str, *parameters: object) -> list[Any]:
    """The rows of a query, the same on every node."""
    answers = site.rows(query, *parameters)
    first = next(iter(answers.values()))
    assert all(rows == first for rows in answers.values()), answers
    return first


def visits(site: Site, name: str) -> int:
    """How often a region was visited, the same on every node."""
    [(count,)] = everywhere(site, "SELECT visits FROM regions WHERE code = ?", name)
    return int(count)


def known(site: Site, node: str, write_id: str) -> bool:
    """Whether that node's file holds an outcome of the write."""
    uri = f"file:{site.cluster.node(node).database()}?mode=ro"
    with closing(sqlite3.connect(uri, uri=True, timeout=10)) as connection:
        query = "SELECT count(*) FROM _litefs_celery_ledger WHERE write_id = ?"
        return bool(connection.execute(query, (write_id,)).fetchone()[0])


def visit_in_tasks(site: Site, code: str, *, tasks: int, visits: int) -> list[int]:
    """What tasks of the application's own return that each visit a region some times."""
    # Results are read from Redis itself: celery 5.6.3's AsyncResult raises in __del__ when its
    # backend has gone before it.
    app = Celery("client", broker=site.broker.url, set_as_current=False)
    client = site.redis.client()
    try:
        ids = [
            app.send_task("worker.tasks.visit_all", args=([code] * visits,)).id
            for _ in range(tasks)
        ]
    finally:
        app.close()
    stored = [
        wait_until(lambda key=f"celery-task-meta-{i}": client.get(key), PATIENCE) for i in ids
    ]
    return [json.loads(text)["result"] for text in stored]


class Writers:
    """
    Threads that write from some nodes until told to stop, and know what they were told.

    Each visits a region of its own, so that its count must equal the number of its writes that
    committed: fewer is lost, more is doubled.
    """

    def __init__(self, site: Site, nodes: list[str], prefix: str, *, threads: int = 4) -> None:
        self._site = site
        self._stop = threading.Event()
        self.acknowledged: dict[str, int] = {}
        self.unknown: dict[str, list[str]] = {}
        self.errors: list[str] = []
        self._threads = []
        for node in nodes:
            for number in range(threads):
                code = f"{prefix}-{node}-{number}"
                site.on(node).call("db.insert", {"code": code, "name": code})
                self.acknowledged[code], self.unknown[code] = 0, []
                thread = threading.Thread(target=self._write, args=(node, code), daemon=True)
                self._threads.append(thread)
        for thread in self._threads:
            thread.start()

    def total(self) -> int:
        """How many writes were acknowledged so far."""
        return sum(self.acknowledged.values())

    def wait_for(self, more: int) -> None:
        """Wait until that many more were acknowledged."""
        goal = self.total() + more
        wait_until(lambda: self.total() >= goal, PATIENCE, lambda: f"{self.errors[-3:]}")

    def stop(self) -> None:
        """Stop, and wait for what is under way."""
        self._stop.set()
        for thread in self._threads:
            thread.join(PATIENCE)

    def _write(self, node: str, code: str) -> None:
        while not self._stop.is_set():
            try:
                self._site.on(node).call("regions.visit", code)
                self.acknowledged[code] += 1
            except CallError as error:
                self.errors.append(f"{time.strftime('%H:%M:%S')} {error}")
                self.unknown[code].append(error.write_id)

    def check(self) -> None:
        """Every acknowledged write counted exactly once on every node; unknown ones resolved."""
        committed = dict(self.acknowledged)
        for code, write_ids in self.unknown.items():
            for write_id in write_ids:
                committed[code] += self._resolve(write_id)
        for name, rows in self._site.rows("SELECT code, visits FROM regions").items():
            found = dict(rows)
            wrong = {
                code: (found.get(code), count)
                for code, count in committed.items()
                if found.get(code) != count
            }
            assert not wrong, f"on {name} (found, expected): {wrong}"

    def _resolve(self, write_id: str) -> int:
        """1 if the write committed, 0 if it did not; past its deadline the primary knows."""
        query = "SELECT outcome FROM _litefs_celery_ledger WHERE write_id = ?"
        answers = {str(rows) for rows in self._site.rows(query, write_id).values()}
        assert len(answers) == 1, f"nodes disagree on {write_id}: {answers}"
        return int("committed" in answers.pop())
