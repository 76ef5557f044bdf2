"""`Repository`: the reads and writes of one SQLAlchemy model, called alike on every node."""

from __future__ import annotations

import contextlib
import contextvars
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Generic, TypeVar, get_args

from sqlalchemy import ColumnElement, Select, delete, func, insert, inspect, select, update
from sqlalchemy.dialects.sqlite import insert as sqlite_insert
from sqlalchemy.orm import Session, sessionmaker

from .criteria import tables_in
from .errors import ArgumentError, ConfigurationError
from .instances import changed_columns, primary_key
from .methods import Method, write
from .savepoint import current_session

if TYPE_CHECKING:
    from .database import LiteFSCelery

M = TypeVar("M")
Values = Mapping[str, Any]
_reading: contextvars.ContextVar[tuple[object, Session] | None] = contextvars.ContextVar(
    "litefs_celery_reading", default=None
)


class Repository(Generic[M]):
    """
    Subclass it as ``class Users(Repository[User], db=db)``.

    Reads run on this node's replica; writes run on the primary and return when this node can
    read them. Instances that come back are detached: plain data with the model's class.
    """

    db: ClassVar[LiteFSCelery]
    model: ClassVar[type[Any]]
    task_names: ClassVar[dict[str, str]]

    def __init_subclass__(cls, db: LiteFSCelery | None = None, **options: Any) -> None:
        super().__init_subclass__(**options)
        model = next(
            (
                argument
                for base in getattr(cls, "__orig_bases__", ())
                for argument in get_args(base)
                if isinstance(argument, type)
            ),
            None,
        )
        if model is not None:
            cls.model = model
        if db is None:
            return
        if not hasattr(cls, "model"):
            raise ConfigurationError(f"{cls.__name__}: name its model, as in Repository[User]")
        cls.db = db
        cls.task_names = db.attach(cls, _methods(cls))

    @property
    def session(self) -> Session:
        """The transaction of the `@write`, or the Session of the `@read`, that runs now."""
        session = self._joined()
        if session is None:
            raise ConfigurationError(
                f"{type(self).__name__}.session exists inside @write and @read methods only; "
                "elsewhere use the repository's reads, or .local() for a Session of your own"
            )
        return session

    @property
    def local(self) -> sessionmaker[Session]:
        """
        The plain local Session factory, on this node's database file.

        An open Session holds up replication on this node. Writing through it bypasses the
        ledger, and works on the primary only.
        """
        return self.db.local

    # Reads: one statement each, outside any transaction, so that replication is never held up.

    def get(self, key: Any) -> M | None:
        """The instance with that primary key (a tuple for composite keys), or None."""
        with self.reading() as session:
            return session.get(self.model, key)

    def get_by(self, **columns: Any) -> M | None:
        """The first instance whose columns have these values, or None."""
        with self.reading() as session:
            found: M | None = session.scalars(
                select(self.model).filter_by(**columns).limit(1)
            ).first()
            return found

    def one(self, statement: Select[Any]) -> Any:
        """The only row of ``statement``; raises NoResultFound or MultipleResultsFound."""
        with self.reading() as session:
            return session.scalars(statement).one()

    def all(self, statement: Select[Any] | None = None) -> list[M]:
        """All instances, or those that ``statement`` selects."""
        with self.reading() as session:
            return list(session.scalars(select(self.model) if statement is None else statement))

    def exists(self, *criteria: ColumnElement[bool]) -> bool:
        """Whether any row meets all ``criteria``."""
        with self.reading() as session:
            query = select(1).select_from(self.model).where(*criteria).limit(1)
            return session.scalar(query) is not None

    def count(self, *criteria: ColumnElement[bool]) -> int:
        """How many rows meet all ``criteria``."""
        return int(self.aggregate(func.count(), *criteria))

    def aggregate(self, function: ColumnElement[Any], *criteria: ColumnElement[bool]) -> Any:
        """The value of an aggregate, such as ``func.max(User.age)``, over the rows that match."""
        with self.reading() as session:
            return session.scalar(select(function).select_from(self.model).where(*criteria))

    def stream(self, *criteria: ColumnElement[bool], batch_size: int = 500) -> Iterator[M]:
        """
        All matching instances in the order of the primary key, ``batch_size`` at a time.

        Each batch is a read of its own: nothing is held open between them, so replication goes
        on, and rows that change meanwhile may be seen old or new, each key at most once.
        """
        mapper = inspect(self.model)
        if len(mapper.primary_key) != 1:
            raise ArgumentError(f"{self.model.__name__}: stream() needs a primary key of 1 column")
        key = mapper.primary_key[0]
        query = select(self.model).where(*criteria).order_by(key).limit(batch_size)
        last: list[ColumnElement[bool]] = []
        while True:
            batch = self.all(query.where(*last))
            yield from batch
            if len(batch) < batch_size:
                return
            last = [key > mapper.primary_key_from_instance(batch[-1])[0]]

    # Writes: each is one transaction on the primary, or joins that of the @write that calls it.

    @write
    def insert(self, instance: M) -> M:
        """Insert one new instance; returns it with its key and defaults."""
        self.session.add(instance)
        self.session.flush()
        return instance

    @write
    def insert_all(self, instances: Sequence[M]) -> list[M]:
        """Insert many in one transaction: all or none; returns them with keys and defaults."""
        self.session.add_all(instances)
        self.session.flush()
        return list(instances)

    @write
    def insert_or_update(self, instance: M) -> M:
        """Insert, or overwrite the loaded columns of the row with the same primary key."""
        merged = self.session.merge(instance)
        self.session.flush()
        return merged

    @write
    def upsert(
        self, rows: Sequence[Values], on_conflict: Sequence[str], update: Sequence[str] = ()
    ) -> int:
        """
        ``INSERT … ON CONFLICT (columns) DO UPDATE`` of many rows; returns how many it touched.

        ``update`` names the columns to overwrite; none means DO NOTHING.
        """
        if not rows:
            return 0
        statement = sqlite_insert(self.model)
        names = {name: self._column(name).name for name in (*on_conflict, *update)}
        index = [names[name] for name in on_conflict]
        new = {names[name]: statement.excluded[names[name]] for name in update}
        clause = (
            statement.on_conflict_do_update(index_elements=index, set_=new)
            if new
            else statement.on_conflict_do_nothing(index_elements=index)
        )
        before = self._changes()
        self.session.execute(clause, [dict(row) for row in rows])
        return self._changes() - before

    @write
    def update_columns(self, key: Sequence[Any], values: Values) -> M:
        """Set columns of the row with primary key ``key``; raises NoResultFound without one."""
        instance: M = self.session.get_one(self.model, tuple(key))
        for name, value in values.items():
            self._column(name)
            setattr(instance, name, value)
        self.session.flush()
        return instance

    def update(self, instance: M, values: Values | None = None) -> M:
        """
        Write ``values``, or the columns changed on ``instance`` since it was read, to its row.

        Only these columns are sent and set, so concurrent changes of others are kept.
        """
        changed = changed_columns(instance) if values is None else values
        return self.update_columns(primary_key(instance), changed)

    @write
    def update_all(self, criteria: ColumnElement[bool], values: Values) -> int:
        """Set columns of all rows that meet ``criteria``; returns how many."""
        self._check_own(criteria, *values.values())
        return self._rowcount(update(self.model).where(criteria).values(dict(values)))

    @write
    def delete_key(self, key: Sequence[Any]) -> bool:
        """Delete the row with primary key ``key``; returns whether there was one."""
        instance = self.session.get(self.model, tuple(key))
        if instance is not None:
            self.session.delete(instance)
        return instance is not None

    def delete(self, instance: M) -> bool:
        """Delete the instance's row, with its ORM cascades; returns whether there was one."""
        return self.delete_key(primary_key(instance))

    @write
    def delete_all(self, criteria: ColumnElement[bool]) -> int:
        """Delete all rows that meet ``criteria``; returns how many."""
        self._check_own(criteria)
        return self._rowcount(delete(self.model).where(criteria))

    @write
    def insert_rows(self, rows: Sequence[Values]) -> int:
        """Insert plain rows in bulk, without instances: the fast way; returns how many."""
        if rows:
            self.session.execute(insert(self.model), [dict(row) for row in rows])
        return len(rows)

    @contextlib.contextmanager
    def reading(self) -> Iterator[Session]:
        """The Session that reads use: the running write's or read's, or a short one of its own."""
        session = self._joined()
        if session is not None:
            yield session
            return
        # Made here: another context manager would take as long as the rest of this.
        with Session(self.db.reader, expire_on_commit=False, autoflush=False) as session:
            token = _reading.set((self.db, session))
            try:
                yield session
            finally:
                _reading.reset(token)

    def _joined(self) -> Session | None:
        session = current_session(self.db)
        if session is not None:
            return session
        reading = _reading.get()
        return reading[1] if reading is not None and reading[0] is self.db else None

    def _check_own(self, *expressions: Any) -> None:
        own = inspect(self.model).local_table.description
        for expression in expressions:
            foreign = tables_in(expression) - {own} if _is_sql(expression) else set()
            if foreign:
                raise ArgumentError(
                    f"criteria of {type(self).__name__} use the table {', '.join(foreign)}: only "
                    f"{own} is theirs; write a @write method for more"
                )
        if not _is_sql(expressions[0]):
            raise ArgumentError(f"{expressions[0]!r} is no criterion, such as User.age > 3")

    def _column(self, name: str) -> Any:
        attributes = inspect(self.model).column_attrs
        if name not in attributes:
            raise ArgumentError(f"{self.model.__name__} has no column {name!r}")
        return attributes[name].columns[0]

    def _rowcount(self, statement: Any) -> int:
        result = self.session.execute(statement, execution_options={"synchronize_session": False})
        return int(result.rowcount)  # type: ignore[attr-defined]

    def _changes(self) -> int:
        return int(self.session.scalar(select(func.total_changes())) or 0)


def _is_sql(value: Any) -> bool:
    return hasattr(value, "__clause_element__") or isinstance(value, ColumnElement)


def _methods(cls: type) -> dict[str, Method[..., Any]]:
    found: dict[str, Method[..., Any]] = {}
    for base in reversed(cls.__mro__):
        for name, value in vars(base).items():
            if isinstance(value, Method):
                found[name] = value
            else:
                found.pop(name, None)
    return found
