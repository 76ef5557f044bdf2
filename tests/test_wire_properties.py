"""Generated data: what is sent arrives, and what is no write is told so."""

from __future__ import annotations

import json
import math

import pytest

from litefs_celery.message import header, writes_in
from litefs_celery.wire import Committed, Wire, Write

hypothesis = pytest.importorskip("hypothesis")
st = hypothesis.strategies

WIRE = Wire(max_bytes=10_000_000)
FIELDS = ("id", "method", "origin", "deadline", "fingerprint", "shown")
LIGHT = hypothesis.settings(max_examples=60, deadline=None, derandomize=True, database=None)
TEXT = st.text(st.characters(codec="utf-8"), max_size=8) | st.sampled_from(
    ["__litefs__", "v", "__type__", "__value__", "dict", "instance", "sql", "tuple", "datetime"]
)
LEAVES = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | TEXT
    | st.binary(max_size=8)
    | st.dates()
    | st.times()
    | st.datetimes(timezones=st.none() | st.just(__import__("datetime").UTC))
    | st.decimals(allow_nan=False)
    | st.uuids()
)
KEYS = TEXT | st.integers() | st.none() | st.dates() | st.tuples(st.integers(), TEXT)
DATA = st.recursive(
    LEAVES,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.lists(inner, max_size=4).map(tuple)
        | st.dictionaries(TEXT, inner, max_size=4)
        | st.dictionaries(KEYS, inner, max_size=4)
        | st.sets(KEYS, max_size=4)
        | st.frozensets(KEYS, max_size=4)
    ),
    max_leaves=12,
)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=8,
)


def shape(value: object) -> object:
    """Return the value with the type of each part, so that True is not 1."""
    if isinstance(value, dict):
        return {(type(k), shape(k)): shape(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return type(value), tuple(shape(part) for part in value)
    if isinstance(value, set | frozenset):
        return type(value), frozenset(shape(part) for part in value)
    if isinstance(value, float):
        return float, value, math.copysign(1, value)
    return type(value), value


@LIGHT
@hypothesis.given(DATA)
def test_nested_data_arrives_as_it_was(value: object) -> None:
    """Any nesting of plain data arrives equal, part for part of the same type."""
    text = WIRE.dumps(value, "it")
    assert text.isascii()
    assert shape(WIRE.loads(text)) == shape(value)
    assert WIRE.dumps(WIRE.loads(text), "it") == text
    assert WIRE.load_outcome(WIRE.dump_outcome(Committed(value)), 1) == Committed(value, 1)


@LIGHT
@hypothesis.given(
    st.dictionaries(
        st.sampled_from(["id", "task", "litefs", "argsrepr"]),
        JSON | st.lists(st.fixed_dictionaries(dict.fromkeys(FIELDS, JSON)), max_size=2),
    ),
    JSON,
)
def test_no_message_breaks_the_reader(headers: dict, body: object) -> None:
    """Whatever lies in the queue, reading it gives a ValueError and never another error."""
    with pytest.raises(ValueError, match="write"):
        writes_in(headers, body)


@LIGHT
@hypothesis.given(DATA, st.integers(0, 10_000), st.integers(1, 255))
def test_a_changed_body_never_runs(value: object, place: int, change: int) -> None:
    """One changed character of the arguments is noticed by the fingerprint."""
    arguments = WIRE.dumps([[value], {}], "it")
    write = Write.new("m.go", arguments, origin="n1", deadline=2e9)
    place %= len(arguments)
    other = chr(ord(arguments[place]) ^ change)
    damaged = arguments[:place] + other + arguments[place + 1 :]
    headers = json.loads(
        json.dumps({"id": write.id, "task": write.method, "litefs": header([write])})
    )
    assert writes_in(headers, [[arguments], {}, {}]) == [write]
    with pytest.raises(ValueError, match="write"):
        writes_in(headers, [[damaged], {}, {}])
