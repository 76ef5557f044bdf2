"""
The demo: a cluster of three nodes imports real records while its primary is killed.

``make demo``, ``celery -A worker litefs demo`` or ``python -m worker.demo``.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import random
import shutil
import signal
import sqlite3
import sys
import tempfile
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn
from urllib.parse import quote

import requests
from celery import Celery

from litefs_celery.emulator import EmulatedCluster
from litefs_celery.emulator.real import RealCluster, missing_programs

from .fleet import NodeProcesses, Process, RedisServer, free_port, wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

NAMES = ("a", "b", "c")
KILL_AT = 0.4  # of the records
EMULATED_GAP = 2.0  # seconds without a primary: short, but long enough to be seen
START_TIMEOUT = 120.0  # nine Python processes on a small machine
FAILOVER_TIMEOUT = 120.0  # LiteFS takes about 20 s; a busy machine longer
IMPORT_TIMEOUT = 900.0
POLL = 0.05
FIELDS = ("code", "name", "kind", "country")


class DemoError(Exception):
    """The demo could not be carried out; the message says what happened, with the log's end."""


@dataclass(frozen=True)
class Options:
    """What was asked for on the command line."""

    records: int | None = None
    seed: int = 0
    callers: int = 16
    real: bool = False
    journal_mode: str = "delete"
    directory: Path | None = None
    json_file: Path | None = None
    keep: bool = False


def run(options: Options) -> int:
    """Run the demo and end all it started; 0 when nothing was lost or doubled."""
    if options.real and (missing := missing_programs()):
        sys.stderr.write(
            f"--real needs {' and '.join(missing)}, which this machine lacks. Install them (and "
            "FUSE), or leave --real out: the emulator needs nothing\n"
        )
        return 1
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _interrupt)
    directory = options.directory or Path(tempfile.mkdtemp(prefix="litefs-celery-demo-"))
    directory.mkdir(parents=True, exist_ok=True)
    if any(directory.iterdir()):
        sys.stderr.write(f"{directory} is not empty: choose another --directory\n")
        return 2
    screen = Screen()
    result = 1
    try:
        with contextlib.ExitStack() as stack:
            stack.callback(screen.say, "all processes have been ended")
            try:
                result = Demo(options, directory, screen, stack).run()
            finally:
                # A second Ctrl-C must not leave processes behind.
                for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
                    signal.signal(number, signal.SIG_IGN)
    except KeyboardInterrupt:
        screen.say("interrupted")
        result = 130
    except (DemoError, TimeoutError, RuntimeError, OSError) as error:
        screen.say(f"the demo failed: {error}")
    if options.directory is None and result == 0:
        shutil.rmtree(directory, ignore_errors=True)
    else:
        screen.say(f"files and logs: {directory}")
    return result


