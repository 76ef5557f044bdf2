"""
The reference node: a small application whose regions of the world can be edited on any node.

``celery -A worker worker`` runs its worker, ``python -m worker.web`` its web process,
``celery -A worker litefs demo`` a cluster of them.
"""

from .celeryapp import app
from .demo_command import register

register()

__all__ = ["app"]
