"""What a process says of where it runs: its clock, versions, supervisor, and what must agree."""

from __future__ import annotations

import functools
import os
import time
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from .config import Settings

# Settings that one node's caller and another node's worker must have alike.
AGREED = (
    "primary_queue", "read_queue_prefix", "rejected_queue", "ledger_retention", "max_payload_bytes",
)
# What a supervisor leaves in the environment of what it starts (systemd.exec(5), supervisord's
# "Subprocess Environment", Kubernetes' service variables).
_SUPERVISORS = {
    "INVOCATION_ID": "systemd", "SUPERVISOR_ENABLED": "supervisord",
    "KUBERNETES_SERVICE_HOST": "Kubernetes",
}


def surroundings(settings: Settings) -> dict[str, Any]:
    """
    This process's ``time`` (seconds since 1970), versions, ``supervisor`` and agreed ``settings``.

    ``supervisor`` is empty where none shows itself, which does not mean that there is none.
    """
    return {
        "time": time.time(),
        "versions": {name: _version(name) for name in ("litefs-celery", "celery")},
        "supervisor": supervisor(os.environ, os.getpid()),
        "settings": {name: getattr(settings, name) for name in AGREED},
    }


def supervisor(environ: Mapping[str, str], pid: int) -> str:
    """Name who starts this process again when it ends; empty where nobody shows."""
    for variable, name in _SUPERVISORS.items():
        if environ.get(variable):
            return name
    return "a container engine" if pid == 1 else ""


@functools.cache
def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"
