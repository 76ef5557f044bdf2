"""What the demo finds when something is wrong: its verdict is worth what this is."""

from __future__ import annotations

from typing import Any

import pytest

pytest.importorskip("pycountry")

from worker.demo import FIELDS, compare

CODES = ("A-1", "A-2", "A-3")
RECORDS = [{field: f"{field} of {code}" for field in FIELDS} | {"code": code} for code in CODES]
ACKNOWLEDGED = [{"code": code} for code in CODES]
FINE = {"rows": 3, "present": 3, "lost": 0, "doubled": 0, "differing": 0, "unknown": 0}


def rows(*visits: int) -> list[tuple[Any, ...]]:
    """Return a node's table with those visits; a record with none is not there."""
    return [
        (times, *(record[field] for field in FIELDS))
        for times, record in zip(visits, RECORDS, strict=True)
        if times
    ]


def test_a_whole_import_is_fine() -> None:
    """Each record once, as it was: nothing lost, nothing doubled."""
    assert compare(RECORDS, ACKNOWLEDGED, rows(1, 1, 1)) == FINE


def test_a_lost_record_is_found() -> None:
    """A record that was acknowledged and is not there is lost; one that was not is only absent."""
    found = compare(RECORDS, ACKNOWLEDGED, rows(1, 0, 1))
    assert found == FINE | {"rows": 2, "present": 2, "lost": 1}
    assert compare(RECORDS, ACKNOWLEDGED[:1], rows(1, 0, 1))["lost"] == 0


def test_a_doubled_record_is_found() -> None:
    """A write that took effect three times was doubled twice."""
    assert compare(RECORDS, ACKNOWLEDGED, rows(1, 3, 1)) == FINE | {"doubled": 2}


def test_two_rows_of_one_record_are_found() -> None:
    """A record that is there twice was doubled, however its rows differ in visits."""
    found = compare(RECORDS, ACKNOWLEDGED, [*rows(1, 2, 1), *rows(0, 1, 0)])
    assert found == FINE | {"rows": 4, "doubled": 2}


def test_a_loss_does_not_hide_a_doubling() -> None:
    """A row whose write did not count is lost, and does not make up for one that counted twice."""
    uncounted = (0, *(RECORDS[0][field] for field in FIELDS))
    found = compare(RECORDS, ACKNOWLEDGED, [uncounted, *rows(0, 2, 1)])
    assert found == FINE | {"lost": 1, "doubled": 1}


def test_a_changed_and_a_foreign_record_are_found() -> None:
    """A row that is not as it was sent differs; one that nobody sent is unknown."""
    changed = rows(1, 1, 1)
    changed[0] = (*changed[0][:-1], "changed")
    foreign = (1, *("X-9" for _ in FIELDS))
    found = compare(RECORDS, ACKNOWLEDGED, [*changed, foreign])
    assert found == FINE | {"rows": 4, "differing": 1, "unknown": 1}
