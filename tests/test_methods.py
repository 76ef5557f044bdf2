"""The ways to call a write method, and what is known when it fails."""

from __future__ import annotations

import asyncio
import uuid
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import select, text
from sqlalchemy.exc import IntegrityError
from support import NO_BROKER, TIMEOUT, User, member, rows, standalone, until

from litefs_celery import (
    ArgumentError,
    BrokerUnavailable,
    Committed,
    LiteFSCelery,
    MethodMisuse,
    OpenReadTransaction,
    Refused,
    Repository,
    Settings,
    WriteConflict,
    WriteResult,
    WriteTimeout,
    observe,
    read,
    write,
)

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


WAITS: dict[str, Callable[[Any], Any]] = {
    "delay": lambda users: users.add.delay("x").id,
    "apply_async": lambda users: users.add.apply_async(("x",)).id,
    "aio": lambda users: asyncio.run(users.add.aio("x")),
    "await_outcome": lambda users: users.db.await_outcome(str(uuid.uuid4()), 1.0),
    "get": lambda users: WriteResult(users.db, str(uuid.uuid4())).get(timeout=1.0),
}


def users_of(db: LiteFSCelery) -> Any:
    """Return a repository of users in that database."""

    class Users(Repository[User], db=db):
        @write
        def add(self, name: str, *, age: int = 0) -> int:
            """Add a user."""
            user = User(name=name, age=age)
            self.session.add(user)
            self.session.flush()
            return user.id

        @write(show_arguments=False)
        def secret(self, name: str) -> str:
            return name * 2

        @write
        def give(self, size: int) -> str:
            self.session.add(User(name="given"))
            return "x" * size

        @write
        def nest(self, way: str) -> None:
            """Add a user, and wait for another write within this one."""
            self.session.add(User(name="nested"))
            WAITS[way](self)

        @write
        def lose_position(self) -> None:
            """Take away the sign that this node's commits are LiteFS's."""
            self.db.path.with_name("app.db-pos").unlink()

        @read
        def names(self) -> list[str]:
            return list(self.session.scalars(select(User.name)))

    return Users()


@pytest.fixture
def users(db: LiteFSCelery) -> Any:
    """Return a repository on this node, which is alone."""
    return users_of(db)


@pytest.fixture
def away(far: LiteFSCelery) -> Any:
    """Return a repository on a node that is not primary and reaches no broker."""
    return users_of(far)


def ledger_rows(db: LiteFSCelery) -> int:
    """Return how many outcomes are recorded."""
    return rows(db.path, "SELECT count(*) FROM _litefs_celery_ledger")[0][0]


def test_a_call_returns_the_value(users: Any) -> None:
    """A call returns the method's value, and its effect can be read."""
    assert users.add("Ada", age=36) == 1
    assert users.names() == ["Ada"]
    assert users.add.__doc__ == "Add a user."
    assert users.add.__name__ == "add"


def test_a_call_is_reported(users: Any, records: list[observe.Record]) -> None:
    """Each call is a started and a finished record with its id, its way and its outcome."""
    users.add("Ada")
    with pytest.raises(IntegrityError):
        users.add("Ada")
    started = [one for one in records if isinstance(one, observe.ForwardStarted)]
    finished = [one for one in records if isinstance(one, observe.ForwardFinished)]
    assert [one.local for one in started] == [True, True]
    assert [one.outcome for one in finished] == ["committed", "refused"]
    assert [one.write_id for one in started] == [one.write_id for one in finished]


def test_options_do_not_change_the_method(users: Any) -> None:
    """Options make another callable; the method keeps its own, and options add up."""
    key = str(uuid.uuid4())
    keyed = users.add.options(write_id=key).options(timeout=5.0)
    assert keyed("Ada") == 1
    assert users.add("Bob") == 2
    assert users.db.outcome(key) == Committed(1, 1)


