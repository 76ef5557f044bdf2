"""
A Celery application without this package: what an idle worker is compared with.

``python -m benchmarks.plain`` with the arguments of Celery's ``worker`` runs one.
"""

from __future__ import annotations

import os
import sys

from celery import Celery

app = Celery("plain")
app.conf.update(
    broker_url=os.environ.get("CELERY_BROKER_URL"),
    result_backend=os.environ.get("CELERY_RESULT_BACKEND") or None,
    broker_connection_retry_on_startup=True,
    worker_cancel_long_running_tasks_on_connection_loss=False,
    worker_hijack_root_logger=True,
)


@app.task  # type: ignore[untyped-decorator]
def nothing() -> None:
    """Do nothing; every application has a task."""


if os.environ.get("BENCHMARK_SQLALCHEMY"):
    # What an application on SQLAlchemy has in memory anyway.
    from sqlalchemy import create_engine
    from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

    class Base(DeclarativeBase):
        """The metadata."""

    class Thing(Base):
        """A table."""

        __tablename__ = "things"
        id: Mapped[int] = mapped_column(primary_key=True)
        name: Mapped[str]

    engine = create_engine("sqlite://")
    Base.metadata.create_all(engine)
    with Session(engine) as session:
        session.get(Thing, 1)

if __name__ == "__main__":
    # Celery's command line imports every installed package that adds a command to it: not here.
    sys.modules["litefs_celery"] = None  # type: ignore[assignment]
    app.worker_main(["worker", *sys.argv[1:]])
