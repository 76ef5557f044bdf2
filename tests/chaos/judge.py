"""The comparison at the end: the log of what was told against what every node holds."""

from __future__ import annotations

import itertools
from collections import Counter, defaultdict
from collections.abc import Collection, Mapping
from dataclasses import dataclass

from tests.chaos.log import Call


@dataclass(frozen=True)
class Evidence:
    """
    What one node holds.

    ``marks`` in the order of their rows; ``counts`` by writer; ``outcomes`` what its ledger says
    of each write id (the class of the outcome), ``answers`` what `db.outcome` said of those whose
    caller does not know.
    """

    marks: list[str]
    counts: Mapping[str, int]
    outcomes: Mapping[str, str]
    answers: Mapping[str, str]


@dataclass(frozen=True)
class Finding:
    """One broken promise: of which kind, and about what."""

    kind: str
    about: str

    def __str__(self) -> str:
        return f"{self.kind}: {self.about}"


def judge(calls: Mapping[str, Call], nodes: Mapping[str, Evidence]) -> list[Finding]:
    """Every promise that the nodes and the log break together; empty when all were kept."""
    findings = _agreement(nodes)
    for name, node in nodes.items():
        found = Counter(node.marks)
        for call in calls.values():
            findings += [
                Finding(kind, f"{_story(call)}, on {name}: {what}")
                for kind, what in _one(call, found, node)
            ]
        strangers = found.keys() - {mark for call in calls.values() for mark in call.marks}
        findings += [Finding("stranger", f"on {name}: {mark}") for mark in sorted(strangers)]
        findings += _counts(name, node, calls.values()) + _order(name, node, calls.values())
    for call in calls.values():
        findings += [Finding("undocumented", f"{_story(call)}: {e}") for e in call.undocumented]
    return findings


def unknown(calls: Mapping[str, Call]) -> list[Call]:
    """The calls whose callers were told neither way."""
    return [call for call in calls.values() if not call.acknowledged and not call.refused]


def _one(call: Call, found: Counter[str], node: Evidence) -> list[tuple[str, str]]:
    """What is wrong with one write on one node."""
    there = [found[mark] for mark in call.marks]
    committed = node.outcomes.get(call.write_id) == "Committed"
    wrong = []
    if max(there) > 1:
        wrong.append(("doubled", f"{max(there)} times"))
    if len({bool(count) for count in there}) > 1:
        wrong.append(("torn", f"{sum(map(bool, there))} of {len(there)} rows"))
    if call.acknowledged and not all(there):
        wrong.append(("lost", f"acknowledged, ledger: {node.outcomes.get(call.write_id)}"))
    if call.refused and any(there):
        wrong.append(("present though refused", ""))
    if call.acknowledged and call.refused:
        wrong.append(("told both ways", ""))
    if any(there) != committed:
        said = node.outcomes.get(call.write_id, "no row")
        wrong.append(("ledger and rows differ", f"ledger: {said}, rows: {sum(there)}"))
    if not call.acknowledged and not call.refused:
        answer = node.answers.get(call.write_id, "not asked")
        if (answer == "Committed") != any(there):
            wrong.append(("unresolved", f"outcome() says {answer}, rows: {sum(there)}"))
    return wrong


def _agreement(nodes: Mapping[str, Evidence]) -> list[Finding]:
    (first, one), *others = nodes.items()
    findings = []
    for name, other in others:
        for what in ("marks", "counts", "outcomes", "answers"):
            mine, theirs = getattr(one, what), getattr(other, what)
            if mine != theirs:
                about = f"{what} of {first} and {name}: {_difference(mine, theirs)}"
                findings.append(Finding("nodes disagree", about))
    return findings


def _difference(
    mine: Mapping[str, object] | list[str], theirs: Mapping[str, object] | list[str]
) -> str:
    if isinstance(mine, Mapping) and isinstance(theirs, Mapping):
        keys = [key for key in mine.keys() | theirs.keys() if mine.get(key) != theirs.get(key)]
        return ", ".join(f"{key}: {mine.get(key)} and {theirs.get(key)}" for key in keys[:3])
    here, there = Counter(mine), Counter(theirs)
    odd = list((here - there) + (there - here))[:3]
    return f"{odd}" if odd else "in another order"


def _counts(name: str, node: Evidence, calls: Collection[Call]) -> list[Finding]:
    """A writer's counter must say how many of its marks are there: each was counted with it."""
    single: dict[str, set[str]] = defaultdict(set)
    for call in calls:
        if len(call.marks) == 1:
            single[call.writer].update(call.marks)
    found = Counter(node.marks)
    wrong = [
        (writer, node.counts.get(writer), sum(found[mark] for mark in single[writer]))
        for writer in sorted(single)
    ]
    return [
        Finding("miscounted", f"on {name}: {writer} counted {counted}, has {marked} marks")
        for writer, counted, marked in wrong
        if counted != marked
    ]


def _order(name: str, node: Evidence, calls: Collection[Call]) -> list[Finding]:
    """Writes under one order key lie in the order of their calls; those without a key, in any."""
    place = {mark: index for index, mark in reversed(list(enumerate(node.marks)))}
    keyed: dict[str, list[Call]] = defaultdict(list)
    for call in calls:
        if call.order_key and call.marks[0] in place:
            keyed[call.order_key].append(call)
    findings = []
    for key, chain in keyed.items():
        chain.sort(key=lambda call: call.number)
        findings += [
            Finding("out of order", f"on {name}, under {key}: {_story(later)}")
            for earlier, later in itertools.pairwise(chain)
            if place[earlier.marks[0]] > place[later.marks[0]]
        ]
    return findings


def _story(call: Call) -> str:
    told = ", ".join(one["kind"] for one in call.told) or "nothing"
    way = "submitted" if call.submitted else "called"
    times = f"{way} {call.times} times"
    return f"{call.write_id} ({call.writer} number {call.number}, {times}, told {told})"
