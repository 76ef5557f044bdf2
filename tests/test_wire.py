"""What crosses the broker and the ledger arrives as it was, or is refused with its place."""

from __future__ import annotations

import uuid
from datetime import UTC, date, datetime, time, timedelta, timezone
from decimal import Decimal

import pytest

from litefs_celery.errors import ArgumentError, RemoteError, WriteConflict, WriteExpired
from litefs_celery.wire import Committed, Expired, Refused, Wire, Write, conflict, unwrap

WIRE = Wire(max_bytes=10_000)


def sent(value: object) -> object:
    """Return the value as it arrives."""
    return WIRE.loads(WIRE.dumps(value, "it"))


def a_write(**values: object) -> Write:
    """Return a write with a deadline far away."""
    return Write.new("m.go", "[[1], {}]", **{"origin": "n1", "deadline": 2e9, **values})


@pytest.mark.parametrize(
    "value",
    [
        b"\x00\xff",
        b"text",
        date(2026, 1, 2),
        time(1, 2, 3, 4),
        datetime(2026, 1, 2, 3, 4, 5, 6, tzinfo=timezone(timedelta(hours=-5))),
        datetime(2026, 1, 2),  # noqa: DTZ001
        datetime(2026, 1, 2, tzinfo=UTC),
        Decimal("1.10"),
        uuid.UUID(int=7),
        (1, (2, [3])),
        {1, 2},
        frozenset({"a"}),
        {1: "one", (2, 3): None, None: {}},
        {"__litefs__": "dict", "v": []},
        {"__type__": "uuid", "__value__": "no uuid"},
        [{"__type__": "x"}, {"__value__": "y"}],
        "\N{GRINNING FACE}",
        2**70,
        -0.0,
    ],
    ids=repr,
)
def test_values_arrive_with_their_type(value: object) -> None:
    """Each kind of data arrives equal and of the same type, also what looks like our own tags."""
    arrived = sent([value])[0]
    assert arrived == value
    assert type(arrived) is type(value)
    assert repr(arrived) == repr(value)


@pytest.mark.parametrize(
    ("value", "place"),
    [
        ({"a": [object()]}, "it['a'][0] is a builtins.object"),
        ([1, float("nan")], "it[1] is nan"),
        ((float("inf"),), "it[0] is inf"),
        (["\ud800"], "it[0] is no valid text"),
        (timedelta(1), "datetime.timedelta"),
        ({object: 1}, "it key is a builtins.type"),
        ({"f": len}, "it['f']"),
    ],
)
def test_what_cannot_be_sent_is_named(value: object, place: str) -> None:
    """Data that cannot travel is refused with the place it was found at."""
    with pytest.raises(ArgumentError) as caught:
        WIRE.dumps(value, "it")
    assert place in str(caught.value)


def test_endless_nesting_is_an_argument_error() -> None:
    """A list that holds itself is refused like other data that cannot be sent."""
    endless: list = []
    endless.append(endless)
    with pytest.raises(ArgumentError, match="nested"):
        WIRE.dumps(endless, "it")


def test_too_much_is_refused_with_the_setting() -> None:
    """What exceeds the limit is refused, and the error names the setting."""
    with pytest.raises(ArgumentError, match="litefs_max_payload_bytes=10000"):
        WIRE.dumps("x" * 10_000, "it")


def test_other_versions_data_is_told_as_such() -> None:
    """A tag nobody knows is an error that says so."""
    with pytest.raises(RemoteError, match="'later'"):
        WIRE.loads('{"__litefs__": "later", "v": 1}')


def test_sets_have_one_encoding() -> None:
    """Equal sets give equal text, whatever order they iterate in: retries keep their content."""
    one, other = {8, 0}, {0, 8}
    assert list(one) != list(other)
    assert WIRE.dumps(one, "it") == WIRE.dumps(other, "it")


def test_ids_are_uuids_in_the_order_of_time() -> None:
    """Fresh ids are version 7 and ascend, so that the ledger's index grows at its end."""
    ids = [a_write().id for _ in range(100)]
    assert ids == sorted(ids)
    assert {uuid.UUID(one).version for one in ids} == {7}


def test_given_ids_are_normalised() -> None:
    """One UUID is one id, however it is spelt."""
    given = uuid.uuid4()
    assert a_write(write_id=given.hex.upper()).id == str(given)


def test_a_bad_id_is_an_argument_error() -> None:
    """An id that is no UUID is refused before anything is sent."""
    with pytest.raises(ArgumentError, match="write_id='order-7'"):
        a_write(write_id="order-7")


def test_fingerprint_tells_content_apart() -> None:
    """Method and arguments are marked together, and their border counts."""
    marks = {
        Write.new(method, arguments, origin="n", deadline=1.0).fingerprint
        for method, arguments in [("a", "b"), ("ab", ""), ("", "ab"), ("a", "c")]
    }
    assert len(marks) == 4


@pytest.mark.parametrize("value", [None, (1, 2), {"a": Decimal(1)}])
def test_committed_outcome_round_trip(value: object) -> None:
    """A committed outcome comes back with its value and the row's epoch."""
    assert WIRE.load_outcome(WIRE.dump_outcome(Committed(value)), 7) == Committed(value, 7)


def test_other_outcomes_round_trip() -> None:
    """A refusal comes back with its exception, an expired write as expired."""
    refused = WIRE.load_outcome(WIRE.dump_outcome(Refused(KeyError("x"))), 3)
    assert isinstance(refused, Refused)
    assert refused.epoch == 3
    assert repr(refused.exception) == repr(KeyError("x"))
    assert WIRE.load_outcome(WIRE.dump_outcome(Expired()), 4) == Expired(4)


def test_unwrap_gives_or_raises() -> None:
    """An outcome unwraps to its value, its exception, or `WriteExpired` with the write's id."""
    write = a_write()
    assert unwrap(Committed(5), write) == 5
    with pytest.raises(ZeroDivisionError):
        unwrap(Refused(ZeroDivisionError()), write)
    with pytest.raises(WriteExpired) as caught:
        unwrap(Expired(), write)
    assert caught.value.write_id == write.id
    assert isinstance(conflict(write), WriteConflict)
