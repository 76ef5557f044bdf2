"""Scenes for storms: the emulator, real LiteFS in both journal modes, and RabbitMQ beside it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from litefs_celery.emulator import EmulatedCluster
from litefs_celery.emulator.real import RealCluster, missing_programs
from tests.chaos.log import Log
from tests.chaos.scene import Scene
from tests.chaos.weather import Tell
from tests.cluster.brokers import missing_rabbit
from tests.cluster.site import Site

KINDS = ("emulator", "litefs-delete", "litefs-wal", "litefs-wal+rabbitmq")
# A lease of the least length that stands a busy machine: an election then takes ten seconds.
LEASE_TTL = 4.0
# Everything is sent again soon, so that a storm of minutes meets what takes a production hours.
ENVIRON = {
    "LITEFS_CELERY_OUTBOX_KEEPS": "all",
    "LITEFS_CELERY_OUTBOX_RESEND_INTERVAL": "3",
    "LITEFS_CELERY_RESEND_INTERVAL": "1",
    "LITEFS_CELERY_OUTBOX_GRACE": "3600",
}


@pytest.fixture(params=KINDS)
def scene_kind(request: pytest.FixtureRequest) -> str:
    """The kind of cluster."""
    kind: str = request.param
    return kind


@pytest.fixture
def tell(capsys: pytest.CaptureFixture[str]) -> Tell:
    """A function that prints although pytest captures: a storm takes minutes."""

    def printing(line: str) -> None:
        with capsys.disabled():
            print(line, flush=True)

    return printing


@pytest.fixture
def make_scene(tmp_path: Path) -> Iterator[Callable[..., Scene]]:
    """A function that starts a scene of a kind, whose processes import some more modules."""
    with ExitStack() as stack:

        def make(kind: str, *modules: str) -> Scene:
            kind, _, broker = kind.partition("+")
            missing = () if kind == "emulator" else missing_programs()
            if missing:
                pytest.skip(f"REAL LITEFS DID NOT RUN: {', '.join(missing)} not found on PATH")
            if broker and (missing := missing_rabbit()):
                pytest.skip(f"RABBITMQ DID NOT RUN: {', '.join(missing)} not found")
            root = tmp_path / "cluster"
            cluster: Any = (
                EmulatedCluster(root) if kind == "emulator"
                else RealCluster(root, lease_ttl=LEASE_TTL)
            )
            mode = "wal" if kind.endswith("wal") else "delete"
            site = Site(
                cluster, tmp_path, mode, "threads", ENVIRON,
                modules=("tests.chaos.marks", *modules), broker=broker or "redis",
            )
            log = Log(tmp_path / "calls.jsonl")
            scene = Scene(site, tmp_path, log, real=kind != "emulator")
            stack.callback(log.close)
            stack.callback(scene.stop)
            scene.start()
            return scene

        yield make


@pytest.fixture
def scene(make_scene: Callable[..., Scene], scene_kind: str) -> Scene:
    """A started scene."""
    return make_scene(scene_kind)
