"""A repository's reads and writes on a real file, without LiteFS: what each returns and changes."""

from __future__ import annotations

import threading
from datetime import date
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import and_, func, inspect, select
from sqlalchemy.exc import IntegrityError, MultipleResultsFound, NoResultFound
from sqlalchemy.orm import Session
from support import Base, Team, User, celery_app, rows, standalone

from litefs_celery import (
    ArgumentError,
    ConfigurationError,
    LiteFSCelery,
    MethodMisuse,
    Repository,
    Settings,
    read,
    write,
)

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


def users_of(db: LiteFSCelery) -> Any:
    """Return a repository of users in that database."""

    class Users(Repository[User], db=db):
        @write
        def pair(self, name: str, *, fail: bool = False) -> list[User]:
            """Insert two with other write methods; one transaction."""
            first = self.insert(User(name=name))
            self.rename(first.id, name + "!")
            if fail:
                raise LookupError(name)
            return self.insert_all([User(name=name + "2"), first])

        @write
        def rename(self, user_id: int, name: str) -> User:
            user = self.session.get_one(User, user_id)
            user.name = name
            return user

        @write
        def seen(self, name: str) -> tuple[int, bool, User | None]:
            """Insert, and read by the repository's own reads before the commit."""
            self.session.add(User(name=name))
            self.session.flush()
            return self.count(), self.exists(User.name == name), self.get_by(name=name)

        @write
        def into(self, other: Any) -> None:
            self.session.add(User(name="half"))
            OTHERS[other].insert(User(name="x"))

        @read
        def names(self) -> list[str]:
            return list(self.session.scalars(select(User.name).order_by(User.id)))

    return Users()


OTHERS: dict[str, Any] = {}


@pytest.fixture
def users(db: LiteFSCelery) -> Any:
    """Return a repository with three users: Ada 36, Bob 7, Eve without an age."""
    made = users_of(db)
    made.insert_rows(
        [
            {"id": 1, "name": "Ada", "age": 36, "born": date(1815, 12, 10)},
            {"id": 2, "name": "Bob", "age": 7, "born": None},
            {"id": 3, "name": "Eve", "age": None, "born": None},
        ]
    )
    return made


def names(db: LiteFSCelery) -> list[str]:
    """Return the names in the file, asked past the repository."""
    return [name for (name,) in rows(db.path, "SELECT name FROM users ORDER BY id")]


def detached(instance: Any) -> bool:
    """Whether an instance is plain data: detached, clean, and bound to no Session."""
    state = inspect(instance)
    return state.detached and not state.modified and state.session is None


# Reads


def test_get(users: Any) -> None:
    """``get`` returns the row with that key, detached and loaded, or None."""
    ada = users.get(1)
    assert detached(ada)
    assert (ada.name, ada.age, ada.born, ada.active) == ("Ada", 36, date(1815, 12, 10), True)
    assert users.get(99) is None


def test_get_by(users: Any) -> None:
    """``get_by`` returns the first row with these values, also where a value is None."""
    assert users.get_by(name="Bob").id == 2
    assert users.get_by(age=None).name == "Eve"
    assert users.get_by(name="Bob", age=8) is None


def test_one(users: Any) -> None:
    """``one`` returns the only row, and raises where there is none or more than one."""
    assert users.one(select(User).where(User.name == "Ada")).id == 1
    assert users.one(select(User.age).where(User.id == 2)) == 7
    with pytest.raises(NoResultFound):
        users.one(select(User).where(User.id == 99))
    with pytest.raises(MultipleResultsFound):
        users.one(select(User))


def test_all(users: Any) -> None:
    """``all`` returns every row, or those of a statement, in its order."""
    assert {user.name for user in users.all()} == {"Ada", "Bob", "Eve"}
    found = users.all(select(User).where(User.age.is_not(None)).order_by(User.age))
    assert [user.name for user in found] == ["Bob", "Ada"]
    assert all(detached(user) for user in found)


