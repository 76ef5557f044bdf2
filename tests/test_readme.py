"""The README's code is true: its marked blocks are run, in a directory of their own."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

README = Path(__file__).resolve().parent.parent / "README.md"
TIMEOUT = 200.0  # seconds; a deadline, not a pause
# `<!-- test -->` marks what is run, `<!-- test: NAME -->` what is saved under that name.
MARKED = re.compile(
    r"^<!-- test(?:: (\S+))? -->\n```(python|diff)\n(.*?)^```$", re.MULTILINE | re.DOTALL
)
BLOCKS = MARKED.findall(README.read_text(encoding="utf-8"))
FILES = {name: (kind, text) for name, kind, text in BLOCKS if name}
PROGRAMS = [text for name, _, text in BLOCKS if not name]


def after(diff: str) -> str:
    """Return what a diff leads to."""
    return "".join(line[1:] for line in diff.splitlines(keepends=True) if line[0] in " +")


def before(diff: str) -> str:
    """Return what a diff starts from."""
    return "".join(line[1:] for line in diff.splitlines(keepends=True) if line[0] in " -")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a directory with the files that the README names."""
    for name, (kind, text) in FILES.items():
        (tmp_path / name).write_text(after(text) if kind == "diff" else text, encoding="utf-8")
    return tmp_path


def run(folder: Path, *command: str) -> None:
    """Run Python there, standalone unless the code says otherwise; fail with its output."""
    environ = {name: value for name, value in os.environ.items() if name[:7] != "LITEFS_"}
    environ |= {
        "DATABASE_URL": f"sqlite:///{folder}/app.db",
        "LITEFS_CELERY_MODE": "standalone",
        "PYTHONPATH": os.pathsep.join([str(folder), os.environ.get("PYTHONPATH", "")]),
    }
    ended = subprocess.run(
        [sys.executable, *command], cwd=folder, env=environ, capture_output=True, text=True,
        timeout=TIMEOUT, check=False,
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr


def test_the_readme_has_marked_blocks() -> None:
    """The application, its test and at least three programs are there to be checked."""
    assert set(FILES) == {"shop.py", "test_shop.py"}
    assert len(PROGRAMS) >= 3


def test_every_python_block_is_marked() -> None:
    """No block of Python escapes the check."""
    assert README.read_text(encoding="utf-8").count("```python") == sum(
        kind == "python" for _, kind, _ in BLOCKS
    )


def test_the_diff_starts_from_a_whole_application() -> None:
    """What the diff changes is a program too."""
    compile(before(FILES["shop.py"][1]), "shop.py", "exec")


@pytest.mark.parametrize("text", PROGRAMS, ids=range(len(PROGRAMS)))
def test_a_program_runs(folder: Path, text: str) -> None:
    """Each marked program ends well, without LiteFS, broker or worker."""
    (folder / "program.py").write_text(text, encoding="utf-8")
    run(folder, "program.py")


def test_the_web_application_answers(folder: Path) -> None:
    """The application after the diff serves a read and a write."""
    (folder / "program.py").write_text(
        "from shop import *\n"
        "db.create_all(Base.metadata)\n"
        "products.insert(Product(name='tea', stock=10))\n"
        "client = app.test_client()\n"
        "assert client.post('/products/tea/sell').json == {'left': 9}\n"
        "assert client.get('/products').json == {'tea': 9}\n",
        encoding="utf-8",
    )
    run(folder, "program.py")


def test_the_test_passes(folder: Path) -> None:
    """The README's own test passes with the plugin, on an emulated cluster."""
    run(folder, "-m", "pytest", "-q", "-p", "no:celery", "-p", "no:cacheprovider", "test_shop.py")
