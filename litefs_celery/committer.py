"""Group commit under a term: many writes, one savepoint each, one COMMIT."""

from __future__ import annotations

import contextlib
import math
import queue
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import TypeVar

from sqlalchemy import Connection

from . import ledger, observe
from .config import Settings
from .detector import Term
from .engines import LOGIC, LOST, ONE_MAY_CAUSE, Engines, primary_code
from .errors import NotAcknowledged
from .savepoint import RunMethod, Savepoints, TransactionEnded
from .wire import Outcome, Refused, Wire, Write, conflict, kind_of

PRUNE_BATCH = 1_000  # a few milliseconds under the write lock



@dataclass
class _Job:
    write: Write
    term: Term
    future: Future[Outcome] = field(default_factory=Future)
    refusal: Exception | None = None


@dataclass
class _Committed:
    term: Term
    group: list[_Job]
    outcomes: list[Outcome]
    duplicates: int
    started: float


T = TypeVar("T")


def _take_all(source: queue.SimpleQueue[T | None], *, limit: int) -> tuple[list[T], bool]:
    """Wait for one item, then take all that are there, at most ``limit``; None says stop."""
    taken: list[T] = []
    item = source.get()
    with contextlib.suppress(queue.Empty):
        while item is not None:
            taken.append(item)
            if len(taken) >= limit:
                break
            item = source.get_nowait()
    return taken, item is None


