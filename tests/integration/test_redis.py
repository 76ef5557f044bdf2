"""On a real Redis nothing that was taken is lost, and nothing that is no write stops the rest."""

from __future__ import annotations

import asyncio
import base64
import enum
import json
import os
import signal
import sqlite3
import time
import uuid
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any

import pytest
from celery import states
from celery.exceptions import Ignore
from celery.result import AsyncResult
from kombu import Consumer
from sqlalchemy.exc import IntegrityError
from support import TIMEOUT, Base, User, celery_app, member, rows, standalone, until

from litefs_celery import (
    LiteFSCelery,
    Repository,
    UnknownMethod,
    WriteConflict,
    observe,
    read,
    write,
)
from litefs_celery.redis_queue import Popped, acknowledge, keep_client, restore_unacknowledged
from litefs_celery.stored import EXPIRES_AFTER_DEADLINE, Stored
from litefs_celery.tasks import PRODUCER_LIMIT, connection_for, primary_queue
from litefs_celery.wire import Committed, Expired, Outcome, Refused, Wire, Write, fingerprint
from worker.fleet import RedisServer

QUEUE = "litefs-primary"
UNACKED = f"{QUEUE}-unacked"
REJECTED = "litefs-rejected"
BROKER_TIMEOUT = 1.0


class Mood(enum.Enum):
    """An enumeration whose members cannot be shown."""

    GOOD = 1

    def __repr__(self) -> str:
        raise LookupError("no repr")


class SilentError(Exception):
    """An exception that cannot be shown."""

    def __repr__(self) -> str:
        raise LookupError("no repr")


class Node:
    """A node of a cluster on one file, with a repository of users."""

    def __init__(self, db: LiteFSCelery) -> None:
        self.db = db

        class Users(Repository[User], db=db):
            @write
            def add(self, name: str) -> str:
                self.session.add(User(name=name))
                self.session.flush()
                return name

            @write
            def smile(self) -> Mood:
                self.session.add(User(name="smile"))
                return Mood.GOOD

            @write
            def frown(self) -> None:
                self.session.add(User(name="frown"))
                raise SilentError("frown")

        self.users = Users()

    def consume(self, *, events: bool = False) -> None:
        """Be what the primary's worker is: detector and consumer."""
        self.db.start_node(f"worker@{self.db.settings.node}", lambda: events)

    def names(self) -> list[str]:
        """Return all users, asked past everything that is tested."""
        return [name for (name,) in rows(self.db.path, "SELECT name FROM users ORDER BY name")]


Join = Callable[..., Node]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    """Yield a Redis for all of these tests."""
    running = RedisServer(tmp_path_factory.mktemp("redis"), append_only=False)
    running.start()
    yield running
    running.stop()


@pytest.fixture
def redis(server: RedisServer) -> Iterator[Any]:
    """Yield a client of a Redis that holds nothing."""
    with closing(server.client()) as client:
        client.flushall()
        yield client


@pytest.fixture
def join(server: RedisServer, redis: Any, tmp_path: Path) -> Iterator[Join]:
    """Yield what makes nodes; "n1" is their primary."""
    standalone(tmp_path).close()
    with ExitStack() as stack:

        def make(name: str, **settings: Any) -> Node:
            options = {"broker_timeout": BROKER_TIMEOUT, **settings}
            made = Node(member(tmp_path, name, server.url, **options))
            stack.callback(made.db.close)
            return made

        yield make


@pytest.fixture
def silent(server: RedisServer, redis: Any) -> Callable[[], Any]:
    """Return a block in which Redis takes connections and answers nothing."""
    pid = int(redis.info()["process_id"])

    @contextmanager
    def silence() -> Iterator[None]:
        os.kill(pid, signal.SIGSTOP)
        try:
            yield
        finally:
            os.kill(pid, signal.SIGCONT)

    return silence


# What a primary took.


