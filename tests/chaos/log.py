"""What was called and what was told, in a file that lies outside of the nodes."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

# What each error promises of the write, as the README's table says. What is not here promises
# nothing, and a caller would not know what to do: the judge calls it a fault.
REFUSED = {"Refusal", "IntegrityError", "RemoteError", "WriteExpired"}
NOT_SENT = {
    "OutboxFull", "DatabaseMissing", "MountUnavailable", "OpenReadTransaction", "LiteFSUnreachable"
}
UNKNOWN = {"WriteTimeout", "CallerGone"}
COMMITTED = {"NotYetVisible"}


@dataclass
class Call:
    """One write, by its id: how it was called (more than once, where it was unknown), what told."""

    write_id: str
    writer: str
    number: int
    marks: list[str]
    submitted: bool
    order_key: str = ""
    deadline: float = 0.0
    told: list[dict[str, Any]] = field(default_factory=list)
    times: int = 0

    @property
    def acknowledged(self) -> bool:
        """Whether somebody was told that it took effect, or that it was submitted and will."""
        return any(one["kind"] == "value" or one["kind"] in COMMITTED for one in self.told)

    @property
    def refused(self) -> bool:
        """Whether somebody was told that it did not take effect and never will."""
        if any(one["kind"] in REFUSED for one in self.told):
            return True
        return len(self.told) == self.times and all(_was_not_sent(one) for one in self.told)

    @property
    def undocumented(self) -> list[str]:
        """Errors that the documents do not name."""
        known = REFUSED | NOT_SENT | UNKNOWN | COMMITTED | {"value", "BrokerUnavailable"}
        return [f"{one['kind']}: {one['text']}" for one in self.told if one["kind"] not in known]


def _was_not_sent(told: dict[str, Any]) -> bool:
    if told["kind"] == "BrokerUnavailable":
        return told["may_have_been_sent"] is False
    return told["kind"] in NOT_SENT


class Log:
    """JSON lines, each written before what it tells of goes on."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.acknowledged = 0
        self._lock = threading.Lock()
        self._file = path.open("a")

    def called(self, call: Call, timeout: float) -> None:
        """Note that ``call`` is about to be made, with so many seconds for it."""
        self._add(
            event="called", write_id=call.write_id, writer=call.writer, number=call.number,
            marks=call.marks, submitted=call.submitted, order_key=call.order_key, timeout=timeout,
        )

    def told(
        self, write_id: str, kind: str, text: str = "", *, may_have_been_sent: bool | None = None
    ) -> None:
        """Note its answer: ``value``, or the class of what was raised."""
        self._add(
            event="told", write_id=write_id, kind=kind, text=text,
            may_have_been_sent=may_have_been_sent,
        )
        if kind == "value":
            with self._lock:
                self.acknowledged += 1

    def happened(self, what: str) -> None:
        """Note something else, for who reads the file after a failure."""
        self._add(event="happened", what=what)

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def _add(self, **entry: Any) -> None:
        line = json.dumps({"at": time.time(), **entry}) + "\n"
        with self._lock:
            self._file.write(line)
            self._file.flush()


def read(lines: Iterable[str]) -> dict[str, Call]:
    """The calls of a log, by write id."""
    calls: dict[str, Call] = {}
    for line in lines:
        entry = json.loads(line)
        if entry["event"] == "called":
            call = calls.setdefault(
                entry["write_id"],
                Call(
                    entry["write_id"], entry["writer"], entry["number"], entry["marks"],
                    entry["submitted"], entry["order_key"],
                ),
            )
            call.times += 1
            call.deadline = max(call.deadline, entry["at"] + entry["timeout"])
        elif entry["event"] == "told":
            calls[entry["write_id"]].told.append(entry)
    return calls
