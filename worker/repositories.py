"""The application's reads and writes."""

from __future__ import annotations

import os
from collections.abc import Sequence

from sqlalchemy import func, select

from litefs_celery import Repository, read, write

from .celeryapp import db
from .models import Account, Region


class UnknownRegion(LookupError):
    """No region has that code."""


class Regions(Repository[Region], db=db):
    """Regions of the world."""

    @write
    def rename(self, code: str, name: str) -> Region:
        """Give a region another name."""
        region = self._by_code(code)
        region.name = name
        return region

    @write
    def bring(self, code: str, name: str, kind: str = "", country: str = "") -> int:
        """Insert a region as visited once, or count one more visit: what comes twice shows."""
        region = self.session.scalar(select(Region).filter_by(code=code))
        if region is None:
            region = Region(code=code, name=name, kind=kind, country=country, visits=0)
            self.session.add(region)
        region.visits += 1
        return region.visits

    @write
    def visit(self, code: str) -> int:
        """Count one more visit; returns how many there are now."""
        region = self._by_code(code)
        region.visits += 1
        return region.visits

    @write
    def merge(self, codes: Sequence[str], into: str) -> Region:
        """Move all visits to one region and delete the others, in one transaction."""
        target = self._by_code(into)
        for code in codes:
            region = self._by_code(code)
            target.visits += region.visits
            self.session.delete(region)
        return target

    @read
    def by_country(self) -> dict[str, int]:
        """How many regions each country has."""
        query = select(Region.country, func.count()).group_by(Region.country)
        return {row.country: row[1] for row in self.session.execute(query)}

    @read
    def where(self) -> int:
        """The process that runs reads beside this node's data."""
        return os.getpid()

    def _by_code(self, code: str) -> Region:
        region = self.session.scalar(select(Region).filter_by(code=code))
        if region is None:
            raise UnknownRegion(code)
        return region


class Accounts(Repository[Account], db=db):
    """Accounts, between which money moves without ever being lost or made."""

    @write
    def transfer(self, source: str, target: str, amount: int) -> int:
        """Move ``amount`` cents; returns what is left. Overdrawing raises IntegrityError."""
        giver = self.session.scalars(select(Account).filter_by(owner=source)).one()
        taker = self.session.scalars(select(Account).filter_by(owner=target)).one()
        taker.balance += amount
        self.session.flush()
        giver.balance -= amount
        self.session.flush()
        return giver.balance


regions = Regions()
accounts = Accounts()
