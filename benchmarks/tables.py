"""Which figures and ratios there are, and what is wanted of them."""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass, field
from typing import Any

from benchmarks.idle import PLAIN, PLAIN_MODELS
from benchmarks.stats import Book, Spread, Statistic, p50, p99, rate


@dataclass(frozen=True)
class Figure:
    """A statistic of the samples of one key, in a unit."""

    title: str
    key: str
    statistic: Statistic
    unit: str
    scale: float = 1.0

    def spread(self, book: Book) -> Spread | None:
        """Over the rounds; None where it was not measured."""
        if self.key not in book:
            return None
        return Spread.of([self.scale * value for value in book.rounds(self.key, self.statistic)])


def _ms(title: str, key: str, statistic: Statistic) -> Figure:
    return Figure(title, key, statistic, "ms", 1000)


mean = statistics.mean
FIGURES = (
    Figure("1 raw: one row a commit, sqlite3 on the primary", "raw", rate, "commits/s"),
    _ms("1 raw, p50", "raw", p50),
    _ms("1 raw, p99", "raw", p99),
    _ms("1 raw with ledger row, until a replica has it, p50", "replicated", p50),
    Figure("2 HALT: the same from a replica", "halt", rate, "commits/s"),
    _ms("2 HALT, p50", "halt", p50),
    _ms("2 HALT, p99", "halt", p99),
    _ms("3 one caller on a replica, p50", "one", p50),
    _ms("3 one caller on a replica, p99", "one", p99),
    Figure("4 64 callers on two replicas", "many", mean, "writes/s"),
    Figure("5 .delay on a replica, into its outbox", "submit", mean, "writes/s"),
    Figure("5 .delay on a replica, until readable there", "visible", mean, "writes/s"),
    Figure("6 grouped limit: 100 a commit, bare sqlite3", "grouped", rate, "writes/s"),
    _ms("7 Regions.get, p50", "get", p50),
    _ms("7 plain Session.get, p50", "plain_get", p50),
    _ms("8 new primary until it consumes, p50", "move", p50),
    _ms("8 new primary until it consumes, max", "moves", max),
    _ms("8 longest call while the role is handed over, p50", "handover", p50),
    _ms("8 longest call while the role is handed over, max", "handover", max),
    *(
        Figure(f"9 idle {title}: {what}", f"{key}_{part}", mean, unit, scale)
        for part, what, unit, scale in (
            ("commands", "broker commands", "/s", 1),
            ("mb", "memory (PSS)", "MB", 1),
            ("cpu", "processor", "ms/s", 1000),
        )
        for key, title in (
            ("replica", "replica's worker"),
            ("primary", "primary's worker"),
            (PLAIN, "plain Celery worker"),
            (PLAIN_MODELS, "plain Celery worker with SQLAlchemy"),
        )
    ),
)


@dataclass(frozen=True)
class Goal:
    """One figure, or how it compares with another of the same round, and what is wanted of it."""

    title: str
    key: str
    statistic: Statistic
    than: str = ""
    than_statistic: Statistic | None = None
    difference: bool = False
    at_most: dict[str, float] = field(default_factory=dict)
    at_least: dict[str, float] = field(default_factory=dict)

    def row(self, book: Book, site: str) -> dict[str, Any] | None:
        """Its spread over the rounds and the verdict on the median; None if not measured."""
        if self.key not in book or (self.than and self.than not in book):
            return None
        values = book.rounds(self.key, self.statistic)
        if self.than:
            others = book.rounds(self.than, self.than_statistic or self.statistic)
            values = [
                value - other if self.difference else value / other
                for value, other in zip(values, others, strict=True)
            ]
        spread = Spread.of(values)
        return {
            "title": self.title, "median": spread.median, "min": spread.low, "max": spread.high,
            **self._verdict(site, spread.median),
        }

    def _verdict(self, site: str, value: float) -> dict[str, Any]:
        most = self.at_most.get(site, self.at_most.get("", math.inf))
        least = self.at_least.get(site, self.at_least.get("", -math.inf))
        if math.isinf(most) and math.isinf(least):
            return {"target": None, "reached": None}
        target = f"<= {most:g}" if not math.isinf(most) else f">= {least:g}"
        return {"target": target, "reached": least <= value <= most}


# A target named "" holds on every kind of cluster.
GOALS = (
    Goal(
        "3 one caller / HALT, p50", "one", p50, "halt",
        at_most={"litefs-wal": 0.5, "litefs-delete": 0.5},
    ),
    Goal("3 one caller / HALT, p99", "one", p99, "halt"),
    Goal("3 one caller / a commit until a replica has it, p50", "one", p50, "replicated"),
    Goal("3 one caller / raw, p50", "one", p50, "raw"),
    Goal(
        "4 64 callers / raw, rate", "many", mean, "raw", rate,
        at_least={"litefs-delete": 10.0, "litefs-wal": 10.0},
    ),
    Goal(
        "4 64 callers / HALT, rate", "many", mean, "halt", rate,
        at_least={"litefs-delete": 50.0, "litefs-wal": 50.0},
    ),
    Goal("4 64 callers / grouped limit, rate", "many", mean, "grouped", rate),
    Goal("5 .delay until readable / raw, rate", "visible", mean, "raw", rate),
    Goal(
        "5 .delay until readable / grouped limit, rate", "visible", mean, "grouped", rate,
        at_least={"": 0.7},
    ),
    Goal("7 Regions.get / plain Session.get, p50", "get", p50, "plain_get", at_most={"": 1.05}),
    Goal("8 new primary consumes, p50, s", "move", p50, at_most={"": 0.25}),
    Goal("8 new primary consumes, max, s", "moves", max, at_most={"": 0.25}),
    Goal("8 longest call in a drained handover, s", "handover", max, at_most={"": 1.5}),
    *(
        Goal(f"9 idle {key}: broker commands, /s", f"{key}_commands", mean, at_most={"": 5})
        for key in ("replica", "primary")
    ),
    Goal("9 plain Celery worker: broker commands, /s", f"{PLAIN}_commands", mean),
    *(
        Goal(
            f"9 idle {key}: memory above a plain worker{what}, MB", f"{key}_mb", mean, f"{than}_mb",
            difference=True, at_most={"": 20},
        )
        for key in ("replica", "primary")
        for than, what in ((PLAIN, ""), (PLAIN_MODELS, " with SQLAlchemy"))
    ),
)
