"""Model instances as data: the model's name and its loaded column values."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from sqlalchemy import inspect
from sqlalchemy.orm import InstanceState, Mapper, make_transient_to_detached
from sqlalchemy.orm.attributes import set_committed_value
from sqlalchemy.orm.base import instance_state

from .errors import ArgumentError
from .wire import TAG


class InstanceCodec:
    """
    Carries instances of the models it was told of, and no others.

    Columns that are loaded travel, relationships do not. A persistent or detached instance
    arrives detached, a new one arrives transient.
    """

    def __init__(self) -> None:
        self._mappers: dict[str, Mapper[Any]] = {}

    def allow(self, model: type[Any]) -> None:
        """Let instances of every model in ``model``'s registry travel."""
        for mapper in inspect(model).registry.mappers:
            self._mappers[_name(mapper)] = mapper

    def encode(self, value: Any, inner: Callable[[Any, str], Any], path: str) -> Any:
        """The instance's data, or NotImplemented if it is no instance of an allowed model."""
        state = inspect(value, raiseerr=False)
        if not isinstance(state, InstanceState):
            return NotImplemented
        mapper = state.mapper
        self.allow(mapper.class_)
        _load_missing(state, mapper)
        loaded = state.dict
        values = {
            attribute.key: inner(loaded[attribute.key], f"{path}.{attribute.key}")
            for attribute in mapper.column_attrs
            if attribute.key in loaded
        }
        if state.key is not None and not values:
            raise ArgumentError(
                f"{path} is an expired {mapper.class_.__name__}: nothing of it is loaded; "
                "refresh it, or send its id"
            )
        known = state.key is not None
        return {TAG: "instance", "v": {"model": _name(mapper), "known": known, "values": values}}

    def decode(self, tag: str, data: Any, inner: Callable[[Any], Any]) -> Any:
        """The instance again, detached or transient."""
        if tag != "instance":
            return NotImplemented
        mapper = self._mapper(data["model"])
        values = {key: inner(value) for key, value in data["values"].items()}
        unknown = values.keys() - mapper.column_attrs.keys()
        if unknown:
            raise ArgumentError(f"{data['model']} has no column {', '.join(sorted(unknown))} here")
        instance = mapper.class_manager.new_instance()
        if not data["known"]:
            for key, value in values.items():
                setattr(instance, key, value)
            return instance
        for key, value in values.items():
            set_committed_value(instance, key, value)
        make_transient_to_detached(instance)
        return instance

    def _mapper(self, name: str) -> Mapper[Any]:
        try:
            return self._mappers[name]
        except KeyError:
            raise ArgumentError(f"no model {name} is known to this node's repositories") from None


def _load_missing(state: Any, mapper: Mapper[Any]) -> None:
    """
    Inside a write, read the columns that a flush left unloaded, such as those never set.

    The instance arrives detached, where they could not be read any more.
    """
    if state.session is None or not state.persistent:
        return
    missing = [
        attribute.key
        for attribute in mapper.column_attrs
        if attribute.key not in state.dict and not attribute.deferred
    ]
    if missing:
        state.session.refresh(state.obj(), missing)


def changed_columns(instance: Any) -> dict[str, Any]:
    """The column values of ``instance`` that were set since it was loaded."""
    state = instance_state(instance)
    return {
        attribute.key: state.dict[attribute.key]
        for attribute in state.mapper.column_attrs
        if attribute.key in state.dict and state.attrs[attribute.key].history.has_changes()
    }


def primary_key(instance: Any) -> tuple[Any, ...]:
    """The instance's primary key values; raises `ArgumentError` where one is missing."""
    mapper = inspect(type(instance))
    key = tuple(mapper.primary_key_from_instance(instance))
    if any(value is None for value in key):
        raise ArgumentError(f"this {type(instance).__name__} has no primary key: insert it first")
    return key


def _name(mapper: Mapper[Any]) -> str:
    # Not the module: a script's is __main__ on one node and its own name on another.
    return f"{mapper.local_table.description}.{mapper.class_.__qualname__}"
