"""
The kinds of cluster the suite runs on: the emulator, and real LiteFS in both journal modes.

The broker is Redis, or RabbitMQ where the kind says so.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from typing import Any

import pytest

from litefs_celery.emulator import EmulatedCluster
from litefs_celery.emulator.real import RealCluster, missing_programs
from tests.cluster.brokers import missing_rabbit
from tests.cluster.site import OLD_KEY, SIGNING_KEYS, Site

KINDS = ("emulator", "litefs-delete", "litefs-wal", "emulator+rabbitmq", "litefs-wal+rabbitmq")


def _cluster(kind: str, root: Any) -> Any:
    if kind == "emulator":
        return EmulatedCluster(root)
    missing = missing_programs()
    if missing:
        pytest.skip(f"REAL LITEFS DID NOT RUN: {', '.join(missing)} not found on PATH")
    return RealCluster(root)


def _sites(
    request: pytest.FixtureRequest, factory: Any, environ: Mapping[str, str] | None = None
) -> Iterator[Site]:
    kind, _, broker = request.param.partition("+")
    if broker and (missing := missing_rabbit()):
        pytest.skip(f"RABBITMQ DID NOT RUN: {', '.join(missing)} not found on PATH")
    directory = factory.mktemp(f"{kind}-{broker}")
    site = Site(
        _cluster(kind, directory / "cluster"), directory,
        "wal" if kind.endswith("wal") else "delete",
        os.environ.get("CLUSTER_TEST_POOL", "threads"), environ, broker=broker or "redis",
    )
    try:
        site.start()
        yield site
    finally:
        site.stop()


@pytest.fixture(scope="package", params=KINDS)
def running_site(request: pytest.FixtureRequest, tmp_path_factory: Any) -> Iterator[Site]:
    """A started site of one kind, shared by the suite."""
    yield from _sites(request, tmp_path_factory)


@pytest.fixture(scope="module", params=KINDS)
def running_kept_site(request: pytest.FixtureRequest, tmp_path_factory: Any) -> Iterator[Site]:
    """The same, with an outbox on each node, which sends again soon, and a key to sign with."""
    environ = {
        "LITEFS_CELERY_OUTBOX_DIR": str(tmp_path_factory.mktemp("outbox")),
        "LITEFS_CELERY_OUTBOX_RESEND_INTERVAL": "3",
        "LITEFS_CELERY_OUTBOX_KEEPS": "all",
        SIGNING_KEYS: OLD_KEY,
    }
    yield from _sites(request, tmp_path_factory, environ)


@pytest.fixture(scope="module", params=KINDS)
def running_small_site(request: pytest.FixtureRequest, tmp_path_factory: Any) -> Iterator[Site]:
    """The same with small outboxes, which forget soon, and small groups."""
    environ = {
        "LITEFS_CELERY_OUTBOX_DIR": str(tmp_path_factory.mktemp("outbox")),
        "LITEFS_CELERY_OUTBOX_LIMIT_BYTES": "500000",
        "LITEFS_CELERY_OUTBOX_GRACE": "2",
        "LITEFS_CELERY_GROUP_LIMIT": "8",
        "LITEFS_CELERY_PREFETCH_LIMIT": "16",
    }
    yield from _sites(request, tmp_path_factory, environ)


@pytest.fixture
def small_site(running_small_site: Site) -> Site:
    """The site with small limits, healthy."""
    running_small_site.heal()
    return running_small_site


@pytest.fixture
def kept_site(running_kept_site: Site) -> Site:
    """The site with outboxes and keys, healthy."""
    running_kept_site.heal()
    return running_kept_site


@pytest.fixture
def site(running_site: Site) -> Site:
    """The site, healthy."""
    running_site.heal()
    return running_site