def test_exists_and_count(users: Any) -> None:
    """``exists`` and ``count`` answer for all rows, or those that meet every criterion."""
    assert users.exists()
    assert users.exists(User.age > 7, User.name == "Ada")
    assert not users.exists(User.age > 7, User.name == "Bob")
    assert users.count() == 3
    assert users.count(User.age > 6, User.active) == 2
    assert users.count(User.age > 99) == 0


def test_aggregate(users: Any) -> None:
    """``aggregate`` returns a function's value over the rows that match, None over none."""
    assert users.aggregate(func.max(User.age)) == 36
    assert users.aggregate(func.sum(User.age), User.id > 1) == 7
    assert users.aggregate(func.max(User.age), User.id > 99) is None


@pytest.mark.parametrize("batch_size", [1, 2, 3, 4])
def test_stream_gives_each_row_once(users: Any, batch_size: int) -> None:
    """``stream`` gives every matching row once, in key order, whatever the batch's size."""
    assert [user.id for user in users.stream(batch_size=batch_size)] == [1, 2, 3]
    assert [user.id for user in users.stream(User.age > 6, batch_size=batch_size)] == [1, 2]


def test_stream_holds_nothing_between_batches(users: Any, db: LiteFSCelery) -> None:
    """Between batches nothing is held open: rows can be written, and later ones are seen."""
    stream = users.stream(batch_size=2)
    assert next(stream).id == 1
    users.delete(users.get(3))
    users.insert(User(id=4, name="Zoe"))
    assert [user.id for user in stream] == [2, 4]
    assert not db.parts.holds_local_session()


def test_a_read_method_is_one_session(users: Any) -> None:
    """A ``@read`` method has a Session of this node, which ends with it."""
    assert users.names() == ["Ada", "Bob", "Eve"]
    with pytest.raises(ConfigurationError, match="inside @write and @read"):
        _ = users.session


def test_local_is_a_plain_session(users: Any) -> None:
    """``local`` makes ordinary Sessions on this node's file."""
    with users.local() as session:
        assert isinstance(session, Session)
        assert session.scalar(select(func.count(User.id))) == 3


# Writes


def test_insert(users: Any, db: LiteFSCelery) -> None:
    """``insert`` returns the row with key and defaults, detached; the argument stays as it was."""
    given = User(name="Zoe")
    made = users.insert(given)
    assert detached(made)
    assert (made.id, made.active, made.score) == (4, True, 0.0)
    assert given.id is None
    assert names(db) == ["Ada", "Bob", "Eve", "Zoe"]


def test_insert_all_is_all_or_none(users: Any, db: LiteFSCelery) -> None:
    """``insert_all`` inserts every instance, or none where one is refused."""
    made = users.insert_all([User(name="X"), User(name="Y")])
    assert [user.id for user in made] == [4, 5]
    assert all(detached(user) for user in made)
    with pytest.raises(IntegrityError):
        users.insert_all([User(name="Z"), User(name="Ada")])
    assert names(db) == ["Ada", "Bob", "Eve", "X", "Y"]


def test_insert_or_update(users: Any) -> None:
    """``insert_or_update`` inserts a new key, and overwrites the loaded columns of a known one."""
    assert users.insert_or_update(User(id=9, name="Nine")).id == 9
    changed = users.insert_or_update(User(id=1, name="Ada L."))
    assert detached(changed)
    assert (changed.name, changed.age) == ("Ada L.", 36)
    assert users.count() == 4


def test_upsert_overwrites_the_named_columns(users: Any) -> None:
    """``upsert`` inserts what is new and overwrites only the columns it names."""
    new = [{"name": "Ada", "age": 37, "score": 5.0}, {"name": "Zoe", "age": 1, "score": 6.0}]
    assert users.upsert(new, on_conflict=["name"], update=["age"]) == 2
    assert (users.get(1).age, users.get(1).score) == (37, 0.0)
    assert users.get_by(name="Zoe").score == 6.0


