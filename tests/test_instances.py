"""Model instances cross as data and arrive as plain instances of their class."""

from __future__ import annotations

from datetime import date
from types import SimpleNamespace

import pytest
from sqlalchemy import create_engine, inspect
from sqlalchemy.orm import Session, load_only
from sqlalchemy.pool import StaticPool
from support import Base, Team, User

from litefs_celery.errors import ArgumentError
from litefs_celery.instances import InstanceCodec, changed_columns, primary_key
from litefs_celery.wire import Wire


def make_wire() -> Wire:
    """Return a wire that knows the test's models."""
    codec = InstanceCodec()
    codec.allow(User)
    return Wire(codec, max_bytes=100_000)


WIRE = make_wire()


@pytest.fixture
def session():
    """Return a Session on a real database with one user in a team."""
    engine = create_engine("sqlite://", poolclass=StaticPool)
    Base.metadata.create_all(engine)
    with Session(engine) as session:
        team = Team(id=1, name="red")
        session.add(User(id=1, name="Ada", age=36, born=date(1815, 12, 10), team=team))
        session.commit()
        yield session
    engine.dispose()


def sent(value: object) -> object:
    """Return the value as it arrives."""
    return WIRE.loads(WIRE.dumps(value, "it"))


def test_persistent_arrives_detached_and_unchanged(session: Session) -> None:
    """A row's instance arrives detached, with its identity and no pending changes."""
    user = session.get_one(User, 1)
    arrived = sent(user)
    assert type(arrived) is User
    assert inspect(arrived).detached
    assert inspect(arrived).identity == (1,)
    assert (arrived.name, arrived.age, arrived.born) == ("Ada", 36, date(1815, 12, 10))
    assert changed_columns(arrived) == {}


def test_new_arrives_transient(session: Session) -> None:
    """A new instance arrives new, and inserting it applies the defaults it had not set."""
    arrived = sent(User(name="Bob"))
    assert inspect(arrived).transient
    session.add(arrived)
    session.flush()
    assert (arrived.id, arrived.active, arrived.score) == (2, True, 0.0)


def test_relationships_do_not_travel(session: Session) -> None:
    """Only columns travel: a loaded relationship stays behind."""
    user = session.get_one(User, 1)
    assert user.team is not None
    arrived = sent(user)
    assert "team" not in inspect(arrived).dict
    assert arrived.team_id == 1


def test_only_loaded_columns_travel(session: Session) -> None:
    """A column that a detached instance has not loaded stays unloaded: it is not sent as None."""
    session.expunge_all()
    user = session.get_one(User, 1, options=[load_only(User.name)])
    session.expunge(user)
    arrived = sent(user)
    assert inspect(arrived).unloaded >= {"age", "born"}
    assert (arrived.id, arrived.name) == (1, "Ada")


def test_a_sessions_instance_is_loaded_before_it_travels(session: Session) -> None:
    """An instance that still has its Session arrives whole, also after a flush expired a part."""
    user = session.get_one(User, 1)
    session.expire(user, ["age", "born"])
    assert sent(user).age == 36
    made = User(name="Bob")
    session.add(made)
    session.flush()
    assert inspect(sent(made)).unloaded <= {"team"}


def test_expired_instance_is_refused(session: Session) -> None:
    """A detached instance of which nothing is loaded is refused with the remedy, not sent empty."""
    user = session.get_one(User, 1)
    session.expire(user)
    session.expunge(user)
    with pytest.raises(ArgumentError, match=r"it\[0\] is an expired User.*send its id"):
        WIRE.dumps([user], "it")


def test_instances_travel_inside_data(session: Session) -> None:
    """Instances inside lists and mappings arrive as instances."""
    arrived = sent({"users": [session.get_one(User, 1), User(name="Bob")]})
    assert [user.name for user in arrived["users"]] == ["Ada", "Bob"]


@pytest.mark.parametrize("value", [User, SimpleNamespace(), User.age, inspect(User)])
def test_what_is_no_instance_is_left_alone(value: object) -> None:
    """A class, a mapper or a foreign object is none of this codec's."""
    assert InstanceCodec().encode(value, lambda v, _: v, "it") is NotImplemented


def test_unknown_model_is_refused_on_arrival() -> None:
    """A node that has no repository with that model says so."""
    text = WIRE.dumps(User(name="x"), "it")
    with pytest.raises(ArgumentError, match=r"no model users\.User"):
        Wire(InstanceCodec(), max_bytes=1000).loads(text)


def test_unknown_column_is_refused_on_arrival() -> None:
    """A column that this node's model has not is an error that names it."""
    text = WIRE.dumps(User(name="x"), "it").replace('"name"', '"nickname"')
    with pytest.raises(ArgumentError, match="no column nickname"):
        WIRE.loads(text)


def test_all_models_of_the_registry_travel() -> None:
    """Allowing one model allows the others of its registry, and no more."""
    assert sent(Team(name="blue")).name == "blue"


def test_changed_columns_are_those_that_were_set(session: Session) -> None:
    """Only a column set to another value since loading counts as changed."""
    user = sent(session.get_one(User, 1))
    user.age = 37
    user.name = "Ada"
    assert changed_columns(user) == {"age": 37}


def test_primary_key_must_be_there() -> None:
    """The key of an instance without one is an error that says to insert it."""
    assert primary_key(User(id=5)) == (5,)
    with pytest.raises(ArgumentError, match="insert it first"):
        primary_key(User(name="x"))
