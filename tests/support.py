"""What the unit tests share: two models, databases of their own, records, and waiting."""

from __future__ import annotations

import sqlite3
import time
from contextlib import closing
from datetime import date
from decimal import Decimal
from typing import TYPE_CHECKING, Any, TypeVar

import pytest
from celery import Celery
from sqlalchemy import ForeignKey, Numeric
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, relationship

from litefs_celery import LiteFSCelery, Settings

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

TIMEOUT = 20.0  # seconds; a deadline, not a pause: reached only when a promise is broken
# Nothing listens there: connecting is refused at once.
NO_BROKER = "redis://127.0.0.1:1/0"
NO_API = "http://127.0.0.1:1"
T = TypeVar("T")


class Base(DeclarativeBase):
    """The metadata of the tests."""


class Team(Base):
    """A table that is not the repository's own."""

    __tablename__ = "teams"

    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str]


class User(Base):
    """A model with the column types an application has."""

    __tablename__ = "users"

    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(unique=True)
    age: Mapped[int | None]
    score: Mapped[float] = mapped_column(default=0.0)
    born: Mapped[date | None]
    active: Mapped[bool] = mapped_column(default=True)
    money: Mapped[Decimal | None] = mapped_column(Numeric(10, 2, asdecimal=False))
    team_id: Mapped[int | None] = mapped_column(ForeignKey("teams.id"))
    team: Mapped[Team | None] = relationship()


def celery_app() -> Celery:
    """Return an app of its own whose broker cannot be reached."""
    app = Celery("unit", broker=NO_BROKER, set_as_current=False)
    app.conf.broker_connection_timeout = 1.0
    return app


def standalone(folder: Path, **options: Any) -> LiteFSCelery:
    """Return a database without LiteFS, with its tables; the caller closes it."""
    settings = Settings(mode="standalone", node="n1")
    db = LiteFSCelery(
        celery_app(), f"sqlite:///{folder}/app.db", **{"settings": settings, **options}
    )
    db.create_all(Base.metadata)
    return db


def replica(folder: Path, **settings: Any) -> LiteFSCelery:
    """Return a node that is never primary, on a database that is there, with a dead broker."""
    (folder / "app.db-pos").write_text(f"{1:016x}/{1:016x}\n")  # as in LiteFS's mount
    values = {"node": "n2", "fixed_primary": "n1", "broker_timeout": 0.5, **settings}
    return LiteFSCelery(celery_app(), f"sqlite:///{folder}/app.db", settings=Settings(**values))


def rows(path: Path, query: str, *arguments: object) -> list[Any]:
    """Ask the file itself, past everything that is tested."""
    with closing(sqlite3.connect(path, timeout=TIMEOUT, isolation_level=None)) as connection:
        return connection.execute(query, arguments).fetchall()


def until(look: Callable[[], T], what: str) -> T:
    """Poll until ``look`` returns something true, at most ``TIMEOUT`` seconds."""
    deadline = time.monotonic() + TIMEOUT
    while time.monotonic() < deadline:
        if found := look():
            return found
        time.sleep(0.005)
    pytest.fail(f"not within {TIMEOUT} seconds: {what}")


def member(folder: Path, node: str, broker: str, **settings: Any) -> LiteFSCelery:
    """Return a node on a file that is there, of a cluster whose primary is always "n1"."""
    (folder / "app.db-pos").write_text(f"{1:016x}/{1:016x}\n")  # as in LiteFS's mount
    app = Celery("unit", broker=broker, set_as_current=False)
    app.conf.broker_connection_timeout = 1.0
    if broker.startswith("redis://"):
        app.conf.result_backend = broker
    values = {"node": node, "fixed_primary": "n1", "mode": "litefs", **settings}
    return LiteFSCelery(app, f"sqlite:///{folder}/app.db", settings=Settings(**values))
