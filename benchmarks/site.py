"""A cluster with a worker on each node, and a calling process on each: what is measured."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, Self

from litefs_celery.emulator import EmulatedCluster
from litefs_celery.emulator.real import RealCluster
from worker.fleet import ROOT, NodeProcesses, RedisServer, wait_until

TIMEOUT = 120.0  # three workers start slowly on a small machine
REGIONS = 200  # rows, so that a read by key is not always of the same one
VISITED = "B-0"
DELAYED = "B-1"
HANDED = "B-2"


class Caller:
    """The calling process of one node; see ``benchmarks.caller``."""

    def __init__(self, environ: dict[str, str], log: Path) -> None:
        self.log = log
        with log.open("ab") as errors:
            self._child = subprocess.Popen(
                [sys.executable, "-m", "benchmarks.caller"], env={**os.environ, **environ},
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True,
                start_new_session=True,
            )

    def send(self, name: str, **options: Any) -> None:
        """Begin a measurement."""
        assert self._child.stdin
        self._child.stdin.write(json.dumps({"do": name, **options}) + "\n")
        self._child.stdin.flush()

    def answer(self) -> Any:
        """Wait for what the measurement returns."""
        assert self._child.stdout
        line = self._child.stdout.readline()
        answer = json.loads(line) if line else {"error": "the process ended"}
        if "error" in answer:
            raise RuntimeError(f"{answer['error']}; see {self.log}")
        return answer["value"]

    def call(self, name: str, **options: Any) -> Any:
        """Make a measurement and wait for it."""
        self.send(name, **options)
        return self.answer()

    def close(self) -> None:
        """End the process; idempotent."""
        if self._child.poll() is not None:
            return
        with contextlib.suppress(OSError, subprocess.TimeoutExpired):
            self._child.communicate(timeout=10)
        self._child.kill()
        self._child.wait()


class Site:
    """All processes of one kind of cluster, on one journal mode."""

    def __init__(
        self, kind: str, journal_mode: str, directory: Path, *, steps: bool = False
    ) -> None:
        self.kind = kind
        self.journal_mode = journal_mode
        self.directory = directory
        self.cluster: Any = (
            RealCluster(directory / "cluster") if kind == "litefs"
            else EmulatedCluster(directory / "cluster")
        )
        self.redis = RedisServer(directory / "redis")
        self.nodes: dict[str, NodeProcesses] = {}
        self.callers: dict[str, Caller] = {}
        self._steps = steps
        self._stack = contextlib.ExitStack()

    @property
    def name(self) -> str:
        """For tables and files."""
        return f"{self.kind}-{self.journal_mode}"

    def __enter__(self) -> Self:
        """Start all of it; nothing is left running when that fails."""
        try:
            self._start()
        except BaseException:
            self._stack.close()
            raise
        return self

    def __exit__(self, *error: object) -> None:
        """Stop all of it."""
        self._stack.close()

    def _start(self) -> None:
        self._stack.callback(self.cluster.stop)
        self.cluster.start()
        self._stack.callback(self.redis.stop)
        self.redis.start()
        for node in self.cluster.nodes:
            processes = self.processes(node, self.redis)
            processes.worker.command[processes.worker.command.index("worker")] = "benchmarks.traced"
            self.nodes[node.name] = processes
            self._stack.callback(processes.kill)
            self.callers[node.name] = Caller(processes.environ, self.log(node.name, "caller.log"))
            self._stack.callback(self.callers[node.name].close)
        primary = self.primary().name
        self.callers[primary].call("create", mode=self.journal_mode)
        self.cluster.wait_synced(TIMEOUT)
        for processes in self.nodes.values():
            processes.worker.start()
        self.wait_consuming(primary, 0)
        self.callers[primary].call("insert", codes=[f"B-{number}" for number in range(REGIONS)])
        self.cluster.wait_synced(TIMEOUT)

    def processes(self, node: Any, redis: RedisServer, part: str = "") -> NodeProcesses:
        """Make the processes of a node on that broker; not started."""
        environ = {
            "BENCHMARK_TRACE": str(self.trace_file(node.name)),
            "LITEFS_CELERY_OUTBOX_DIR": str(self.directory / "outbox"),
        }
        if self._steps:
            environ["BENCHMARK_STEPS"] = "1"
        directory = self.directory / node.name / part
        return NodeProcesses(node, directory, broker_url=redis.url, environ=environ)

    def log(self, node: str, name: str) -> Path:
        """Name a file among the node's logs."""
        return self.directory / node / name

    def trace_file(self, node: str) -> Path:
        """Where the node's processes note what they do."""
        return self.log(node, "trace.jsonl")

    def trace(self, node: str) -> list[dict[str, Any]]:
        """Read what the node's processes noted."""
        file = self.trace_file(node)
        return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []

    def primary(self) -> Any:
        """Return the node that is primary."""
        return self.cluster.primary(TIMEOUT)

    def replicas(self) -> list[Any]:
        """Return the others."""
        return list(self.cluster.replicas())

    def settle(self) -> None:
        """Wait until every node has replicated everything, so that nothing else is under way."""
        self.cluster.wait_synced(TIMEOUT)

    def wait_consuming(self, node: str, since: int) -> int:
        """When that node's worker began to consume, after ``since``; both monotonic, in ns."""

        def began() -> int:
            moves = [line for line in self.trace(node) if line["step"].endswith("consuming")]
            if moves and moves[-1]["step"] == "consuming" and moves[-1]["at"] > since:
                return int(moves[-1]["at"])
            return 0

        found: int = wait_until(began, TIMEOUT, self.nodes[node].worker.tail)
        return found

    def stop_processes(self) -> None:
        """End workers and callers, and leave the cluster."""
        for caller in self.callers.values():
            caller.close()
        for processes in self.nodes.values():
            processes.stop()


def root_environ() -> dict[str, str]:
    """For processes that are not a node's: where this package is importable from."""
    return {"PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
