"""The figures of one site as a picture: rates, latencies, and ratios beside their targets."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.ticker import StrMethodFormatter

LATENCIES = {
    "raw": "raw commit on the primary", "replicated": "commit until a replica has it",
    "one": "one caller on a replica", "halt": "HALT lock on a replica",
    "handover": "longest call in a handover",
}
RATES = ("commits/s", "writes/s")
GREEN, RED, GREY = "#2a9d4a", "#c8402f", "#8a8f98"


def draw(name: str, found: dict[str, Any], file: Path) -> None:
    """Write the PNG of the site ``name``; ``found`` is its part of the results' JSON."""
    figure, panels = plt.subplots(3, 1, figsize=(11, 15), layout="constrained")
    _rates(panels[0], found["figures"])
    _latencies(panels[1], found["samples"])
    _ratios(panels[2], found["ratios"])
    figure.suptitle(f"{name}: medians of {found['rounds']} rounds, lowest and highest round")
    figure.savefig(file, dpi=110)
    plt.close(figure)


def _rates(axes: Any, figures: dict[str, Any]) -> None:
    rows = [(title, row) for title, row in figures.items() if row["unit"] in RATES]
    for place, (_, row) in enumerate(rows):
        axes.barh(place, row["median"], color=GREY)
        axes.plot([row["min"], row["max"]], [place, place], color="black")
        axes.text(row["max"] * 1.1, place, f"{row['median']:,.0f}", va="center")
    axes.set_yticks(range(len(rows)), [title for title, _ in rows], fontsize=8)
    axes.set_xscale("log")
    axes.set_xlim(right=3 * max(row["max"] for _, row in rows))
    axes.invert_yaxis()
    axes.set_title("writes or commits a second (log)")


def _latencies(axes: Any, samples: dict[str, Any]) -> None:
    for key, title in LATENCIES.items():
        if key in samples:
            quantiles = samples[key]["quantiles"]
            axes.plot([1000 * value for value in quantiles.values()],
                      [float(part) for part in quantiles], marker="o", label=title)
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axes.xaxis.set_minor_formatter(StrMethodFormatter("{x:g}"))
    axes.tick_params(axis="x", which="both", labelsize=7)
    axes.set_xlabel("milliseconds (log)")
    axes.set_ylabel("share of the calls that took no longer")
    axes.legend(fontsize=8)
    axes.set_title("how long a write takes")


def _ratios(axes: Any, rows: list[dict[str, Any]]) -> None:
    """Each median as a multiple of its target: on which side of it is told by the colour."""
    rows = [row for row in rows if row["target"] is not None]
    for place, row in enumerate(rows):
        sign, _, target = row["target"].partition(" ")
        share = row["median"] / float(target)
        axes.barh(place, share, color=GREEN if row["reached"] else RED)
        axes.text(share * 1.05, place, f"{row['median']:.3g} ({sign} {target})", va="center",
                  fontsize=8)
    axes.axvline(1.0, color="black", linewidth=0.8)
    axes.set_yticks(range(len(rows)), [row["title"] for row in rows], fontsize=8)
    axes.set_xscale("log")
    axes.set_xlim(right=30)
    axes.invert_yaxis()
    axes.set_title("median / target: green reached, red not")