def test_an_idempotency_key_runs_once(users: Any) -> None:
    """The same key and arguments are answered from the ledger, other arguments refused."""
    keyed = users.add.options(write_id=str(uuid.uuid4()))
    assert [keyed("Ada"), keyed("Ada")] == [1, 1]
    with pytest.raises(WriteConflict):
        keyed("Bob")
    assert users.names() == ["Ada"]


def test_a_key_keeps_its_refusal(users: Any) -> None:
    """A refused write stays refused under its key, though it would now pass."""
    users.add("Ada")
    keyed = users.add.options(write_id=str(uuid.uuid4()))
    with pytest.raises(IntegrityError):
        keyed("Ada")
    users.delete_all(User.name == "Ada")
    with pytest.raises(IntegrityError):
        keyed("Ada")


def test_keyword_order_does_not_matter_to_a_key(users: Any) -> None:
    """Equal keyword arguments in another order are the same write."""
    keyed = users.add.options(write_id=str(uuid.uuid4()))
    assert keyed(name="Ada", age=1) == keyed(age=1, name="Ada") == 1


@pytest.mark.parametrize("call", ["__call__", "delay", "aio"])
@pytest.mark.parametrize(
    ("arguments", "keywords", "told"),
    [
        ((), {}, "missing a required argument: 'name'"),
        (("a", "b"), {}, "too many positional"),
        (("a",), {"agee": 1}, "unexpected keyword argument 'agee'"),
        ((object(),), {}, r"add: arguments\[0\]\[0\] is a builtins.object"),
        (("a",), {"age": float("nan")}, "is nan"),
        (("x" * 2_000_000,), {}, "litefs_max_payload_bytes"),
    ],
)
def test_wrong_arguments_are_refused_at_the_call(
    users: Any, call: str, arguments: tuple, keywords: dict, told: str
) -> None:
    """What does not fit or cannot be sent is refused before anything is sent."""
    with pytest.raises(ArgumentError, match=told):
        invoke(users.add, call)(*arguments, **keywords)
    assert ledger_rows(users.db) == 0


def invoke(bound: Any, call: str) -> Callable[..., Any]:
    """Return the way of calling, with ``aio`` run to its end."""
    if call == "aio":
        return lambda *args, **kwargs: asyncio.run(bound.aio(*args, **kwargs))
    return getattr(bound, call)


@pytest.mark.parametrize("call", ["__call__", "delay", "aio"])
@pytest.mark.parametrize("timeout", [0, 0.0, -1.0, float("nan"), float("inf"), 1e12])
def test_a_timeout_that_is_none_is_refused(users: Any, call: str, timeout: float) -> None:
    """A timeout must be seconds, more than none and not for ever, however it is called."""
    with pytest.raises(ArgumentError, match="timeout="):
        invoke(users.add.options(timeout=timeout), call)("Ada")
    assert ledger_rows(users.db) == 0


@pytest.mark.parametrize("call", ["__call__", "delay", "aio"])
def test_a_key_that_is_no_uuid_is_refused(users: Any, call: str) -> None:
    """An idempotency key must be a UUID."""
    with pytest.raises(ArgumentError, match="write_id='7'"):
        invoke(users.add.options(write_id="7"), call)("Ada")


def test_an_oversized_result_is_rolled_back(users: Any) -> None:
    """A result too large to send is a refusal: nothing of the write is kept."""
    with pytest.raises(ArgumentError, match="litefs_max_payload_bytes"):
        users.give(2_000_000)
    assert users.names() == []
    assert users.give(2) == "xx"


def test_delay_returns_a_result(users: Any) -> None:
    """A submitted write has Celery's result, which knows this node's ledger."""
    result = users.add.delay("Ada", age=3)
    assert isinstance(result, WriteResult)
    assert result.get(timeout=10.0) == 1
    assert result.ready()
    assert result.outcome() == Committed(1, 1)
    assert users.db.outcome(result.id) == result.outcome()


