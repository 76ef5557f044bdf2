"""A site in a storm: links that can be cut, disks that can be filled, and who starts what died."""

from __future__ import annotations

import contextlib
import json
import signal
import sqlite3
import time
from collections.abc import Iterable, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from tests.chaos.disk import Disk, may_mount
from tests.chaos.judge import Evidence
from tests.chaos.link import Link
from tests.chaos.log import Call, Log
from tests.cluster.site import PATIENCE, Site
from worker.fleet import wait_until

# The outbox of a storm is some hundred kilobytes, a database some megabytes, on real LiteFS with
# a file for each transaction beside it.
OUTBOX_MEGABYTES, DATA_MEGABYTES = 16, 256


class Scene:
    """
    ``site`` and what the faults need of it.

    ``held`` names what a fault has taken down on purpose, ``worker a``, ``origin b`` or ``node
    c``; whatever else is dead is started again by `supervise`.
    """

    def __init__(self, site: Site, directory: Path, log: Log, *, real: bool) -> None:
        self.site = site
        self.log = log
        self.real = real
        self.held: set[str] = set()
        self.names = [node.name for node in site.cluster.nodes]
        url = urlsplit(site.broker.url)
        assert url.port
        self.links = {name: Link(url.port) for name in self.names}
        self.outboxes = {
            name: Disk(directory / "disks" / name, OUTBOX_MEGABYTES) for name in self.names
        }
        # The emulator renames files between its home and its data.
        place = "data" if real else "."
        self.data = {
            name: Disk(directory / "cluster" / name / place, DATA_MEGABYTES)
            for name in self.names
        }
        self.has_disks = may_mount(directory)

    def start(self) -> None:
        """Mount the disks, start the links and the site."""
        for name in self.names:
            if self.has_disks:
                assert self.outboxes[name].mount()
                assert self.data[name].mount()
            self.outboxes[name].directory.mkdir(parents=True, exist_ok=True)
            self.links[name].start()
            url = self.site.broker.url
            port = f":{self.links[name].port}/"
            self.site.broker_urls[name] = url.replace(f":{urlsplit(url).port}/", port)
            directory = str(self.outboxes[name].directory)
            self.site.environs[name] = {"LITEFS_CELERY_OUTBOX_DIR": directory}
        self.site.start()

    def stop(self) -> None:
        """End everything."""
        self.let_go()
        self.site.stop()
        for link in self.links.values():
            link.stop()
        if self.has_disks:
            for disk in (*self.outboxes.values(), *self.data.values()):
                disk.unmount()

    def supervise(self) -> None:
        """Start what died and was not taken down on purpose, as systemd would."""
        for node in self.site.cluster.nodes:
            if f"node {node.name}" not in self.held and not node.is_alive():
                self.log.happened(f"LiteFS of {node.name} ended by itself")
                node.start()
        for name in self.names:
            worker = self.site.processes[name].worker
            if f"worker {name}" not in self.held and not worker.is_alive():
                self.log.happened(f"the worker of {name} ended with {worker.returncode}")
                worker.start()
            if f"origin {name}" not in self.held and not self.site.on(name).is_alive():
                self.log.happened(f"the origin of {name} ended by itself")
                self.site.restart_caller(name)

    def primary(self) -> str:
        """The primary's name, or any node's while there is none."""
        with contextlib.suppress(TimeoutError):
            return str(self.site.cluster.primary(0.0).name)
        return self.names[0]

    def choose(self, pick: float, among: Iterable[str]) -> str:
        """One of those names."""
        names = sorted(among)
        return names[int(pick * len(names))]

    def choose_node(self, pick: float) -> str:
        """A node whose processes answer: each other time the primary."""
        primary = self.primary()
        if pick < 0.5 and primary in self.able():
            return primary
        return self.choose(pick * 2 % 1, self.able())

    def able(self) -> list[str]:
        """The nodes whose LiteFS no fault holds: a process on a paused mount cannot be ended."""
        return [name for name in self.names if f"node {name}" not in self.held]

    def signal_worker(self, name: str, number: signal.Signals) -> None:
        """Send a signal to a node's worker."""
        self.site.processes[name].worker.send(number)

    def heal(self) -> None:
        """Everything up and connected, and one primary that consumes."""
        self.let_go()
        self.site.redis.start()
        self.site.broker.start()
        self.supervise()
        self.site.heal()
        self.supervise()

    def let_go(self) -> None:
        """End every fault, whatever it was; what is dead stays so."""
        self.held.clear()
        for name in self.names:
            self.links[name].join()
            self.outboxes[name].free()
            self.data[name].free()
            node = self.site.cluster.node(name)
            if node.is_alive():
                node.resume()
            if name in self.site.processes:
                self.signal_worker(name, signal.SIGCONT)

    def wait_quiet(self, calls: Mapping[str, Call], patience: float) -> str:
        """
        Wait until nothing that was called can still take effect; what is left where it still can.

        Deadlines of synchronous calls have passed, and each outbox has found all that is left of
        it under the last term, or may not send it any more.
        """
        awaited = [call.deadline for call in calls.values() if not call.submitted]
        last = max(awaited, default=0.0)
        wait_until(lambda: time.time() > last, max(last - time.time(), 0.0) + 1)
        left = ""
        try:
            wait_until(lambda: not self._unfinished(), patience, interval=0.2)
        except TimeoutError:
            left = f"after {patience:g} s outboxes still send or look: {self._unfinished()}"
        self.site.cluster.wait_synced(PATIENCE)
        return left

    def _unfinished(self) -> dict[str, list[Any]]:
        return {name: rows for name in self.names if (rows := self._unfinished_of(name))}

    def _unfinished_of(self, name: str) -> list[Any]:
        [file] = self.outboxes[name].directory.glob("*.outbox")
        epoch, node, litefs_id, started_at = self._query(name, _NEWEST_TERM)[0]
        term = f"{epoch} {node} {litefs_id} {started_at}"
        query = (
            "SELECT write_id, seen_term FROM outbox WHERE (seen_at IS NULL AND deadline > ?) "
            "OR (seen_at IS NOT NULL AND seen_term IS NOT ?) LIMIT 5"
        )
        with closing(sqlite3.connect(file, timeout=10)) as connection:
            return connection.execute(query, (time.time(), term)).fetchall()

    def evidence(self, ask: Iterable[Call]) -> dict[str, Evidence]:
        """What every node holds, and says of those calls."""
        ids = [call.write_id for call in ask]
        return {name: self._evidence_of(name, ids) for name in self.names}

    def _evidence_of(self, name: str, ids: list[str]) -> Evidence:
        caller = self.site.on(name)
        asked = [(write_id, caller.submit("db.outcome", write_id)) for write_id in ids]
        return Evidence(
            [mark for (mark,) in self._query(name, "SELECT mark FROM marks ORDER BY id")],
            dict(self._query(name, "SELECT code, visits FROM regions")),
            {
                write_id: str(next(iter(json.loads(outcome)))).capitalize()
                for write_id, outcome in self._query(name, _OUTCOMES)
            },
            {write_id: future.result(PATIENCE) for write_id, future in asked},
        )

    def _query(self, name: str, query: str) -> list[Any]:
        uri = f"file:{self.site.cluster.node(name).database()}?mode=ro"
        with closing(sqlite3.connect(uri, uri=True, timeout=10)) as connection:
            return connection.execute(query).fetchall()


_NEWEST_TERM = (
    "SELECT epoch, node, litefs_id, started_at FROM _litefs_celery_terms "
    "ORDER BY epoch DESC LIMIT 1"
)
_OUTCOMES = "SELECT write_id, outcome FROM _litefs_celery_ledger"
