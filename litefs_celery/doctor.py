"""``celery -A yourapp litefs doctor``: every unsafe setting that can be seen from this node."""

from __future__ import annotations

import json
from concurrent.futures import TimeoutError as FutureTimeoutError
from pathlib import Path
from typing import TYPE_CHECKING

import click
from celery.bin.base import CeleryCommand

from . import doctor_broker, doctor_config, doctor_litefs, doctor_node, doctor_workers
from .commands import database_option, selected
from .errors import ConfigurationError
from .findings import (
    OK,
    UNSAFE,
    WARNING,
    Finding,
    counted,
    document,
    render,
    worst_first,
)

if TYPE_CHECKING:
    from .database import LiteFSCelery

EXAMPLES = """\b
Examples:
  celery -A yourapp litefs doctor
  celery -A yourapp litefs doctor --litefs-config /etc/litefs-b.yml
  celery -A yourapp litefs doctor --json | jq '.findings[] | select(.level == "unsafe")'
  celery -A yourapp litefs doctor --strict && deploy
\b
Exit codes: 0 nothing is unsafe; 1 something is (with --strict also: a warning, or something
that could not be seen); 2 usage, or settings that contradict each other. Run it on each node,
as the user and in the environment of its worker. It changes nothing."""


@click.command(cls=CeleryCommand, epilog=EXAMPLES)
@click.option("--litefs-config", type=click.Path(exists=True, dir_okay=False, path_type=Path),
              help="LiteFS's configuration; by default where LiteFS looks: ./litefs.yml, "
              "~/litefs.yml, /etc/litefs.yml.")
@click.option("--timeout", type=click.FloatRange(0, min_open=True), default=2.0, show_default=True,
              help="Seconds to wait for the workers' answers.")
@click.option("--strict", is_flag=True, help="Fail on warnings and unknowns, too.")
@click.option("--json", "as_json", is_flag=True, help="One JSON document instead of the list.")
@database_option
@click.pass_context
def doctor(
    ctx: click.Context, litefs_config: Path | None, timeout: float, database: str | None, *,
    strict: bool, as_json: bool,
) -> None:
    """Name the unsafe settings that this node can see, why, and what to do."""
    dbs = selected(ctx, database)
    findings = examine(dbs, litefs_config, timeout)
    told = document(dbs[0].settings.node, findings)
    click.echo(json.dumps(told, indent=2) if as_json else render(findings))
    counts = counted(findings)
    fails = len(findings) - counts[OK] if strict else counts[UNSAFE]
    ctx.exit(1 if fails else 0)


def examine(
    dbs: list[LiteFSCelery], litefs_config: Path | None, timeout: float
) -> list[Finding]:
    """Look everywhere, and return the findings, worst first; ``timeout`` is of the workers."""
    found = []
    for db in dbs:
        found += doctor_node.examine(db)
        kind = _standing(db)
        found += kind
        if not kind or kind[0].level != WARNING:
            found += doctor_config.examine(litefs_config, db.settings, db.path)
            found += doctor_litefs.examine(db)
    found += doctor_broker.examine(dbs, timeout)
    found += doctor_workers.examine(dbs, timeout)
    return worst_first(found)


def _standing(db: LiteFSCelery) -> list[Finding]:
    """Whether this process would go without LiteFS; a warning where it would."""
    if db.settings.mode == "litefs":
        return []
    try:
        alone = doctor_litefs.within(doctor_litefs.MOUNT_TIMEOUT, lambda: db.standalone)
    except FutureTimeoutError:
        return []  # told by the look at the mount
    except ConfigurationError as error:
        return [Finding("mode", UNSAFE, str(error), "no call is made in this state",
                        "start LiteFS here, then set litefs_mode to litefs")]
    return [Finding("standalone", WARNING, f"{db.path} is used without LiteFS",
                    "nothing is replicated, and nothing of LiteFS was judged",
                    "on a node, start LiteFS and set litefs_mode to litefs")] if alone else []
