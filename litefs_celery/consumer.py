"""Consumes the queue of writes while this node holds a term."""

from __future__ import annotations

import json
import threading
import time
from collections import deque
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any

from celery import signals
from kombu import Connection, Consumer, Queue
from kombu.message import Message
from kombu.transport import virtual

from . import observe
from .detector import Term
from .tasks import connection_for, primary_queue, store_outcome
from .wire import Committed, Outcome, Refused, Write

if TYPE_CHECKING:
    from .database import LiteFSCelery

IDLE_POLL = 0.1  # how soon a lost term is acted on; costs no broker command
MORE_POLL = 0.001  # for the next message, when one has just come
TAKE_LIMIT = 0.02  # how long results may wait while messages keep coming
BUSY_POLL = 0.005  # while writes run: how soon their results and acknowledgements go out
# kombu's BRPOP ends after a second by itself; a message it popped after our cancel is given back
# by kombu only if somebody still reads (kombu 5.6.2, 5.7.0).
BRPOP_END = 1.2
HAND_BACK_TIMEOUT = 10.0
RETRY_INTERVAL_LIMIT = 5.0


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
        self._hostname = hostname
        self._queue = primary_queue(db.queue)
        self._wake = threading.Event()
        self._stopped = threading.Event()
        self._thread: threading.Thread | None = None
        self._running: dict[Future[Outcome], tuple[Message, Write, float]] = {}
        self._done: deque[Future[Outcome]] = deque()
        self._failures = 0
        self._events: Any = None

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
            thread.join(HAND_BACK_TIMEOUT + BRPOP_END)

    def term_changed(self) -> None:
        """The detector's term began or ended; called from its thread, does nothing but wake."""
        self._wake.set()

    def _loop(self) -> None:
        while not self._stopped.is_set():
            term = self._db.term
            if term is None:
                self._wake.wait()
                self._wake.clear()
                continue
            try:
                self._consume_under(term)
            except Exception as error:  # noqa: BLE001 - the broker's errors are many; go on
                pause = self._back_off()
                observe.logger.warning(
                    "consuming %s failed (%r); trying again in %.1f s", self._queue.name, error,
                    pause,
                )
                term.lost.wait(pause)
            finally:
                self._running.clear()
                self._done.clear()
                self._moved(consuming=False)

    def _back_off(self) -> float:
        self._failures += 1
        return float(min(0.1 * 2**self._failures, RETRY_INTERVAL_LIMIT))

    def _consume_under(self, term: Term) -> None:
        db = self._db
        timeout = db.settings.broker_timeout
        with connection_for(db.app, timeout=timeout, name=db.queue) as connection:
            connection.ensure_connection(max_retries=1, timeout=timeout)
            channel = connection.default_channel
            _keep_strays(channel)
            _restore_unacknowledged(channel)
            self._events = db.app.events.Dispatcher(
                connection, hostname=self._hostname, enabled=db.sends_events(),
                buffer_group=("task",), on_send_buffered=lambda: None,
            )
            consumer = Consumer(
                channel, [self._queue], on_message=self._receive, accept=["json"],
                prefetch_count=db.settings.prefetch_limit,
            )
            consumer.consume()
            self._moved(consuming=True)
            while term.held and not self._stopped.is_set():
                self._drain_all(connection)
                self._finish()
            self._hand_back(connection, consumer)

    def _moved(self, *, consuming: bool) -> None:
        if consuming != self.consuming:
            self.consuming = consuming
            observe.emit(observe.ConsumerMoved(self._db.name, self._queue.name, consuming))

    def _drain_all(self, connection: Connection) -> None:
        """Take what is there before anything is finished: taking is what callers wait for."""
        until = time.monotonic() + TAKE_LIMIT
        more = self._drain(connection, BUSY_POLL if self._running else IDLE_POLL)
        while more and time.monotonic() < until:
            more = self._drain(connection, MORE_POLL)

    def _drain(self, connection: Connection, timeout: float) -> bool:
        """Take one message; returns whether there was one."""
        try:
            connection.drain_events(timeout=timeout)
            self._failures = 0
        except TimeoutError:
            return False
        except _Stray as stray:
            self._set_aside(stray.content, str(stray))
        except json.JSONDecodeError as error:
            self._set_aside(error.doc, f"not JSON: {error}")
        except UnicodeDecodeError as error:
            self._set_aside(error.object, f"not text: {error}")
        return True

    def _receive(self, message: Message) -> None:
        term = self._db.term
        try:
            write = Write.from_message(message.headers or {}, message.payload)
        except Exception as error:  # noqa: BLE001 - decoding anything may raise anything
            self._set_aside(_describe(message), str(error))
            message.ack()
            return
        if term is None:
            message.requeue()
            return
        self._tell(write, "received", args=write.shown[0], kwargs=write.shown[1])
        self._tell(write, "started")
        task = self._db.app.tasks.get(write.method)
        signals.task_prerun.send(task, task_id=write.id, task=task, args=(), kwargs={})
        future = self._db.committer.submit(write, term)
        self._running[future] = (message, write, time.monotonic())
        future.add_done_callback(self._done.append)

    def _finish(self) -> None:
        """Results, then events, then acknowledgements of the writes that are committed."""
        answered: list[Message] = []
        while self._done:
            future = self._done.popleft()
            message, write, started = self._running.pop(future)
            error = future.exception()
            if error is None:
                self._failures = 0
                self._answer(write, future.result(), time.monotonic() - started)
                answered.append(message)
            else:
                self._give_back(message, error)
        _acknowledge(answered)
        self._follow_events()

    def _follow_events(self) -> None:
        if self._events is None:
            return
        wanted = self._db.sends_events()
        if wanted and not self._events.enabled:
            self._events.enable()  # not by the attribute: it is what makes the producer
        elif self._events.enabled and not wanted:
            self._events.disable()
        if self._events.enabled:
            self._events.flush()

    def _give_back(self, message: Message, error: BaseException) -> None:
        term = self._db.term
        here = term is not None and term.held and not self._stopped.is_set()
        if term is not None and here and not self._done:
            # Still primary, and the commit failed (disk full, locked): the queue must not spin.
            # A wait for each group, not for each of its writes.
            observe.logger.warning("a group of writes goes back to its queue: %s", error)
            term.lost.wait(self._back_off())
        message.requeue()

    def _answer(self, write: Write, outcome: Outcome, runtime: float) -> None:
        db = self._db
        store_outcome(db.app, db.wire, write, outcome)
        task = db.app.tasks.get(write.method)
        if isinstance(outcome, Refused):
            error = outcome.exception
            self._tell(write, "failed", exception=repr(error), traceback="")
            signals.task_failure.send(
                task, task_id=write.id, exception=error, args=(), kwargs={},
                traceback=error.__traceback__, einfo=None,
            )
        else:
            value = outcome.value if isinstance(outcome, Committed) else "expired"
            self._tell(write, "succeeded", result=db.shown_result(write, value), runtime=runtime)
            signals.task_success.send(task, result=value)
        signals.task_postrun.send(
            task, task_id=write.id, task=task, args=(), kwargs={}, retval=None,
            state="FAILURE" if isinstance(outcome, Refused) else "SUCCESS",
        )

    def _tell(self, write: Write, what: str, **fields: Any) -> None:
        if self._events is not None and self._events.enabled:
            self._events.send(f"task-{what}", uuid=write.id, name=write.method, **fields)

    def _hand_back(self, connection: Connection, consumer: Consumer) -> None:
        consumer.cancel()
        deadline = time.monotonic() + HAND_BACK_TIMEOUT
        read_until = time.monotonic() + BRPOP_END
        while time.monotonic() < deadline:
            self._drain(connection, BUSY_POLL)
            self._finish()
            if not self._running and time.monotonic() > read_until:
                break

    def _set_aside(self, content: Any, reason: str) -> None:
        queue = self._db.settings.rejected_queue
        observe.emit(observe.MessageSetAside(self._db.name, self._queue.name, reason))
        try:
            with connection_for(
                self._db.app, timeout=self._db.settings.broker_timeout
            ) as connection, connection.SimpleQueue(Queue(queue, "", queue)) as simple:
                simple.put({"reason": reason, "queue": self._queue.name, "message": repr(content)})
        except Exception:  # noqa: BLE001 - the queue must go on; it is logged whole
            observe.logger.exception("could not set a message aside (%s): %r", reason, content)


