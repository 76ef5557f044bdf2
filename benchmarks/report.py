"""The table that people read and the JSON that is kept."""

from __future__ import annotations

import datetime as dt
import importlib.metadata
import os
import platform
import sqlite3
import subprocess
from pathlib import Path
from typing import Any

from benchmarks.stats import Book
from benchmarks.tables import FIGURES, GOALS

PACKAGES = ("celery", "kombu", "redis", "sqlalchemy", "requests")


def machine(redis_version: str, *, litefs: bool) -> dict[str, Any]:
    """Describe what the figures depend on."""
    return {
        "date": dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
        "cores": os.cpu_count(),
        "load_at_start": os.getloadavg()[0],
        "processor": _processor(),
        "system": platform.platform(),
        "python": platform.python_version(),
        "sqlite": sqlite3.sqlite_version,
        "redis_server": redis_version,
        "litefs": _litefs() if litefs else None,
        **{name: importlib.metadata.version(name) for name in PACKAGES},
    }


def figures(book: Book) -> dict[str, Any]:
    """Each figure's median over rounds, lowest and highest round."""
    found = {}
    for figure in FIGURES:
        spread = figure.spread(book)
        if spread is not None:
            found[figure.title] = {
                "unit": figure.unit, "median": spread.median, "min": spread.low,
                "max": spread.high,
            }
    return found


def goals(book: Book, site: str) -> list[dict[str, Any]]:
    """Each ratio that was measured, with its target and whether it is reached."""
    return [row for goal in GOALS if (row := goal.row(book, site)) is not None]


def tell_machine(found: dict[str, Any]) -> None:
    """Print what the figures depend on."""
    print(", ".join(f"{key} {value}" for key, value in found.items() if value is not None),
          flush=True)
    if found["load_at_start"] > found["cores"] / 4:
        print(
            f"NOTE: the machine was busy at the start (load {found['load_at_start']:.1f} on "
            f"{found['cores']} cores): trust neither figures nor ratios of this run",
            flush=True,
        )


def tell_site(name: str, found: dict[str, Any]) -> None:
    """Print a site's figures and ratios; medians over rounds, and the lowest and highest round."""
    print(f"\n{name}: {found['rounds']} rounds, {found['writes']} writes, all found again\n")
    print(f"  {'figure':60}{'median':>10}{'min':>10}{'max':>10}")
    for title, row in found["figures"].items():
        print(f"  {title:60}{_numbers(row)} {row['unit']}")
    print(f"\n  {'ratio of the same round, or limit':60}{'median':>10}{'min':>10}{'max':>10}"
          "  target")
    for row in found["ratios"]:
        print(f"  {row['title']:60}{_numbers(row)}  {_verdict(row)}")
    calls = found["idle_commands"]
    if calls:
        print("\n  commands a second of idle workers:")
    for key, commands in calls.items():
        ordered = sorted(commands.items(), key=lambda pair: -pair[1])
        print(f"    {key:14}" + ", ".join(f"{name} {rate:.1f}" for name, rate in ordered))


def _numbers(row: dict[str, Any]) -> str:
    return "".join(_number(row[key]) for key in ("median", "min", "max"))


def _number(value: float) -> str:
    return f"{value:10,.0f}" if abs(value) >= 1000 else f"{value:10.3g}"


def _verdict(row: dict[str, Any]) -> str:
    if row["target"] is None:
        return ""
    return f"{row['target']:8} {'reached' if row['reached'] else 'NOT REACHED'}"


def _litefs() -> str:
    done = subprocess.run(["litefs", "version"], capture_output=True, text=True, check=False)
    return (done.stdout + done.stderr).strip()


def _processor() -> str:
    file = Path("/proc/cpuinfo")
    lines = file.read_text().splitlines() if file.exists() else []
    return next((line.partition(":")[2].strip() for line in lines if "model name" in line), "")
