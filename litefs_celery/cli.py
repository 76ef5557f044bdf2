"""``celery -A yourapp litefs …``: who is primary, hand the role over, prune the ledger."""

from __future__ import annotations

import functools
import json
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click
from celery.bin.base import CeleryCommand, handle_preload_options
from kombu.exceptions import OperationalError
from sqlalchemy.exc import SQLAlchemyError

from . import handover, ledger, overview
from .commands import database_option, failure, selected
from .doctor import doctor
from .errors import ConfigurationError, LiteFSCeleryError
from .promotion import Promotion
from .roles import Kind

if TYPE_CHECKING:
    from .database import LiteFSCelery

WRONG, USAGE, UNREACHABLE = 1, 2, 3
STATUS_EXAMPLES = """\b
Examples:
  celery -A yourapp litefs status
  celery -A yourapp litefs status --json | jq .databases.default.primary
  celery -A yourapp litefs status --local        # this node only, without the broker
\b
Exit codes: 0 each database has one primary, which consumes, and each node knows it;
1 something is wrong, and is said below the table; 2 usage; 3 the broker cannot be
reached or no worker answered."""
PROMOTE_EXAMPLES = """\b
Examples:
  celery -A yourapp litefs promote                 # this node
  celery -A yourapp litefs promote --node b --timeout 60
  celery -A yourapp litefs promote --json | jq .consuming"""
PRUNE_EXAMPLES = """\b
Examples:
  celery -A yourapp litefs prune --older-than 172800 --batch 500
  celery -A yourapp litefs prune --json | jq .default.pruned"""

_json = click.option("--json", "as_json", is_flag=True,
                     help="One JSON document at the end; progress goes to standard error.")


class _Group(click.Group):
    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except LiteFSCeleryError as error:
            code = USAGE if isinstance(error, ConfigurationError) else WRONG
            raise failure(str(error), code) from error


@click.group(cls=_Group)
@click.pass_context
@handle_preload_options
def litefs(_ctx: click.Context, **_preload: Any) -> None:
    """See and steer the writes to a SQLite database on LiteFS."""


@litefs.command(cls=CeleryCommand, epilog=STATUS_EXAMPLES)
@click.option("--timeout", type=click.FloatRange(0, min_open=True), default=2.0, show_default=True,
              help="Seconds to wait for the workers' answers.")
@click.option("--json", "as_json", is_flag=True, help="One JSON document instead of the table.")
@click.option("--local", is_flag=True, help="This node's own look; asks no broker, no worker.")
@database_option
@click.pass_context
def status(
    ctx: click.Context, timeout: float, database: str | None, *, as_json: bool, local: bool
) -> None:
    """Show each node's role and position, and how many writes wait."""
    dbs = selected(ctx, database)
    if local:
        document = overview.local(dbs)
    else:
        try:
            document = overview.of_all(dbs, timeout)
        except OperationalError as error:
            raise failure(
                f"the broker cannot be reached: {error}. Check broker_url; --local shows this "
                "node without it", UNREACHABLE,
            ) from error
    click.echo(json.dumps(document, indent=2) if as_json else overview.render(document))
    problems = any(found["problems"] for found in document["databases"].values())
    ctx.exit(UNREACHABLE if not document["answered"] else WRONG if problems else 0)


@litefs.command(cls=CeleryCommand, epilog=PROMOTE_EXAMPLES)
@click.option("--node", metavar="NAME", help="The node to make primary; by default this one.")
@click.option("--timeout", type=click.FloatRange(0, min_open=True), default=30.0, show_default=True,
              help="Seconds until giving up.")
@_json
@database_option
@click.pass_context
def promote(
    ctx: click.Context, node: str | None, timeout: float, database: str | None, *, as_json: bool
) -> None:
    """
    Make a node the primary, with nothing under way.

    The primary takes no writes while it hands over; their callers wait for about a second.
    """
    dbs = selected(ctx, database)
    tell = functools.partial(click.echo, err=as_json)
    for db in dbs:
        handover.check_movable(db)
    target = node or dbs[0].settings.node
    promotion = Promotion(target, timeout, tell=tell, warn=functools.partial(click.echo, err=True))
    for group in handover.by_litefs(dbs):
        promotion.hand_over(group[0])
    consuming = {db.name: promotion.await_consumer(db) for db in dbs}
    if as_json:
        click.echo(json.dumps({"primary": target, "consuming": consuming}))


@litefs.command(cls=CeleryCommand, epilog=PRUNE_EXAMPLES)
@click.option("--older-than", type=click.FloatRange(0), metavar="SECONDS",
              help="Age of what goes; by default litefs_ledger_retention.")
@click.option("--batch", type=click.IntRange(1), default=1_000, show_default=True,
              help="Rows in one transaction.")
@click.option("--force", is_flag=True, help="Also what a redelivered write may still need.")
@_json
@database_option
@click.pass_context
def prune(
    ctx: click.Context, older_than: float | None, batch: int, database: str | None, *, force: bool,
    as_json: bool,
) -> None:
    """Delete old outcomes from the ledger; on the primary only."""
    tell = functools.partial(click.echo, err=as_json)
    found = {}
    for db in selected(ctx, database):
        age = db.settings.ledger_retention if older_than is None else older_than
        least = max(db.settings.submit_timeout, db.settings.write_timeout)
        if age < least and not force:
            raise failure(f"a write may come again for {least:.0f} s (litefs_submit_timeout, "
                           "litefs_write_timeout), and would run twice without its row: use a "
                           "larger --older-than, or --force", USAGE)
        role = db.role()
        if role.kind not in (Kind.PRIMARY, Kind.STANDALONE):
            where = f"the primary is {role.primary}" if role.primary else role.reason
            raise failure(f"{db.name}: this node ({db.settings.node}) is not primary; {where}. "
                           "Run it on the primary", WRONG)
        pruned, left = _prune(db, time.time() - age, batch, tell)
        found[db.name] = {"pruned": pruned, "left": left}
    if as_json:
        click.echo(json.dumps(found))


def _prune(
    db: LiteFSCelery, before: float, batch: int, tell: Callable[[str], None]
) -> tuple[int, int]:
    total = 0
    while True:
        started = time.monotonic()
        try:
            with db.parts.engines.setup.begin() as connection:
                pruned = ledger.prune(connection, before=before, limit=batch)
                left = ledger.size(connection)
        except SQLAlchemyError as error:
            raise failure(f"{db.name}: stopped after {total} rows: {error}. If this node is no "
                           "longer primary, run it on the one that is", WRONG) from error
        total += pruned
        tell(f"{db.name}: {total} rows pruned, {left} left")
        if pruned < batch:
            return total, left
        # As long as the write lock was held: the writes of others come in between.
        time.sleep(time.monotonic() - started)


litefs.add_command(doctor)