class Demo:
    """One run: its cluster, its processes, and what was seen of them."""

    def __init__(
        self, options: Options, directory: Path, screen: Screen, stack: contextlib.ExitStack
    ) -> None:
        self.options = options
        self.directory = directory
        self.screen = screen
        self.stack = stack
        self.cluster: Any = (
            RealCluster(directory / "litefs", NAMES) if options.real
            else EmulatedCluster(directory / "litefs", NAMES, failover_gap=EMULATED_GAP)
        )
        self.redis = RedisServer(directory / "redis")
        self.watcher = Watcher({node.name: node.api_url for node in self.cluster.nodes})
        self.keeper = Keeper(screen)
        self.processes: dict[str, NodeProcesses] = {}
        self.killed = ""
        self.killed_after = 0
        self.successor = ""

    def run(self) -> int:
        """Start all, import, kill, compare, report."""
        records = _records(self.options)
        self.start(len(records))
        importers = self.start_importers(records)
        self.follow(importers, len(records))
        self.screen.say("waiting until all nodes hold the same")
        acknowledged = [row for importer in importers for row in importer.new_rows(whole=True)]
        figures = self.settled_figures(records, acknowledged)
        self.screen.report(figures)
        if self.options.json_file:
            self.options.json_file.write_text(json.dumps(figures, indent=2) + "\n")
        failed = [importer for importer in importers if importer.process.returncode != 0]
        for importer in failed:
            self.screen.say(f"importer on {importer.node} failed:\n{importer.process.tail(10)}")
        if self.options.keep:
            self.keep()
        return 1 if failed or figures["failed"] else 0

    def settled_figures(
        self, records: list[dict[str, str]], acknowledged: list[dict[str, Any]]
    ) -> dict[str, Any]:
        """
        Every node's rows compared with the input, once nothing is under way any more.

        Where a node without the killed primary's last writes won, their origin sends them again.
        """
        deadline = time.monotonic() + FAILOVER_TIMEOUT
        while True:
            self.cluster.wait_synced(FAILOVER_TIMEOUT)
            figures = self.figures(records, acknowledged)
            if not figures["lost"] or time.monotonic() > deadline:
                return figures
            time.sleep(POLL)

    def start(self, count: int) -> None:
        """Redis, the cluster, the tables, and each node's worker and web process."""
        kind = "real LiteFS and Consul" if self.options.real else "emulated LiteFS"
        self.screen.say(f"starting Redis and three nodes ({kind}) in {self.directory}")
        self.stack.callback(self.redis.stop)
        self.redis.start()
        self.stack.callback(self.cluster.stop)
        self.cluster.start()
        primary = self.cluster.primary(FAILOVER_TIMEOUT)
        for node in self.cluster.nodes:
            self.processes[node.name] = NodeProcesses(
                node, self.directory / "processes" / node.name, broker_url=self.redis.url,
                environ={
                    "LITEFS_CELERY_OUTBOX_DIR": str(self.directory / "outbox"),
                    "LITEFS_CELERY_OUTBOX_KEEPS": "all",
                },
            )
        self.create_tables(primary.name)
        self.cluster.wait_synced(FAILOVER_TIMEOUT)
        self.screen.say(f"{primary.name} is primary; starting a worker and a web process on each")
        self.stack.callback(self.keeper.stop)
        for processes in self.processes.values():
            self.keeper.keep(processes.worker, processes.web)
        self.keeper.start()
        self.wait_consuming(primary.name)
        self.watcher.start()
        self.stack.callback(self.watcher.stop)
        self.screen.say(f"importing {count:,} records through the two replicas")

    def create_tables(self, name: str) -> None:
        """Run ``worker.setup_database`` on the primary."""
        command = [sys.executable, "-m", "worker.setup_database"]
        command += ["--journal-mode", self.options.journal_mode]
        process = Process(command, self.directory / "setup.log", self.processes[name].environ)
        self.stack.callback(process.kill)
        process.start()
        wait_until(lambda: not process.is_alive(), START_TIMEOUT, process.tail)
        if process.returncode != 0:
            raise DemoError(f"the tables could not be created:\n{process.tail()}")

    def wait_consuming(self, name: str) -> None:
        """Return when every worker answers and the primary's consumes the queue of writes."""
        inspect = Celery(broker=self.redis.url).control.inspect(timeout=1.0)
        said: dict[str, Any] = {}

        def ready() -> bool:
            self.keeper.check()
            said.clear()
            said.update(inspect._request("litefs") or {})
            rows = [row for reply in said.values() for row in reply.values()]
            return len(rows) == len(NAMES) and any(row["consuming"] for row in rows)

        def why() -> str:
            return f"workers said {said}\n{self.processes[name].worker.tail()}"

        wait_until(ready, START_TIMEOUT, why)

    def start_importers(self, records: list[dict[str, str]]) -> list[Importer]:
        """One importer beside each replica's data."""
        file = self.directory / "records.jsonl"
        file.write_text("".join(json.dumps(record) + "\n" for record in records))
        replicas = [node.name for node in self.cluster.replicas()]
        importers = []
        for number, name in enumerate(replicas, 1):
            log = self.directory / f"acknowledged-{name}.jsonl"
            log.touch()
            command = [sys.executable, "-m", "worker.importer", "--records", str(file)]
            command += ["--part", f"{number}/{len(replicas)}", "--log", str(log)]
            command += ["--callers", str(self.options.callers)]
            output = self.directory / f"importer-{name}.log"
            process = Process(command, output, self.processes[name].environ)
            self.stack.callback(process.kill)
            process.start()
            importers.append(Importer(name, process, log))
        return importers

    def follow(self, importers: list[Importer], total: int) -> None:
        """Show progress until the importers end; kill the primary on the way."""
        deadline = time.monotonic() + IMPORT_TIMEOUT
        acknowledged = 0
        fault: Fault | None = None
        with self.screen.progress(total) as show:
            while True:
                running = any(importer.process.is_alive() for importer in importers)
                acknowledged += sum(len(importer.new_rows()) for importer in importers)
                show(acknowledged, self.watcher.primary)
                self.keeper.check()
                if fault is None and acknowledged >= KILL_AT * total:
                    fault = Fault(self, acknowledged)
                    fault.start()
                if fault is not None and fault.error is not None:
                    raise DemoError(f"the failover went wrong: {fault.error}") from fault.error
                if not running and (fault is None or fault.done):
                    break
                if time.monotonic() > deadline:
                    raise DemoError(
                        f"{acknowledged} of {total} acknowledged after {IMPORT_TIMEOUT:.0f} s\n"
                        + "\n".join(importer.process.tail(5) for importer in importers)
                    )
                time.sleep(POLL)
        if fault is None:
            raise DemoError(
                f"only {acknowledged} of {total} were acknowledged before the importers ended\n"
                + "\n".join(importer.process.tail(10) for importer in importers)
            )

    def figures(
        self, records: list[dict[str, str]], acknowledged: list[dict[str, Any]]
    ) -> dict[str, Any]:
        """Every node's rows compared with the input, and the times."""
        nodes = {
            node.name: compare(records, acknowledged, _rows(node.database()))
            for node in self.cluster.nodes
        }
        times = sorted(row["at"] for row in acknowledged)
        latencies = sorted(row["latency"] for row in acknowledged)
        duration = times[-1] - times[0] if times else 0.0
        total = {key: sum(row[key] for row in nodes.values()) for key in nodes["a"]}
        bad = ("lost", "doubled", "differing", "unknown")
        return {
            "records": len(records), "acknowledged": len(acknowledged),
            "present": min(row["present"] for row in nodes.values()),
            **{key: total[key] for key in bad}, "nodes": nodes,
            "killed": self.killed, "killed_after": self.killed_after,
            "successor": self.successor, "kind": "real" if self.options.real else "emulated",
            "journal_mode": self.options.journal_mode,
            "seconds_without_primary": round(self.watcher.longest_gap(), 3),
            "seconds_without_acknowledged_write": round(
                max((b - a for a, b in itertools.pairwise(times)), default=0.0), 3
            ),
            "seconds": round(duration, 3),
            "writes_per_second": round(len(times) / duration, 1) if duration else 0.0,
            "latency_p50_ms": round(1000 * _quantile(latencies, 0.5), 1),
            "latency_p99_ms": round(1000 * _quantile(latencies, 0.99), 1),
            "called_again": sum(row["calls"] > 1 for row in acknowledged),
            "failed": len(acknowledged) != len(records) or any(total[key] for key in bad),
        }

    def keep(self) -> None:
        """Leave everything running until Ctrl-C."""
        environ = self.processes[NAMES[0]].environ
        port = free_port()
        command = [sys.executable, "-m", "celery", "-A", "worker", "flower"]
        command += ["--address=127.0.0.1", f"--port={port}"]
        flower = Process(command, self.directory / "flower.log", environ)
        self.keeper.keep(flower)
        self.screen.say("starting Flower and waiting until all pages answer")
        pages = [processes.web_url for processes in self.processes.values()]
        pages.append(f"http://127.0.0.1:{port}")
        wait_until(lambda: all(map(_answers, pages)), START_TIMEOUT, flower.tail)
        for name, processes in self.processes.items():
            self.screen.say(f"node {name}: {processes.web_url}")
        self.screen.say(f"Flower: http://127.0.0.1:{port}")
        shown = ("APP_DATABASE_URL", "CELERY_BROKER_URL", "LITEFS_CELERY_NODE",
                 "LITEFS_CELERY_API_URL")
        words = " ".join(f"{key}={environ[key]}" for key in shown)
        self.screen.say(f"Status: {words} celery -A worker litefs status")
        self.screen.say("Ctrl-C ends it all")
        with contextlib.suppress(KeyboardInterrupt):
            while True:
                self.keeper.check()
                time.sleep(1.0)


