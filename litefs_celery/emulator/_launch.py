"""
Starts a module of the emulator without importing the whole product.

``python -m litefs_celery.emulator.daemon`` works too, but first runs ``litefs_celery/__init__.py``
and so imports everything the product needs, which costs each daemon most of its start. Here the
parent packages are empty shells that only know where their modules are.
"""

from __future__ import annotations

import runpy
import sys
from pathlib import Path
from types import ModuleType

if __name__ == "__main__":
    here = Path(__file__).resolve().parent
    for name, path in (("litefs_celery", here.parent), ("litefs_celery.emulator", here)):
        shell = ModuleType(name)
        shell.__path__ = [str(path)]
        sys.modules[name] = shell
    module = sys.argv.pop(1)
    runpy.run_module(f"litefs_celery.emulator.{module}", run_name="__main__", alter_sys=True)
