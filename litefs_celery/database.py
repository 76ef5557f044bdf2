"""`LiteFSCelery`: one database on LiteFS, its parts wired together for one process."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from typing import Any, NoReturn

from celery import Celery, Task
from sqlalchemy import MetaData
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session, sessionmaker

from . import ledger, observe, routing, tasks
from .committer import Committer
from .config import Settings
from .criteria import CriteriaCodec
from .detector import Detector, Kind, Role, Term, decide, look
from .engines import Engines, OnConnect, database_path
from .errors import (
    ArgumentError,
    BrokerUnavailable,
    ConfigurationError,
    DatabaseMissing,
    LiteFSCeleryError,
    MountUnavailable,
    NotAcknowledged,
    UnknownMethod,
    WriteTimeout,
)
from .forward import Forwarder, Unsent
from .instances import InstanceCodec
from .litefs import LiteFSNode, Position
from .methods import Method, Write_
from .standalone import stands_alone
from .visibility import Visibility
from .wire import Outcome, Wire, Write, unwrap

CREATE_INTERVAL = 0.1
TIMEOUT_LIMIT = 31_622_400.0  # a year; far beyond it the waits of threads overflow
JOURNAL_MODES = ("delete", "wal")


class LiteFSCelery:
    """
    One SQLite database on LiteFS, for the repositories that are defined on it.

    ``url`` is ``sqlite:////litefs/app.db``. ``name`` tells several databases of one process
    apart; each has its own queue. ``on_connect`` is called with every new sqlite3 connection,
    for PRAGMAs and functions. Making one opens nothing and starts nothing.

    Raises `ConfigurationError` naming every setting that is wrong.
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
        self._parts: _Parts | None = None
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
            self._settings = self._given_settings or Settings.load(self.app.conf)
        return self._settings

    @property
    def queue(self) -> str:
        """The queue that only this database's primary consumes."""
        base = self.settings.primary_queue
        return base if self.name == "default" else f"{base}.{self.name}"

    @property
    def standalone(self) -> bool:
        """Whether there is no LiteFS; found out once, and kept for the life of the process."""
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
    def forwarder(self) -> Forwarder:
        """What sends this process's writes."""
        return self.parts.forwarder

    @property
    def local(self) -> sessionmaker[Session]:
        """The plain local Session factory; see `Repository.local`."""
        return sessionmaker(self.parts.engines.local)

    @property
    def parts(self) -> _Parts:
        """The parts of this process; made anew after a fork, whose threads are the parent's."""
        parts = self._parts
        if parts is None or parts.pid != os.getpid():
            with self._lock:
                if self._parts is None or self._parts.pid != os.getpid():
                    if self._parts is not None:
                        self._parts.engines.forget()
                    self._parts = _Parts(self)
                parts = self._parts
        return parts

    @property
    def term(self) -> Term | None:
        """The term this node holds according to the running detector."""
        detector = self.parts.detector
        term = detector.term if detector is not None else None
        return term if term is not None and term.held else None

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
            name = f"{repository.__module__}.{repository.__qualname__}.{attribute}"
            names[attribute] = name
            self._methods[name] = (instance, method)
            if isinstance(method, Write_):
                tasks.register_write(self.app, name, self._republish)
            else:
                tasks.register_read(self.app, name, lambda text, name=name: self._read(name, text))
        return names

    def new_write(
        self, method: str, arguments: str, *, timeout: float, write_id: str, shown: tuple[str, str]
    ) -> Write:
        """A write of this node that may begin until ``timeout`` seconds from now."""
        if not 0 < timeout <= TIMEOUT_LIMIT:
            raise ArgumentError(
                f"timeout={timeout!r}: give seconds, more than 0, at most {TIMEOUT_LIMIT}"
            )
        return Write.new(
            method, arguments, origin=self.settings.node, deadline=time.time() + timeout,
            write_id=write_id, shown=shown,
        )

    def run(self, session: Session, write: Write) -> Any:
        """Call the method of ``write`` in ``session``: for the committer."""
        try:
            repository, method = self._methods[write.method]
        except KeyError:
            raise UnknownMethod(
                f"node {self.settings.node}, which is primary, has no write method "
                f"{write.method}: it may run an older version. Nothing was changed",
                write.id, write.method,
            ) from None
        args, kwargs = self.wire.loads(write.arguments)
        method.check(tuple(args), kwargs)
        return method.function(repository, *args, **kwargs)

    def submit(self, write: Write) -> None:
        """
        Hand ``write`` over without waiting for its outcome.

        Raises `BrokerUnavailable` when the broker does not take it.
        """
        ways = self.parts
        here = ways.run_here(write)
        if here is not None:
            here.add_done_callback(lambda done: self._send_unless(done, write))
            return
        self._publish(write)

    def _send_unless(self, done: Future[Outcome], write: Write) -> None:
        if done.exception() is None:
            return
        try:
            self._publish(write)
        except BrokerUnavailable as error:
            observe.emit(observe.ForwardFailed(self.name, write.id, write.method, error, 0.0))

    def _publish(self, write: Write) -> None:
        try:
            self.parts.publish(write)
        except Unsent as error:
            known = "it may have it all the same" if error.maybe_sent else "nothing was sent"
            raise BrokerUnavailable(
                f"{write.method} [{write.id}]: the broker did not take it ({error}); {known}. "
                "Submit it again with the same write_id: it takes effect once",
                write.id, write.method, may_have_been_sent=error.maybe_sent,
            ) from error

    def outcome(self, write_id: str) -> Outcome | None:
        """
        What this node knows of a write: `Committed`, `Refused`, `Expired`, or None.

        None means "not known here": still queued, not replicated yet, or never sent. Raises
        where the database cannot be read.
        """
        self.parts.check_ready()
        entry = self.parts.visibility.look(write_id)
        if entry is not None:
            return self.wire.load_outcome(entry.outcome, entry.epoch)
        return tasks.stored_outcome(self.app, self.wire, write_id)

    def await_outcome(self, write_id: str, timeout: float) -> Any:
        """The value of a write once this node can read it; raises its exception, or times out."""
        if self.parts.holds_local_session():
            raise ConfigurationError("close the local Session of this thread before waiting")
        self.parts.check_ready()
        visibility = self.parts.visibility
        try:
            entry = visibility.look(write_id) or visibility.watch(write_id).result(timeout)
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
        return repr(value)[:1024] if method and method[1].show_arguments else "(hidden)"

    def role(self) -> Role:
        """This node's role now: from the detector where one runs, else from a fresh look."""
        if self.standalone:
            return Role(Kind.STANDALONE, self.settings.node, "no LiteFS")
        detector = self.parts.detector
        return detector.role if detector is not None else self.parts.look()

    def position(self) -> Position | None:
        """This database's replication position on this node."""
        return self.parts.node().position(self.path.name)

    @contextmanager
    def read_session(self) -> Iterator[Session]:
        """A short Session on the local replica, outside any transaction."""
        with Session(self.parts.engines.reader, expire_on_commit=False, autoflush=False) as session:
            yield session

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

    def _republish(self, task: Task, arguments: str) -> None:
        headers = {
            "id": task.request.id, "task": task.name,
            "litefs": getattr(task.request, "litefs", None),
            "argsrepr": task.request.argsrepr, "kwargsrepr": task.request.kwargsrepr,
        }
        self.parts.publish(Write.from_message(headers, [[arguments]]))

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
            name, args=(text,), queue=tasks.primary_queue(queue),
            argsrepr=shown[0], kwargsrepr=shown[1],
        )