@pytest.mark.parametrize("prefix", ["", "app:"])
def test_what_nobody_acknowledged_is_given_back(join: Join, redis: Any, prefix: str) -> None:
    """What an earlier primary took and did not acknowledge is in the queue again, in its order."""
    caller = join("n2", write_timeout=0.2)
    app, queue = caller.db.app, primary_queue(QUEUE)
    app.conf.broker_transport_options = {"global_keyprefix": prefix} if prefix else {}
    ids = [caller.users.add.delay(name).id for name in "abc"]
    taken: list[Any] = []
    before = connection_for(app, timeout=BROKER_TIMEOUT, name=QUEUE)
    channel = before.default_channel
    keep_client(channel)
    with Consumer(channel, [queue], on_message=taken.append, accept=["json"]):
        while len(taken) < 3:
            before.drain_events(timeout=TIMEOUT)
    acknowledge(taken[:1])
    assert (redis.hlen(f"{prefix}{UNACKED}"), redis.llen(f"{prefix}{QUEUE}")) == (2, 0)
    # As a process that is killed: kombu gives nothing back.
    channel.qos.restore_at_shutdown = False
    channel.qos._delivered.clear()
    with connection_for(app, timeout=BROKER_TIMEOUT, name=QUEUE) as after:
        keep_client(after.default_channel)
        restore_unacknowledged(after.default_channel)
        assert (redis.hlen(f"{prefix}{UNACKED}"), redis.llen(f"{prefix}{QUEUE}")) == (0, 2)
        restore_unacknowledged(after.default_channel)
        assert redis.llen(f"{prefix}{QUEUE}") == 2
    before.close()
    bodies = [json.loads(item) for item in redis.lrange(f"{prefix}{QUEUE}", 0, -1)]
    assert {body["headers"]["id"] for body in bodies} == set(ids[1:])


@pytest.mark.parametrize("prefix", ["", "app:"])
def test_a_prefix_of_all_keys_changes_nothing(join: Join, redis: Any, prefix: str) -> None:
    """With ``global_keyprefix`` writes travel, and what is no write is set aside."""
    primary, caller = join("n1"), join("n2")
    for node in (primary, caller):
        if prefix:
            node.db.app.conf.broker_transport_options = {"global_keyprefix": prefix}
    redis.lpush(f"{prefix}{QUEUE}", b"not json")
    primary.consume()
    assert caller.users.add("Ada") == "Ada"
    until(lambda: redis.llen(f"{prefix}{REJECTED}") == 1, "the message set aside")
    until(lambda: redis.hlen(f"{prefix}{UNACKED}") == 0, "the acknowledgement")
    assert redis.llen(f"{prefix}{QUEUE}") == 0


def test_an_item_that_could_not_be_noted_is_put_back(join: Join, redis: Any) -> None:
    """A write popped where it could not be noted as taken is not lost: it is made later."""
    primary, caller = join("n1"), join("n2", resend_interval=1000.0)
    primary.consume()
    redis.execute_command("ACL", "SETUSER", "default", "-hset")
    try:
        result = caller.users.add.delay("Ada")
        until(lambda: "hset" in str(redis.acl_log()), "the attempt to note it")
    finally:
        redis.execute_command("ACL", "SETUSER", "default", "+hset")
    assert result.get(timeout=TIMEOUT) == "Ada"
    until(lambda: (redis.hlen(UNACKED), redis.llen(QUEUE)) == (0, 0), "the acknowledgement")
    assert redis.llen(REJECTED) == 0
    assert primary.names() == ["Ada"]


