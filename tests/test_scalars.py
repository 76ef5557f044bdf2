"""Enum members and time spans travel as what they are."""

from __future__ import annotations

import enum
from datetime import timedelta

import pytest

from litefs_celery import ArgumentError
from litefs_celery.scalars import ScalarCodec
from litefs_celery.wire import Wire


class Color(enum.Enum):
    """An Enum of the application."""

    RED = 1


class Size(enum.IntEnum):
    """One whose members are numbers as well."""

    LARGE = 3


WIRE = Wire(ScalarCodec(), max_bytes=1000)


@pytest.mark.parametrize("value", [Color.RED, Size.LARGE, timedelta(-1, 2, 3), timedelta()])
def test_values_come_back_as_they_are(value: object) -> None:
    """The value that arrives equals the one that was sent, and has its type."""
    arrived = WIRE.loads(WIRE.dumps(value, "it"))
    assert (arrived, type(arrived)) == (value, type(value))


def test_an_unknown_member_is_named() -> None:
    """A member of a class or version that is not here is an error that names it."""
    text = WIRE.dumps(Color.RED, "it")
    for unknown in (text.replace("RED", "BLUE"), text.replace("Color", "Colour")):
        with pytest.raises(ArgumentError, match="no Enum member"):
            WIRE.loads(unknown)