class Importer:
    """An importer's process, and what it has written down."""

    def __init__(self, node: str, process: Process, log: Path) -> None:
        self.node = node
        self.process = process
        self._log = log
        self._offset = 0

    def new_rows(self, *, whole: bool = False) -> list[dict[str, Any]]:
        """Return the lines written since the last call; with ``whole``, all."""
        with self._log.open("rb") as file:
            file.seek(0 if whole else self._offset)
            lines = file.read().split(b"\n")
        complete = lines[:-1]
        self._offset += 0 if whole else sum(len(line) + 1 for line in complete)
        return [json.loads(line) for line in complete]


class Fault(threading.Thread):
    """Kills the primary with all its processes, and starts it again once another took over."""

    def __init__(self, demo: Demo, acknowledged: int) -> None:
        super().__init__(name="fault", daemon=True)
        self._demo = demo
        self._acknowledged = acknowledged
        self.done = False
        self.error: Exception | None = None

    def run(self) -> None:
        """Kill, wait for the successor, bring the node back."""
        try:
            self._run()
        except Exception as error:  # noqa: BLE001 - raised again by the main thread
            self.error = error

    def _run(self) -> None:
        demo, say = self._demo, self._demo.screen.say
        old = demo.cluster.primary(FAILOVER_TIMEOUT)
        processes = demo.processes[old.name]
        demo.killed, demo.killed_after = old.name, self._acknowledged
        say(f"kill -9 of {old.name}, the primary, with its worker and web process, after "
            f"{self._acknowledged:,} records")
        demo.keeper.leave(processes.worker, processes.web)
        started = time.monotonic()
        old.kill()
        processes.kill()
        new = demo.cluster.primary(FAILOVER_TIMEOUT)
        demo.successor = new.name
        say(f"{new.name} is primary after {time.monotonic() - started:.1f} s; starting {old.name} "
            "again")
        old.start()
        demo.keeper.keep(processes.worker, processes.web)
        wait_until(
            lambda: (_info(old.api_url).get("primary") or {}).get("hostname"), FAILOVER_TIMEOUT,
            lambda: f"{old.name} says {_info(old.api_url)}",
        )
        say(f"{old.name} is back as a replica")
        self.done = True


