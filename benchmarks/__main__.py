"""``python -m benchmarks``: measure, print, keep."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks import handovers, idle, moves, plots, report, where
from benchmarks.rounds import FULL, QUICK, Rounds, Sizes
from benchmarks.site import Site
from benchmarks.stats import Book
from litefs_celery.emulator.real import missing_programs
from worker.fleet import ROOT

RESULTS = Path("benchmarks/results/latest.json")
EXAMPLES = """\
examples:
  python -m benchmarks                            # both journal modes on real LiteFS
  python -m benchmarks --quick --cluster emulator
  python -m benchmarks --where --journal-mode wal # where the time of one write goes
Exit codes: 0 measured, whether or not the targets are reached; 1 failed; 2 usage."""


def main() -> int:
    """Measure each site, print its tables, write the file."""
    options = _parser().parse_args()
    cluster = _cluster(options.cluster)
    modes = _modes(options.journal_mode, cluster)
    # So that the processes of nodes can run modules of this package wherever they are started.
    paths = [str(ROOT), os.environ.get("PYTHONPATH", "")]
    os.environ["PYTHONPATH"] = os.pathsep.join(path for path in paths if path)
    sizes = QUICK if options.quick else FULL
    document: dict[str, Any] = {"options": vars(options) | {"output": options.output.name}}
    document |= {"machine": None, "sites": {}}
    run = _trace if options.where else _measure
    for mode in modes:
        directory = Path(tempfile.mkdtemp(prefix="litefs-celery-bench-"))
        site = Site(cluster, mode, directory, steps=options.where)
        try:
            run(site, sizes, options.seed, document)
        except BaseException:
            sys.stderr.write(f"{site.name}: failed; logs are in {directory}\n")
            raise
        shutil.rmtree(directory, ignore_errors=True)
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(document, indent=1) + "\n")
    print(f"\nkept in {options.output}")
    for name, found in document["sites"].items():
        if not options.where:
            picture = options.output.with_name(f"{options.output.stem}-{name}.png")
            plots.draw(name, found, picture)
            print(f"drawn in {picture}")
    return 0


def _measure(site: Site, sizes: Sizes, seed: int, document: dict[str, Any]) -> None:
    book = Book()
    with site:
        _note_machine(site, document)
        rounds = Rounds(site, sizes, seed)
        rounds.run(book, _tell)
        moves.measure(site, book, sizes.moves, _tell)
        writes = rounds.check()
        handovers.measure(site, book, sizes.moves, _tell)
        commands = idle.measure(site, book, sizes.idle_seconds, _tell)
    found = {
        "rounds": sizes.rounds, "writes": writes, "figures": report.figures(book),
        "ratios": report.goals(book, site.name), "idle_commands": commands,
        "samples": book.quantiles(),
    }
    document["sites"][site.name] = found
    report.tell_site(site.name, found)


def _trace(site: Site, sizes: Sizes, _seed: int, document: dict[str, Any]) -> None:
    with site:
        _note_machine(site, document)
        found = where.measure(site, sizes)
    document["sites"][site.name] = found
    print(f"\n{site.name}: where the time of one write goes")
    where.tell(found)


def _note_machine(site: Site, document: dict[str, Any]) -> None:
    if document["machine"] is None:
        version = site.redis.client().info("server")["redis_version"]
        found = document["machine"] = report.machine(version, litefs=site.kind == "litefs")
        report.tell_machine(found)


def _tell(what: str) -> None:
    sys.stderr.write(f"{what}\n")


def _cluster(wanted: str | None) -> str:
    missing = missing_programs()
    if wanted == "litefs" and missing:
        sys.stderr.write(f"--cluster litefs needs {', '.join(missing)}, which are not here\n")
        sys.exit(2)
    if wanted is None and missing:
        sys.stderr.write(
            f"REAL LITEFS IS NOT MEASURED: {', '.join(missing)} not found. What follows is the "
            "EMULATOR: no HALT lock, no WAL, and no statement about LiteFS\n"
        )
    return wanted or ("emulator" if missing else "litefs")


def _modes(wanted: str, cluster: str) -> list[str]:
    if cluster == "litefs":
        return ["wal", "delete"] if wanted == "both" else [wanted]
    if wanted == "wal":
        sys.stderr.write("the emulator has no WAL: use --journal-mode delete, or real LiteFS\n")
        sys.exit(2)
    return ["delete"]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description=__doc__, epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--quick", action="store_true", help="2 short rounds: whether it works")
    parser.add_argument("--cluster", choices=("emulator", "litefs"), help="default: LiteFS if here")
    parser.add_argument("--journal-mode", choices=("wal", "delete", "both"), default="both")
    parser.add_argument(
        "--output", type=Path, metavar="FILE.json", default=RESULTS,
        help=f"where all figures are kept; default {RESULTS}",
    )
    parser.add_argument("--seed", type=int, default=0, help="of the rounds' order; default 0")
    parser.add_argument("--where", action="store_true", help="where the time of one write goes")
    return parser


if __name__ == "__main__":
    sys.exit(main())
