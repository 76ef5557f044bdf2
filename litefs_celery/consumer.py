"""Consumes the queue of writes while this node holds a term."""

from __future__ import annotations

import threading
import time
from collections import deque
from concurrent.futures import Future
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from celery.utils.saferepr import saferepr
from kombu import Connection, Consumer
from kombu.message import Message

from . import amqp_queue, observe, redis_queue
from .detector import Term
from .errors import OutcomeUnreadable, OutOfTurn
from .message import writes_in
from .rejected import Rejected
from .rivals import ANNOUNCE_INTERVAL, TERM_HELD
from .tasks import connection_for, primary_queue
from .telling import Telling
from .wire import Outcome, Write

if TYPE_CHECKING:
    from .database import LiteFSCelery

IDLE_POLL = 0.1  # how soon a lost term is acted on; costs no broker command
MORE_POLL = 0.001  # for the next message, when one has just come
TAKE_LIMIT = 0.02  # how long results may wait while messages keep coming
BUSY_POLL = 0.005  # while writes run: how soon their results and acknowledgements go out
HAND_BACK_TIMEOUT = 10.0
RETRY_INTERVAL_LIMIT = 5.0


@dataclass(eq=False)
class _Taken:
    """A message: how many of its writes have no outcome yet, and why one has none."""

    message: Message
    left: int
    error: BaseException | None = None


@dataclass(frozen=True)
class _Running:
    taken: _Taken
    write: Write
    started: float