class Committer:
    """
    One writer thread for one database.

    A group is what arrived while the last commit was made: no delay is added when idle. ``run``
    calls the method of a write and returns its value; ``confirm`` raises unless the node still
    holds the role of the term (the proof that a commit counted). A second thread confirms, all
    groups at once that were committed meanwhile, so that the next commit need not wait for it.
    """

    def __init__(
        self,
        owner: object,
        database: str,
        settings: Settings,
        engines: Engines,
        wire: Wire,
        *,
        run: RunMethod,
        confirm: Callable[[Term], None],
    ) -> None:
        self._savepoints = Savepoints(owner, engines.guard, wire, run)
        self._database = database
        self._settings = settings
        self._engines = engines
        self._wire = wire
        self._confirm = confirm
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._committed: queue.SimpleQueue[_Committed | None] = queue.SimpleQueue()
        self._threads: list[threading.Thread] = []
        self._lock = threading.Lock()
        self._epoch = 0
        self._pruned_at = -math.inf

    def submit(self, write: Write, term: Term) -> Future[Outcome]:
        """
        Run ``write`` in the next group; the future holds its outcome once it is committed.

        Fails with `NotAcknowledged` when the commit failed or could not be confirmed: then the
        same write may be handed in again, here or elsewhere, and the ledger decides.
        """
        self._start()
        job = _Job(write, term)
        self._jobs.put(job)
        return job.future

    def stop(self) -> None:
        """Finish and confirm what was handed in, end the threads; idempotent."""
        with self._lock:
            threads, self._threads = self._threads, []
        if threads:
            self._jobs.put(None)
        for thread in threads:
            thread.join()

    def _start(self) -> None:
        with self._lock:
            if self._threads:
                return
            for loop, role in ((self._write, "writer"), (self._confirm_all, "confirmer")):
                name = f"litefs-{self._database}-{role}"
                thread = threading.Thread(target=loop, name=name, daemon=True)
                self._threads.append(thread)
                thread.start()

    def _write(self) -> None:
        stopping = False
        while not stopping:
            group, stopping = self._next_group()
            if group:
                self._commit_or_fail(group)
        self._committed.put(None)

    def _confirm_all(self) -> None:
        stopping = False
        while not stopping:
            done, stopping = _take_all(self._committed, limit=self._settings.group_limit)
            # One look for each term: all of these were committed before it.
            terms = {committed.term for committed in done}
            failures = {term: self._confirmation_failure(term) for term in terms}
            for committed in done:
                self._resolve(committed, failures[committed.term])

    def _confirmation_failure(self, term: Term) -> Exception | None:
        try:
            self._confirm(term)
        except Exception as error:  # noqa: BLE001 - whatever it was, no caller may wait for ever
            return error
        return None

    def _resolve(self, committed: _Committed, failure: Exception | None) -> None:
        if failure is not None:
            self._fail(committed.group, failure)
            return
        duration = time.monotonic() - committed.started
        observe.emit(
            observe.GroupCommitted(
                self._database, committed.term.epoch, len(committed.group),
                committed.duplicates, duration,
            )
        )
        for job, outcome in zip(committed.group, committed.outcomes, strict=True):
            job.future.set_result(outcome)

    def _next_group(self) -> tuple[list[_Job], bool]:
        return _take_all(self._jobs, limit=self._settings.group_limit)

    def _commit_or_fail(self, group: list[_Job]) -> None:
        try:
            self._commit(group)
        except Exception as error:  # noqa: BLE001 - whatever it was, no caller may wait for ever
            # Neither the file nor the role: a method has ended or spoilt the transaction.
            own = isinstance(error, TransactionEnded) or primary_code(error) == LOGIC
            if len(group) > 1 and (own or primary_code(error) in ONE_MAY_CAUSE):
                # Nor must one write too large for the disk, or one that meets a damaged page,
                # take the others with it.
                for job in group:
                    self._commit_or_fail([job])
            elif own and group[0].refusal is None:
                # It would fail so each time it came.
                group[0].refusal = error
                self._commit_or_fail(group)
            else:
                self._fail(group, error)

    def _fail(self, group: list[_Job], error: Exception) -> None:
        term = group[-1].term
        observe.emit(observe.GroupFailed(self._database, term.epoch, len(group), error))
        if primary_code(error) in LOST:
            # SQLite may know before the detector; were it only a disk error, the detector
            # begins the term again.
            term.end(f"a commit failed: {error}")
        for job in group:
            failure = NotAcknowledged(
                f"the commit could not be confirmed: {error}", job.write.id, job.write.method
            )
            failure.__cause__ = error
            job.future.set_exception(failure)

    def _commit(self, group: list[_Job]) -> None:
        started = time.monotonic()
        term = group[-1].term
        lost = next((job.term for job in group if not job.term.held), None)
        if lost is not None:
            raise NotAcknowledged(f"the term {lost.epoch} ended: {lost.reason}")
        if term.epoch != self._epoch:
            # A connection opened while the node was a replica stays read-only (litefs 0.5.14).
            self._engines.writer.dispose()
            self._epoch = term.epoch
        with self._engines.writer.begin() as connection:
            self._prune(connection)
            outcomes, duplicates = self._run_group(connection, group, term.epoch)
        self._committed.put(_Committed(term, group, outcomes, duplicates, started))

    def _run_group(
        self, connection: Connection, group: list[_Job], epoch: int
    ) -> tuple[list[Outcome], int]:
        known = ledger.find(connection, [job.write.id for job in group])
        fresh: list[ledger.Entry] = []
        outcomes: list[Outcome] = []
        for job in group:
            write = job.write
            entry = known.get(write.id)
            if entry is not None and write.made and kind_of(entry.outcome) == "expired":
                # An old copy came too late, to a primary that did not know what was made.
                ledger.remove(connection, write.id)
                entry = None
            if entry is not None:
                outcomes.append(self._answer(entry, write))
                continue
            if job.refusal is not None:
                outcome, text = self._savepoints.refuse(job.refusal, epoch)
            else:
                outcome, text = self._savepoints.execute(connection, write, epoch)
            entry = ledger.Entry(
                write.id, write.method, write.fingerprint, text, epoch, time.time()
            )
            known[write.id] = entry
            fresh.append(entry)
            outcomes.append(outcome)
        ledger.record(connection, fresh)
        return outcomes, len(group) - len(fresh)

    def _answer(self, entry: ledger.Entry, write: Write) -> Outcome:
        if not entry.matches(write):
            return Refused(conflict(write), entry.epoch)
        observe.emit(observe.DuplicateAnswered(self._database, write.id, write.method))
        return self._wire.load_outcome(entry.outcome, entry.epoch)

    def _prune(self, connection: Connection) -> None:
        if time.monotonic() - self._pruned_at < self._settings.prune_interval:
            return
        before = time.time() - self._settings.ledger_retention
        if ledger.prune(connection, before=before, limit=PRUNE_BATCH) < PRUNE_BATCH:
            # Else there is more: with the next group, or the ledger would outgrow the pruning.
            self._pruned_at = time.monotonic()