def test_an_item_is_put_back_where_it_is_popped_next(join: Join, redis: Any) -> None:
    """What was popped and not noted comes before what waits; with nothing popped it is no-op."""
    app = join("n2").db.app
    popped = Popped()
    with connection_for(app, timeout=BROKER_TIMEOUT, name=QUEUE) as connection:
        channel = connection.default_channel
        popped.watch(channel)
        redis.lpush(QUEUE, b"first", b"second")
        popped.put_back(channel, QUEUE)
        assert redis.lrange(QUEUE, 0, -1) == [b"second", b"first"]
        queue = primary_queue(QUEUE)
        with Consumer(channel, [queue], on_message=lambda _: None), pytest.raises(ValueError):
            connection.drain_events(timeout=TIMEOUT)
        assert redis.lrange(QUEUE, 0, -1) == [b"second"]
        popped.put_back(channel, QUEUE)
        popped.put_back(channel, QUEUE)
        assert redis.lrange(QUEUE, 0, -1) == [b"second", b"first"]
        assert popped.take() is None


# What is no write.


def envelope(**changes: Any) -> bytes:
    """Return a message of kombu's that is no write, with changes."""
    properties = {
        "delivery_tag": str(uuid.uuid4()), "body_encoding": "base64",
        "delivery_info": {"exchange": "", "routing_key": QUEUE},
    }
    message = {
        "body": base64.b64encode(b"[[], {}, {}]").decode(), "headers": {},
        "content-type": "application/json", "content-encoding": "utf-8",
    }
    properties |= changes.pop("properties", {})
    return json.dumps({**message, "properties": properties, **changes}).encode()


GARBAGE: dict[str, bytes] = {
    "no JSON": b"not json",
    "no text": b"\xff\xfe not text",
    "nothing": b"",
    "no message": b'{"hello": 1}',
    "a number": b"5",
    "null": b"null",
    "a broken UUID": b'{"__type__":"uuid","__value__":{"hex":"zz"}}',
    "a broken decimal": b'{"__type__":"decimal","__value__":"x"}',
    "a broken type": b'{"__type__":[1],"__value__":1}',
    "nested too deeply": b"[" * 100_000,
    "a long integer": b"9" * 5_000,
    "no write": envelope(),
    "another content": envelope(**{"content-type": "application/x-python-serialize"}),
    "no base64": envelope(body="!"),
    "a body nested too deeply": envelope(body=base64.b64encode(b"[" * 100_000).decode()),
    "a tag that is no text": envelope(properties={"delivery_tag": {"a": 1}}),
    "a tag that is no UTF-8": envelope(properties={"delivery_tag": "\ud800"}),
    "from no exchange": envelope(properties={"delivery_info": {}}),
}


NO_MESSAGE = (
    "no JSON", "no text", "nothing", "no message", "a number", "null", "a broken UUID",
    "nested too deeply", "a long integer",
)


@pytest.mark.parametrize("what", NO_MESSAGE)
def test_what_became_no_message_is_in_hand(join: Join, redis: Any, what: str) -> None:
    """What was popped and kombu cannot read is not lost: it can be taken, once, as it came."""
    popped, app = Popped(), join("n2").db.app
    redis.lpush(QUEUE, GARBAGE[what])
    with connection_for(app, timeout=BROKER_TIMEOUT, name=QUEUE) as connection:
        channel = connection.default_channel
        keep_client(channel)
        popped.watch(channel)
        with (
            Consumer(channel, [primary_queue(QUEUE)], on_message=pytest.fail),
            pytest.raises(Exception),  # noqa: B017 - each item has its own
        ):
            connection.drain_events(timeout=TIMEOUT)
        assert popped.take() == GARBAGE[what]
        assert popped.take() is None
    assert (redis.llen(QUEUE), redis.hlen(UNACKED)) == (0, 0)


def set_aside(redis: Any) -> list[dict[str, str]]:
    """Return what is in the rejected queue, the oldest first."""
    messages = [json.loads(item) for item in redis.lrange(REJECTED, 0, -1)]
    return [json.loads(base64.b64decode(one["body"])) for one in reversed(messages)]


