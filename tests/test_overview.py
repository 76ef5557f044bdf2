"""What is wrong with the workers' answers, and how it is shown."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from litefs_celery import overview


def row(
    node: str, role: str, primary: str = "", *, consuming: bool = False, worker: str = "",
    **values: Any,
) -> dict[str, Any]:
    """Return what a node's worker answers."""
    return {
        "node": node, "database": "default", "role": role, "primary": primary,
        "consuming": consuming, "reason": "why", "worker": worker or f"celery@{node}",
        "path": "/litefs/app.db", "epoch": None, "lag_ms": None, "position": None,
        "ledger": None, **values,
    }


def judge(*rows: dict[str, Any]) -> dict[str, Any]:
    """Judge these answers."""
    db: Any = SimpleNamespace(queue="litefs-primary", name="default")
    return overview.judge(db, list(rows), asked=True)


LEADER = row("a", "primary", "a", consuming=True)
FOLLOWER = row("b", "replica", "a")


@pytest.mark.parametrize(
    ("rows", "primary"),
    [
        ([LEADER, FOLLOWER], "a"),
        ([LEADER, row("a", "primary", "a", worker="other@a")], "a"),
        ([row("a", "standalone", "a")], "a"),
    ],
)
def test_nothing_is_wrong(rows: list[dict[str, Any]], primary: str) -> None:
    """One primary that consumes, and on which all agree, or one node without LiteFS, is fine."""
    assert judge(*rows) == {"primary": primary, "problems": [], "nodes": rows}


@pytest.mark.parametrize(
    ("rows", "primary", "problem"),
    [
        ([row("a", "primary", "a")], "a", "a is primary, but does not consume litefs-primary"),
        ([LEADER, row("b", "primary", "b")], None, "a and b both say they are primary"),
        ([LEADER, row("b", "replica", "c")], "a", "b says c is primary, a says otherwise"),
        ([row("b", "replica", "a")], None, "its worker did not answer"),
        ([row("a", "standalone", "a"), row("b", "replica", "c")], "a", "a found no LiteFS"),
        ([], None, "no worker that answered has a database 'default'"),
    ],
)
def test_a_primary_that_is_not_one(
    rows: list[dict[str, Any]], primary: str | None, problem: str
) -> None:
    """No primary, two, one that not all follow, or one that does not consume is a problem."""
    found = judge(*rows)
    assert found["primary"] == primary
    assert len(found["problems"]) == 1
    assert problem in found["problems"][0]


def test_nobody_knows_a_primary() -> None:
    """Without any primary it is said where writes wait, and why each node knows none."""
    found = judge(row("a", "unknown"), row("b", "unknown", reason=""))
    assert found["primary"] is None
    assert "no node is primary; writes wait in litefs-primary" in found["problems"][0]
    assert found["problems"][1:] == [
        "a does not know the primary: why",
        "b does not know the primary: no reason given",
    ]


def test_a_node_that_knows_nobody_beside_a_good_primary() -> None:
    """A node whose role is unknown is a problem with its reason, however well the others are."""
    found = judge(LEADER, FOLLOWER, row("c", "unknown", reason="/info refused"))
    assert found["primary"] == "a"
    assert found["problems"] == ["c does not know the primary: /info refused"]


@pytest.mark.parametrize(
    ("worker", "path"), [("celery@x", "/litefs/app.db"), ("other@a", "/second/app.db")]
)
def test_two_nodes_of_one_name(worker: str, path: str) -> None:
    """Two hosts or two mounts that report the same node are a problem, whose remedy is named."""
    found = judge(LEADER, row("a", "replica", "a", worker=worker, path=path))
    assert len(found["problems"]) == 1
    assert f"celery@a and {worker} all say they are node a" in found["problems"][0]
    assert "litefs_node" in found["problems"][0]


@pytest.mark.parametrize("role", ["replica", "unknown"])
def test_a_consumer_that_is_not_primary(role: str) -> None:
    """A node that consumes the primary's queue without being primary is a problem."""
    found = judge(LEADER, row("b", role, "a" if role == "replica" else "", consuming=True))
    text = f"b consumes litefs-primary, but is not primary ({role})"
    assert sum(problem.startswith(text) for problem in found["problems"]) == 1


def test_all_nodes_sign_or_none() -> None:
    """A node without a key beside one that has one is a problem; what is not known is none."""
    keyed = {**LEADER, "signs": True}
    assert judge(keyed, {**FOLLOWER, "signs": True})["problems"] == []
    assert judge(LEADER | {"signs": False}, FOLLOWER | {"signs": False})["problems"] == []
    assert judge(keyed, FOLLOWER)["problems"] == []
    (problem,) = judge(keyed, {**FOLLOWER, "signs": False})["problems"]
    assert problem.startswith("b neither signs writes")
    assert "litefs_signing_keys" in problem


def test_the_outbox_is_shown() -> None:
    """The table says how many writes wait in a node's outbox, and a dash where it has none."""
    rows = [
        row("a", "primary", "a", consuming=True, outbox={"waiting": 0, "seen": 4}),
        row("b", "replica", "a", outbox={"waiting": 7, "seen": 1}),
        row("c", "replica", "a", outbox=None),
        row("d", "replica", "a"),
    ]
    document = {
        "answered": True, "databases": {"default": judge(*rows)}, "queues": {}, "notes": [],
    }
    heading, *lines = (line.split() for line in overview.render(document).splitlines())
    column = heading.index("outbox")
    assert [line[column] for line in lines] == ["0", "7", "-", "-"]


def test_problems_and_notes_end_the_text() -> None:
    """What is wrong stands below the table under its database's name, then the notes."""
    document = {
        "answered": True, "databases": {"default": judge(LEADER, row("b", "unknown"))},
        "queues": {"litefs-primary": {"messages": None, "problem": "it does not exist"}},
        "notes": ["a note"],
    }
    lines = overview.render(document).splitlines()
    assert lines[-6:] == [
        "queue: waiting messages", "  litefs-primary: not known (it does not exist)", "",
        "default: b does not know the primary: why", "", "a note",
    ]
