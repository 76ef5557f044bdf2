"""The plan of a storm, drawn from its seed: which fault comes when, how long, and for whom."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

# A fault may begin while the one before lasts, but never a third: what each does must show.
MOST_AT_ONCE = 2


@dataclass(frozen=True)
class Kind:
    """
    How a kind of fault is drawn.

    Two that need the same ``resource`` never overlap. It lasts between the two seconds of
    ``lasts``; (0, 0) is over when it has begun.
    """

    resource: str
    lasts: tuple[float, float] = (0.0, 0.0)


@dataclass(frozen=True)
class Planned:
    """
    One fault: not before ``begins`` and not over before ``ends``, in seconds of the storm.

    ``pick``, in [0, 1), chooses among what there is then: which node is primary is not planned.
    """

    number: int
    kind: str
    begins: float
    ends: float
    pick: float

    def __str__(self) -> str:
        return (
            f"{self.number:3} {self.kind:26} {self.begins:6.1f} to {self.ends:6.1f} s, "
            f"pick {self.pick:.3f}"
        )


@dataclass(frozen=True)
class Moment:
    """A fault's begin or end."""

    at: float
    fault: Planned
    begins: bool


def draw(
    seed: int, count: int, kinds: Mapping[str, Kind], *, gap: tuple[float, float]
) -> list[Planned]:
    """
    ``count`` faults, the same for the same seed: each kind once before any comes again.

    ``gap`` is the least and the most seconds from one begin to the next.
    """
    rng = random.Random(seed)
    bag: list[str] = []
    busy_until: dict[str, float] = {}
    plan: list[Planned] = []
    at = 0.0
    for number in range(1, count + 1):
        if not bag:
            bag = sorted(kinds)
            rng.shuffle(bag)
        name = bag.pop()
        kind = kinds[name]
        at = max(at + rng.uniform(*gap), busy_until.get(kind.resource, 0.0))
        running = sorted(fault.ends for fault in plan if fault.ends > at)
        if len(running) >= MOST_AT_ONCE:
            at = running[-MOST_AT_ONCE]
        ends = at + rng.uniform(*kind.lasts)
        busy_until[kind.resource] = ends
        plan.append(Planned(number, name, round(at, 1), round(ends, 1), round(rng.random(), 3)))
    return plan


def moments(plan: Sequence[Planned]) -> list[Moment]:
    """Begins and ends in their order; of one instant, the end of a fault before another's begin."""
    found = [Moment(fault.begins, fault, begins=True) for fault in plan]
    found += [Moment(fault.ends, fault, begins=False) for fault in plan]
    return sorted(
        found, key=lambda moment: (moment.at, moment.fault.number, not moment.begins)
    )
