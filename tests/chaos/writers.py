"""Threads that write on every node until told to stop, and log what they call and are told."""

from __future__ import annotations

import random
import threading
import uuid
from concurrent.futures import TimeoutError as FutureTimeoutError
from typing import Any

from tests.chaos.log import COMMITTED, REFUSED, Call, Log
from tests.cluster.site import CallerGone, CallError, Site

# What a writer does next, and how often: synchronous, submitted, bulk, and what is refused.
WAYS = {"put": 10, "submit": 5, "bulk": 2, "submit bulk": 1, "refuse": 3}
BULK = 5
# A few calls a second for each writer: a storm is long, and each write is looked at in the end.
PAUSE = (0.02, 0.25)
# Seconds for a synchronous call: one that outlasts most faults, and one that few do.
TIMEOUTS = (10.0, 3.0)
# What is submitted must outlast the storm.
SUBMIT_TIMEOUT = 3600.0
# A call can hang with its node's mount for as long as LiteFS is paused; then it is not awaited.
SILENCE = 120.0
# How often an unknown write is called again under its id before it is left unknown.
AGAIN = 2


class Writers:
    """``threads`` writers in each node's calling process; each draws from the seed on its own."""

    def __init__(self, site: Site, log: Log, seed: int, *, threads: int) -> None:
        self._site = site
        self._log = log
        self._stop = threading.Event()
        self.names = [f"{node}{n}" for node in sorted(site.callers) for n in range(threads)]
        self._threads = [
            threading.Thread(
                target=self._write, args=(name, random.Random(f"{seed} {name}")), daemon=True
            )
            for name in self.names
        ]

    def start(self) -> None:
        """Make a region for each, which counts its marks, and begin to write."""
        primary = self._site.on(self._site.primary())
        for name in self.names:
            primary.call("db.insert", {"code": name, "name": name})
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Stop, and wait for what is under way."""
        self._stop.set()
        for thread in self._threads:
            thread.join(SILENCE)

    def _write(self, name: str, rng: random.Random) -> None:
        number = 0
        while not self._stop.is_set():
            number += 1
            way = rng.choices(list(WAYS), list(WAYS.values()))[0]
            write_id = str(uuid.UUID(int=rng.getrandbits(128), version=4))
            several = way.endswith("bulk")
            marks = [f"{write_id}/{n}" for n in range(BULK)] if several else [write_id]
            call = Call(
                write_id, name, number, marks, submitted=way.startswith("submit"),
                order_key=name if way == "submit" else "",
            )
            timeout = SUBMIT_TIMEOUT if call.submitted else rng.choice(TIMEOUTS)
            for _ in range(1 + AGAIN):
                if self._is_known(self._call(way, call, timeout)) or rng.random() < 0.5:
                    break
            self._stop.wait(rng.uniform(*PAUSE))

    def _is_known(self, kind: str) -> bool:
        return kind == "value" or kind in REFUSED or kind in COMMITTED

    def _call(self, way: str, call: Call, timeout: float) -> str:
        """One call; returns the kind of its answer."""
        options: dict[str, Any] = {"write_id": call.write_id, "timeout": timeout}
        if call.submitted:
            options["delay"] = True
        if call.order_key:
            options["order_key"] = call.order_key
        method = {"refuse": "marks.refuse"}.get(way, "marks.put")
        arguments: list[Any] = [call.marks[0], call.writer, call.number]
        if len(call.marks) > 1:
            method = "marks.insert_rows"
            arguments = [
                [{"mark": m, "writer": call.writer, "number": call.number} for m in call.marks]
            ]
        self._log.called(call, timeout)
        try:
            node = self._site.on(call.writer[0])
            node.submit(method, *arguments, **options).result(SILENCE)
        except CallError as error:
            self._log.told(
                call.write_id, error.kind, str(error), may_have_been_sent=error.may_have_been_sent
            )
            return error.kind
        except (CallerGone, FutureTimeoutError):
            self._log.told(call.write_id, "CallerGone")
            # Its successor starts soon; nothing is lost by not asking at once.
            self._stop.wait(0.2)
            return "CallerGone"
        self._log.told(call.write_id, "value")
        return "value"
