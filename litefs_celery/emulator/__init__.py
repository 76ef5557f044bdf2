"""
A LiteFS cluster made of ordinary files, for laptops and tests: no FUSE, no root, no Docker.

It is never a production mode, and it ships rollback-journal databases only.
"""

from litefs_celery.emulator.cluster import EmulatedCluster
from litefs_celery.emulator.node import EmulatedNode

__all__ = ["EmulatedCluster", "EmulatedNode"]
