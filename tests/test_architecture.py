"""The package's layers: a module imports only from those above it, and stays small."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import litefs_celery

PACKAGE = Path(litefs_celery.__file__).parent
ORDER = """
    errors config surroundings observe batches litefs refusals wire signing message scalars
    instances criteria guard write_lock engines wal_index ledger roles detector terms outbox told
    visibility savepoint group committer forward resender redis_queue amqp_queue tasks rejected
    control handover rivals stored results methods repository standalone telling consumer routing
    parts database __init__ overview promotion commands findings machine clocks litefs_config
    doctor_storage doctor_config doctor_litefs doctor_broker doctor_workers doctor_node doctor cli
    pytest_plugin
""".split()  # noqa: SIM905 - to be read as a list
LINES = 260
# The wiring, the life of a write, the provided reads and writes, the wire format, the consumer.
LONGER = {
    "database": 420,
    "forward": 470,
    "outbox": 285,
    "parts": 280,
    "repository": 305,
    "wire": 265,
    "consumer": 340,
}


def imports(path: Path) -> set[str]:
    """Return the modules a file imports when it runs, in full; TYPE_CHECKING blocks do not."""
    tree = ast.parse(path.read_text())
    typing_only = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING")
        for inner in ast.walk(node)
    }
    package = ["litefs_celery", *path.relative_to(PACKAGE).parts[:-1]]
    found: set[str] = set()
    for node in ast.walk(tree):
        if id(node) in typing_only:
            continue
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        if isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            found |= {module} | {f"{module}.{alias.name}" for alias in node.names}
    return found


def own(path: Path) -> set[str]:
    """Return the package's own modules that a file imports."""
    parts = (name.split(".") for name in imports(path) if name.startswith("litefs_celery."))
    return {name[1] for name in parts if name[1] in ORDER or name[1] == "emulator"}


@pytest.mark.parametrize("path", sorted(PACKAGE.glob("*.py")), ids=lambda path: path.stem)
def test_modules_import_from_above_only(path: Path) -> None:
    """Each module has its place in the order, and imports only from before it."""
    assert path.stem in ORDER, "a new module needs a place in the order"
    allowed = set(ORDER[: ORDER.index(path.stem)])
    if path.stem == "pytest_plugin":
        allowed.add("emulator")
    assert own(path) <= allowed


def test_the_emulator_knows_nothing_of_the_rest() -> None:
    """The emulator could be a package of its own."""
    for path in (PACKAGE / "emulator").glob("*.py"):
        assert own(path) <= {"emulator"}, path.name


def test_nothing_imports_the_example() -> None:
    """The package does not know the application that shows it."""
    for path in PACKAGE.rglob("*.py"):
        assert not {name for name in imports(path) if name.split(".")[0] == "worker"}, path.name


def test_modules_are_small() -> None:
    """No module outgrows its budget; what is over the common one is listed with its own."""
    sizes = {path.stem: len(path.read_text().splitlines()) for path in PACKAGE.glob("*.py")}
    large = {name: size for name, size in sizes.items() if size > LONGER.get(name, LINES)}
    assert not large
