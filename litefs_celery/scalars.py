"""Enum members and time spans as data: what columns hold and JSON does not know."""

from __future__ import annotations

import enum
from collections.abc import Callable
from datetime import timedelta
from typing import Any

from .errors import ArgumentError
from .refusals import class_name, loaded_class
from .wire import TAG


class ScalarCodec:
    """Carries Enum members by class and name, and timedeltas by their whole parts."""

    def encode(self, value: Any, _inner: Callable[[Any, str], Any], _path: str) -> Any:
        """The value's data, or NotImplemented."""
        if isinstance(value, enum.Enum):
            return {TAG: "enum", "v": [class_name(type(value)), value.name]}
        if isinstance(value, timedelta):
            return {TAG: "timedelta", "v": [value.days, value.seconds, value.microseconds]}
        return NotImplemented

    def decode(self, tag: str, data: Any, _inner: Callable[[Any], Any]) -> Any:
        """The value again; raises `ArgumentError` where the class is not loaded here."""
        if tag == "timedelta":
            days, seconds, microseconds = data
            return timedelta(days, seconds, microseconds)
        if tag != "enum":
            return NotImplemented
        kind = loaded_class(data[0], enum.Enum)
        if kind is None or data[1] not in kind.__members__:
            raise ArgumentError(f"no Enum member {data[0]}.{data[1]} is known to this node")
        return kind[data[1]]
