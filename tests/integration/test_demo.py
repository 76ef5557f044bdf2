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

from worker.fleet import ROOT

if TYPE_CHECKING:
    from collections.abc import Iterator

pytest.importorskip("pycountry")


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