def test_upsert_without_columns_keeps_what_is_there(users: Any) -> None:
    """``upsert`` that names no columns inserts what is new only, and counts that."""
    assert users.upsert([{"name": "Ada", "age": 1}, {"name": "Zoe"}], ["name"]) == 1
    assert users.get(1).age == 36
    assert users.upsert([], ["name"]) == 0


def test_update_sends_changed_columns_only(users: Any) -> None:
    """``update`` sets what was changed on the instance; a concurrent change of others is kept."""
    mine = users.get(1)
    users.update_columns([1], {"name": "Countess"})
    mine.age = 37
    updated = users.update(mine)
    assert detached(updated)
    assert (updated.name, updated.age) == ("Countess", 37)
    sent = rows(users.db.path, "SELECT method FROM _litefs_celery_ledger ORDER BY seq DESC LIMIT 1")
    assert sent[0][0].endswith("Users.update_columns")


def test_update_with_values(users: Any) -> None:
    """``update`` with values sets these; an unknown column or row is refused."""
    ada = users.get(1)
    assert users.update(ada, {"age": None}).age is None
    with pytest.raises(ArgumentError, match="no column 'agee'"):
        users.update(ada, {"agee": 1})
    with pytest.raises(NoResultFound):
        users.update(User(id=99), {"age": 1})
    with pytest.raises(ArgumentError, match="insert it first"):
        users.update(User(name="new"))


def test_update_all(users: Any) -> None:
    """``update_all`` sets values or expressions on the matching rows, and counts them."""
    assert users.update_all(User.age > 6, {"age": User.age + 1, "active": False}) == 2
    assert [user.age for user in users.all(select(User).order_by(User.id))] == [37, 8, None]
    assert users.get(3).active
    assert users.update_all(User.age > 99, {"age": 0}) == 0


def test_delete(users: Any, db: LiteFSCelery) -> None:
    """``delete`` says whether there was a row."""
    bob = users.get(2)
    assert users.delete(bob) is True
    assert users.delete(bob) is False
    assert names(db) == ["Ada", "Eve"]


def test_delete_all(users: Any, db: LiteFSCelery) -> None:
    """``delete_all`` deletes what matches, and counts it."""
    assert users.delete_all(and_(User.age > 6, User.name.startswith("B"))) == 1
    assert names(db) == ["Ada", "Eve"]


@pytest.mark.parametrize("call", ["update_all", "delete_all"])
@pytest.mark.parametrize(
    "criterion",
    [User.team_id == Team.id, Team.id == 1, func.lower(User.name) == "ada", "name = 'Ada'", True],
    ids=str,
)
def test_criteria_of_more_than_the_own_table_are_refused(
    users: Any, db: LiteFSCelery, call: str, criterion: Any
) -> None:
    """Criteria over other tables, functions, text or no criterion change nothing."""
    arguments = [criterion] if call == "delete_all" else [criterion, {"age": 1}]
    with pytest.raises(ArgumentError):
        getattr(users, call)(*arguments)
    assert rows(db.path, "SELECT age FROM users ORDER BY id") == [(36,), (7,), (None,)]


def test_values_of_other_tables_are_refused(users: Any) -> None:
    """``update_all`` cannot copy from another table."""
    with pytest.raises(ArgumentError, match="use the table teams"):
        users.update_all(User.id == 1, {"name": Team.name})


def test_insert_rows(users: Any) -> None:
    """``insert_rows`` inserts plain rows in bulk and counts them; all or none."""
    assert users.insert_rows([{"name": f"n{i}", "age": i} for i in range(1000)]) == 1000
    assert users.insert_rows([]) == 0
    with pytest.raises(IntegrityError):
        users.insert_rows([{"name": "new"}, {"name": "Ada"}])
    assert users.count() == 1003


def test_integrity_errors_are_sqlalchemys(users: Any) -> None:
    """A violated constraint is SQLAlchemy's IntegrityError, with SQLite's name, and a note."""
    with pytest.raises(IntegrityError) as caught:
        users.insert(User(name="Ada"))
    assert caught.value.orig.sqlite_errorname == "SQLITE_CONSTRAINT_UNIQUE"
    assert "Users.insert" in caught.value.__notes__[0]


