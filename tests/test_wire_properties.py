"""Generated data: what is sent arrives, and what is no write is told so."""

from __future__ import annotations

import enum
import json
import math
import os
import random
import sys

import pytest
from support import User
from test_criteria_properties import CRITERIA

from litefs_celery.criteria import CriteriaCodec
from litefs_celery.instances import InstanceCodec
from litefs_celery.message import header, writes_in
from litefs_celery.scalars import ScalarCodec
from litefs_celery.wire import Committed, Expired, Refused, Wire, Write

hypothesis = pytest.importorskip("hypothesis")
st = hypothesis.strategies

INSTANCES, CRITERIA_CODEC = InstanceCodec(), CriteriaCodec()
INSTANCES.allow(User)
CRITERIA_CODEC.allow(User.__table__)
WIRE = Wire(ScalarCodec(), INSTANCES, CRITERIA_CODEC, max_bytes=10_000_000)
FIELDS = ("id", "method", "origin", "deadline", "fingerprint", "shown")
# A generated example takes ten milliseconds and more, a changed text a twentieth of one: together
# with the 48,000 items of tests/integration/test_fuzz.py they are 100,000 inputs.
EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", "150"))
RAW = int(os.environ.get("FUZZ_RAW", "26000"))
SEED = int(os.environ.get("FUZZ_SEED", "1"))
LIGHT = hypothesis.settings(
    max_examples=EXAMPLES, deadline=None, derandomize=SEED == 1, database=None,
    suppress_health_check=[hypothesis.HealthCheck.too_slow],
)
class Color(enum.Enum):
    """An Enum of an application."""

    RED = 1
    BLUE = "b"


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
    | st.timedeltas()
    | st.sampled_from(Color)
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


@LIGHT
@hypothesis.given(
    st.fixed_dictionaries(
        {},
        optional={
            "id": st.integers(-(2**63), 2**63 - 1), "name": TEXT, "age": st.none() | st.integers(),
            "score": st.floats(allow_nan=False, allow_infinity=False), "active": st.booleans(),
            "born": st.none() | st.dates(),
        },
    ),
)
def test_instances_arrive_as_they_were(values: dict) -> None:
    """A model's instance arrives with the columns it had, and no others."""
    sent = User(**values)
    (arrived,) = WIRE.loads(WIRE.dumps([sent], "it"))
    assert type(arrived) is User
    assert {k: v for k, v in vars(arrived).items() if k != "_sa_instance_state"} == values


@LIGHT
@hypothesis.given(CRITERIA)
def test_criteria_arrive_as_they_were(criterion: object) -> None:
    """Any criterion has one encoding, also after it travelled."""
    text = WIRE.dumps([criterion], "it")
    (arrived,) = WIRE.loads(text)
    assert WIRE.dumps([arrived], "it") == text


@LIGHT
@hypothesis.given(
    st.sampled_from([ValueError, KeyError, LookupError, RuntimeError, OSError, ArithmeticError]),
    st.lists(DATA, max_size=3),
)
def test_exceptions_arrive_as_they_were(kind: type[Exception], args: list) -> None:
    """A refusal arrives with its class and arguments, whatever they are."""
    outcome = WIRE.load_outcome(WIRE.dump_outcome(Refused(kind(*args))), 2)
    assert isinstance(outcome, Refused)
    assert type(outcome.exception) is type(kind(*args))
    assert shape(outcome.exception.args) == shape(kind(*args).args)


TAGS = ["dict", "tuple", "set", "instance", "sql", "enum", "timedelta", "later", 5, None]
CLASSES = [
    "builtins:KeyboardInterrupt", "builtins:SystemExit", "builtins:ValueError", "os:system",
    "subprocess:Popen", "antigravity:X", "this:d", "builtins:eval", ":", "", "builtins:OSError",
]
TAGGED = st.recursive(
    JSON | st.sampled_from(CLASSES),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.fixed_dictionaries({"__litefs__": st.sampled_from(TAGS), "v": inner})
        | st.fixed_dictionaries({"__type__": TEXT, "__value__": inner})
        | st.fixed_dictionaries(
            {"class": st.sampled_from(CLASSES), "text": inner, "args": inner, "state": inner}
        )
        | st.fixed_dictionaries({"model": st.just("users.User"), "known": inner, "values": inner})
    ),
    max_leaves=8,
)


@LIGHT
@hypothesis.given(TAGGED, st.sampled_from(["", "committed", "refused"]))
def test_no_data_does_more_than_fail(value: object, key: str) -> None:
    """Whatever JSON comes, decoding gives data or an Exception; it imports nothing."""
    text = json.dumps({key: value} if key else value)
    modules = set(sys.modules)
    for decode in (WIRE.loads, lambda it: WIRE.load_outcome(it, 1)):
        try:
            found = decode(text)
        except (ImportError, MemoryError):
            raise
        except Exception:
            continue
        else:
            assert not isinstance(found, Refused) or isinstance(found.exception, Exception)
    assert not {name for name in set(sys.modules) - modules if name in ("antigravity", "this")}


def test_a_changed_outcome_is_an_outcome_or_an_error() -> None:
    """An outcome with some bytes changed is another one, or cannot be decoded."""
    chance = random.Random(SEED)
    print(f"FUZZ_SEED={SEED}")
    kept = [User(name="Ada", born=None), {1: (Color.RED, b"x")}, {"a": [1.5, "b"]}, User.age > 3]
    texts = [WIRE.dump_outcome(Committed(value)) for value in kept]
    texts += [WIRE.dump_outcome(Refused(one)) for one in (KeyError("x"), OSError(2, "no", "f"))]
    for _ in range(RAW):
        text = bytearray(chance.choice(texts).encode())
        for _ in range(chance.choice([1, 1, 2, 5])):
            text[chance.randrange(len(text))] ^= 1 << chance.randrange(8)
        try:
            found = WIRE.load_outcome(text.decode("latin-1"), 1)
        except (ImportError, MemoryError):
            raise
        except Exception:
            continue
        else:
            assert isinstance(found, Committed | Refused | Expired)


def test_a_changed_message_is_the_same_write_or_none() -> None:
    """A valid message with some bytes changed holds writes of the same content, or none."""
    chance = random.Random(SEED)
    print(f"FUZZ_SEED={SEED}")
    for _ in range(RAW):
        writes = [
            Write.new("m.go", WIRE.dumps([[chance.random()], {}], "it"), origin="n1", deadline=2e9)
            for _ in range(chance.choice([1, 1, 3]))
        ]
        headers = {"id": writes[0].id, "task": "m.go", "litefs": header(writes)}
        text = bytearray(json.dumps([headers, [[write.arguments for write in writes]]]).encode())
        for _ in range(chance.choice([1, 1, 2, 5])):
            text[chance.randrange(len(text))] ^= 1 << chance.randrange(8)
        try:
            changed = json.loads(text.decode("latin-1"))
            found = writes_in(changed[0], changed[1])
        except (ValueError, TypeError, LookupError, AttributeError):
            continue
        contents = [(write.method, write.arguments, write.fingerprint) for write in writes]
        assert [(one.method, one.arguments, one.fingerprint) for one in found] == contents
        assert found[0].id == writes[0].id