def test_what_is_no_write_is_set_aside(join: Join, redis: Any) -> None:
    """Whatever lies in the queue is set aside, each thing once, and the write behind is made."""
    primary, caller = join("n1"), join("n2")
    for garbage in GARBAGE.values():
        redis.lpush(QUEUE, garbage)
    primary.consume()
    assert caller.users.add("Ada") == "Ada"
    until(lambda: (redis.hlen(UNACKED), redis.llen(QUEUE)) == (0, 0), "the acknowledgement")
    kept = set_aside(redis)
    assert len(kept) == len(GARBAGE)
    for one, (what, garbage) in zip(kept, GARBAGE.items(), strict=True):
        assert one["queue"] == QUEUE, what
        assert one["reason"], what
        if "no message of kombu's" in one["reason"]:
            assert one["message"] == repr(garbage), what
    assert primary.names() == ["Ada"]


NOTED = {
    "no tag": envelope(properties={"delivery_tag": None}),
    "not compressed": envelope(headers={"compression": "application/x-gzip"}),
    "unknown compression": envelope(headers={"compression": "application/x-strange"}),
}


@pytest.mark.parametrize("garbage", NOTED.values(), ids=NOTED)
def test_what_fails_while_it_is_noted_is_set_aside(
    join: Join, redis: Any, garbage: bytes
) -> None:
    """What kombu fails on while or after it notes it is set aside once, as all else is."""
    primary, caller = join("n1"), join("n2")
    redis.lpush(QUEUE, garbage)
    primary.consume()
    assert caller.users.add("Ada") == "Ada"
    until(lambda: redis.llen(REJECTED) == 1, "the message set aside")
    until(lambda: (redis.hlen(UNACKED), redis.llen(QUEUE)) == (0, 0), "the acknowledgement")
    assert primary.names() == ["Ada"]
    assert redis.llen(REJECTED) == 1


def test_what_is_nested_almost_too_deeply_is_set_aside(
    join: Join, redis: Any, records: list[observe.Record]
) -> None:
    """What can be read and cannot be written again does not come for ever."""
    primary, caller = join("n1"), join("n2")
    depths = range(800, 1_000, 3)
    for depth in depths:
        item = envelope(headers={"x": "<deep>"})
        redis.lpush(QUEUE, item.replace(b'"<deep>"', b"[" * depth + b"]" * depth))
    primary.consume()
    assert caller.users.add("Ada") == "Ada"
    until(lambda: (redis.hlen(UNACKED), redis.llen(QUEUE)) == (0, 0), "the acknowledgement")
    assert redis.llen(REJECTED) == len(depths)
    moves = [one.consuming for one in records if isinstance(one, observe.ConsumerMoved)]
    assert moves == [True], "the consumer was never disturbed"


@pytest.mark.parametrize("prefix", ["", "app:"])
def test_what_is_set_aside_is_bounded(join: Join, redis: Any, prefix: str) -> None:
    """Of what is no write only the newest is kept, and of each no more than a write may have."""
    primary, caller = join("n1", rejected_limit=3, max_payload_bytes=500), join("n2")
    for node in (primary, caller):
        if prefix:
            node.db.app.conf.broker_transport_options = {"global_keyprefix": prefix}
    for number in range(10):
        redis.lpush(f"{prefix}{QUEUE}", f"not json {number} {'x' * 10_000}")
    primary.consume()
    assert caller.users.add("Ada") == "Ada"
    until(lambda: redis.hlen(f"{prefix}{UNACKED}") == 0, "the acknowledgement")
    kept = [json.loads(item) for item in redis.lrange(f"{prefix}{REJECTED}", 0, -1)]
    texts = [json.loads(base64.b64decode(one["body"]))["message"] for one in kept]
    assert [text[:12] for text in texts] == [f"b'not json {number}" for number in (9, 8, 7)]
    assert {len(text) for text in texts} == {500}


