"""The kinds of cluster the suite runs on: the emulator, and real LiteFS in both journal modes."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import pytest

from litefs_celery.emulator import EmulatedCluster
from litefs_celery.emulator.real import RealCluster, missing_programs
from tests.cluster.site import Site

KINDS = ("emulator", "litefs-delete", "litefs-wal")


def _cluster(kind: str, root: Any) -> Any:
    if kind == "emulator":
        return EmulatedCluster(root)
    missing = missing_programs()
    if missing:
        pytest.skip(f"REAL LITEFS DID NOT RUN: {', '.join(missing)} not found on PATH")
    return RealCluster(root)


@pytest.fixture(scope="package", params=KINDS)
def running_site(request: pytest.FixtureRequest, tmp_path_factory: Any) -> Iterator[Site]:
    """A started site of one kind, shared by the suite."""
    directory = tmp_path_factory.mktemp(request.param)
    mode = "wal" if request.param.endswith("wal") else "delete"
    site = Site(
        _cluster(request.param, directory / "cluster"), directory, mode,
        os.environ.get("CLUSTER_TEST_POOL", "threads"),
    )
    try:
        site.start()
        yield site
    finally:
        site.stop()


@pytest.fixture
def site(running_site: Site) -> Site:
    """The site, healthy."""
    running_site.heal()
    return running_site
