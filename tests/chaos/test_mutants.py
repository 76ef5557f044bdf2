"""A storm is worth something where it finds a product that was broken on purpose."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.chaos.faults import all_kinds
from tests.chaos.scene import Scene
from tests.chaos.storm import Planned
from tests.chaos.weather import Tell, Weather

# While the primary's worker is dead what was sent waits in the broker, which forgets it, and
# callers and outboxes send it again.
PLAN = [
    Planned(1, "worker killed", 1.0, 5.0, 0.0),
    Planned(2, "broker emptied", 2.0, 2.0, 0.0),
    Planned(3, "broker emptied", 4.0, 4.0, 0.0),
    Planned(4, "handoff", 7.0, 7.0, 0.0),
    Planned(5, "worker killed", 10.0, 14.0, 0.0),
    Planned(6, "broker emptied", 11.0, 11.0, 0.0),
    Planned(7, "broker emptied", 13.0, 13.0, 0.0),
]
SOUND = "sound"
MUTANTS: dict[str, set[str]] = {
    SOUND: set(), "without_ledger": {"doubled"}, "without_resend": {"lost"},
}


@pytest.mark.parametrize("mutant", MUTANTS)
def test_a_storm_tells_a_broken_product_from_a_sound_one(
    make_scene: Callable[..., Scene], mutant: str, tell: Tell
) -> None:
    """The same small storm finds nothing, doubled writes without ledger, lost ones unsent."""
    scene = make_scene("emulator", *([f"tests.chaos.{mutant}"] if mutant != SOUND else []))
    tell(f"\na small storm, {mutant.replace('_', ' ')}")
    begins = {name: begin for name, (_, begin) in all_kinds(scene).items()}
    findings = Weather(scene, begins, tell).run(PLAN, 1, threads=4, patience=10.0)
    found = {finding.kind for finding in findings}
    tell(f"found: {sorted(found)}")
    assert MUTANTS[mutant] <= found, findings
    assert mutant != SOUND or not findings, findings
