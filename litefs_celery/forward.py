"""A write run here or sent there, and its outcome awaited."""

from __future__ import annotations

import contextlib
import functools
import threading
import time
from collections.abc import Callable, Sequence
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
from .message import bundles
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

    def publish(self, writes: Sequence[Write]) -> None:
        """Send the writes to the queue of the primary, in one message; raises `Unsent`."""

    def keep(self, write: Write) -> Write | None:
        """Put the write into the outbox, if that is for it, as it is to be sent; see `Outbox`."""

    def sent(self, writes: Sequence[Write]) -> None:
        """The broker took these writes, which the outbox keeps."""

    def tell(self, write: Write, then: Callable[[], None]) -> None:
        """Let the outbox note that the caller of a kept write is told of it, then tell."""

    def find_stored(self, writes: Sequence[Write]) -> dict[str, Outcome | str]:
        """What the result backend knows of these, by id; a text is why one is not committed."""

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
    kept: bool = False
    row: Future[Entry] | None = None
    refusals: int = 0
    problem: str = ""


class Forwarder:
    """
    Sends the writes of one process and keeps each until its outcome is known.

    One thread sends, sends again and gives up at deadlines, for synchronous and asyncio callers
    alike. What callers handed over while it sent goes into one message: there is no delay when
    idle, and many callers cost the broker and the primary hardly more than one.
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
        self._submitted: list[Write] = []
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
        kept = self._ways.keep(write)
        # What is kept may be sent by the node's worker.
        pending = _Pending(
            write if kept is None else kept, time.monotonic() + timeout, maybe_sent=bool(kept),
            kept=bool(kept),
        )
        with self._changed:
            self._pending[id(pending)] = pending
            self._new.append(pending)
            self._run()
            self._changed.notify()
        return pending.future

    def send(self, write: Write) -> None:
        """Send ``write`` once, soon, with all that is sent then; the outbox keeps it."""
        with self._changed:
            self._submitted.append(write)
            self._run()
            self._changed.notify()

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
        if (self._thread is None or not self._thread.is_alive()) and not self._stopped:
            name = f"litefs-{self._database}-forward"
            self._thread = threading.Thread(target=self._loop, name=name, daemon=True)
            self._thread.start()

    def _loop(self) -> None:
        next_look = 0.0
        while not self._stopped:
            with self._changed:
                if not (self._new or self._submitted):
                    self._changed.wait(TICK if self._pending else None)
                ready, self._new = self._new, []
                submitted, self._submitted = self._submitted, []
                now = time.monotonic()
                if now >= next_look:
                    next_look = now + TICK
                    due = [p for p in self._pending.values() if _due(p) <= now]
                    ready += [p for p in due if p not in ready]
            self._tend(ready)
            self._send_submitted(submitted)
        for pending in list(self._pending.values()):
            self._fail(pending, self._timeout(pending.write, "this process stops"))

    def _tend(self, ready: list[_Pending]) -> None:
        """Do what is due for each, and send all that must travel together."""
        travelling: list[_Pending] = []
        late: list[_Pending] = []
        for pending in ready:
            now = time.monotonic()
            try:
                if pending.future.done():
                    self._drop(pending)
                elif now >= pending.deadline:
                    late.append(pending)
                elif now >= pending.next_send and self._must_travel(pending):
                    travelling.append(pending)
            except Exception as error:  # noqa: BLE001 - the others must go on
                self._fail(pending, error)
        self._publish_all(travelling)
        self._give_up(late)

    def _publish_all(self, travelling: list[_Pending]) -> None:
        # Two callers can wait for one write, under the id that both gave it.
        by_id: dict[str, list[_Pending]] = {}
        for pending in travelling:
            by_id.setdefault(pending.write.id, []).append(pending)
        settings = self._settings
        for part in bundles(
            [waiting[0].write for waiting in by_id.values()],
            max_writes=settings.group_limit, max_bytes=settings.max_payload_bytes,
        ):
            self._publish(part, [pending for write in part for pending in by_id[write.id]])

    def _send_submitted(self, submitted: list[Write]) -> None:
        """Once only: the node's worker sends what the broker does not take."""
        settings = self._settings
        for part in bundles(
            submitted, max_writes=settings.group_limit, max_bytes=settings.max_payload_bytes
        ):
            if time.monotonic() < self._broker_away_until:
                return
            try:
                self._ways.publish(part)
                self._ways.sent(part)
            except Unsent as error:
                self._broker_away_until = time.monotonic() + RETRY_INTERVAL_LIMIT
                self._broker_problem = str(error)
            except Exception:  # noqa: BLE001 - callers wait for this thread; the write is kept
                observe.logger.exception("sending submitted writes failed")

    def _must_travel(self, pending: _Pending) -> bool:
        """Run the write here where this node is primary; True where it is to be published."""
        write = pending.write
        here = self._ways.run_here(write)
        if here is None and time.monotonic() < self._broker_away_until:
            # Another's attempt failed just now: trying each in turn would make all of them late.
            pending.refusals += 1
            pending.problem = self._broker_problem
            pending.next_send = self._broker_away_until
            return False
        pending.attempts += 1
        if pending.attempts == 1:
            local = here is not None
            observe.emit(observe.ForwardStarted(self._database, write.id, write.method, local))
        else:
            observe.emit(observe.Resent(self._database, write.id, write.method, pending.attempts))
        if here is None:
            self._watch(pending)
            return True
        pending.maybe_sent = True
        pending.next_send = pending.deadline
        here.add_done_callback(functools.partial(self._ran_here, pending))
        return False

    def _publish(self, writes: list[Write], travelling: list[_Pending]) -> None:
        try:
            self._ways.publish(writes)
        except Unsent as error:
            for pending in travelling:
                pending.maybe_sent |= error.maybe_sent
                self._try_later(pending, str(error))
        except Exception as error:  # noqa: BLE001 - the loop must go on, and each caller be told
            for pending in travelling:
                if pending.maybe_sent:
                    self._try_later(pending, repr(error))
                else:
                    self._fail(pending, error)
        else:
            now, interval = time.monotonic(), self._settings.resend_interval
            for pending in travelling:
                pending.sent = pending.maybe_sent = True
                pending.refusals = 0
                # Doubled: copies of what only waits would take a third of what a busy primary does.
                pending.next_send = now + interval * 2.0 ** min(pending.attempts - 1, 10)
        # Not before: the watcher would compete with the sending for the interpreter's lock.
        self._visibility.wake()

    def _try_later(self, pending: _Pending, problem: str) -> None:
        pause = min(RETRY_INTERVAL * 2.0 ** min(pending.refusals, 10), RETRY_INTERVAL_LIMIT)
        pending.refusals += 1
        pending.problem = self._broker_problem = problem
        pending.next_send = self._broker_away_until = time.monotonic() + pause

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
        if row.cancelled():
            return
        if _is_over(pending.write, row.result()):
            self._resolve_entry(pending, row.result())
        else:
            pending.row = None
            self._watch(pending)

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
        self._tell_later(pending, outcome, functools.partial(self._tell, pending, outcome))

    def _tell_later(
        self, pending: _Pending, outcome: Outcome, then: Callable[[], None]
    ) -> None:
        """Tell what took effect once it is kept as such; the rest is not made again."""
        if pending.kept and isinstance(outcome, Committed):
            self._ways.tell(pending.write, then)
        else:
            then()

    def _tell(self, pending: _Pending, outcome: Outcome) -> None:
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

    def _give_up(self, late: list[_Pending]) -> None:
        """The deadline: one last look at the ledger and at the stored results, then an error."""
        asked = []
        for pending in late:
            try:
                entry = self._visibility.look_settled(pending.write.id)
            except Exception as error:  # noqa: BLE001 - part of what is told below
                entry, pending.problem = None, f"{pending.problem} {error}".strip()
            if entry is not None and _is_over(pending.write, entry):
                self._resolve_entry(pending, entry)
            else:
                asked.append(pending)
        # All at once: a silent result backend makes the others wait for it once.
        found = self._ways.find_stored([p.write for p in asked if p.maybe_sent])
        for pending in asked:
            self._tell_what_is_known(pending, found.get(pending.write.id))

    def _tell_what_is_known(self, pending: _Pending, stored: Outcome | str | None) -> None:
        write = pending.write
        if isinstance(stored, str):
            pending.problem = stored
        if isinstance(stored, Committed):
            error = self._not_yet_visible(write, stored)
            self._tell_later(pending, stored, functools.partial(self._fail, pending, error))
        elif isinstance(stored, Refused) or (
            isinstance(stored, Expired) and stored.deadline >= write.deadline
        ):
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


def _is_over(write: Write, entry: Entry) -> bool:
    """Whether the row is the last word: an earlier call's copy may have expired, not this one."""
    return not (entry.matches(write) and entry.expired_before(write.deadline))


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