class Keeper:
    """Supervises processes: what exits is started again, as systemd or Docker would."""

    def __init__(self, screen: Screen, *, interval: float = 0.2, limit: int = 5) -> None:
        self._screen = screen
        self._interval = interval
        self._limit = limit
        self._kept: list[Process] = []
        self._all: list[Process] = []
        self._restarts: Counter[Path] = Counter()
        self._lock = threading.Lock()
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._loop, name="keeper", daemon=True)
        self._failure = ""

    def start(self) -> None:
        """Begin to supervise."""
        self._thread.start()

    def keep(self, *processes: Process) -> None:
        """Start them, and again whenever they exit."""
        with self._lock:
            for process in processes:
                # Known before it runs: an interrupt in between must not leave it behind.
                if process not in self._all:
                    self._all.append(process)
                process.start()
                self._kept.append(process)

    def leave(self, *processes: Process) -> None:
        """Let them be dead."""
        with self._lock:
            self._kept = [process for process in self._kept if process not in processes]

    def check(self) -> None:
        """Raise `DemoError` when a process does not stay alive."""
        if self._failure:
            raise DemoError(self._failure)

    def stop(self) -> None:
        """End them all, at the same time."""
        self._stopped.set()
        with self._lock:
            self._kept.clear()
        if self._all:
            with ThreadPoolExecutor(len(self._all)) as pool:
                list(pool.map(Process.stop, self._all))

    def _loop(self) -> None:
        while not self._stopped.wait(self._interval):
            with self._lock:
                for process in [one for one in self._kept if not one.is_alive()]:
                    self._restart(process)

    def _restart(self, process: Process) -> None:
        name = f"{process.log.parent.name}/{process.log.stem}"
        self._restarts[process.log] += 1
        if self._restarts[process.log] > self._limit:
            self._kept.remove(process)
            self._failure = f"{name} exits again and again:\n{process.tail()}"
            return
        self._screen.say(f"{name} exited ({process.returncode}) and is started again")
        process.start()


