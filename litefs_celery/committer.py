"""Group commit under a term: many writes, one savepoint each, one COMMIT."""

from __future__ import annotations

import math
import queue
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future

from sqlalchemy import Connection

from . import ledger, observe
from .batches import take_all
from .config import Settings
from .detector import Term
from .engines import LOGIC, LOST, ONE_MAY_CAUSE, Engines, primary_code
from .errors import NotAcknowledged
from .group import Group, GroupRunner, Job
from .savepoint import RunMethod, Savepoints, TransactionEnded
from .wire import Outcome, Wire, Write

PRUNE_BATCH = 1_000  # a few milliseconds under the write lock


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
        self._runner = GroupRunner(database, Savepoints(owner, engines.guard, wire, run), wire)
        self._database = database
        self._settings = settings
        self._engines = engines
        self._confirm = confirm
        self._jobs: queue.SimpleQueue[Job | None] = queue.SimpleQueue()
        self._committed: queue.SimpleQueue[Group | None] = queue.SimpleQueue()
        self._threads: list[threading.Thread] = []
        self._lock = threading.Lock()
        self._term: Term | None = None
        self._pruned_at = -math.inf

    def submit(self, write: Write, term: Term) -> Future[Outcome]:
        """
        Run ``write`` in the next group; the future holds its outcome once it is committed.

        Fails with `NotAcknowledged` when the commit failed or could not be confirmed: then the
        same write may be handed in again, here or elsewhere, and the ledger decides.
        """
        self._start()
        job = Job(write, term)
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
            done, stopping = take_all(self._committed, limit=self._settings.group_limit)
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

    def _resolve(self, committed: Group, failure: Exception | None) -> None:
        if failure is not None:
            self._fail(committed.jobs, failure)
            return
        duration = time.monotonic() - committed.started
        observe.emit(
            observe.GroupCommitted(
                self._database, committed.term.epoch, len(committed.jobs),
                committed.duplicates, duration,
            )
        )
        for job, outcome in zip(committed.jobs, committed.outcomes, strict=True):
            job.future.set_result(outcome)

    def _next_group(self) -> tuple[list[Job], bool]:
        return take_all(self._jobs, limit=self._settings.group_limit)

    def _commit_or_fail(self, group: list[Job]) -> None:
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

    def _fail(self, group: list[Job], error: Exception) -> None:
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

    def _commit(self, group: list[Job]) -> None:
        started = time.monotonic()
        term = group[-1].term
        lost = next((job.term for job in group if not job.term.held), None)
        if lost is not None:
            raise NotAcknowledged(f"the term {lost.epoch} ended: {lost.reason}")
        if term is not self._term:
            # A connection opened while the node was a replica stays read-only (litefs 0.5.14).
            # Nor does one last into a term that goes on under its epoch: another node's state may
            # have come between, and SQLite keeps its pages where the change counter is the same.
            self._engines.writer.dispose()
            self._term = term
        with self._engines.writer.begin() as connection:
            self._prune(connection)
            committed = Group(term, started)
            self._runner.run(connection, group, committed)
        for job, error in committed.unanswered:
            job.future.set_exception(error)
        if committed.jobs:
            self._committed.put(committed)

    def _prune(self, connection: Connection) -> None:
        if time.monotonic() - self._pruned_at < self._settings.prune_interval:
            return
        before = time.time() - self._settings.ledger_retention
        if ledger.prune(connection, before=before, limit=PRUNE_BATCH) < PRUNE_BATCH:
            # Else there is more: with the next group, or the ledger would outgrow the pruning.
            self._pruned_at = time.monotonic()
