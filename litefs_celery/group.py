"""The writes of one commit: duplicates answered, the others run, each in its turn."""

from __future__ import annotations

import math
import time
from concurrent.futures import Future
from dataclasses import dataclass, field

from sqlalchemy import Connection

from . import ledger, observe
from .detector import Term
from .errors import NotAcknowledged, OutcomeUnreadable, OutOfTurn
from .savepoint import Savepoints
from .wire import Outcome, Refused, Wire, Write, conflict


@dataclass
class Job:
    """A write that was handed in under a term; ``refusal`` is its outcome, whatever it does."""

    write: Write
    term: Term
    future: Future[Outcome] = field(default_factory=Future)
    refusal: Exception | None = None


@dataclass
class Group:
    """What one commit holds: ``jobs`` with their ``outcomes``, and those that have none of it."""

    term: Term
    started: float
    jobs: list[Job] = field(default_factory=list)
    outcomes: list[Outcome] = field(default_factory=list)
    unanswered: list[tuple[Job, NotAcknowledged]] = field(default_factory=list)
    duplicates: int = 0

    def add(self, job: Job, outcome: Outcome) -> None:
        """The write of ``job`` has this outcome once the group is committed."""
        self.jobs.append(job)
        self.outcomes.append(outcome)


class GroupRunner:
    """Runs groups on the connection of their transaction, one savepoint for each write."""

    def __init__(self, database: str, savepoints: Savepoints, wire: Wire) -> None:
        self._database = database
        self._savepoints = savepoints
        self._wire = wire
        self._known: dict[str, ledger.Entry] = {}
        self._fresh: dict[str, ledger.Entry] = {}

    def run(self, connection: Connection, jobs: list[Job], group: Group) -> None:
        """Run or answer ``jobs`` into ``group``, in their order unless another is asked for."""
        asked = {job.write.id for job in jobs} | {job.write.after for job in jobs} - {""}
        found = ledger.find(connection, list(asked))
        self._known, self._fresh = dict(found), {}
        early = jobs
        while early:
            left = [job for job in early if not self._run_in_turn(connection, job, group)]
            if len(left) == len(early):
                break
            early = left  # what they wait for may have come after them in this group
        group.unanswered += [(job, _out_of_turn(job.write)) for job in early]
        group.duplicates = len(group.jobs) - len(self._fresh)
        ledger.forget(connection, [write_id for write_id in self._fresh if write_id in found])
        ledger.record(connection, self._fresh.values())

    def _run_in_turn(self, connection: Connection, job: Job, group: Group) -> bool:
        """Whether the write has its outcome now; False where another must come before it."""
        write, epoch = job.write, group.term.epoch
        entry = self._known.get(write.id)
        if entry is not None and not (
            # It expired, and its origin asks for it all the same: with a later deadline.
            entry.matches(write) and entry.expired_before(write.deadline)
        ):
            self._answer(entry, job, group)
            return True
        if self._is_early(write):
            return False
        if job.refusal is not None:
            outcome, text = self._savepoints.refuse(job.refusal, epoch)
        else:
            outcome, text = self._savepoints.execute(connection, write, epoch)
        entry = ledger.Entry(write.id, write.method, write.fingerprint, text, epoch, time.time())
        self._known[write.id] = self._fresh[write.id] = entry
        group.add(job, outcome)
        return True

    def _is_early(self, write: Write) -> bool:
        """Whether another must have had its turn before; what expired may be asked for again."""
        before = self._known.get(write.after)
        had_its_turn = before is not None and not before.expired_before(math.inf)
        return bool(write.after) and not had_its_turn and time.time() < write.deadline

    def _answer(self, entry: ledger.Entry, job: Job, group: Group) -> None:
        write = job.write
        if not entry.matches(write):
            group.add(job, Refused(conflict(write), entry.epoch))
            return
        observe.emit(observe.DuplicateAnswered(self._database, write.id, write.method))
        try:
            group.add(job, self._wire.load_outcome(entry.outcome, entry.epoch))
        except Exception as error:  # noqa: BLE001 - of a class that a deploy took away, perhaps
            # The others of the group must not fail with it, at every redelivery.
            group.unanswered.append((job, _unreadable(write, error)))


def _unreadable(write: Write, error: Exception) -> OutcomeUnreadable:
    return OutcomeUnreadable(
        f"{write.method} [{write.id}] has its outcome, which cannot be decoded here: {error!r}",
        write.id,
        write.method,
    )


def _out_of_turn(write: Write) -> OutOfTurn:
    """The error of a write that cannot run before another."""
    return OutOfTurn(
        f"{write.method} [{write.id}] must come after {write.after}, which has no outcome yet; "
        "its origin sends both again",
        write.id,
        write.method,
    )
