"""What is wrong around the library is said clearly, and changes nothing."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from support import Base, User, celery_app

from litefs_celery import (
    BrokerUnavailable,
    ConfigurationError,
    DatabaseMissing,
    LiteFSCelery,
    MountUnavailable,
    Repository,
    Settings,
)
from litefs_celery.emulator import EmulatedCluster, EmulatedNode

Open = Callable[..., Any]


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[EmulatedCluster]:
    """Return two emulated nodes."""
    with EmulatedCluster(tmp_path / "cluster", names=("a", "b"), failover_gap=0.2) as running:
        yield running


@pytest.fixture
def users() -> Iterator[Open]:
    """Return what opens a repository on a node, as a web process there does."""
    opened: list[LiteFSCelery] = []

    def open_on(node: EmulatedNode | None, url: str = "", **options: Any) -> Any:
        values: dict[str, Any] = {"mode": "litefs", "broker_timeout": 0.5}
        if node is not None:
            values |= {"node": node.name, "api_url": node.api_url}
            url = url or f"sqlite:///{node.database()}"
        db = LiteFSCelery(
            celery_app(), url, settings=Settings(**values), **options
        )
        opened.append(db)

        class Users(Repository[User], db=db):
            """Users on that node."""

        return Users()

    yield open_on
    for db in opened:
        db.close()


def made(cluster: EmulatedCluster, users: Open) -> None:
    """Create the tables on the primary and see them everywhere."""
    users(cluster.primary()).db.create_all(Base.metadata)
    cluster.wait_synced()


def test_without_a_mount_nothing_is_written(tmp_path: Path, users: Open) -> None:
    """A database path under no mount is refused, and no file appears there."""
    with pytest.raises(MountUnavailable, match="not mounted"):
        users(None, f"sqlite:///{tmp_path}/nowhere/app.db").insert(User(name="Ada"))
    assert not (tmp_path / "nowhere").exists()


def test_an_empty_mount_point_is_not_a_database(tmp_path: Path, users: Open) -> None:
    """An empty directory where LiteFS should be is refused, and stays empty."""
    (tmp_path / "mount").mkdir()
    with pytest.raises(MountUnavailable, match="not mounted"):
        users(None, f"sqlite:///{tmp_path}/mount/app.db").insert(User(name="Ada"))
    assert not list((tmp_path / "mount").iterdir())


def fixed(folder: Path) -> LiteFSCelery:
    """Return a node whose settings say that it is primary, in that directory."""
    settings = Settings(node="n1", fixed_primary="n1", mode="litefs")
    return LiteFSCelery(celery_app(), f"sqlite:///{folder}/app.db", settings=settings)


@pytest.mark.parametrize("there", ["empty", "absent"])
def test_a_fixed_primary_makes_no_database_without_its_mount(tmp_path: Path, there: str) -> None:
    """Settings that say "primary" do not make a directory a mount: nothing is created in it."""
    folder = tmp_path / "mount"
    if there == "empty":
        folder.mkdir()
    with closing(fixed(folder)) as db:
        with pytest.raises((MountUnavailable, DatabaseMissing), match="not mounted") as told:
            db.create_all(Base.metadata, timeout=0.3)
        assert str(folder) in str(told.value)
    assert list(tmp_path.rglob("*")) == ([folder] if there == "empty" else [])


def test_a_fixed_primary_creates_on_its_mount(tmp_path: Path) -> None:
    """On a directory that shows LiteFS's files, a fixed primary makes what is missing."""
    (tmp_path / ".lag").write_text("0\n")
    with closing(fixed(tmp_path)) as db:
        with pytest.raises(DatabaseMissing, match=r"holds no app\.db"):
            db.create_all(Base.metadata, timeout=0.0)
        # What LiteFS would show by now: without it nothing here is known to be replicated.
        (tmp_path / "app.db-pos").write_text(f"{1:016x}/{1:016x}\n")
        db.create_all(Base.metadata, timeout=0.0)


def test_a_missing_database_is_named(cluster: EmulatedCluster, users: Open) -> None:
    """A live mount without the file says so, on a replica too, and makes no phantom."""
    node = cluster.replicas()[0] if cluster.primary() else None
    assert node is not None
    with pytest.raises(DatabaseMissing, match="create_all"):
        users(node).insert(User(name="Ada"))
    with pytest.raises(DatabaseMissing, match="create_all"):
        users(node).count()
    assert not node.database().exists()


def test_a_dead_mount_is_not_a_primary(cluster: EmulatedCluster, users: Open) -> None:
    """After kill -9 of LiteFS the node neither writes nor pretends that it could."""
    made(cluster, users)
    node = cluster.primary()
    on_node = users(node)
    node.kill()
    with pytest.raises(MountUnavailable, match="dead"):
        on_node.insert(User(name="Ada"))
    assert on_node.db.role().kind.value == "unknown"


def test_an_unreachable_broker_says_that_nothing_was_sent(
    cluster: EmulatedCluster, users: Open
) -> None:
    """A replica without a broker knows that its write did not run; reads go on."""
    made(cluster, users)
    on_replica = users(cluster.replicas()[0])
    with pytest.raises(BrokerUnavailable, match="nothing was sent") as refused:
        on_replica.insert.options(timeout=0.5)(User(name="Ada"))
    assert refused.value.may_have_been_sent is False
    assert on_replica.db.outcome(refused.value.write_id) is None
    assert on_replica.count() == 0


def test_the_primary_needs_no_broker(cluster: EmulatedCluster, users: Open) -> None:
    """On the primary a write is committed in the process that asks for it."""
    made(cluster, users)
    assert users(cluster.primary()).insert(User(name="Ada")).id == 1


def test_a_closed_database_has_no_connection_left(cluster: EmulatedCluster, users: Open) -> None:
    """Closing a database closes what was kept open to LiteFS's API, too."""
    made(cluster, users)
    on_node = users(cluster.primary())
    on_node.insert(User(name="Ada"))
    client = on_node.db.parts.node()
    client.info()
    on_node.db.close()
    try:
        assert client._connection is None
    finally:
        client.close()


def test_another_journal_mode_is_refused(cluster: EmulatedCluster, users: Open) -> None:
    """Journal modes that LiteFS cannot see are refused before anything is written."""
    made(cluster, users)

    def in_memory(connection: sqlite3.Connection) -> None:
        connection.execute("PRAGMA journal_mode = memory")

    with pytest.raises(ConfigurationError, match="journal_mode=memory"):
        users(cluster.primary(), on_connect=in_memory).count()


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://x/y", "sqlite://", "sqlite:///:memory:", "sqlite:////a.db?mode=ro",
        "/litefs/app.db", "",
    ],
)
def test_a_url_that_is_no_database_file_is_refused(url: str) -> None:
    """Only a plain SQLite file can be on LiteFS."""
    with pytest.raises(ConfigurationError, match=r"sqlite:////litefs/app\.db"):
        LiteFSCelery(celery_app(), url)


def test_two_databases_of_one_name_are_refused(tmp_path: Path) -> None:
    """Two databases of one app need names of their own, or they would share a queue."""
    app = celery_app()
    LiteFSCelery(app, f"sqlite:///{tmp_path}/a.db")
    with pytest.raises(ConfigurationError, match="its own name"):
        LiteFSCelery(app, f"sqlite:///{tmp_path}/b.db")
    assert LiteFSCelery(app, f"sqlite:///{tmp_path}/b.db", name="b").queue == "litefs-primary.b"
