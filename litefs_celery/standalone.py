"""Whether there is no LiteFS at all: decided once, and never where it could hide a dead mount."""

from __future__ import annotations

import sqlite3
from pathlib import Path
from urllib.parse import quote

from .config import Settings
from .errors import ConfigurationError, LiteFSUnreachable, MountUnavailable
from .ledger import TERMS
from .litefs import LiteFSNode
from .observe import logger

# Where LiteFS looks for its configuration, after the working directory.
LITEFS_CONFIGS = (Path("litefs.yml"), Path.home() / "litefs.yml", Path("/etc/litefs.yml"))


def stands_alone(path: Path, settings: Settings, node: LiteFSNode) -> bool:
    """
    True where everything is local; raises `ConfigurationError` where that cannot be told safely.

    A mount that is dead looks like a plain directory, and a file made there is lost.
    """
    if settings.mode == "litefs":
        return False
    sign = _sign_of_litefs(path, settings, node)
    if settings.mode == "auto" and sign:
        return False
    if sign:
        raise ConfigurationError(
            f"litefs_mode is 'standalone', but {sign}: a write here would not be replicated, or "
            "be lost. Set litefs_mode to 'litefs', or use another database file"
        )
    doubt = _doubt(path) if settings.mode == "auto" else ""
    if doubt:
        raise ConfigurationError(
            f"no LiteFS answers, and {doubt}: this may be a LiteFS node whose mount is missing. "
            "Start LiteFS, or set litefs_mode to 'standalone' if there is none"
        )
    logger.warning("no LiteFS found: %s is used alone, everything is local", path)
    return True


def _sign_of_litefs(path: Path, settings: Settings, node: LiteFSNode) -> str:
    if settings.has_fixed_role:
        return "litefs_fixed_primary or litefs_primary_region is set"
    try:
        if node.is_mounted() or node.position(path.name) is not None:
            return f"{path.parent} is a LiteFS mount"
    except MountUnavailable as error:
        return str(error)
    try:
        node.info()
    except LiteFSUnreachable:
        pass
    else:
        return f"LiteFS answers at {settings.api_url}"
    if settings.api_url != Settings.api_url:
        return f"litefs_api_url={settings.api_url} is set"
    return ""


def _doubt(path: Path) -> str:
    for config in LITEFS_CONFIGS:
        if config.is_file() and str(path.parent) in config.read_text(errors="replace"):
            return f"{config} names {path.parent}"
    if path.parent.is_dir() and not any(path.parent.iterdir()):
        return f"{path.parent} is empty, as a mount point without its mount is"
    if path.exists() and _was_on_litefs(path):
        return f"{path} has been on LiteFS before"
    return ""


def _was_on_litefs(path: Path) -> bool:
    try:
        connection = sqlite3.connect(f"file:{quote(str(path))}?mode=ro", uri=True)
        try:
            query = f"SELECT 1 FROM {TERMS} WHERE litefs_id != '' LIMIT 1"  # noqa: S608
            return connection.execute(query).fetchone() is not None
        finally:
            connection.close()
    except sqlite3.Error:
        return False
