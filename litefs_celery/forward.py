"""A write run here or sent there, and its outcome awaited."""

from __future__ import annotations

import contextlib
import functools
import threading
import time
from concurrent.futures import Future, InvalidStateError
from concurrent.futures import TimeoutError as FutureTimeoutError
from dataclasses import dataclass, field
from typing import Any, Protocol

from . import observe
from .config import Settings
from .errors import (
    BrokerUnavailable,
    NotYetVisible,
    OpenReadTransaction,
    WriteError,
    WriteTimeout,
)
from .ledger import Entry
from .visibility import Visibility
from .wire import Committed, Expired, Outcome, Refused, Wire, Write, conflict, unwrap

# How late a resend or a deadline may be; costs nothing while nothing is pending.
TICK = 0.05
# The first try after the broker refused; doubled to a second: short against any deadline.
RETRY_INTERVAL = 0.1
RETRY_INTERVAL_LIMIT = 1.0
# After a new term was seen: the new primary is draining the queue, the write may be in it.
NEW_TERM_DELAY = 0.5
# How long past the deadline a caller waits for the thread that gives up for it.
GIVE_UP_GRACE = 5.0


class Unsent(Exception):
    """Publishing failed; ``maybe_sent`` tells whether the broker may have it all the same."""

    def __init__(self, error: BaseException, *, maybe_sent: bool) -> None:
        super().__init__(str(error))
        self.maybe_sent = maybe_sent


class Ways(Protocol):
    """The two ways a write can go, and what is stored about it."""

    def run_here(self, write: Write) -> Future[Outcome] | None:
        """Hand the write to this node's committer; None unless this node is primary."""

    def publish(self, write: Write) -> None:
        """Send the write to the queue of the primary; raises `Unsent`."""

    def stored(self, write: Write) -> Outcome | None:
        """What the task's result backend says of it; None where nothing is known."""

    def check_ready(self) -> None:
        """Raise unless the outcome of a write can become readable here."""

    def holds_local_session(self) -> bool:
        """Whether the calling thread holds a local Session open."""


@dataclass(eq=False)
class _Pending:
    write: Write
    deadline: float
    future: Future[Outcome] = field(default_factory=Future)
    started: float = field(default_factory=time.monotonic)
    next_send: float = 0.0
    attempts: int = 0
    sent: bool = False
    maybe_sent: bool = False
    row: Future[Entry] | None = None
    refusals: int = 0
    problem: str = ""