def test_apply_async_takes_celerys_arguments(users: Any) -> None:
    """``apply_async`` takes positional and keyword arguments as Celery does."""
    assert users.add.apply_async(("Ada",), {"age": 3}).get() == 1
    assert users.get(1).age == 3


def test_a_submitted_refusal_is_raised_by_get(users: Any) -> None:
    """``get`` raises what the method raised, and ``outcome`` holds it."""
    users.add("Ada")
    result = users.add.delay("Ada")
    with pytest.raises(IntegrityError):
        result.get()
    assert isinstance(result.outcome(), Refused)


def test_a_result_can_be_awaited(users: Any) -> None:
    """A result is awaitable."""

    async def go() -> int:
        return await users.add.delay("Ada")

    assert asyncio.run(go()) == 1


def test_an_unknown_id_is_not_known(users: Any) -> None:
    """Of an id that nobody used there is no outcome, and waiting for it ends at the timeout."""
    unknown = WriteResult(users.db, str(uuid.uuid4()))
    assert unknown.outcome() is None
    assert not unknown.ready()
    with pytest.raises(WriteTimeout) as caught:
        unknown.get(timeout=0.05)
    assert caught.value.write_id == unknown.id


def test_aio_does_not_block_the_loop(users: Any) -> None:
    """Many awaited writes run at once, each with its own value or exception."""

    async def go() -> list[Any]:
        calls = [users.add.aio(f"n{i % 9}") for i in range(10)]
        return await asyncio.gather(*calls, return_exceptions=True)

    values = asyncio.run(go())
    assert sorted(value for value in values if isinstance(value, int)) == list(range(1, 10))
    assert sum(isinstance(value, IntegrityError) for value in values) == 1


def test_hidden_arguments_are_not_shown(users: Any) -> None:
    """With ``show_arguments=False`` neither Flower's arguments nor its result show the data."""
    hidden, shown = type(users).secret, type(users).add
    assert "hush" not in "".join(hidden.shown(("hush",), {"name": "hush"}))
    assert "hush" in shown.shown(("hush",), {})[0]
    made = users.db.new_write(
        users.secret.task_name, "[]", timeout=1.0, write_id="", shown=("", "")
    )
    assert users.db.shown_result(made, "hushhush") == "(hidden)"


def test_an_open_session_refuses_the_call(users: Any) -> None:
    """Within an open local Session no write is begun: the wait would stop replication."""
    with users.local() as session:
        session.execute(text("SELECT 1"))
        with pytest.raises(OpenReadTransaction, match="Commit, roll back or close"):
            users.add("Ada")
    assert ledger_rows(users.db) == 0
    assert users.add("Ada") == 1


@pytest.mark.parametrize("way", WAITS)
def test_a_write_does_not_wait_inside_a_write(users: Any, way: str) -> None:
    """A method that waits for the thread it runs in is refused at once; writing goes on."""
    with pytest.raises(MethodMisuse, match="a write method called"):
        users.nest.options(timeout=TIMEOUT)(way)
    assert users.names() == []
    assert ledger_rows(users.db) == 1
    assert users.add.options(timeout=TIMEOUT)("Ada") == 1


def test_a_write_submits_nothing_to_another_database(users: Any, tmp_path: Path) -> None:
    """What goes to another database is refused too: it would not be part of the transaction."""
    (tmp_path / "other").mkdir()
    with closing(standalone(tmp_path / "other")) as other:
        others = users_of(other)

        class Across(Repository[User], db=users.db):
            @write
            def copy(self, name: str) -> None:
                self.session.add(User(name=name))
                others.add.delay(name)

        with pytest.raises(MethodMisuse, match=r"\.delay\(\)"):
            Across().copy.options(timeout=TIMEOUT)("Ada")
        assert others.names() == users.names() == []
        assert others.add.options(timeout=TIMEOUT)("Ada") == 1


