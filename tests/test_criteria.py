"""Criteria mean the same after the wire, and nothing that is more than criteria crosses."""

from __future__ import annotations

from datetime import date
from typing import TYPE_CHECKING

import pytest
from sqlalchemy import (
    String,
    and_,
    case,
    cast,
    create_engine,
    exists,
    false,
    func,
    literal,
    literal_column,
    not_,
    null,
    or_,
    select,
    text,
    true,
)
from sqlalchemy.orm import Session, aliased
from sqlalchemy.pool import StaticPool
from support import Base, Team, User

from litefs_celery.criteria import CriteriaCodec, tables_in
from litefs_celery.errors import ArgumentError
from litefs_celery.wire import Wire

if TYPE_CHECKING:
    from collections.abc import Iterator


def wire_of(*models: type) -> Wire:
    """Return a wire that knows these tables."""
    codec = CriteriaCodec()
    for model in models:
        codec.allow(model.__table__)
    return Wire(codec, max_bytes=100_000)


WIRE = wire_of(User)


@pytest.fixture(scope="module")
def session() -> Iterator[Session]:
    """Return a Session on a table with awkward rows."""
    engine = create_engine("sqlite://", poolclass=StaticPool)
    Base.metadata.create_all(engine)
    names = ["Ada", "ada", "a%b", "a_b", "a/b", "", "Bob", "\N{LATIN SMALL LETTER E WITH ACUTE}a"]
    with Session(engine) as session:
        session.add_all(
            User(
                name=name,
                age=[None, 0, 1, 36, -3][i % 5],
                score=i / 3,
                active=i % 2 == 0,
                born=[None, date(1815, 12, 10), date(2000, 1, 1)][i % 3],
                money=i * 1.5,
            )
            for i, name in enumerate(names)
        )
        session.commit()
        yield session
    engine.dispose()


def same(session: Session, criterion: object) -> None:
    """Both select the same rows, and in the same way for SQLite."""
    text = WIRE.dumps(criterion, "it")
    arrived = wire_of(User).loads(text)
    ids = list(session.scalars(select(User.id).where(criterion).order_by(User.id)))
    assert list(session.scalars(select(User.id).where(arrived).order_by(User.id))) == ids
    assert WIRE.dumps(arrived, "it") == text


OPERATORS = {
    "eq": User.age == 36,
    "ne": User.age != 36,
    "lt": User.age < 1,
    "le": User.age <= 1,
    "gt": User.age > 0,
    "ge": User.age >= 0,
    "add": User.age + 1 == 2,
    "sub": User.age - 1 == 0,
    "mul": User.age * 2 > 1,
    "truediv": User.age / 2 > 0.4,
    "mod": User.age % 2 == 0,
    "concat": User.name + "x" == "Adax",
    "like": User.name.like("a%"),
    "not_like": User.name.not_like("a%"),
    "like_escape": User.name.like("a/%b", escape="/"),
    "ilike": User.name.ilike("ADA"),
    "not_ilike": User.name.not_ilike("ADA"),
    "in": User.age.in_([36, 1]),
    "not_in": User.age.not_in([36, 1]),
    "in_nothing": User.age.in_([]),
    "not_in_nothing": User.age.not_in([]),
    "is_none": User.age.is_(None),
    "is_not_none": User.age.is_not(None),
    "eq_none": User.age == None,  # noqa: E711
    "ne_none": User.age != None,  # noqa: E711
    "is_true": User.active.is_(True),
    "is_distinct": User.age.is_distinct_from(36),
    "is_not_distinct": User.age.is_not_distinct_from(None),
    "startswith": User.name.startswith("A"),
    "not_startswith": ~User.name.startswith("A"),
    "startswith_escaped": User.name.startswith("a%", autoescape=True),
    "endswith": User.name.endswith("b"),
    "not_endswith": ~User.name.endswith("b"),
    "contains": User.name.contains("a_", autoescape=True),
    "not_contains": ~User.name.contains("d"),
    "between": User.age.between(0, 36),
    "not_between": ~User.age.between(0, 1),
    "between_columns": User.age.between(User.id, User.id + 30),
    "date": User.born == date(1815, 12, 10),
    "date_order": User.born > date(1900, 1, 1),
    "date_in": User.born.in_([date(2000, 1, 1)]),
    "numeric": User.money >= 4.5,
    "bool": User.active,
    "not_bool": ~User.active,
    "not": not_(User.age > 0),
    "neg": -User.age == 3,
    "neg_group": -(User.age + 1) < -1,
    "and": and_(User.age > 0, User.active, User.name != ""),
    "or": or_(User.age.is_(None), User.active),
    "nested": or_(and_(User.age > 0, ~User.active), ~or_(User.active, User.age == 0)),
    "group": (User.age + 1) * 2 == 4,
    "left_value": literal(0) < User.age,
    "columns": User.age > User.id,
    "null": User.age.is_(null()),
    "true": or_(User.active == true(), User.age == 0),
    "false": User.active == false(),
    "attribute": User.active,
}


