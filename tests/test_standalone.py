"""Being alone is decided where it is certain, and refused where it could hide a dead mount."""

from __future__ import annotations

import os
import sqlite3
from contextlib import closing
from typing import TYPE_CHECKING

import pytest
from sqlalchemy import create_engine
from support import NO_API

from litefs_celery import ConfigurationError, Settings, ledger, standalone
from litefs_celery.litefs import LiteFSNode
from litefs_celery.standalone import stands_alone

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(autouse=True)
def no_litefs_here(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Keep this machine's own LiteFS, if it has one, out of it; returns a configuration's place."""
    config = tmp_path / "etc" / "litefs.yml"
    monkeypatch.setattr(standalone, "LITEFS_CONFIGS", (config,))
    monkeypatch.setattr(Settings, "api_url", NO_API)
    return config


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Return a database's place in a directory that holds something else."""
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / "other").touch()
    return folder / "app.db"


def alone(path: Path, **values: object) -> bool:
    """Decide for a node without an API."""
    settings = Settings(**{"node": "n1", "api_url": NO_API, **values})
    return stands_alone(path, settings, LiteFSNode(path.parent, settings.api_url))


def on_litefs(path: Path, litefs_id: str) -> None:
    """Make a database as a primary of that start of LiteFS leaves it."""
    engine = create_engine(f"sqlite:///{path}")
    with engine.begin() as connection:
        ledger.begin_term(connection, "n1", litefs_id)
    engine.dispose()


def test_auto_without_any_sign_is_alone(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Without any sign of LiteFS everything is local, and the log says so."""
    assert alone(path) is True
    assert "used alone" in caplog.text


def test_litefs_mode_never_is(path: Path) -> None:
    """Told to be on LiteFS, a node never stands alone, whatever it finds."""
    assert alone(path, mode="litefs") is False


@pytest.mark.parametrize(
    ("name", "content"),
    [
        (".primary", "n2\n"),
        (".lag", "+000000000\n"),
        ("app.db-pos", "0000000000000001/8" + "0" * 15),
    ],
)
def test_a_mount_is_litefs(path: Path, name: str, content: str) -> None:
    """A directory with one of LiteFS's files is a mount: auto uses it, standalone is refused."""
    (path.parent / name).write_text(content)
    assert alone(path) is False
    with pytest.raises(ConfigurationError, match=r"is a LiteFS mount.*would not be replicated"):
        alone(path, mode="standalone")


def test_a_dead_mount_is_litefs(path: Path) -> None:
    """A mount that does not answer is one all the same."""
    (path.parent / ".primary").mkdir()
    assert alone(path) is False
    with pytest.raises(ConfigurationError, match="the LiteFS mount is dead"):
        alone(path, mode="standalone")


@pytest.mark.parametrize(
    "values",
    [
        {"fixed_primary": "n2"},
        {"primary_region": "ams", "region": "ams"},
        {"api_url": "http://127.0.0.1:2"},
    ],
)
def test_settings_of_a_cluster_are_a_sign(path: Path, values: dict) -> None:
    """Who sets a cluster's settings is on LiteFS, even while nothing answers."""
    assert alone(path, **values) is False
    with pytest.raises(ConfigurationError, match="is set"):
        alone(path, mode="standalone", **values)


def test_an_empty_directory_is_doubtful(tmp_path: Path) -> None:
    """An empty directory may be a mount point without its mount: auto refuses to guess."""
    folder = tmp_path / "mnt"
    folder.mkdir()
    with pytest.raises(ConfigurationError, match=r"is empty, as a mount point.*'standalone' if"):
        alone(folder / "app.db")
    assert alone(folder / "app.db", mode="standalone") is True
    assert list(folder.iterdir()) == []


def test_a_directory_litefs_is_configured_for_is_doubtful(path: Path, no_litefs_here: Path) -> None:
    """A directory that litefs.yml names belongs to LiteFS, though it may not run yet."""
    no_litefs_here.parent.mkdir()
    no_litefs_here.write_text(f"fuse:\n  dir: {path.parent}\n")
    with pytest.raises(ConfigurationError, match=f"litefs.yml names {path.parent}"):
        alone(path)
    no_litefs_here.write_text("fuse:\n  dir: /elsewhere\n")
    assert alone(path) is True


def test_a_database_that_was_on_litefs_is_doubtful(path: Path) -> None:
    """A file whose terms came from LiteFS is not used alone unless told to."""
    on_litefs(path, "ABC")
    with pytest.raises(ConfigurationError, match="has been on LiteFS before"):
        alone(path)
    assert alone(path, mode="standalone") is True


def test_a_database_that_was_alone_stays_alone(path: Path) -> None:
    """A file that was used alone, or that never was ours, is used alone again."""
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TABLE t(x)")
    assert alone(path) is True
    on_litefs(path, "")
    assert alone(path) is True


def test_looking_writes_nothing(path: Path) -> None:
    """Deciding creates no file."""
    alone(path)
    assert os.listdir(path.parent) == ["other"]  # noqa: PTH208