def test_a_dead_broker_is_told_at_the_deadline(away: Any) -> None:
    """A broker that refuses is retried until the deadline, then told: nothing was sent."""
    with pytest.raises(BrokerUnavailable, match="has not run and will not") as caught:
        away.add.options(timeout=0.4)("Ada")
    assert caught.value.may_have_been_sent is False
    assert caught.value.method.endswith("Users.add")
    assert uuid.UUID(caught.value.write_id)
    assert away.names() == []


def test_a_dead_broker_is_told_to_aio(away: Any) -> None:
    """An awaited write fails in the same way."""
    with pytest.raises(BrokerUnavailable):
        asyncio.run(away.add.options(timeout=0.4).aio("Ada"))


def test_a_dead_broker_refuses_a_submission(away: Any) -> None:
    """A write that could not be submitted is an error at once, with the remedy."""
    with pytest.raises(BrokerUnavailable, match="same write_id") as caught:
        away.add.delay("Ada")
    assert caught.value.may_have_been_sent is False


def test_a_submission_that_began_here_may_have_been_sent(tmp_path: Path) -> None:
    """A commit that could not be confirmed may yet count, though the broker never heard of it."""
    standalone(tmp_path).close()
    with closing(member(tmp_path, "n1", NO_BROKER, broker_timeout=0.5)) as primary:
        users = users_of(primary)
        with pytest.raises(BrokerUnavailable, match="could not be confirmed") as caught:
            users.lose_position.delay()
        assert caught.value.may_have_been_sent is True
        query = "SELECT count(*) FROM _litefs_celery_ledger WHERE write_id = ?"
        assert rows(primary.path, query, caught.value.write_id) == [(1,)]


@pytest.mark.parametrize("call", ["__call__", "delay", "aio"])
def test_a_write_may_not_outlive_its_outcome(tmp_path: Path, call: str) -> None:
    """A timeout longer than outcomes are kept is refused: the write could take effect twice."""
    settings = Settings(mode="standalone", node="n1", ledger_retention=7200.0)
    with closing(standalone(tmp_path, settings=settings)) as db:
        users = users_of(db)
        with pytest.raises(ArgumentError, match="litefs_ledger_retention"):
            invoke(users.add.options(timeout=7201.0), call)("Ada")
        assert ledger_rows(db) == 0
        assert users.add.options(timeout=7199.0)("Ada") == 1


def test_two_callers_of_one_write_both_get_its_outcome(
    users: Any, away: Any, records: list[observe.Record]
) -> None:
    """Threads of one process that use the same key at once are answered both, from one row."""
    key = str(uuid.uuid4())
    keyed = away.add.options(write_id=key, timeout=TIMEOUT)
    encoded = users.db.wire.dumps([["Ada"], {}], "arguments")
    made = users.db.new_write(
        away.add.task_name, encoded, timeout=60.0, write_id=key, shown=("", "")
    )
    with ThreadPoolExecutor(2) as pool:
        calls = [pool.submit(keyed, "Ada") for _ in range(2)]
        until(
            lambda: sum(isinstance(one, observe.ForwardStarted) for one in records) == 2,
            "both callers begin",
        )
        users.db.submit(made)
        assert [call.result(TIMEOUT) for call in calls] == [1, 1]
    assert users.names() == ["Ada"]


def test_a_write_that_appears_meanwhile_is_answered(users: Any, away: Any) -> None:
    """A caller whose write reached the primary by another way gets its outcome from the ledger."""
    key = str(uuid.uuid4())
    encoded = users.db.wire.dumps([["Ada"], {}], "arguments")
    made = users.db.new_write(
        away.add.task_name, encoded, timeout=60.0, write_id=key, shown=("", "")
    )
    users.db.submit(made)
    assert away.add.options(write_id=key, timeout=20.0)("Ada") == 1
    with pytest.raises(WriteConflict):
        away.add.options(write_id=key, timeout=20.0)("Bob")