# Methods of one's own


def test_nested_writes_are_one_transaction(users: Any, db: LiteFSCelery) -> None:
    """A ``@write`` that calls others is one write: all of it, or none where it raises."""
    made = users.pair("P")
    assert [user.name for user in made] == ["P2", "P!"]
    assert all(detached(user) for user in made)
    with pytest.raises(LookupError, match="Q"):
        users.pair("Q", fail=True)
    assert names(db) == ["Ada", "Bob", "Eve", "P!", "P2"]
    count = "SELECT count(*) FROM _litefs_celery_ledger WHERE method LIKE '%.pair'"
    assert rows(db.path, count) == [(2,)]
    inner = "SELECT count(*) FROM _litefs_celery_ledger WHERE method LIKE '%.rename'"
    assert rows(db.path, inner) == [(0,)]


def test_reads_inside_a_write_see_its_changes(users: Any) -> None:
    """Inside a ``@write`` the repository's reads see what it has written."""
    count, exists, found = users.seen("Zoe")
    assert (count, exists, found.name) == (4, True, "Zoe")


def test_another_databases_repository_is_refused(users: Any, tmp_path: Path) -> None:
    """A write that calls another database's repository is rolled back, there and here."""
    (tmp_path / "other").mkdir()
    other = standalone(tmp_path / "other", name="other")
    OTHERS["other"] = users_of(other)
    try:
        with pytest.raises(MethodMisuse, match="another database"):
            users.into("other")
        assert users.count() == 3
        assert OTHERS["other"].count() == 0
    finally:
        OTHERS.clear()
        other.close()


def test_a_repository_without_a_model_is_refused(db: LiteFSCelery) -> None:
    """A repository class must name its model."""
    with pytest.raises(ConfigurationError, match=r"Repository\[User\]"):

        class Nameless(Repository, db=db):  # type: ignore[type-arg]
            pass


def test_two_databases_of_one_app_need_two_names(tmp_path: Path) -> None:
    """Two databases of one app with one name are refused; their queues differ otherwise."""
    app = celery_app()
    settings = Settings(mode="standalone", node="n1")
    first = LiteFSCelery(app, f"sqlite:///{tmp_path}/a.db", settings=settings)
    with pytest.raises(ConfigurationError, match="'default'"):
        LiteFSCelery(app, f"sqlite:///{tmp_path}/b.db", settings=settings)
    second = LiteFSCelery(app, f"sqlite:///{tmp_path}/b.db", name="b", settings=settings)
    assert (first.queue, second.queue) == ("litefs-primary", "litefs-primary.b")


def test_threads_write_side_by_side(users: Any) -> None:
    """Writes of many threads all take effect, each once."""
    threads = [
        threading.Thread(target=lambda i=i: users.insert(User(name=f"t{i}"))) for i in range(16)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert users.count() == 19


def test_a_closed_database_can_be_used_again(users: Any, db: LiteFSCelery) -> None:
    """``close`` may be repeated, and the next call starts what it needs."""
    db.close()
    db.close()
    assert users.insert(User(name="Zoe")).id == 4
    assert users.count() == 4


@pytest.fixture
def wide(tmp_path: Path) -> Iterator[LiteFSCelery]:
    """Return a database in write-ahead mode."""
    db = LiteFSCelery(
        celery_app(),
        f"sqlite:///{tmp_path}/wal.db",
        settings=Settings(mode="standalone", node="n1"),
    )
    db.create_all(Base.metadata, journal_mode="wal")
    yield db
    db.close()


def test_the_journal_mode_is_chosen_at_creation(wide: LiteFSCelery) -> None:
    """The journal mode counts when the file is made; an unknown one is refused."""
    assert rows(wide.path, "PRAGMA journal_mode") == [("wal",)]
    users = users_of(wide)
    assert users.insert(User(name="Ada")).id == 1
    with pytest.raises(ConfigurationError, match="delete or wal"):
        wide.create_all(Base.metadata, journal_mode="truncate")
