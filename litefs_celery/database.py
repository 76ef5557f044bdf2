"""`LiteFSCelery`: one database on LiteFS, its parts wired together for one process."""

from __future__ import annotations

import functools
import os
import threading
import time
from collections.abc import Callable
from concurrent.futures import TimeoutError as FutureTimeoutError
from contextlib import suppress
from typing import Any

from celery import Celery, Task
from celery.utils.saferepr import saferepr
from sqlalchemy import Engine, MetaData
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session, sessionmaker

from . import ledger, routing, tasks
from .committer import Committer
from .config import Settings
from .criteria import CriteriaCodec
from .detector import Term
from .engines import OnConnect, database_path
from .errors import (
    ArgumentError,
    BrokerUnavailable,
    ConfigurationError,
    DatabaseMissing,
    LiteFSCeleryError,
    OpenReadTransaction,
    UnknownMethod,
    WriteTimeout,
)
from .forward import Forwarder, Unsent
from .instances import InstanceCodec
from .litefs import LiteFSNode, Position
from .message import HEADER, writes_in
from .methods import SHOWN_LIMIT, Method, Write_
from .parts import Parts
from .rejected import Rejected
from .roles import Kind, Role
from .savepoint import refuse_inside_write
from .standalone import stands_alone
from .stored import Stored
from .wire import Outcome, Wire, Write, unwrap

CREATE_INTERVAL = 0.1
SEND_TIMEOUT = 2.0  # then the node's worker sends what this process did not
TIMEOUT_LIMIT = 31_622_400.0  # a year; far beyond it the waits of threads overflow
JOURNAL_MODES = ("delete", "wal")


