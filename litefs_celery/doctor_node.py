"""This node's own settings, judged."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from .doctor_storage import outbox
from .findings import OK, WARNING, Finding

if TYPE_CHECKING:
    from .config import Settings
    from .database import LiteFSCelery

# A killed primary is replaced within this (docs/litefs.md).
FAILOVER = 22.0
# Submitted writes should outlive a restart of the primary's machine and of its worker.
LEAST_SUBMIT = 60.0


def examine(db: LiteFSCelery) -> list[Finding]:
    """Judge what this process is configured with."""
    return [
        mode(db.settings), *timeouts(db.settings), *_backend(db),
        *outbox(db.settings, db.path.parent),
    ]


def mode(settings: Settings) -> Finding:
    """Judge ``litefs_mode``."""
    if settings.mode == "litefs":
        return Finding("mode", OK, "litefs: a missing LiteFS is an error")
    if settings.mode == "standalone":
        return Finding("mode", WARNING, "standalone", "nothing is replicated: each node has a "
                       "database of its own", "set litefs_mode to litefs where LiteFS runs")
    return Finding(
        "mode", WARNING, "auto", "a node that sees no sign of LiteFS when it starts writes to a "
        "file of its own, which is replicated nowhere", "set litefs_mode (LITEFS_CELERY_MODE) to "
        "litefs in production",
    )


def timeouts(settings: Settings) -> Iterator[Finding]:
    """Judge how long writes may wait."""
    waits, submitted = settings.write_timeout, settings.submit_timeout
    if waits < FAILOVER:
        yield Finding(
            "timeouts", WARNING, f"litefs_write_timeout is {waits:g} s", "a failover takes up to "
            f"{FAILOVER:g} s: calls made in one end as WriteTimeout", "raise it to 30, or handle "
            "WriteTimeout with the same write_id",
        )
    if submitted < LEAST_SUBMIT:
        yield Finding(
            "timeouts", WARNING, f"litefs_submit_timeout is {submitted:g} s", "a submitted write "
            "expires in a failover or while the primary's worker restarts, and nobody waits for it",
            "raise it (default 3600)",
        )
    if waits >= FAILOVER and submitted >= LEAST_SUBMIT:
        yield Finding("timeouts", OK, f"write {waits:g} s, submit {submitted:g} s")


def _backend(db: LiteFSCelery) -> Iterator[Finding]:
    if not db.app.conf.result_backend:
        yield Finding(
            "result backend", OK, "none", '"committed but not readable here yet" is told as '
            "WriteTimeout instead of NotYetVisible, and @read has no .delay()",
            "set result_backend if the application tells these apart",
        )
