"""Exceptions as data, so that `except IntegrityError` works alike on replica and primary."""

from __future__ import annotations

import builtins
import sys
from collections.abc import Callable
from typing import Any, TypeVar, cast

from sqlalchemy.exc import DBAPIError

from .errors import ArgumentError, RemoteError

# Long enough for any message a person reads, short enough to keep in the ledger.
TEXT_LIMIT = 4_000
# Attributes that C code keeps outside of the instance's __dict__.
_SLOTS = ("sqlite_errorcode", "sqlite_errorname", "filename", "filename2")

T = TypeVar("T")
Dumps = Callable[[Any, str], str]


def encode_exception(exception: Exception, dumps: Dumps) -> dict[str, Any]:
    """
    Class, arguments and attributes of ``exception`` as data that ``dumps`` accepts.

    What ``dumps`` refuses with `ArgumentError` is replaced by its ``repr``.
    """
    kind = class_name(type(exception))
    if isinstance(exception, DBAPIError) and isinstance(exception.orig, Exception):
        # Not the statement and its parameters: they may hold data that must not travel.
        orig = encode_exception(exception.orig, dumps)
        return {"class": kind, "text": orig["text"], "orig": orig}
    data: dict[str, Any] = {"class": kind, "text": _text(str(exception))}
    data["args"] = [_sendable(value, dumps) for value in exception.args]
    state = {name: value for name, value in vars(exception).items() if name[:2] != "__"}
    slots = ((name, getattr(exception, name, None)) for name in _SLOTS)
    state |= {name: value for name, value in slots if value is not None}
    data["state"] = {name: _sendable(value, dumps) for name, value in state.items()}
    return data


def decode_exception(data: dict[str, Any]) -> Exception:
    """The exception again, or a `RemoteError` that names it where its class is not loaded."""
    kind = loaded_class(data["class"], Exception)
    if kind is None:
        return RemoteError(f"{data['class']}: {data['text']}", exception=data["class"])
    if "orig" in data:
        orig = decode_exception(data["orig"])
        if issubclass(kind, DBAPIError):
            # SQLAlchemy's own class where an application's has another constructor.
            known = next(base for base in kind.__mro__ if base.__module__ == DBAPIError.__module__)
            return cast("DBAPIError", known("(a statement on the primary)", None, orig))
        return orig
    try:
        exception = _instance(kind, data["args"])
        for name, value in data["state"].items():
            setattr(exception, name, value)
    except Exception:  # noqa: BLE001 - each class has its own rules; no caller may wait in vain
        return RemoteError(f"{data['class']}: {data['text']}", exception=data["class"])
    return exception


def _instance(kind: type[Exception], args: list[Any]) -> Exception:
    if getattr(builtins, kind.__name__, None) is kind:
        try:
            return cast("Exception", kind(*args))
        except (TypeError, ValueError):
            pass
    # Not kind(*args): constructors with other parameters than .args would fail.
    exception = kind.__new__(kind, *args)
    exception.args = tuple(args)
    return exception


def class_name(kind: type) -> str:
    """How a class is named in data: ``module:Qualified.name``."""
    return f"{kind.__module__}:{kind.__qualname__}"


def loaded_class(name: str, base: type[T]) -> type[T] | None:
    """That subclass of ``base`` in the modules already imported: data must not import code."""
    module, _, qualname = name.partition(":")
    found: Any = sys.modules.get(module)
    for part in qualname.split("."):
        found = getattr(found, part, None)
    return found if isinstance(found, type) and issubclass(found, base) else None


def _sendable(value: Any, dumps: Dumps) -> Any:
    try:
        text = dumps(value, "an attribute of the error")
    except ArgumentError:
        return _text(repr(value))
    return value if len(text) <= TEXT_LIMIT else _text(repr(value))


def _text(text: str) -> str:
    return text.encode("utf-8", "backslashreplace").decode()[:TEXT_LIMIT]
