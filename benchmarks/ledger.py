"""
What the ledger costs of a grouped commit, in an empty database and beside many rows.

    python -m benchmarks.ledger --rows 10000000

On a plain file, without LiteFS: what is compared is the committer with its ledger and without.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from sqlalchemy import text

WRITES, ROUNDS, FILL = 2_000, 7, 500_000
_FILL = text("""
    INSERT INTO _litefs_celery_ledger (write_id, method, fingerprint, outcome, epoch, committed_at)
    WITH RECURSIVE n(i) AS (SELECT :start UNION ALL SELECT i + 1 FROM n WHERE i < :end)
    SELECT printf('%08x-%04x-7000-8000-%012x', i >> 16, i & 65535, i), 'worker.repositories.visit',
        '0123456789abcdef0123456789abcdef', '{"committed": 1}', 1, :now FROM n
""")


def main() -> int:
    """Measure, print one line for each size of the ledger."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.ledger", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000, help="default 1,000,000")
    rows = parser.parse_args().rows
    with tempfile.TemporaryDirectory(prefix="litefs-celery-ledger-") as directory:
        os.environ |= {
            "APP_DATABASE_URL": f"sqlite:///{directory}/app.db",
            "LITEFS_CELERY_MODE": "standalone", "LITEFS_CELERY_PRUNE_INTERVAL": "1e9",
        }
        from worker.celeryapp import db  # noqa: PLC0415 - its settings are read from above
        from worker.models import Base, Region  # noqa: PLC0415
        from worker.repositories import regions  # noqa: PLC0415

        db.create_all(Base.metadata)
        regions.insert(Region(code="B-0", name="B-0"))
        for size in (0, rows):
            _fill(db, size)
            _tell(db, regions.visit.task_name, size, Path(directory))
        db.close()
    return 0


def _tell(db: Any, method: str, size: int, directory: Path) -> None:
    _seconds(db, method)
    found = [(_seconds(db, method), _without_ledger(db, method)) for _ in range(ROUNDS)]
    shares = [1 - without / whole for whole, without in found]
    whole = statistics.median(pair[0] for pair in found)
    megabytes = (directory / "app.db").stat().st_size / 1e6
    print(
        f"{size:>12,} rows ({megabytes:,.0f} MB): {WRITES / whole:,.0f} writes/s; the ledger is "
        f"{statistics.median(shares):.1%} of that ({min(shares):.1%} to {max(shares):.1%})",
        flush=True,
    )


def _seconds(db: Any, method: str) -> float:
    """Seconds for many writes, handed in at once: groups as large as they may be."""
    arguments = db.wire.dumps([["B-0"], {}], "arguments")
    writes = [
        db.new_write(method, arguments, timeout=600.0, write_id="", shown=("", ""))
        for _ in range(WRITES)
    ]
    term = db.parts.terms.current()
    began = time.perf_counter()
    for future in [db.committer.submit(write, term) for write in writes]:
        future.result()
    return time.perf_counter() - began


def _without_ledger(db: Any, method: str) -> float:
    from litefs_celery import ledger  # noqa: PLC0415

    find, record = ledger.find, ledger.record
    ledger.find, ledger.record = (lambda *_: {}), (lambda *_: None)
    try:
        return _seconds(db, method)
    finally:
        ledger.find, ledger.record = find, record


def _fill(db: Any, rows: int) -> None:
    for start in range(0, rows, FILL):
        sys.stderr.write(f"filling: {start:,} of {rows:,} rows\n")
        with db.parts.engines.setup.begin() as connection:
            values = {"start": start, "end": min(start + FILL, rows) - 1, "now": time.time()}
            connection.execute(_FILL, values)


if __name__ == "__main__":
    sys.exit(main())
