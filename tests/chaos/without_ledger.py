"""A broken product: the ledger is not asked whether a write has been made already."""

from __future__ import annotations

from typing import Any

from litefs_celery import ledger

ledger.find = lambda _connection, _ids: {}
# Its row would keep a second one out.
ledger._RECORD = ledger._RECORD.replace("INSERT INTO", "INSERT OR REPLACE INTO")

REPOSITORIES: dict[str, Any] = {}
