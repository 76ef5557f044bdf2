"""What the commands share: the databases that one is about, and failures with their exit code."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from .routing import databases

if TYPE_CHECKING:
    from .database import LiteFSCelery

database_option = click.option(
    "--database", metavar="NAME", help="Only this one of several databases."
)


def selected(ctx: click.Context, name: str | None) -> list[LiteFSCelery]:
    """The application's databases, or the one of that name; a usage error where there is none."""
    app = ctx.obj.app
    app.loader.import_default_modules()
    dbs = databases(app)
    if not dbs:
        raise click.UsageError(f"the app {app.main!r} has no LiteFSCelery database: name your app "
                               "with `celery -A yourapp litefs …`")
    found = [db for db in dbs if name in (None, db.name)]
    if not found:
        raise click.UsageError(f"no database {name!r}: there are "
                               + ", ".join(sorted(db.name for db in dbs)))
    return found


def failure(message: str, code: int) -> click.ClickException:
    """An error that ends the command with this exit code."""
    error = click.ClickException(message)
    vars(error)["exit_code"] = code
    return error
