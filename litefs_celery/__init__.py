"""Write from any node of a web application whose SQLite database is replicated by LiteFS."""

from .config import Settings
from .database import LiteFSCelery
from .errors import (
    ArgumentError,
    BrokerUnavailable,
    ConfigurationError,
    DatabaseMissing,
    LiteFSCeleryError,
    LiteFSUnreachable,
    MethodMisuse,
    MountUnavailable,
    NotYetVisible,
    OpenReadTransaction,
    OutboxFull,
    RemoteError,
    UnknownMethod,
    WriteConflict,
    WriteError,
    WriteExpired,
    WriteTimeout,
)
from .methods import read, write
from .repository import Repository
from .results import ReadResult, WriteResult
from .wire import Committed, Expired, Outcome, Refused

__all__ = [
    "ArgumentError",
    "BrokerUnavailable",
    "Committed",
    "ConfigurationError",
    "DatabaseMissing",
    "Expired",
    "LiteFSCelery",
    "LiteFSCeleryError",
    "LiteFSUnreachable",
    "MethodMisuse",
    "MountUnavailable",
    "NotYetVisible",
    "OpenReadTransaction",
    "OutboxFull",
    "Outcome",
    "ReadResult",
    "Refused",
    "RemoteError",
    "Repository",
    "Settings",
    "UnknownMethod",
    "WriteConflict",
    "WriteError",
    "WriteExpired",
    "WriteResult",
    "WriteTimeout",
    "read",
    "write",
]