@pytest.mark.parametrize("criterion", OPERATORS.values(), ids=OPERATORS)
def test_each_operator_means_the_same(session: Session, criterion: object) -> None:
    """Every operator selects the same rows before and after the wire."""
    same(session, criterion)


REFUSED = {
    "function": func.lower(User.name) == "ada",
    "sql_function": func.load_extension("x") == 1,
    "icontains": User.name.icontains("A"),
    "text": text("1 = 1"),
    "literal_column": literal_column("1") == 1,
    "text_inside": and_(User.age > 0, text("1 = 1")),
    "subquery": User.id == select(func.max(User.id)).scalar_subquery(),
    "in_subquery": User.id.in_(select(Team.id)),
    "exists": exists().where(User.id == 1),
    "case": case((User.age > 1, 1), else_=0) == 1,
    "cast": cast(User.age, String) == "1",
    "collate": User.name.collate("NOCASE") == "ada",
    "order": User.age.desc(),
    "custom": User.name.op("REGEXP")("a"),
    "regexp": User.name.regexp_match("a"),
    "match": User.name.match("a"),
    "floordiv": User.age // 2 == 1,
    "select": select(User),
    "alias": aliased(User).age > 3,
    "table": User.__table__,
    "tuple_of_columns": User.age.in_([User.id, 3]),
    "relationship": User.team.has(),
    "label": (User.age + 1).label("x"),
}


@pytest.mark.parametrize("criterion", REFUSED.values(), ids=REFUSED)
def test_more_than_criteria_is_refused(criterion: object) -> None:
    """Functions, text, subqueries and other SQL are refused at the call, with the remedy."""
    with pytest.raises(ArgumentError, match=r"it\['where'\] (holds|uses).*cannot be sent"):
        WIRE.dumps({"where": criterion}, "it")


def test_unsendable_value_is_named() -> None:
    """A value that cannot travel is refused inside criteria as elsewhere."""
    with pytest.raises(ArgumentError, match=r"it\[1\] is nan"):
        WIRE.dumps(User.score.in_([1.0, float("nan")]), "it")


@pytest.mark.parametrize(
    "node",
    [
        ["column", "secrets", "id"],
        ["column", "users", "password"],
        ["binary", "eq", ["column", "teams", "id"], ["value", 1], None],
    ],
)
def test_other_tables_and_columns_are_unknown_on_arrival(node: list) -> None:
    """A message cannot name a table or column that no repository of this node has."""
    with pytest.raises(ArgumentError, match="is known to this node"):
        wire_of(User).loads(wire_text(node))


def wire_text(node: object) -> str:
    """Return a message's text with that expression."""
    return WIRE.dumps(None, "it").replace("null", "") + __import__("json").dumps(
        {"__litefs__": "sql", "v": node}
    )


@pytest.mark.parametrize(
    "node",
    [
        ["binary", "op", ["column", "users", "id"], ["value", 1], None],
        ["binary", "getitem", ["column", "users", "id"], ["value", 1], None],
        ["binary", "__class__", ["column", "users", "id"], ["value", 1], None],
        ["text", "1=1"],
        [],
        ["value"],
        ["between", ["value", 1]],
        7,
    ],
)
def test_forged_criteria_are_refused(node: object) -> None:
    """Only what this package encodes can be decoded: a forged node builds nothing."""
    with pytest.raises((ArgumentError, KeyError, TypeError, ValueError, IndexError)):
        WIRE.loads(wire_text(node))


def test_deep_nesting_is_refused() -> None:
    """A message of endless nesting is refused before Python's own limit."""
    node: list = ["value", True]
    for _ in range(300):
        node = ["not", node]
    with pytest.raises(ArgumentError, match="deeper than 200"):
        WIRE.loads(wire_text(node))


def test_values_stay_parameters(session: Session) -> None:
    """A value never becomes SQL text, whatever it holds."""
    arrived = WIRE.loads(WIRE.dumps(User.name == "'; DROP TABLE users; --", "it"))
    compiled = select(User.id).where(arrived).compile(session.get_bind())
    assert "DROP" not in str(compiled)
    same(session, User.name == "'; DROP TABLE users; --")


def test_tables_in_names_all_tables() -> None:
    """Every table whose columns are used is named, also inside nested parts."""
    assert tables_in(and_(User.age > 1, or_(User.id == Team.id, User.active))) == {"users", "teams"}
    assert tables_in(User.age) == {"users"}
    assert tables_in(User.id.in_(select(Team.id))) == {"users", "teams"}
