"""Ordinary tasks of the application, which run beside the writes."""

from __future__ import annotations

from .celeryapp import app
from .repositories import regions


@app.task
def visit_all(codes: list[str]) -> int:
    """Visit each region in turn, from whichever node runs this; returns the visits counted."""
    return sum(regions.visit(code) > 0 for code in codes)