class LiteFSCelery:
    """
    One SQLite database on LiteFS, for the repositories that are defined on it.

    ``url`` is ``sqlite:////litefs/app.db``. ``name`` tells several databases of one process
    apart; each has its own queue. ``on_connect`` is called with every new sqlite3 connection,
    for PRAGMAs and functions. Making one opens nothing and starts nothing.

    Raises `ConfigurationError` for a URL that is no database file; the settings are read, and
    all that is wrong with them named, at first use.
    """

    def __init__(
        self,
        app: Celery,
        url: str,
        *,
        name: str = "default",
        settings: Settings | None = None,
        on_connect: OnConnect | None = None,
    ) -> None:
        self.app = app
        self.name = name
        self.path = database_path(url)
        self._given_settings = settings
        self._settings: Settings | None = None
        self._on_connect = on_connect
        self._methods: dict[str, tuple[Any, Method[..., Any]]] = {}
        self._instances = InstanceCodec()
        self._criteria = CriteriaCodec()
        self._lock = threading.RLock()
        self._standalone: bool | None = None
        self._parts: Parts | None = None
        self._register(app)

    def _register(self, app: Celery) -> None:
        known = routing.databases(app)
        if any(db.name == self.name for db in known):
            raise ConfigurationError(
                f"two databases are called {self.name!r}: give each LiteFSCelery its own name"
            )
        app.litefs_databases = [*known, self]
        app.steps["consumer"].add(routing.PrimaryStep)

    @property
    def settings(self) -> Settings:
        """The settings, read when first asked for: by then Celery is configured."""
        if self._settings is None:
            settings = self._given_settings or Settings.load(self.app.conf)
            if problems := settings.problems():
                raise ConfigurationError("\n".join(problems))
            self._settings = settings
        return self._settings

    @property
    def queue(self) -> str:
        """The queue that only this database's primary consumes."""
        base = self.settings.primary_queue
        return base if self.name == "default" else f"{base}.{self.name}"

    @property
    def standalone(self) -> bool:
        """Whether there is no LiteFS; found out once, and kept for the life of the process."""
        if self._standalone is not None:
            return self._standalone  # without the lock, which a fork might find taken
        with self._lock:
            if self._standalone is None:
                self._standalone = stands_alone(self.path, self.settings, self.litefs())
            return self._standalone

    @property
    def wire(self) -> Wire:
        """How this database's values are encoded."""
        return self.parts.wire

    @property
    def committer(self) -> Committer:
        """This process's writer thread."""
        return self.parts.committer

    @property
    def stored(self) -> Stored:
        """Outcomes in the result backend."""
        return self.parts.stored

    @property
    def forwarder(self) -> Forwarder:
        """What sends this process's writes."""
        return self.parts.forwarder

    @property
    def local(self) -> sessionmaker[Session]:
        """The plain local Session factory; see `Repository.local`."""
        return sessionmaker(self.parts.engines.local)

    @property
    def parts(self) -> Parts:
        """The parts of this process; made anew after a fork, whose threads are the parent's."""
        parts = self._parts
        if parts is None or parts.pid != os.getpid():
            with self._lock:
                if self._parts is None or self._parts.pid != os.getpid():
                    if self._parts is not None:
                        self._parts.engines.forget()
                    self._parts = Parts(self)
                parts = self._parts
        return parts

    @property
    def term(self) -> Term | None:
        """The term this node holds according to the running detector."""
        return self.parts.terms.held

    @property
    def consuming(self) -> bool:
        """Whether this process consumes the queue of writes."""
        consumer = self.parts.consumer
        return consumer is not None and consumer.consuming

    def litefs(self) -> LiteFSNode:
        """A new client of this node's LiteFS, for one thread."""
        settings = self.settings
        return LiteFSNode(self.path.parent, settings.api_url, http_timeout=settings.http_timeout)

    def attach(self, repository: type, methods: dict[str, Method[..., Any]]) -> dict[str, str]:
        """Register a repository class's methods as tasks; returns their names."""
        model = repository.model  # type: ignore[attr-defined]
        self._instances.allow(model)
        self._criteria.allow(model.__table__)
        names = {}
        instance = repository()
        for attribute, method in methods.items():
            # As Celery names its tasks: a script's module is __main__, and the app knows better.
            name = self.app.gen_task_name(
                f"{repository.__qualname__}.{attribute}", repository.__module__
            )
            names[attribute] = name
            self._methods[name] = (instance, method)
            if isinstance(method, Write_):
                tasks.register_write(self.app, name, self._republish)
            else:
                tasks.register_read(self.app, name, functools.partial(self._read, name))
        return names

    def new_write(
        self, method: str, arguments: str, *, timeout: float, write_id: str,
        shown: tuple[str, str], order_key: str = "",
    ) -> Write:
        """A write of this node that may begin until ``timeout`` seconds from now."""
        limit = min(TIMEOUT_LIMIT, self.settings.ledger_retention)
        if not 0 < timeout < limit:
            raise ArgumentError(
                f"timeout={timeout!r}: give seconds, more than 0 and less than {limit:g} "
                "(litefs_ledger_retention: a write that comes again after its outcome was pruned "
                "would take effect twice)"
            )
        if order_key and self.parts.outbox is None and not self.standalone:
            raise ConfigurationError(
                f"order_key={order_key!r} needs an outbox, which knows the order: set "
                "litefs_outbox_dir"
            )
        return Write.new(
            method, arguments, origin=self.settings.node, deadline=time.time() + timeout,
            write_id=write_id, shown=shown, order_key=order_key,
        )

    def run(self, write: Write) -> Any:
        """Call the method of ``write`` in the current session: for the committer."""
        repository, method = self._methods.get(write.method, (None, None))
        if not isinstance(method, Write_):
            raise UnknownMethod(
                f"node {self.settings.node}, which is primary, has no write method "
                f"{write.method}: it may run an older version. Nothing was changed",
                write.id, write.method,
            )
        args, kwargs = self.wire.loads(write.arguments)
        method.check(tuple(args), kwargs)
        return method.function(repository, *args, **kwargs)

    def submit(self, write: Write) -> None:
        """
        Hand ``write`` over without waiting for its outcome.

        With an outbox it is there when this returns, and the node's worker sends it until it can
        be read here. Raises `OutboxFull`, or without an outbox `BrokerUnavailable`.
        """
        refuse_inside_write(".delay() or .apply_async()")
        outbox = self.parts.outbox
        if outbox is not None:
            due = time.time() - self.settings.outbox_resend_interval + SEND_TIMEOUT
            write = outbox.add(write, sent_at=due)
            if self.parts.run_here(write) is None:
                self.parts.forwarder.send(write)
            return
        here = self.parts.run_here(write)
        if here is not None:
            # Waited for: a process that ends right after would take the write with it.
            with suppress(FutureTimeoutError):
                if here.exception(self.settings.write_timeout) is None:
                    return
        self._publish(write, began_here=here is not None)

    def _publish(self, write: Write, *, began_here: bool) -> None:
        try:
            self.parts.publish([write])
        except Unsent as error:
            maybe = error.maybe_sent or began_here
            known = "nothing was sent"
            if error.maybe_sent:
                known = "it may have it all the same"
            elif began_here:
                known = "a commit on this node could not be confirmed either, and may yet count"
            raise BrokerUnavailable(
                f"{write.method} [{write.id}]: the broker did not take it ({error}); {known}. "
                "Submit it again with the same write_id: it takes effect once",
                write.id, write.method, may_have_been_sent=maybe,
            ) from error

    def outcome(self, write_id: str) -> Outcome | None:
        """
        What this node knows of a write: `Committed`, `Refused`, `Expired`, or None.

        None means "not known here": still queued, not replicated yet, or never sent. Raises
        where the database cannot be read.
        """
        self.parts.check_ready()
        entry = self.parts.visibility.look_settled(write_id)
        if entry is not None:
            return self.wire.load_outcome(entry.outcome, entry.epoch)
        stored = self.parts.stored.find([write_id]).get(write_id)
        return None if isinstance(stored, str) else stored

    def await_outcome(self, write_id: str, timeout: float) -> Any:
        """The value of a write once this node can read it; raises its exception, or times out."""
        refuse_inside_write("await_outcome() or get()")
        if self.parts.holds_local_session():
            raise OpenReadTransaction(
                "close the local Session of this thread before waiting: it holds up replication"
            )
        self.parts.check_ready()
        try:
            entry = self.parts.visibility.wait(write_id, timeout)
        except TimeoutError:
            raise WriteTimeout(
                f"write {write_id} did not become readable on node {self.settings.node} within "
                f"{timeout} s; ask outcome({write_id!r}) later", write_id,
            ) from None
        write = Write(write_id, entry.method, "", "", 0.0, entry.fingerprint)
        return unwrap(self.wire.load_outcome(entry.outcome, entry.epoch), write)

    def shown_result(self, write: Write, value: object) -> str:
        """What Flower shows of a result."""
        method = self._methods.get(write.method)
        shown = method is not None and method[1].show_arguments
        return saferepr(value, SHOWN_LIMIT) if shown else "(hidden)"

    def role(self) -> Role:
        """This node's role now: from the detector where one runs, else from a fresh look."""
        if self.standalone:
            return Role(Kind.STANDALONE, self.settings.node, "no LiteFS")
        detector = self.parts.terms.detector
        return detector.role if detector is not None else self.parts.look()

    def position(self) -> Position | None:
        """This database's replication position on this node."""
        return self.parts.node().position(self.path.name)

    @property
    def reader(self) -> Engine:
        """The engine of reads on the local replica, outside any transaction."""
        return self.parts.engines.reader

    def create_all(
        self, metadata: MetaData, *, journal_mode: str = "delete", timeout: float = 60.0
    ) -> None:
        """
        Make the database with ``metadata``'s tables, on every node alike.

        The primary creates what is missing; the others wait until they see it, at most
        ``timeout`` seconds. ``journal_mode`` (``delete`` or ``wal``) counts at creation only:
        changing that of a live database makes LiteFS's replicas exit (superfly/litefs#449).
        """
        if journal_mode not in JOURNAL_MODES:
            raise ConfigurationError(f"journal_mode={journal_mode!r}: use delete or wal")
        deadline = time.monotonic() + timeout
        while True:
            problem = self._create_or_see(metadata, journal_mode)
            if not problem:
                return
            if time.monotonic() > deadline:
                raise DatabaseMissing(f"{self.path} has no tables after {timeout} s: {problem}")
            time.sleep(CREATE_INTERVAL)

    def _create_or_see(self, metadata: MetaData, journal_mode: str) -> str:
        parts = self.parts
        try:
            role = self.role() if self.standalone else parts.look()
            if role.kind in (Kind.PRIMARY, Kind.STANDALONE):
                parts.create(metadata, journal_mode)
                parts.check_ready()
                return ""
            with parts.engines.reader.connect() as connection:
                missing = [
                    table.name
                    for table in metadata.tables.values()
                    if not connection.dialect.has_table(connection, table.name)
                ]
                if not missing and ledger.exists(connection):
                    return ""
                return f"role {role.kind.value} ({role.reason}); missing: {', '.join(missing)}"
        except (LiteFSCeleryError, SQLAlchemyError) as error:
            return str(error)

    def start_node(self, hostname: str, sends_events: Callable[[], bool]) -> None:
        """Start the detector and the consumer of writes: the worker's bootstep calls this."""
        if self.standalone:
            return
        self.parts.start(hostname, sends_events)

    def stop_node(self) -> None:
        """Stop what `start_node` started; idempotent."""
        self.parts.stop()

    def sends_events(self) -> bool:
        """Whether the worker sends task events now (``-E``, or Flower turned them on)."""
        return self.parts.sends_events()

    def node_status(self) -> dict[str, Any]:
        """Role, epoch, position, lag and ledger size of this node, as plain data."""
        return self.parts.status()

    def close(self) -> None:
        """Stop this process's threads and close its connections; usable again afterwards."""
        with self._lock:
            parts, self._parts = self._parts, None
        if parts is not None and parts.pid == os.getpid():
            parts.close()

    def _republish(self, task: Task, arguments: tuple[str, ...]) -> None:
        request = task.request
        headers = {"id": request.id, "task": task.name, HEADER: getattr(request, HEADER, None)}
        try:
            # Verified before it is published, which signs it: anybody can send a task astray.
            writes = writes_in(headers, [arguments], self.parts.signer)
        except ValueError as error:
            source = (request.delivery_info or {}).get("routing_key", "")
            rejected = Rejected(self.name, self.settings, source)
            rejected.keep_alone(self.app, {"headers": headers, "body": arguments}, str(error))
        else:
            self.parts.publish(writes)

    def _read(self, name: str, text: str) -> str:
        repository, method = self._methods[name]
        args, kwargs = self.wire.loads(text)
        with repository.reading():
            value = method.function(repository, *args, **kwargs)
        return self.wire.dumps(value, f"the result of {name}")

    def send_read(self, name: str, text: str, *, node: str, shown: tuple[str, str]) -> Any:
        """Submit a read to the worker of ``node``, by default this one."""
        queue = f"{self.settings.read_queue_prefix}{node or self.settings.node}"
        return self.app.send_task(
            name, args=(text,), queue=tasks.read_queue(queue),
            argsrepr=shown[0], kwargsrepr=shown[1],
        )
