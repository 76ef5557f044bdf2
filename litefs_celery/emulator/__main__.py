"""Runs an emulated cluster in the foreground until Ctrl-C."""

from __future__ import annotations

import argparse
import signal
import sys
from pathlib import Path
from typing import NoReturn

from litefs_celery.emulator.cluster import EmulatedCluster

_EXAMPLES = """\
examples:
  python -m litefs_celery.emulator --root /tmp/cluster
  python -m litefs_celery.emulator --root /tmp/cluster --nodes ams,fra --failover-gap 15
  sqlite3 /tmp/cluster/a/mount/app.db 'CREATE TABLE t(x)'      # on the primary
  sqlite3 /tmp/cluster/b/mount/app.db .tables                  # on a replica
  curl http://127.0.0.1:PORT/info
  curl -X POST http://127.0.0.1:PORT/promote
  curl -X POST http://127.0.0.1:PORT/emulator -d '{"lag_seconds": 2.5}'
  curl -X POST http://127.0.0.1:PORT/emulator -d '{"frozen": true, "candidate": false}'
"""


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m litefs_celery.emulator",
        description="Run a LiteFS cluster made of ordinary files; for laptops, not production.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--root", type=Path, required=True, help="directory; kept at the end")
    parser.add_argument("--nodes", default="a,b,c", help="names, with commas; default a,b,c")
    parser.add_argument("--failover-gap", type=float, default=1.0, help="seconds; default 1.0")
    parser.add_argument("--handoff-gap", type=float, default=0.3, help="seconds; default 0.3")
    return parser


def _table(cluster: EmulatedCluster) -> str:
    rows = [("node", "mount", "api")]
    rows += [(node.name, str(node.mount), node.api_url) for node in cluster.nodes]
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    lines = ("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows)
    return "\n".join(lines) + "\n"


def _interrupt(*_: object) -> NoReturn:
    raise KeyboardInterrupt


def main() -> int:
    """Start the cluster, print a table, and stop it at Ctrl-C or SIGTERM."""
    arguments = _parser().parse_args()
    signal.signal(signal.SIGTERM, _interrupt)
    cluster = EmulatedCluster(
        arguments.root,
        [name for name in arguments.nodes.split(",") if name],
        failover_gap=arguments.failover_gap,
        handoff_gap=arguments.handoff_gap,
    )
    try:
        with cluster:
            sys.stdout.write(_table(cluster) + "Ctrl-C ends the cluster and keeps its files.\n")
            sys.stdout.flush()
            while True:
                signal.pause()
    except KeyboardInterrupt:
        return 0


if __name__ == "__main__":
    sys.exit(main())
