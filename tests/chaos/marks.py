"""
Writes that leave a mark each: every worker and caller of a storm has them.

A mark is one inserted row with the write's own id, and nothing keeps a second one out: a write
that takes effect twice leaves two.
"""

from __future__ import annotations

from sqlalchemy.orm import Mapped, mapped_column

from litefs_celery import Repository, write
from worker.celeryapp import db
from worker.models import Base
from worker.repositories import regions


class Mark(Base):
    """What one write left behind; ``number`` counts its writer's calls."""

    __tablename__ = "marks"

    id: Mapped[int] = mapped_column(primary_key=True)
    mark: Mapped[str] = mapped_column(index=True)
    writer: Mapped[str]
    number: Mapped[int]


class Refusal(Exception):
    """What the refused method raises, each time it runs."""


class Marks(Repository[Mark], db=db):
    """Marks, and for each writer a region that counts them."""

    @write
    def put(self, mark: str, writer: str, number: int) -> int:
        """Leave a mark and count it: what was read before and written after must fit."""
        self.session.add(Mark(mark=mark, writer=writer, number=number))
        return regions.visit(writer)

    @write
    def refuse(self, mark: str, writer: str, number: int) -> None:
        """Leave a mark, count it, and raise."""
        self.put(mark, writer, number)
        self.session.flush()
        raise Refusal(mark)


marks = Marks()

REPOSITORIES = {"marks": marks}
