"""The Celery application and its database; both are told where they are by the environment."""

from __future__ import annotations

import os

from celery import Celery

from litefs_celery import LiteFSCelery

app = Celery("worker")
app.conf.update(
    broker_url=os.environ.get("CELERY_BROKER_URL", "redis://127.0.0.1:6379/0"),
    result_backend=os.environ.get("CELERY_RESULT_BACKEND", "") or None,
    broker_connection_retry_on_startup=True,
    worker_cancel_long_running_tasks_on_connection_loss=False,
    worker_hijack_root_logger=True,
)
db = LiteFSCelery(app, os.environ.get("APP_DATABASE_URL", "sqlite:////litefs/app.db"))
app.set_default()

import worker.repositories  # noqa: E402
import worker.tasks  # noqa: E402,F401 - Celery must know all tasks
