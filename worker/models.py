"""The application's tables, plain SQLAlchemy."""

from __future__ import annotations

from sqlalchemy import CheckConstraint, ForeignKey
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column


class Base(DeclarativeBase):
    """The application's metadata."""


class Region(Base):
    """A subdivision of a country, by its ISO 3166-2 code."""

    __tablename__ = "regions"

    id: Mapped[int] = mapped_column(primary_key=True)
    code: Mapped[str] = mapped_column(unique=True)
    name: Mapped[str]
    kind: Mapped[str] = mapped_column(default="")
    country: Mapped[str] = mapped_column(default="", index=True)
    visits: Mapped[int] = mapped_column(default=0)


class Account(Base):
    """Money of somebody in a region, never less than nothing; in cents."""

    __tablename__ = "accounts"
    __table_args__ = (CheckConstraint("balance >= 0", name="never_overdrawn"),)

    id: Mapped[int] = mapped_column(primary_key=True)
    owner: Mapped[str] = mapped_column(unique=True)
    balance: Mapped[int] = mapped_column(default=0)
    region_id: Mapped[int | None] = mapped_column(ForeignKey("regions.id"))