class _Parts:
    """What one process runs for one database."""

    def __init__(self, db: LiteFSCelery) -> None:
        self.db = db
        self.pid = os.getpid()
        settings = db.settings
        self.wire = Wire(db._instances, db._criteria, max_bytes=settings.max_payload_bytes)
        self.engines = Engines(
            db.path, lock_timeout=settings.lock_timeout, on_connect=db._on_connect
        )
        self.engines.may_create = db.standalone
        self.committer = Committer(
            db, db.name, settings, self.engines, self.wire, run=db.run, confirm=self.confirm
        )
        self.visibility = Visibility(
            db.name, settings, self.engines.reader, db.litefs, db.path.name,
            on_epoch=lambda epoch: self.forwarder.new_term(epoch),
        )
        self.forwarder = Forwarder(db.name, settings, self.wire, self.visibility, self)
        self.sender = tasks.Sender(db.app, db.queue, timeout=settings.broker_timeout)
        self.detector: Detector | None = None
        self.consumer: routing.PrimaryConsumer | None = None
        self.sends_events: Callable[[], bool] = lambda: False
        self._threads = threading.local()
        self._term: Term | None = None
        self._term_until = 0.0
        self._ready_until = 0.0
        self._lock = threading.Lock()

    def node(self) -> LiteFSNode:
        """This thread's client of LiteFS."""
        if not hasattr(self._threads, "node"):
            self._threads.node = self.db.litefs()
        node: LiteFSNode = self._threads.node
        return node

    def look(self) -> Role:
        return decide(self.db.settings, look(self.node(), self.db.settings))

    # The two ways of a write (forward.Ways).

    def run_here(self, write: Write) -> Future[Outcome] | None:
        term = self._current_term()
        return None if term is None else self.committer.submit(write, term)

    def publish(self, write: Write) -> None:
        self.sender.publish(write)

    def stored(self, write: Write) -> Outcome | None:
        return tasks.stored_outcome(self.db.app, self.wire, write.id)

    def holds_local_session(self) -> bool:
        return self.engines.holds_local_session()

    def check_ready(self) -> None:
        """Raise unless the mount answers and holds the database."""
        if time.monotonic() < self._ready_until:
            return
        if self.db.standalone or self.db.settings.has_fixed_role:
            return
        node, path = self.node(), self.db.path
        if node.position(path.name) is not None:
            self._ready_until = time.monotonic() + self.db.settings.info_interval
            return
        if not node.is_mounted():
            raise MountUnavailable(
                f"{path.parent} shows no sign of LiteFS: it is not mounted there. Start LiteFS on "
                "this node, or correct the database URL"
            )
        raise DatabaseMissing(
            f"LiteFS at {path.parent} holds no {path.name}: create it with db.create_all() on the "
            "primary, or wait until this node has replicated it"
        )

    def _current_term(self) -> Term | None:
        """The term under which this process may write; None where the write must travel."""
        if self.detector is not None:
            return self.db.term
        if time.monotonic() >= self._term_until or (self._term and not self._term.held):
            with self._lock:
                if time.monotonic() >= self._term_until or (self._term and not self._term.held):
                    self._term = self._look_for_term()
                    # Either answer may be old: a write that is sent finds the primary, one that
                    # is committed here is confirmed. Looking costs a millisecond through FUSE.
                    self._term_until = time.monotonic() + self.db.settings.file_interval
        return self._term

    def _look_for_term(self) -> Term | None:
        if self.db.standalone:
            return self._begin_once("")
        facts = look(self.node(), self.db.settings)
        if decide(self.db.settings, facts).kind is Kind.PRIMARY:
            return self._begin_once(facts.info.litefs_id if facts.info else "")
        if self._term is not None:
            self._term.end("LiteFS says not primary")
        return None

    def _begin_once(self, litefs_id: str) -> Term | None:
        term = self._term
        if term is not None and term.held and term.litefs_id == litefs_id:
            return term
        try:
            return self.begin_term(litefs_id)
        except (SQLAlchemyError, LiteFSCeleryError) as error:
            if self.db.standalone:
                raise
            observe.logger.warning("cannot begin a term here: %s", error)
            return None

    def begin_term(self, litefs_id: str) -> Term:
        """Write this node's row into the tracking table: only the true primary can."""
        with self.engines.setup.begin() as connection:
            row = ledger.begin_term(connection, self.db.settings.node, litefs_id)
        term = Term(row.epoch, row.node, litefs_id)
        self.confirm(term)
        return term

    def newest_term(self) -> ledger.TermRow | None:
        with suppress(SQLAlchemyError, LiteFSCeleryError), self.engines.reader.connect() as reader:
            return ledger.newest_term(reader)
        return None

    def confirm(self, term: Term) -> None:
        """
        Raise unless this node still is the primary of ``term``.

        A COMMIT that returned is not proof (litefs 0.5.14 can lose it in a handoff); it counts
        when the position is readable and the same LiteFS still says primary.
        """
        settings = self.db.settings
        if self.db.standalone or settings.has_fixed_role:
            return
        if not term.held:
            self._unconfirmed(term, term.reason)
        node = self.node()
        try:
            if node.position(self.db.path.name) is None:
                self._unconfirmed(term, "the database has no position")
            if "info" in settings.sources:
                info = node.info()
                if not info.is_primary or info.litefs_id != term.litefs_id:
                    self._unconfirmed(term, "/info does not say primary any more")
            elif node.primary_file() is not None:
                self._unconfirmed(term, ".primary names another node")
        except LiteFSCeleryError as error:
            self._unconfirmed(term, str(error), error)

    def _unconfirmed(self, term: Term, why: str, cause: Exception | None = None) -> NoReturn:
        term.end(why)
        if self.detector is not None:
            self.detector.look_again()
        raise NotAcknowledged(f"node {term.node} is no longer the primary it was: {why}") from cause

    def create(self, metadata: MetaData, journal_mode: str) -> None:
        """Create what is missing, as the primary."""
        fresh = not self.db.path.exists()
        self.engines.may_create = True
        try:
            if fresh and journal_mode == "wal":
                with self.engines.setup.connect() as connection:
                    raw = connection.connection.dbapi_connection
                    if raw is not None:
                        raw.execute("PRAGMA journal_mode = wal")  # type: ignore[attr-defined]
            with self.engines.setup.begin() as connection:
                ledger.create(connection)
                metadata.create_all(connection)
        finally:
            self.engines.may_create = self.db.standalone

    def start(self, hostname: str, sends_events: Callable[[], bool]) -> None:
        """Start detector and consumer; idempotent."""
        self.sends_events = sends_events
        with self._lock:
            if self.detector is not None:
                return
            db = self.db
            self.consumer = routing.PrimaryConsumer(db, hostname)
            self.detector = Detector(
                db.name, db.settings, db.litefs, begin_term=self.begin_term,
                newest_term=self.newest_term, on_change=self.consumer.term_changed,
            )
            self.consumer.start()
            self.detector.start()

    def stop(self) -> None:
        """Stop consuming first, while the term is held, then the detector; idempotent."""
        with self._lock:
            consumer, detector = self.consumer, self.detector
            self.consumer = self.detector = None
        if consumer is not None:
            consumer.stop()
        if detector is not None:
            detector.stop()

    def status(self) -> dict[str, Any]:
        db = self.db
        role, term = db.role(), db.term
        status: dict[str, Any] = {
            "node": db.settings.node, "database": db.name, "path": str(db.path),
            "role": role.kind.value, "primary": role.primary, "reason": role.reason,
            "epoch": None if term is None else term.epoch, "queue": db.queue,
            "consuming": db.consuming, "position": None, "lag_ms": None, "ledger": None,
        }
        with suppress(LiteFSCeleryError):
            position = self.node().position(db.path.name)
            status["position"] = None if position is None else f"{position.txid:016x}"
            status["lag_ms"] = self.node().lag_ms()
        with suppress(SQLAlchemyError, LiteFSCeleryError), self.engines.reader.connect() as reader:
            status["ledger"] = ledger.size(reader)
            newest = ledger.newest_term(reader)
            status["epoch"] = newest.epoch if newest else None
        return status

    def close(self) -> None:
        self.stop()
        self.forwarder.stop()
        self.visibility.stop()
        self.committer.stop()
        self.sender.close()
        self.engines.dispose()
