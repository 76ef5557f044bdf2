"""A term is begun by its row, and a commit under it counts when it is confirmed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from support import NO_BROKER, member, standalone

from litefs_celery import LiteFSCelery
from litefs_celery.detector import Term
from litefs_celery.errors import NotAcknowledged


@pytest.fixture
def primary(tmp_path: Path) -> Iterator[LiteFSCelery]:
    """Yield a node that is primary by its settings."""
    standalone(tmp_path).close()
    with closing(member(tmp_path, "n1", NO_BROKER)) as db:
        yield db


def test_a_fixed_primary_confirms_by_its_position(primary: LiteFSCelery) -> None:
    """Where the settings name the primary, a commit counts while LiteFS shows the position."""
    term = primary.parts.terms.current()
    assert term is not None
    primary.parts.terms.confirm(term)
    assert term.held


@pytest.mark.parametrize(
    ("sign", "told"),
    [
        ("no position", "no position"),
        ("empty position", "no position"),
        ("unreadable position", "mount is dead"),
        ("another primary", "names another node"),
    ],
)
def test_a_fixed_primary_without_its_mount_confirms_nothing(
    primary: LiteFSCelery, sign: str, told: str
) -> None:
    """Settings alone do not make a commit count: LiteFS's files must not speak against it."""
    position = primary.path.with_name("app.db-pos")
    if sign == "another primary":
        primary.path.with_name(".primary").write_text("n2\n")
    elif sign == "empty position":
        position.write_text("")
    else:
        position.unlink()
        if sign == "unreadable position":
            position.mkdir()
    term = Term(1, "n1", "")
    with pytest.raises(NotAcknowledged, match=told):
        primary.parts.terms.confirm(term)
    assert not term.held
    assert primary.parts.terms.current() is None


def test_a_term_that_ended_confirms_nothing(primary: LiteFSCelery) -> None:
    """A term that is over stays over, whatever LiteFS says by then."""
    term = Term(1, "n1", "")
    term.end("another is primary")
    with pytest.raises(NotAcknowledged, match="another is primary"):
        primary.parts.terms.confirm(term)