class PrimaryConsumer:
    """
    Consumes the queue of writes while this node holds a term, from a thread of its own.

    An own connection instead of the worker's: its prefetch window is not shared with the
    application's tasks (whose waiting for writes could otherwise fill it for ever), no pool and
    no event loop stands between, so it moves within milliseconds under every pool, solo and
    gevent included, and a broker that goes away does not take the worker along (celery 5.7.0).
    """

    def __init__(self, db: LiteFSCelery, hostname: str) -> None:
        self.consuming = False
        self._db = db
        self._telling = Telling(db, hostname)
        self._queue = primary_queue(db.queue)
        self._wake = threading.Event()
        self._stopped = threading.Event()
        self._paused = threading.Event()
        self._idle = threading.Event()
        self._idle.set()
        self._thread: threading.Thread | None = None
        self._running: dict[Future[Outcome], _Running] = {}
        self._done: deque[Future[Outcome]] = deque()
        self._late: list[Message] = []
        self._broker_failures = 0
        self._commit_failures = 0
        self._popped = redis_queue.Popped()
        self._rejected = Rejected(db.name, db.settings, self._queue.name)

    def start(self) -> None:
        """Start the thread; idempotent."""
        if self._thread is None:
            self._stopped.clear()
            name = f"litefs-{self._db.name}-consumer"
            self._thread = threading.Thread(target=self._loop, name=name, daemon=True)
            self._thread.start()

    def stop(self) -> None:
        """Stop consuming, hand back what did not run, end the thread; idempotent."""
        self._stopped.set()
        self._wake.set()
        thread, self._thread = self._thread, None
        if thread is not None:
            thread.join(HAND_BACK_TIMEOUT + redis_queue.BRPOP_END)

    def term_changed(self) -> None:
        """The detector's term began or ended; called from its thread, does nothing but wake."""
        self._wake.set()

    def pause(self, timeout: float) -> bool:
        """Take no more writes, and wait for the outcomes of those taken; whether all came."""
        self._paused.set()
        self._wake.set()
        return self._idle.wait(timeout)

    def resume(self) -> None:
        """Take writes again, if this node still holds a term."""
        self._paused.clear()
        self._wake.set()

    @property
    def _term(self) -> Term | None:
        """The term under which writes may be taken now."""
        return None if self._paused.is_set() else self._db.term

    def _may_take(self, term: Term) -> bool:
        return term.held and not self._stopped.is_set() and not self._paused.is_set()

    def _loop(self) -> None:
        while not self._stopped.is_set():
            term = self._term
            if term is None:
                self._wake.wait()
                self._wake.clear()
                continue
            try:
                self._consume_under(term)
            except Exception as error:  # noqa: BLE001 - the broker's errors are many; go on
                self._broker_failures += 1
                pause = _back_off(self._broker_failures)
                observe.logger.warning(
                    "consuming %s failed (%r); trying again in %.1f s", self._queue.name,
                    amqp_queue.explained(error, self._queue.name), pause,
                )
                term.lost.wait(pause)
            finally:
                self._running.clear()
                self._done.clear()
                self._late.clear()
                self._moved(consuming=False)
                self._idle.set()

    def _consume_under(self, term: Term | None) -> None:
        db = self._db
        timeout = db.settings.broker_timeout
        with connection_for(db.app, timeout=timeout, name=db.queue) as connection:
            connection.ensure_connection(max_retries=1, timeout=timeout)
            channel = connection.default_channel
            redis_queue.keep_client(channel)
            self._popped.watch(channel)
            self._telling.through(connection)
            self._rejected.through(connection)
            consumer = Consumer(
                channel, [self._queue], on_message=self._receive, accept=["json"],
                prefetch_count=db.settings.prefetch_limit, on_decode_error=self._undecodable,
            )
            # A term that begins while the one before is handed back need not wait for its end.
            while term is not None and not self._stopped.is_set():
                self._serve(term, connection, consumer)
                term = self._hand_back(connection)

    def _serve(self, term: Term, connection: Connection, consumer: Consumer) -> None:
        """Consume until the term ends."""
        channel = connection.default_channel
        self._idle.clear()
        redis_queue.restore_unacknowledged(channel)
        self._popped.put_back(channel, self._queue.name)
        consumer.consume()
        self._moved(consuming=True)
        self._broker_failures = 0
        try:
            announce_at = 0.0
            while self._may_take(term):
                if time.monotonic() >= announce_at:
                    announce_at = time.monotonic() + ANNOUNCE_INTERVAL
                    self._announce(term, connection)
                self._drain_all(connection, term)
                self._finish()
        finally:
            consumer.cancel()
            self._return_late()
            self._moved(consuming=False)

    def _announce(self, term: Term, connection: Connection) -> None:
        """Tell all workers of this term: one that holds an earlier one must stand back."""
        facts = {"node": term.node, "epoch": term.epoch, "since": term.since}
        self._db.app.control.broadcast(
            TERM_HELD, arguments={"queue": self._queue.name, **facts}, connection=connection
        )

    def _moved(self, *, consuming: bool) -> None:
        if consuming != self.consuming:
            self.consuming = consuming
            observe.emit(observe.ConsumerMoved(self._db.name, self._queue.name, consuming))

    def _drain_all(self, connection: Connection, term: Term) -> None:
        """Take what is there before anything is finished: taking is what callers wait for."""
        until = time.monotonic() + TAKE_LIMIT
        limit = self._db.settings.prefetch_limit
        if len(self._running) >= limit:
            term.lost.wait(BUSY_POLL)
            amqp_queue.beat(connection, reads=False)
            return
        more = self._drain(connection, BUSY_POLL if self._running else IDLE_POLL)
        while more and time.monotonic() < until and len(self._running) < limit:
            more = self._drain(connection, MORE_POLL)
        amqp_queue.beat(connection)

    def _drain(self, connection: Connection, timeout: float) -> bool:
        """Take one message; returns whether there was one."""
        try:
            connection.drain_events(timeout=timeout)
        except TimeoutError:
            return False
        except Exception as error:
            popped = self._popped
            # Else it was the connection. How deep JSON may be nested differs from call to call.
            own = isinstance(error, RecursionError)
            if not popped.holds or (not own and popped.is_message(connection.default_channel)):
                raise
            self._rejected.keep(popped.take(), f"no message of kombu's: {saferepr(error)}")
        return True

    def _undecodable(self, message: Message, error: Exception) -> None:
        self._popped.take()
        self._rejected.keep(_describe(message), f"it cannot be decoded: {saferepr(error)}")
        message.ack()

    def _receive(self, message: Message) -> None:
        self._popped.take()
        term = self._term
        try:
            signer = self._db.parts.signer
            writes = writes_in(message.headers or {}, message.payload, signer)
        except Exception as error:  # noqa: BLE001 - decoding anything may raise anything
            self._rejected.keep(_describe(message), str(error))
            message.ack()
            return
        if term is None:
            self._late.append(message)
            return
        taken = _Taken(message, len(writes))
        for write in writes:
            self._telling.begun(write)
            future = self._db.committer.submit(write, term)
            self._running[future] = _Running(taken, write, time.monotonic())
            future.add_done_callback(self._done.append)

    def _finish(self) -> None:
        """Results, then events, then acknowledgements of the writes that are committed."""
        db = self._db
        done: list[tuple[_Running, Outcome]] = []
        problems: list[tuple[Write, str]] = []
        ended: list[_Taken] = []
        while self._done:
            future = self._done.popleft()
            running = self._running.pop(future, None)
            if running is None:
                continue  # of an earlier connection: given back, and answered from the ledger
            taken = running.taken
            taken.left -= 1
            if error := future.exception():
                # Of these two its origin sends the one again, and can read the other's row.
                if not isinstance(error, OutOfTurn | OutcomeUnreadable):
                    taken.error = error
                    problems.append((running.write, f"{error}; on node {db.settings.node}"))
            else:
                done.append((running, future.result()))
            if not taken.left:
                ended.append(taken)
        if done:
            self._commit_failures = 0
        db.stored.keep([(running.write, outcome) for running, outcome in done])
        db.stored.note(problems)
        for running, outcome in done:
            self._telling.ended(running.write, outcome, time.monotonic() - running.started)
        failed = [taken for taken in ended if taken.error is not None]
        held = [running.taken for running in self._running.values()] + failed
        redis_queue.acknowledge(amqp_queue.acknowledge_first(
            [taken.message for taken in ended if taken.error is None],
            [message.delivery_tag for message in (*self._late, *(t.message for t in held))],
        ))
        self._give_back(failed)
        self._telling.flush()

    def _give_back(self, failed: list[_Taken]) -> None:
        """Put back what holds a write without outcome; of the others, the ledger answers."""
        if not failed:
            return
        term = self._term
        if term is not None and term.held and not self._stopped.is_set():
            # Still primary, and the commit failed (disk full, locked): the queue must not spin.
            observe.logger.warning(
                "%d messages of writes go back to their queue: %s", len(failed), failed[-1].error
            )
            self._commit_failures += 1
            term.lost.wait(_back_off(self._commit_failures))
        for taken in failed:
            taken.message.requeue()

    def _return_late(self) -> None:
        """Give back what came after the term; not before the consumer is cancelled, or it spins."""
        while self._late:
            self._late.pop().requeue()

    def _hand_back(self, connection: Connection) -> Term | None:
        """Finish what runs and give back what comes late; the next term, if one begins before."""
        deadline = time.monotonic() + HAND_BACK_TIMEOUT
        read_until = time.monotonic() + redis_queue.late_for(connection.default_channel)
        while time.monotonic() < deadline:
            self._drain(connection, BUSY_POLL)
            self._return_late()
            self._finish()
            amqp_queue.beat(connection)
            if self._running:
                continue
            self._idle.set()
            if self._term is not None:
                return self._term
            if time.monotonic() > read_until:
                break
        return None


def _back_off(failures: int) -> float:
    return min(0.1 * 2.0 ** min(failures, 10), RETRY_INTERVAL_LIMIT)


def _describe(message: Message) -> dict[str, Any]:
    return {"headers": message.headers, "body": message.body}
