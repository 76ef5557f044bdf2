"""The judge of a storm, and its plan, on doctored logs and rows."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from tests.chaos.judge import Evidence, judge, unknown
from tests.chaos.log import Call, Log, read
from tests.chaos.storm import MOST_AT_ONCE, Kind, draw, moments

OK, UNTOLD, TIMEOUT, REFUSAL = "ok", "untold", "timeout", "refusal"


def call(name: str, *kinds: str, number: int = 1, rows: int = 1, key: str = "") -> Call:
    """A call that was told those, one after the other."""
    marks = [name] if rows == 1 else [f"{name}/{n}" for n in range(rows)]
    told = [{"kind": kind, "text": "", "may_have_been_sent": None} for kind in kinds]
    return Call(
        name, "w", number, marks, submitted=False, order_key=key, told=told, times=len(told)
    )


CALLS = {
    one.write_id: one
    for one in (
        call(OK, "value"),
        call(UNTOLD, "CallerGone", number=2),
        call(TIMEOUT, "WriteTimeout", number=3),
        call(REFUSAL, "Refusal", number=4),
        call("bulk", "WriteTimeout", "value", number=5, rows=3),
    )
}
GOOD = Evidence(
    [OK, TIMEOUT, "bulk/0", "bulk/1", "bulk/2"],
    {"w": 2},
    {OK: "Committed", TIMEOUT: "Committed", REFUSAL: "Refused", "bulk": "Committed"},
    {UNTOLD: "NoneType", TIMEOUT: "Committed"},
)


def kinds(calls: dict[str, Call], a: Evidence, b: Evidence | None = None) -> set[str]:
    """The kinds of findings for two nodes, alike where one is given."""
    return {finding.kind for finding in judge(calls, {"a": a, "b": b or a})}


def test_a_kept_promise_is_no_finding() -> None:
    """Acknowledged once, refused nowhere, unknown ones as `outcome` says: nothing is found."""
    assert kinds(CALLS, GOOD) == set()
    assert [one.write_id for one in unknown(CALLS)] == [UNTOLD, TIMEOUT]


@pytest.mark.parametrize(
    ("kind", "change"),
    [
        ("lost", {"marks": [TIMEOUT, "bulk/0", "bulk/1", "bulk/2"]}),
        ("doubled", {"marks": [*GOOD.marks, OK]}),
        ("doubled", {"marks": [*GOOD.marks, "bulk/1"]}),
        ("present though refused", {"marks": [*GOOD.marks, REFUSAL]}),
        ("torn", {"marks": GOOD.marks[:-1]}),
        ("stranger", {"marks": [*GOOD.marks, "who"]}),
        ("miscounted", {"counts": {"w": 3}}),
        ("unresolved", {"marks": [*GOOD.marks, UNTOLD]}),
        ("unresolved", {"answers": {UNTOLD: "NoneType", TIMEOUT: "NoneType"}}),
        ("unresolved", {"answers": {UNTOLD: "Committed", TIMEOUT: "Committed"}}),
        ("ledger and rows differ", {"outcomes": {**GOOD.outcomes, OK: "Refused"}}),
        ("ledger and rows differ", {"outcomes": {**GOOD.outcomes, UNTOLD: "Committed"}}),
    ],
)
def test_each_broken_promise_is_found(kind: str, change: dict[str, Any]) -> None:
    """A doctored row or answer is named for what it is."""
    assert kind in kinds(CALLS, replace(GOOD, **change))


@pytest.mark.parametrize(
    "change",
    [
        {"marks": [OK, TIMEOUT, "bulk/0", "bulk/2", "bulk/1"]},
        {"outcomes": {**GOOD.outcomes, UNTOLD: "Expired"}},
        {"answers": {UNTOLD: "Expired", TIMEOUT: "Committed"}},
        {"counts": {"w": 2, "other": 1}},
    ],
)
def test_nodes_that_disagree_are_found(change: dict[str, Any]) -> None:
    """What differs from node to node is a finding, also where each alone would pass."""
    assert kinds(CALLS, GOOD, replace(GOOD, **change)) == {"nodes disagree"}


def test_told_both_ways_or_by_an_error_nobody_knows_is_found() -> None:
    """An answer that contradicts an earlier one, and one that promises nothing, are findings."""
    both = {OK: call(OK, "value", "Refusal")}
    assert "told both ways" in kinds(both, GOOD)
    assert "undocumented" in kinds({OK: call(OK, "OperationalError", "value")}, GOOD)


def test_writes_under_one_order_key_are_compared_with_the_order_of_their_calls() -> None:
    """The later call's row before the earlier one's is found, under one key only."""
    rows = Evidence(["2", "1"], {"w": 2}, {"1": "Committed", "2": "Committed"}, {})

    def two(first: str, second: str) -> dict[str, Call]:
        return {
            "1": call("1", "value", number=1, key=first),
            "2": call("2", "value", number=2, key=second),
        }

    assert kinds(two("k", "k"), rows) == {"out of order"}
    assert kinds(two("k", "other"), rows) == kinds(two("", ""), rows) == set()


def test_what_sent_nothing_is_refused_unless_it_was_called_before(tmp_path: Any) -> None:
    """A call that reached nobody is known not to have run; after an unknown one it is not."""
    log = Log(tmp_path / "log")
    for write_id in ("1", "2"):
        one = Call(write_id, "w", 1, [write_id], submitted=False)
        if write_id == "2":
            log.called(one, 1.0)
            log.told(write_id, "WriteTimeout")
        log.called(one, 9.0)
        log.told(write_id, "BrokerUnavailable", may_have_been_sent=False)
    log.close()
    lines = log.path.read_text().splitlines()
    calls = read(lines)
    assert (calls["1"].refused, calls["2"].refused) == (True, False)
    assert calls["2"].deadline == json.loads(lines[-2])["at"] + 9.0


def test_a_plan_is_drawn_from_its_seed_alone() -> None:
    """The same seed plans the same storm; no resource is hit twice at once, no kind is left out."""
    choices = {name: Kind(name[0], (1.0, 5.0)) for name in ("a1", "a2", "b1", "c1", "d1")}
    plan = draw(7, 50, choices, gap=(0.5, 2.0))
    assert plan == draw(7, 50, choices, gap=(0.5, 2.0)) != draw(8, 50, choices, gap=(0.5, 2.0))
    assert {fault.kind for fault in plan[:5]} == set(choices)
    running: set[int] = set()
    resources: list[str] = []
    for moment in moments(plan):
        if moment.begins:
            assert choices[moment.fault.kind].resource not in resources
            running.add(moment.fault.number)
            resources.append(choices[moment.fault.kind].resource)
        else:
            running.remove(moment.fault.number)
            resources.remove(choices[moment.fault.kind].resource)
        assert len(running) <= MOST_AT_ONCE
    assert not running
