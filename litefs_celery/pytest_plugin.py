"""
Fixtures: a LiteFS cluster of ordinary files, and failover on demand.

    def test_survives_failover(litefs_cluster):
        primary = litefs_cluster.primary()
        with closing(sqlite3.connect(primary.database())) as db:
            db.execute("CREATE TABLE t(x)")
        litefs_cluster.wait_synced()
        primary.kill()
        assert litefs_cluster.primary() is not primary

Other nodes, gaps or places come from overriding the fixture ``litefs_cluster_options``:

    @pytest.fixture
    def litefs_cluster_options(tmp_path):
        return LiteFSClusterOptions(root=tmp_path / "two", names=("a", "b"), failover_gap=0.2)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest

from litefs_celery.emulator import EmulatedCluster

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path


@dataclass(frozen=True)
class LiteFSClusterOptions:
    """Where the cluster lives, its nodes, and the seconds without a primary at each change."""

    root: Path
    names: Sequence[str] = ("a", "b", "c")
    failover_gap: float = 1.0
    handoff_gap: float = 0.3


@pytest.fixture
def litefs_cluster_options(tmp_path: Path) -> LiteFSClusterOptions:
    """Three nodes under ``tmp_path``; override it in a test module or conftest."""
    return LiteFSClusterOptions(root=tmp_path / "litefs")


@pytest.fixture
def litefs_cluster(litefs_cluster_options: LiteFSClusterOptions) -> Iterator[EmulatedCluster]:
    """Return a started cluster of its own for each test, stopped at its end."""
    options = litefs_cluster_options
    cluster = EmulatedCluster(
        options.root,
        options.names,
        failover_gap=options.failover_gap,
        handoff_gap=options.handoff_gap,
    )
    with cluster:
        yield cluster
