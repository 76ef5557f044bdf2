"""Write methods that wait, for a test or a while: every worker and caller of the suite has it."""

from __future__ import annotations

import os
import time
from pathlib import Path

from sqlalchemy import select

from litefs_celery import Repository, write
from worker.celeryapp import db
from worker.fleet import wait_until
from worker.models import Region
from worker.repositories import regions

PATIENCE = 90.0


class Gates(Repository[Region], db=db):
    """Visits that stop half-way."""

    @write
    def visit(self, code: str, gate: str) -> int:
        """Say in a file that it runs, wait until the file ``gate`` is there, count one visit."""
        with Path(f"{gate}.runs").open("a") as runs:
            runs.write(f"{os.getpid()}\n")
        wait_until(Path(gate).exists, PATIENCE)
        return regions.visit(code)

    @write
    def slow(self, code: str) -> int:
        """Count one visit, of which the primary makes no more than 50 in a second."""
        time.sleep(0.02)
        return regions.visit(code)

    @write
    def append(self, code: str, text: str) -> str:
        """Write ``text`` at the end of a region's name: what came first shows."""
        region = self.session.scalars(select(Region).where(Region.code == code)).one()
        region.name += text
        return region.name


gates = Gates()