class Forwarder:
    """
    Sends the writes of one process and keeps each until its outcome is known.

    One thread sends, sends again and gives up at deadlines, for synchronous and asyncio callers
    alike. That callers do not send themselves also makes many of them faster: they would queue
    for the interpreter's lock at each of the broker's round trips.
    """

    def __init__(
        self, database: str, settings: Settings, wire: Wire, visibility: Visibility, ways: Ways
    ) -> None:
        self._database = database
        self._settings = settings
        self._wire = wire
        self._visibility = visibility
        self._ways = ways
        self._pending: dict[int, _Pending] = {}
        self._new: list[_Pending] = []
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None
        self._stopped = False
        self._broker_away_until = 0.0
        self._broker_problem = ""

    def call(self, write: Write, timeout: float) -> Any:
        """
        The value of ``write``, readable on this node; raises the write's own exception.

        Raises `WriteTimeout`, `NotYetVisible` or `BrokerUnavailable` after ``timeout`` seconds.
        """
        pending = self.start(write, timeout)
        try:
            outcome = pending.result(timeout + GIVE_UP_GRACE)
        except FutureTimeoutError:
            if pending.done():
                raise
            raise self._timeout(write, "") from None
        return unwrap(outcome, write)

    def start(self, write: Write, timeout: float) -> Future[Outcome]:
        """Begin ``write``; the future gets its outcome, or an error after ``timeout`` seconds."""
        if self._ways.holds_local_session():
            raise OpenReadTransaction(
                f"{write.method} was called while this thread holds a local Session open: the "
                "wait would stop replication on this node, and so could only time out. Commit, "
                "roll back or close the Session first"
            )
        self._ways.check_ready()
        pending = _Pending(write, time.monotonic() + timeout)
        with self._changed:
            self._pending[id(pending)] = pending
            self._new.append(pending)
            self._run()
            self._changed.notify()
        return pending.future

    def new_term(self, _epoch: int) -> None:
        """A new term was replicated here: send again what waits, soon."""
        soon = time.monotonic() + NEW_TERM_DELAY
        with self._changed:
            for pending in self._pending.values():
                pending.next_send = min(pending.next_send, soon)
            self._changed.notify()

    def stop(self) -> None:
        """End the thread; idempotent. What is pending gets a `WriteTimeout`."""
        with self._changed:
            self._stopped = True
            thread, self._thread = self._thread, None
            self._changed.notify()
        if thread is not None:
            thread.join()

    def _run(self) -> None:
        if self._thread is None and not self._stopped:
            name = f"litefs-{self._database}-forward"
            self._thread = threading.Thread(target=self._loop, name=name, daemon=True)
            self._thread.start()

    def _loop(self) -> None:
        next_look = 0.0
        while not self._stopped:
            with self._changed:
                if not self._new:
                    self._changed.wait(TICK if self._pending else None)
                ready, self._new = self._new, []
                now = time.monotonic()
                if now >= next_look:
                    next_look = now + TICK
                    due = [p for p in self._pending.values() if _due(p) <= now]
                    ready += [p for p in due if p not in ready]
            for pending in ready:
                try:
                    self._tend(pending)
                except Exception as error:  # noqa: BLE001 - the others must go on
                    self._fail(pending, error)
        for pending in list(self._pending.values()):
            self._fail(pending, self._timeout(pending.write, "this process stops"))

    def _tend(self, pending: _Pending) -> None:
        now = time.monotonic()
        if pending.future.done():
            self._drop(pending)
        elif now >= pending.deadline:
            self._give_up(pending)
        elif now >= pending.next_send:
            self._send(pending)

    def _send(self, pending: _Pending) -> None:
        write = pending.write
        if time.monotonic() < self._broker_away_until:
            # Another's attempt failed just now: trying each in turn would make all of them late.
            pending.refusals += 1
            pending.problem = self._broker_problem
            pending.next_send = self._broker_away_until
            return
        pending.attempts += 1
        here = self._ways.run_here(write)
        if pending.attempts == 1:
            local = here is not None
            observe.emit(observe.ForwardStarted(self._database, write.id, write.method, local))
        else:
            observe.emit(observe.Resent(self._database, write.id, write.method, pending.attempts))
        if here is not None:
            pending.maybe_sent = True
            pending.next_send = pending.deadline
            here.add_done_callback(functools.partial(self._ran_here, pending))
            return
        self._watch(pending)
        try:
            self._ways.publish(write)
        except Unsent as error:
            pause = min(RETRY_INTERVAL * 2**pending.refusals, RETRY_INTERVAL_LIMIT)
            pending.maybe_sent |= error.maybe_sent
            pending.refusals += 1
            pending.problem = self._broker_problem = str(error)
            pending.next_send = self._broker_away_until = time.monotonic() + pause
        except WriteError as error:
            self._fail(pending, error)
        else:
            pending.sent = pending.maybe_sent = True
            pending.refusals = 0
            pending.next_send = time.monotonic() + self._settings.resend_interval

    def _watch(self, pending: _Pending) -> None:
        # Only what is sent: a commit made here is read here before it is confirmed.
        if pending.row is None:
            pending.row = self._visibility.watch(pending.write.id)
            pending.row.add_done_callback(functools.partial(self._appeared, pending))

    def _ran_here(self, pending: _Pending, here: Future[Outcome]) -> None:
        error = here.exception()
        if error is None:
            self._resolve(pending, here.result())
            return
        # The commit was not confirmed, or the term is gone: the ledger decides, under the same id.
        pending.problem = str(error)
        with self._changed:
            pending.next_send = time.monotonic() + RETRY_INTERVAL
            self._changed.notify()

    def _appeared(self, pending: _Pending, row: Future[Entry]) -> None:
        if not row.cancelled():
            self._resolve_entry(pending, row.result())

    def _resolve_entry(self, pending: _Pending, entry: Entry) -> None:
        if not entry.matches(pending.write):
            self._fail(pending, conflict(pending.write))
            return
        try:
            outcome = self._wire.load_outcome(entry.outcome, entry.epoch)
        except Exception as error:  # noqa: BLE001 - an outcome of another version; told, not awaited
            self._fail(pending, error)
        else:
            self._resolve(pending, outcome)

    def _resolve(self, pending: _Pending, outcome: Outcome) -> None:
        self._drop(pending)
        if isinstance(outcome, Refused):
            _sign(outcome.exception, pending.write)
        write, kind = pending.write, type(outcome).__name__.lower()
        duration = time.monotonic() - pending.started
        with contextlib.suppress(InvalidStateError):
            pending.future.set_result(outcome)
            observe.emit(
                observe.ForwardFinished(self._database, write.id, write.method, kind, duration)
            )

    def _fail(self, pending: _Pending, error: Exception) -> None:
        self._drop(pending)
        write, duration = pending.write, time.monotonic() - pending.started
        with contextlib.suppress(InvalidStateError):
            pending.future.set_exception(error)
            observe.emit(
                observe.ForwardFailed(self._database, write.id, write.method, error, duration)
            )

    def _drop(self, pending: _Pending) -> None:
        with self._changed:
            self._pending.pop(id(pending), None)
        if pending.row is not None:
            self._visibility.forget(pending.write.id, pending.row)

    def _give_up(self, pending: _Pending) -> None:
        """The deadline: one last look at the ledger and at the stored result, then an error."""
        write = pending.write
        try:
            entry = self._visibility.look_settled(write.id)
        except Exception as error:  # noqa: BLE001 - part of what is told below
            entry, pending.problem = None, f"{pending.problem} {error}".strip()
        if entry is not None:
            self._resolve_entry(pending, entry)
            return
        stored = self._ways.stored(write) if pending.maybe_sent else None
        if isinstance(stored, Committed):
            self._fail(pending, self._not_yet_visible(write, stored))
        elif isinstance(stored, Refused | Expired):
            self._resolve(pending, stored)
        elif pending.sent or not pending.refusals:
            self._fail(pending, self._timeout(write, pending.problem))
        else:
            self._fail(pending, _unavailable(pending))

    def _timeout(self, write: Write, problem: str) -> WriteTimeout:
        cause = problem or self._visibility.problem
        return WriteTimeout(
            f"{write.method} [{write.id}] did not become readable on node "
            f"{self._settings.node} in time; whether it took effect is unknown, and after its "
            f"deadline it will not start. Ask outcome({write.id!r}) later"
            + (f" (last seen: {cause})" if cause else ""),
            write.id,
            write.method,
        )

    def _not_yet_visible(self, write: Write, outcome: Committed) -> NotYetVisible:
        return NotYetVisible(
            f"{write.method} [{write.id}] is committed on the primary; node "
            f"{self._settings.node} has not replicated it yet",
            write.id,
            write.method,
            outcome,
        )


def _due(pending: _Pending) -> float:
    return min(pending.next_send, pending.deadline)


def _unavailable(pending: _Pending) -> BrokerUnavailable:
    write = pending.write
    known = (
        "an attempt may have reached it, so the write may still run, once, until its deadline"
        if pending.maybe_sent
        else "nothing was sent, so the write has not run and will not"
    )
    return BrokerUnavailable(
        f"{write.method} [{write.id}]: the broker could not be reached ({pending.problem}); "
        f"{known}. Check broker_url; reads go on",
        write.id,
        write.method,
        may_have_been_sent=pending.maybe_sent,
    )


def _sign(exception: Exception, write: Write) -> None:
    """Tell which write an exception belongs to, without changing its class or arguments."""
    if isinstance(exception, WriteError) and not exception.write_id:
        exception.write_id, exception.method = write.id, write.method
    note = f"raised by {write.method} [{write.id}] on the primary; rolled back there"
    if note not in getattr(exception, "__notes__", ()):
        exception.add_note(note)
