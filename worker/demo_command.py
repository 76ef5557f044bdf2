"""``celery -A worker litefs demo``: hooks the demo into the command line."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click
from celery.bin.base import CeleryCommand

from litefs_celery.cli import litefs

EXAMPLES = """\b
Examples:
  celery -A worker litefs demo
  celery -A worker litefs demo --records 500 --json figures.json
  celery -A worker litefs demo --real --journal-mode wal
  celery -A worker litefs demo --keep          # then look at the pages and at Flower
\b
Exit codes: 0 nothing lost or doubled; 1 something was, or a part failed; 2 usage."""


@click.command(
    cls=CeleryCommand, epilog=EXAMPLES, short_help="Kill a primary during an import; compare all."
)
@click.option("--records", type=click.IntRange(10), help="How many; by default all, about 5,000.")
@click.option("--seed", type=int, default=0, show_default=True, help="Chooses and orders them.")
@click.option("--callers", type=click.IntRange(1), default=16, show_default=True,
              help="Concurrent callers on each of two nodes.")
@click.option("--real", is_flag=True, help="Real LiteFS and Consul instead of the emulator.")
@click.option("--journal-mode", type=click.Choice(["delete", "wal"]), default="delete",
              show_default=True, help="wal needs --real.")
@click.option("--directory", type=click.Path(file_okay=False, path_type=Path),
              help="Where all files go, and stay; by default a temporary one.")
@click.option("--json", "json_file", type=click.Path(dir_okay=False, path_type=Path),
              help="Save the figures.")
@click.option("--keep", is_flag=True, help="Leave all running until Ctrl-C, and print the URLs.")
def demo(**options: Any) -> None:
    """Three nodes import ~5,000 records; the primary is killed midway; then all is compared."""
    if options["journal_mode"] == "wal" and not options["real"]:
        raise click.UsageError("--journal-mode wal needs --real: the emulator ships delete only")
    from .demo import Options, run

    sys.exit(run(Options(**options)))


def register() -> None:
    """Add the demo to the commands of ``celery litefs``."""
    litefs.add_command(demo)
