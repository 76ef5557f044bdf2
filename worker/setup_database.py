"""Create the tables, once, on the primary: ``python -m worker.setup_database``."""

from __future__ import annotations

import argparse
import sys

from litefs_celery import LiteFSCeleryError

from .celeryapp import db
from .models import Base


def main() -> int:
    """Create what is missing, or on a replica wait until it is there; 1 with the reason if not."""
    parser = argparse.ArgumentParser(description="Create the tables on the primary.")
    parser.add_argument(
        "--journal-mode", choices=("delete", "wal"), default="delete",
        help="counts only when the database is created; must never change after",
    )
    parser.add_argument("--timeout", type=float, default=60.0, help="seconds; default 60")
    options = parser.parse_args()
    try:
        db.create_all(Base.metadata, journal_mode=options.journal_mode, timeout=options.timeout)
    except LiteFSCeleryError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    finally:
        db.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