@pytest.mark.parametrize("method", ["smile", "frown"])
def test_what_cannot_be_shown_is_acknowledged(
    join: Join, redis: Any, records: list[observe.Record], method: str
) -> None:
    """With task events on, a value or an error without a repr is told and acknowledged."""
    primary, caller = join("n1"), join("n2")
    primary.consume(events=True)
    result = getattr(caller.users, method).delay()
    if method == "smile":
        assert result.get(timeout=TIMEOUT) is Mood.GOOD
    else:
        with pytest.raises(SilentError):
            result.get(timeout=TIMEOUT)
    assert caller.users.add("Ada") == "Ada"
    until(lambda: (redis.hlen(UNACKED), redis.llen(QUEUE)) == (0, 0), "the acknowledgement")
    moves = [one.consuming for one in records if isinstance(one, observe.ConsumerMoved)]
    assert moves == [True], "the consumer was never disturbed"


# Callers.


def test_callers_of_one_process_share_messages(join: Join, redis: Any) -> None:
    """Many callers at once cost fewer messages than writes, and each has its own outcome."""
    if redis.info("server")["redis_version"].startswith("6.0"):
        pytest.skip("NOT RUN: Redis 6.0 cannot pause writing alone")
    primary, caller = join("n1"), join("n2", resend_interval=1000.0)
    started: list[observe.Record] = []
    end = observe.subscribe(started.append)
    names = [f"n{number}" for number in range(50)]

    async def together() -> list[Any]:
        calls = [caller.users.add.options(timeout=60.0).aio(name) for name in [*names, "n7"]]
        return await asyncio.gather(*calls, return_exceptions=True)

    with ThreadPoolExecutor(1) as pool:
        # Redis keeps the first one waiting until all have come.
        redis.client_pause(60_000, all=False)
        waiting = pool.submit(asyncio.run, together())
        until(lambda: len(caller.db.forwarder._pending) == 51, "all calls")
        redis.client_unpause()
        until(
            lambda: sum(isinstance(one, observe.ForwardStarted) for one in started) == 51,
            "all sent",
        )
        until(lambda: len(written(redis)) == 51, "all in the queue")
        end()
        assert redis.llen(QUEUE) < 10
        primary.consume()
        values = waiting.result(TIMEOUT)
    assert values[:50] == names
    assert isinstance(values[50], IntegrityError)
    assert len(primary.names()) == 50
    until(lambda: (redis.hlen(UNACKED), redis.llen(QUEUE)) == (0, 0), "the acknowledgement")


def written(redis: Any) -> list[str]:
    """Return the ids of all writes in the queue."""
    messages = [json.loads(item) for item in redis.lrange(QUEUE, 0, -1)]
    return [entry["id"] for message in messages for entry in message["headers"]["litefs"]]


def test_a_caller_waits_for_a_free_connection(join: Join) -> None:
    """Where all connections are in use a call goes on trying, and is made once one is free."""
    primary, caller = join("n1"), join("n2", broker_timeout=0.2)
    primary.consume()
    with ThreadPoolExecutor(1) as pool, ExitStack() as held:
        for _ in range(PRODUCER_LIMIT):
            held.enter_context(caller.db.parts.sender._producers().acquire(timeout=TIMEOUT))
        call = pool.submit(caller.users.add.options(timeout=60.0), "Ada")
        until(
            lambda: any(one.refusals for one in caller.db.forwarder._pending.values()),
            "an attempt that found no connection",
        )
        assert not call.done()
        held.close()
        assert call.result(TIMEOUT) == "Ada"


# Outcomes in the result backend.


@pytest.fixture
def stored(join: Join) -> Stored:
    """Return what keeps outcomes in Redis."""
    return join("n1").db.stored


def a_write(lasts: float = 100.0) -> Write:
    """Return a write that lasts so long."""
    return Write.new("m.go", "[[], {}]", origin="n1", deadline=time.time() + lasts)


def conflict(db: LiteFSCelery) -> IntegrityError:
    """Return what SQLAlchemy raises where a name is taken."""
    with db.parts.engines.setup.begin() as connection:
        connection.execute(Base.metadata.tables["users"].insert(), {"name": "Ada"})
        try:
            connection.execute(Base.metadata.tables["users"].insert(), {"name": "Ada"})
        except IntegrityError as error:
            return error
    pytest.fail("no conflict")