class _Stray(Exception):
    """What was popped from the queue is no message of kombu's; ``content`` is what it is."""

    def __init__(self, content: Any, error: Exception) -> None:
        super().__init__(f"no message of kombu's: {error!r}")
        self.content = content


def _keep_strays(channel: Any) -> None:
    """
    Make kombu's virtual transports hand over JSON that is no message.

    They pop it, fail to build their Message, and it is gone (kombu 5.6.2, 5.7.0). AMQP's broker
    lets no such thing in.
    """
    base: Any = getattr(channel, "Message", None)
    if base is None or not hasattr(channel, "active_queues"):
        return

    class StrictMessage(base):
        def __init__(self, payload: Any, channel: Any = None, **options: Any) -> None:
            try:
                super().__init__(payload, channel=channel, **options)
            except Exception as error:
                raise _Stray(payload, error) from error

    channel.Message = StrictMessage


def _describe(message: Message) -> dict[str, Any]:
    return {"headers": message.headers, "body": message.body}


def _acknowledge(messages: list[Message]) -> None:
    """Acknowledge all at once where the broker is Redis: one round trip instead of one each."""
    if not messages:
        return
    channel = messages[0].channel
    if not hasattr(channel.qos, "restore_by_tag"):
        for message in messages:
            message.ack()
        return
    tags = [message.delivery_tag for message in messages]
    with channel.conn_or_acquire() as client, client.pipeline() as pipe:
        # What kombu's QoS.ack() of Redis does (5.6.2, 5.7.0), for many tags.
        pipe.zrem(channel.qos.unacked_index_key, *tags)
        pipe.hdel(channel.qos.unacked_key, *tags)
        pipe.execute()
    for tag in tags:
        virtual.QoS.ack(channel.qos, tag)


def _restore_unacknowledged(channel: Any) -> None:
    """
    Give back what an earlier primary took and did not acknowledge (Redis; AMQP does it itself).

    kombu would do so after the visibility timeout, an hour. What is still being worked on
    comes twice; the ledger answers it.
    """
    qos = channel.qos
    if not hasattr(qos, "restore_by_tag"):
        return
    with channel.conn_or_acquire() as client:
        for tag in client.hkeys(qos.unacked_key):
            qos.restore_by_tag(tag, client)
    # The periodic sweep is not needed then, and would cost an idle node commands.
    qos.restore_visible = lambda *_args, **_options: None
