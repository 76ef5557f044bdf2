"""
The application of ``worker`` as the benchmarks run it: it notes when its consumer moves.

``BENCHMARK_TRACE`` names the file of JSON lines; with ``BENCHMARK_STEPS`` each step of each write
is noted as well, which costs some of what it measures.
"""

from __future__ import annotations

import os

from benchmarks.steps import Trace, install
from litefs_celery import observe

trace = Trace(os.environ.get("BENCHMARK_TRACE", os.devnull))
if os.environ.get("BENCHMARK_STEPS"):
    install(trace)

from worker.celeryapp import app  # noqa: E402 - the steps are wrapped before anything is made

__all__ = ["app"]


def _note(record: observe.Record) -> None:
    if isinstance(record, observe.ConsumerMoved):
        trace.note("consuming" if record.consuming else "not consuming", [])


observe.subscribe(_note)