def test_outcomes_come_back_as_they_were(stored: Stored, join: Join) -> None:
    """Each kind of outcome is found again with its value, its class and its epoch."""
    refused = Refused(conflict(join("n9").db), 3)
    outcomes: list[Outcome] = [
        Committed({"a": [1, None, Mood.GOOD]}, 2), refused, Expired(4),
        Refused(LookupError("no such thing"), 5),
    ]
    done = [(a_write(), outcome) for outcome in outcomes]
    stored.keep(done)
    found = stored.find([*[one.id for one, _ in done], str(uuid.uuid4())])
    assert set(found) == {one.id for one, _ in done}
    assert [found[done[index][0].id] for index in (0, 2)] == [outcomes[0], outcomes[2]]
    again = found[done[1][0].id]
    assert isinstance(again, Refused)
    assert type(again.exception) is IntegrityError
    assert again.exception.orig.sqlite_errorname == "SQLITE_CONSTRAINT_UNIQUE"
    assert isinstance(again.exception.orig, sqlite3.IntegrityError)
    assert again.epoch == 3
    other = found[done[3][0].id]
    assert (repr(other.exception), other.epoch) == ("LookupError('no such thing')", 5)


def test_celery_reads_what_is_stored(stored: Stored, join: Join) -> None:
    """Celery's own AsyncResult sees a committed write's success and a refused one's exception."""
    app = join("n9").db.app
    committed, refused = a_write(), a_write()
    stored.keep([(committed, Committed(7, 1)), (refused, Refused(LookupError("gone"), 1))])
    assert AsyncResult(committed.id, app=app).state == states.SUCCESS
    result = AsyncResult(refused.id, app=app)
    assert result.state == states.FAILURE
    with pytest.raises(LookupError, match="gone"):
        result.get(timeout=TIMEOUT)


def test_why_a_write_is_not_committed_is_no_outcome(stored: Stored, join: Join) -> None:
    """What hinders the primary is found as a text, until the write has its outcome."""
    one, node = a_write(), join("n9")
    stored.note([(one, "database or disk is full")])
    assert stored.find([one.id]) == {one.id: "database or disk is full"}
    assert AsyncResult(one.id, app=node.db.app).state == states.STARTED
    stored.keep([(one, Committed(1, 1))])
    assert stored.find([one.id]) == {one.id: Committed(1, 1)}


def test_keeping_an_outcome_warns_of_nothing(stored: Stored) -> None:
    """An application that makes warnings errors has its outcomes stored all the same."""
    one = a_write()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        stored.keep([(one, Committed(1, 1))])
    assert stored.find([one.id]) == {one.id: Committed(1, 1)}


def test_stored_outcomes_expire(stored: Stored, redis: Any) -> None:
    """Nothing is kept for long after the deadline of its write, or after it was stored late."""
    soon, late = a_write(lasts=30.0), a_write(lasts=-500.0)
    stored.keep([(soon, Committed(1, 1)), (late, Expired(1))])
    times = {one: redis.ttl(f"celery-task-meta-{one.id}") for one in (soon, late)}
    assert 25 <= times[soon] <= 30 + EXPIRES_AFTER_DEADLINE
    assert 0 < times[late] <= EXPIRES_AFTER_DEADLINE


def test_a_silent_backend_is_not_waited_for(stored: Stored, silent: Any) -> None:
    """Where Redis does not answer, nothing is found after about the timeout; later it is again."""
    one = a_write()
    stored.keep([(one, Committed(1, 1))])
    with silent():
        started = time.monotonic()
        assert stored.find([one.id]) == {}
        assert time.monotonic() - started < 3 * BROKER_TIMEOUT
        stored.keep([(a_write(), Committed(2, 1))])
    assert stored.find([one.id]) == {one.id: Committed(1, 1)}


