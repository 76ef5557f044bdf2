"""What is in this directory needs a Docker engine, and is skipped where none answers."""

from __future__ import annotations

import subprocess

import pytest


@pytest.fixture(scope="session", autouse=True)
def _engine() -> None:
    """Skip every test of this directory unless `docker info` succeeds."""
    try:
        ended = subprocess.run(["docker", "info"], capture_output=True, timeout=30, check=False)
        answers = ended.returncode == 0
    except (OSError, subprocess.TimeoutExpired):
        answers = False
    if not answers:
        pytest.skip("COMPOSE DID NOT RUN: no Docker engine answers `docker info`")
