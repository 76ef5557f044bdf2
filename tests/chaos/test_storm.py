"""A seeded storm of faults over several writing nodes, on every kind of cluster."""

from __future__ import annotations

import os

import pytest

from tests.chaos.faults import all_kinds
from tests.chaos.scene import Scene
from tests.chaos.storm import draw
from tests.chaos.weather import Tell, Weather, told

# What CI runs; any other storm by these two variables.
SEED = int(os.environ.get("CHAOS_SEED", "1"))
FAULTS = {"emulator": 32, "litefs-delete": 20, "litefs-wal": 20, "litefs-wal+rabbitmq": 20}


@pytest.mark.timeout(1800)
def test_every_promise_outlives_a_storm(
    scene: Scene, scene_kind: str, tell: Tell
) -> None:
    """Acknowledged once on every node, refused nowhere, unknown resolvable, whatever dies."""
    count = int(os.environ.get("CHAOS_FAULTS", FAULTS[scene_kind]))
    replay = (
        f'CHAOS_SEED={SEED} CHAOS_FAULTS={count} make test ARGS="tests/chaos -k [{scene_kind}]"'
    )
    tell(f"\nstorm on {scene_kind}: {replay}")
    if not scene.has_disks:
        tell("DISK FULL IS LEFT OUT: a tmpfs cannot be mounted here")
    kinds = all_kinds(scene)
    gap = (8.0, 16.0) if scene.real else (0.8, 4.0)
    plan = draw(SEED, count, {name: kind for name, (kind, _) in kinds.items()}, gap=gap)
    weather = Weather(scene, {name: begin for name, (_, begin) in kinds.items()}, tell)
    try:
        findings = weather.run(plan, SEED, threads=3)
    except BaseException:
        tell(told([], plan, scene.log.path, replay))
        raise
    assert not findings, told(findings, plan, scene.log.path, replay)
