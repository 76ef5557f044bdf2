"""Fixtures of the unit tests."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from support import replica, standalone

from litefs_celery import observe

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from litefs_celery import LiteFSCelery


@pytest.fixture
def db(tmp_path: Path) -> Iterator[LiteFSCelery]:
    """Return a database without LiteFS."""
    database = standalone(tmp_path)
    yield database
    database.close()


@pytest.fixture
def far(db: LiteFSCelery) -> Iterator[LiteFSCelery]:
    """Return the same file as a node sees it that is not primary and reaches no broker."""
    database = replica(db.path.parent)
    yield database
    database.close()


@pytest.fixture
def records() -> Iterator[list[observe.Record]]:
    """Return the records emitted from now on."""
    heard: list[observe.Record] = []
    unsubscribe = observe.subscribe(heard.append)
    yield heard
    unsubscribe()