def test_without_a_backend_nothing_is_found(caplog: pytest.LogCaptureFixture) -> None:
    """An app without a result backend knows no outcome, and that is no error in the log."""
    with celery_app() as app:
        stored = Stored(app, Wire(max_bytes=1_000), timeout=0.2)
        one = a_write()
        stored.keep([(one, Committed(1, 1))])
        assert stored.find([one.id]) == {}
        stored.close()
    assert not caplog.records


# What is signed.

KEY, FORMER_KEY = "key-" * 8, "former-" * 6


@pytest.fixture
def keyed(join: Join) -> tuple[Node, Node, Node]:
    """Return a primary and a caller that share a key, and one that has none and forges writes."""
    keys = {"signing_keys": (KEY,)}
    return join("n1", **keys), join("n3", **keys), join("n2")


def submitted(redis: Any, node: Node, name: str) -> dict[str, Any]:
    """Take the message of a write that ``node`` submits out of the queue."""
    node.users.add.delay(name)
    message: dict[str, Any] = json.loads(redis.lpop(QUEUE))
    return message


def altered(message: dict[str, Any], before: str, after: str) -> bytes:
    """Return the message with other arguments, and all but the signature made to go with them."""
    body = json.loads(base64.b64decode(message["body"]))
    (entry,) = message["headers"]["litefs"]
    body[0] = [text.replace(before, after) for text in body[0]]
    entry["fingerprint"] = fingerprint(entry["method"], body[0][0])
    encoded = base64.b64encode(json.dumps(body).encode()).decode()
    return json.dumps({**message, "body": encoded}).encode()


def test_what_is_not_signed_is_set_aside(
    keyed: tuple[Node, Node, Node], redis: Any, records: list[observe.Record]
) -> None:
    """Unsigned, altered and foreign messages leave no trace but a reason; signed ones are made."""
    primary, caller, forger = keyed
    forger.users.add.delay("unsigned")
    redis.lpush(QUEUE, altered(submitted(redis, caller, "Ada"), "Ada", "altered"))
    entry, other = (submitted(redis, caller, name) for name in ("first", "second"))
    other["headers"]["litefs"][0]["signature"] = entry["headers"]["litefs"][0]["signature"]
    redis.lpush(QUEUE, json.dumps(other))
    signed = submitted(redis, caller, "replayed")
    redis.lpush(QUEUE, json.dumps(signed))
    redis.lpush(QUEUE, json.dumps(signed))
    primary.consume()
    assert caller.users.add("signed") == "signed"
    until(lambda: (redis.hlen(UNACKED), redis.llen(QUEUE)) == (0, 0), "the acknowledgement")
    assert primary.names() == ["replayed", "signed"]
    reasons = [one["reason"].partition(" (")[0] for one in set_aside(redis)]
    assert [reason[:24] for reason in reasons] == [
        "not signed, although lit", "signature does not match", "signature does not match",
    ]
    told = [one.reason for one in records if isinstance(one, observe.MessageSetAside)]
    assert told == [one["reason"] for one in set_aside(redis)]
    ledger = rows(primary.db.path, "SELECT method, outcome FROM _litefs_celery_ledger")
    assert len(ledger) == 2, "what is refused takes no id"
    assert not [text for text in [*told, str(set_aside(redis))] if KEY in text]


def test_a_signed_write_that_expired_is_recorded(
    keyed: tuple[Node, Node, Node], redis: Any
) -> None:
    """Past its deadline a signed write does not run; with a later one it is not the signed one."""
    primary, caller, _ = keyed
    result = caller.users.add.options(timeout=0.2).delay("late")
    message = json.loads(redis.rpop(QUEUE))
    deadline = message["headers"]["litefs"][0]["deadline"]
    until(lambda: time.time() > deadline, "the deadline")
    redis.lpush(QUEUE, json.dumps(message))
    message["headers"]["litefs"][0]["deadline"] += 1_000.0
    redis.lpush(QUEUE, json.dumps(message))
    primary.consume()
    assert caller.users.add("Ada") == "Ada"
    until(lambda: (redis.hlen(UNACKED), redis.llen(QUEUE)) == (0, 0), "the acknowledgement")
    assert isinstance(caller.db.outcome(result.id), Expired)
    assert primary.names() == ["Ada"]
    assert len(set_aside(redis)) == 1