class Watcher:
    """Asks every node's ``/info`` all the time: who was primary, and when nobody was."""

    def __init__(self, urls: dict[str, str]) -> None:
        self._urls = urls
        self._seen: list[tuple[float, str]] = []
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._loop, name="watcher", daemon=True)

    @property
    def primary(self) -> str:
        """Who said so last; empty when nobody does."""
        return self._seen[-1][1] if self._seen else ""

    def start(self) -> None:
        """Begin to ask."""
        self._thread.start()

    def stop(self) -> None:
        """Stop asking; idempotent."""
        self._stopped.set()
        self._thread.join()

    def longest_gap(self) -> float:
        """Return the most seconds from a look that found a primary to the next that did."""
        known = [at for at, name in self._seen if name]
        return max((b - a for a, b in itertools.pairwise(known)), default=0.0)

    def _loop(self) -> None:
        while not self._stopped.wait(POLL):
            named = [name for name, url in self._urls.items() if _info(url).get("isPrimary")]
            self._seen.append((time.monotonic(), " and ".join(named)))


class Screen:
    """What the user sees: with rich on a terminal, else plain lines."""

    def __init__(self) -> None:
        self._started = time.monotonic()
        self._console: Any = None
        if sys.stdout.isatty():
            with contextlib.suppress(ImportError):
                from rich.console import Console

                self._console = Console(highlight=False)

    def say(self, text: str) -> None:
        """One line, with the seconds since the start."""
        line = f"{time.monotonic() - self._started:6.1f} s  {text}"
        if self._console is not None:
            self._console.print(line, markup=False)
        else:
            sys.stdout.write(line + "\n")
            sys.stdout.flush()

    @contextlib.contextmanager
    def progress(self, total: int) -> Iterator[Callable[[int, str], None]]:
        """Give a function to call with the number acknowledged and the primary's name."""
        if self._console is None:
            yield self._plain(total)
            return
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

        columns = (
            BarColumn(), MofNCompleteColumn(), TextColumn("acknowledged"),
            TextColumn("{task.fields[rate]:.0f}/s"), TextColumn("primary: {task.fields[primary]}"),
        )
        with Progress(*columns, console=self._console) as bar:
            task = bar.add_task("", total=total, rate=0.0, primary="?")
            rate = Rate()

            def show(done: int, primary: str) -> None:
                bar.update(task, completed=done, rate=rate(done), primary=primary or "nobody")

            yield show

    def _plain(self, total: int) -> Callable[[int, str], None]:
        rate, last = Rate(), [time.monotonic()]

        def show(done: int, primary: str) -> None:
            speed = rate(done)
            if time.monotonic() - last[0] >= 2.0:  # noqa: PLR2004 - seconds between lines
                last[0] = time.monotonic()
                self.say(f"{done:,} of {total:,} acknowledged, {speed:.0f}/s, primary: "
                         f"{primary or 'nobody'}")

        return show

    def report(self, figures: dict[str, Any]) -> None:
        """Show the figures at the end."""
        rows = [("node", "rows", "present", "lost", "doubled", "differing", "unknown")]
        for name, node in figures["nodes"].items():
            rows.append((name, *(f"{node[key]:,}" for key in rows[0][1:])))
        self.say("every row of every node compared with the input:")
        gap = figures["seconds_without_acknowledged_write"]
        lines = ["  ".join(cell.rjust(10) for cell in row) for row in rows]
        verdict = "FAILED" if figures["failed"] else "nothing lost, nothing doubled"
        lines += [
            "",
            f"  records                              {figures['records']:>10,}",
            f"  acknowledged                         {figures['acknowledged']:>10,}",
            f"  present on every node                {figures['present']:>10,}",
            f"  lost                                 {figures['lost']:>10,}",
            f"  doubled                              {figures['doubled']:>10,}",
            f"  differing                            {figures['differing']:>10,}",
            f"  time without a primary               {figures['seconds_without_primary']:>10.1f} s",
            f"  time without an acknowledged write   {gap:>10.1f} s",
            f"  writes per second, failover included {figures['writes_per_second']:>10,.0f}",
            f"  latency of a write, p50              {figures['latency_p50_ms']:>10,.0f} ms",
            f"  latency of a write, p99              {figures['latency_p99_ms']:>10,.0f} ms",
            f"  called again after an open outcome   {figures['called_again']:>10,}",
            "",
            f"  {figures['killed']} was killed, {figures['successor']} took over: {verdict}",
        ]
        text = "\n".join(lines)
        if self._console is not None:
            self._console.print(text, markup=False)
        else:
            sys.stdout.write(text + "\n")
            sys.stdout.flush()


