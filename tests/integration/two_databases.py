"""An application with two databases on two mounts, for one worker."""

from __future__ import annotations

import os

from celery import Celery
from support import Team, User

from litefs_celery import LiteFSCelery, Repository, Settings

app = Celery("two", broker=os.environ["CELERY_BROKER_URL"], set_as_current=False)
app.conf.broker_connection_retry_on_startup = True


def database(name: str) -> LiteFSCelery:
    """Return the database whose place the environment names."""
    settings = Settings(
        node=os.environ[f"{name}_NODE"], api_url=os.environ[f"{name}_API"], mode="litefs"
    )
    return LiteFSCelery(app, os.environ[f"{name}_URL"], name=name, settings=settings)


people, places = database("people"), database("places")


class Users(Repository[User], db=people):
    """Users, in one database."""


class Teams(Repository[Team], db=places):
    """Teams, in the other."""