def test_a_signed_write_under_a_used_id_is_a_conflict(keyed: tuple[Node, Node, Node]) -> None:
    """Who holds a key cannot have another content run under an id that was used either."""
    primary, caller, _ = keyed
    primary.consume()
    write_id = str(uuid.uuid4())
    assert caller.users.add.options(write_id=write_id)("Ada") == "Ada"
    with pytest.raises(WriteConflict):
        caller.users.add.options(write_id=write_id)("Bob")
    assert primary.names() == ["Ada"]


def test_an_outbox_sends_signed_writes(
    join: Join, redis: Any, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """What comes from the outbox is signed when it is sent, also where its deadline was changed."""
    keys = {"signing_keys": (KEY, FORMER_KEY)}
    primary = join("n1", **keys)
    kept = str(tmp_path_factory.mktemp("outbox"))
    caller = join("n2", signing_keys=(FORMER_KEY,), outbox_dir=kept)
    result = caller.users.add.options(timeout=0.2).delay("Ada")
    until(lambda: redis.delete(QUEUE), "its message, which is lost")
    outbox = caller.db.parts.outbox
    assert outbox is not None
    outbox.mark_lost([result.id], time.time() + 1_000.0)
    primary.consume()
    caller.db.parts.publish(outbox.unseen(sent_before=time.time(), limit=10))
    assert result.get(timeout=TIMEOUT) == "Ada"
    assert redis.llen(REJECTED) == 0


def test_a_task_that_went_astray_is_verified(
    keyed: tuple[Node, Node, Node], redis: Any, records: list[observe.Record]
) -> None:
    """A worker puts a signed write where it belongs, and signs none that was not."""
    primary, caller, forger = keyed
    stray, forged = submitted(redis, caller, "stray"), submitted(redis, forger, "forged")
    changed = json.loads(altered(submitted(redis, caller, "Ada"), "Ada", "altered"))
    app = caller.db.app
    for message in (forged, changed, stray):
        (arguments, *_), headers = json.loads(base64.b64decode(message["body"])), message["headers"]
        task = app.tasks[headers["task"]]
        # As a worker runs it: what it knows of the message is the task's request.
        task.push_request(**headers, delivery_info={"exchange": "", "routing_key": "celery"})
        try:
            with pytest.raises(Ignore):
                task.run(*arguments)
        finally:
            task.pop_request()
    primary.consume()
    assert caller.users.add("Eve") == "Eve"
    until(lambda: primary.names() == ["Eve", "stray"], "the write that went astray")
    assert [one["queue"] for one in set_aside(redis)] == ["celery", "celery"]
    told = [one.reason for one in records if isinstance(one, observe.MessageSetAside)]
    assert [reason[:24] for reason in told] == [
        "not signed, although lit", "signature does not match",
    ]


def test_the_name_of_a_read_is_no_writes(join: Join) -> None:
    """A write that names a read method, or none that is registered, is refused, unrun."""
    primary, caller = join("n1"), join("n2")

    class Odd(Repository[User], db=primary.db):
        @read
        def look(self) -> None:
            self.session.add(User(name="looked"))
            self.session.flush()

    names = [name for name in primary.db._methods if name.endswith("look")]
    assert len(names) == 1
    primary.consume()
    for name in [*names, "builtins.exec", f"{__name__}.rows"]:
        one = Write.new(name, "[[], {}]", origin="n2", deadline=time.time() + 100.0)
        caller.db.submit(one)
        with pytest.raises(UnknownMethod):
            caller.db.await_outcome(one.id, TIMEOUT)
    assert primary.names() == []