class Rate:
    """Acknowledged per second over the last two seconds."""

    def __init__(self) -> None:
        self._seen: list[tuple[float, int]] = []

    def __call__(self, done: int) -> float:
        """Return the rate now that ``done`` are acknowledged."""
        now = time.monotonic()
        self._seen = [(at, number) for at, number in self._seen if at > now - 2.0]
        self._seen.append((now, done))
        first, number = self._seen[0]
        return (done - number) / (now - first) if now > first else 0.0


def _records(options: Options) -> list[dict[str, str]]:
    """All ISO 3166-2 subdivisions, or some of them, in an order that the seed decides."""
    try:
        import pycountry
    except ImportError:
        raise DemoError("pycountry is missing: pip install 'litefs-celery[demo]'") from None
    found = [
        {"code": one.code, "name": one.name, "kind": one.type, "country": one.country_code}
        for one in sorted(pycountry.subdivisions, key=lambda one: str(one.code))
    ]
    random.Random(options.seed).shuffle(found)  # noqa: S311 - an order, not a secret
    return found[: options.records]


def _rows(path: Path) -> list[tuple[Any, ...]]:
    uri = f"file:{quote(str(path))}?mode=ro"
    with contextlib.closing(sqlite3.connect(uri, uri=True, timeout=30.0)) as connection:
        return connection.execute(f"SELECT visits, {', '.join(FIELDS)} FROM regions").fetchall()  # noqa: S608


def compare(
    records: list[dict[str, str]],
    acknowledged: list[dict[str, Any]],
    rows: list[tuple[Any, ...]],
) -> dict[str, int]:
    """
    Hold one node's ``rows`` (visits, then `FIELDS`) against the input, row by row.

    Each write that took effect counted one visit: a row with more was made twice, one with less
    lost its write. Nothing makes up for anything else.
    """
    wanted = {record["code"]: tuple(record[field] for field in FIELDS) for record in records}
    visits: Counter[str] = Counter()
    for times, code, *_ in rows:
        visits[code] += times
    return {
        "rows": len(rows),
        "present": sum(code in visits for code in wanted),
        "lost": sum(visits[code] < 1 for code in {row["code"] for row in acknowledged}),
        "doubled": sum(max(times - 1, 0) for times in visits.values()),
        "differing": sum(
            fields[0] in wanted and tuple(fields) != wanted[fields[0]] for _, *fields in rows
        ),
        "unknown": sum(code not in wanted for code in visits),
    }


def _quantile(values: list[float], share: float) -> float:
    return values[min(int(share * len(values)), len(values) - 1)] if values else 0.0


def _info(url: str) -> dict[str, Any]:
    """Ask a node's ``/info``; empty when it does not answer."""
    try:
        with requests.Session() as session:
            # A proxy of the environment must not answer for this machine.
            session.trust_env = False
            found: dict[str, Any] = session.get(f"{url}/info", timeout=0.5).json()
            return found
    except (requests.RequestException, ValueError):
        return {}


def _answers(url: str) -> bool:
    try:
        with requests.Session() as session:
            session.trust_env = False
            return session.get(url, timeout=5.0).ok
    except requests.RequestException:
        return False


def _interrupt(*_: object) -> NoReturn:
    raise KeyboardInterrupt


if __name__ == "__main__":
    from .demo_command import demo

    demo(prog_name="python -m worker.demo")
