"""Where the time of one write goes: from its steps as noted in all processes."""

from __future__ import annotations

import sys
import time
from collections import defaultdict
from typing import Any

from benchmarks.rounds import START_DELAY, THREADS, Sizes
from benchmarks.site import VISITED, Site
from benchmarks.stats import quantile

# What a caller waits for, in this order; the legs add up to the whole.
LEGS = (
    ("call", "publish", "caller: encode, hand over to the sending thread"),
    ("publish", "received", "caller: publish; broker; until the consumer has it"),
    ("received", "begin", "primary: decode, events, until the writer begins the group"),
    ("begin", "commit", "primary: BEGIN, look up, method, ledger row"),
    ("commit", "committed", "primary: COMMIT"),
    ("committed", "heard", "LiteFS: until the replica has it and its event is heard"),
    ("heard", "look", "replica: from the event to the look into the ledger"),
    ("look", "appeared", "replica: read the ledger, find the row"),
    ("appeared", "returned", "caller: decode, wake up, return"),
    ("call", "returned", "the whole call"),
)
# What goes on beside: nobody waits for it, but it takes time from those who do.
BESIDE = (
    ("publish", "published", "caller: publish, until the broker has answered"),
    ("committed", "confirmed", "primary: commit confirmed by position and /info"),
    ("confirmed", "answered", "primary: until the result is stored"),
)
Steps = dict[str, int]


def measure(site: Site, sizes: Sizes) -> dict[str, Any]:
    """Trace one caller, then many; ``site`` must note all steps."""
    near, far = (site.callers[node.name] for node in site.replicas()[:2])
    near.call("one", count=sizes.calls, code=VISITED)
    far.call("one", count=1, code=VISITED)
    site.settle()
    marks = [time.monotonic_ns()]
    near.call("one", count=sizes.calls * 3, code=VISITED)
    site.settle()
    marks.append(time.monotonic_ns())
    start = time.monotonic() + START_DELAY
    for caller in (near, far):
        caller.send("many", threads=THREADS, code=VISITED, start=start, seconds=sizes.seconds)
    for caller in (near, far):
        caller.answer()
    marks.append(time.monotonic_ns())
    site.settle()
    writes = _writes(site)
    return {
        "one caller": _legs(writes, marks[0], marks[1]),
        "64 callers": _legs(writes, marks[1], marks[2]),
    }


def tell(found: dict[str, Any]) -> None:
    """Print the legs of both cases."""
    for case, legs in found.items():
        print(f"\n  {case} ({legs['writes']} writes), ms {'p50':>41}{'p90':>9}{'mean':>9}")
        for title, row in legs["legs"].items():
            print(f"  {title:64}" + "".join(f"{row[key]:9.2f}" for key in ("p50", "p90", "mean")))
        print("  beside it:")
        for title, row in legs["beside"].items():
            print(f"  {title:64}" + "".join(f"{row[key]:9.2f}" for key in ("p50", "p90", "mean")))


def _writes(site: Site) -> list[Steps]:
    """List the steps of each write; of a step that it took twice, the first."""
    steps: dict[str, Steps] = defaultdict(dict)
    for node in site.nodes:
        for line in site.trace(node):
            for write_id in line["ids"]:
                steps[write_id].setdefault(line["step"], line["at"])
    return list(steps.values())


def _legs(writes: list[Steps], began: int, ended: int) -> dict[str, Any]:
    wanted = {step for leg in LEGS for step in leg[:2]}
    whole = [
        steps for steps in writes if wanted <= steps.keys() and began <= steps["call"] < ended
    ]
    if not whole:
        sys.exit("no write was traced from end to end: benchmarks/steps.py no longer fits")
    return {
        "writes": len(whole),
        "legs": {title: _leg(whole, first, last) for first, last, title in LEGS},
        "beside": {title: _leg(whole, first, last) for first, last, title in BESIDE},
    }


def _leg(writes: list[Steps], first: str, last: str) -> dict[str, float]:
    values = [
        (steps[last] - steps[first]) / 1e6 for steps in writes if last in steps and first in steps
    ] or [0.0]
    return {
        "p50": quantile(values, 0.5), "p90": quantile(values, 0.9),
        "mean": sum(values) / len(values),
    }
