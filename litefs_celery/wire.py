"""`Write` and `Outcome`: what crosses the broker and the ledger, encoded and fingerprinted."""

from __future__ import annotations

import hashlib
import math
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import date, datetime, time
from decimal import Decimal
from typing import Any, Protocol
from uuid import UUID

from kombu.utils import json

from .errors import ArgumentError, RemoteError, WriteConflict, WriteExpired
from .refusals import decode_exception, encode_exception

if sys.version_info >= (3, 14):
    from uuid import uuid7
else:
    from uuid6 import uuid7

TAG = "__litefs__"
_SCALARS = (type(None), bool, int, float, str)
_RICH = (bytes, datetime, date, time, Decimal, UUID)  # kombu's JSON carries these
_KOMBU = {"__type__", "__value__"}


class Codec(Protocol):
    """Data types beyond the built-in ones: model instances and SQL criteria."""

    def encode(self, value: Any, inner: Callable[[Any, str], Any], path: str) -> Any:
        """``value`` as plain data, or NotImplemented."""

    def decode(self, tag: str, data: Any, inner: Callable[[Any], Any]) -> Any:
        """The value that ``encode`` made ``data`` of."""


@dataclass(frozen=True)
class Write:
    """
    One write: what to run, and until when.

    ``id`` is a UUIDv7 string and also the Celery task id; ``arguments`` the JSON text of
    positional and keyword arguments; ``deadline`` Unix time in seconds; ``fingerprint`` a hash
    of method and arguments. ``shown`` is what people see of the arguments, in Flower and logs.
    ``made`` says that it took effect once already, that somebody was told so, and that it was lost
    since with a primary: it is made again, also where the ledger says expired.
    """

    id: str
    method: str
    arguments: str
    origin: str
    deadline: float
    fingerprint: str
    shown: tuple[str, str] = field(default=("", ""), compare=False)
    made: bool = False

    @classmethod
    def new(
        cls,
        method: str,
        arguments: str,
        *,
        origin: str,
        deadline: float,
        write_id: str = "",
        shown: tuple[str, str] = ("", ""),
    ) -> Write:
        """A write with its fingerprint, and a fresh id unless one is given."""
        try:
            write_id = str(UUID(write_id)) if write_id else str(uuid7())
        except ValueError:
            raise ArgumentError(f"write_id={write_id!r} is no UUID: use uuid.uuid4()") from None
        mark = fingerprint(method, arguments)
        return cls(write_id, method, arguments, origin, deadline, mark, shown)


@dataclass(frozen=True)
class Committed:
    """The method returned ``value`` and its changes are committed."""

    value: Any
    epoch: int = 0


@dataclass(frozen=True)
class Refused:
    """The method raised ``exception``; everything it did was rolled back."""

    exception: Exception
    epoch: int = 0


@dataclass(frozen=True)
class Expired:
    """The deadline had passed; the write did not run and never will."""

    epoch: int = 0


Outcome = Committed | Refused | Expired


def kind_of(text: str) -> str:
    """``committed``, ``refused`` or ``expired``: which outcome the ledger's ``text`` is."""
    kind: str = next(iter(json.loads(text)))
    return kind


def unwrap(outcome: Outcome, write: Write) -> Any:
    """The value of ``outcome``, or its exception raised."""
    if isinstance(outcome, Committed):
        return outcome.value
    if isinstance(outcome, Refused):
        raise outcome.exception
    raise WriteExpired(
        f"{write.method} [{write.id}] reached the primary after its deadline: "
        "it did not run and never will",
        write.id,
        write.method,
    )


def conflict(write: Write) -> WriteConflict:
    """The error of a write whose id is already another's."""
    return WriteConflict(
        f"the id {write.id} was used before with another method or other arguments than this "
        f"{write.method}: nothing was changed; make a new id for each write",
        write.id,
        write.method,
    )


def fingerprint(method: str, arguments: str) -> str:
    """Hash of a write's content: 32 hexadecimal digits."""
    text = f"{method}\0{arguments}".encode()
    return hashlib.blake2b(text, digest_size=16).hexdigest()


class Wire:
    """Encodes and decodes values as JSON text, with ``codecs`` for what JSON does not know."""

    def __init__(self, *codecs: Codec, max_bytes: int) -> None:
        self._codecs = codecs
        self._max_bytes = max_bytes

    def dumps(self, value: Any, what: str) -> str:
        """JSON text of ``value``; raises `ArgumentError` naming the part that cannot be sent."""
        try:
            text: str = json.dumps(self._encode(value, what))
        except RecursionError:
            raise ArgumentError(f"{what} is nested too deeply, or holds itself") from None
        if len(text) > self._max_bytes:
            raise ArgumentError(
                f"{what} is {len(text)} bytes encoded, more than litefs_max_payload_bytes="
                f"{self._max_bytes}: send less at a time, or store it elsewhere and send a key"
            )
        return text

    def loads(self, text: str) -> Any:
        """The value of JSON ``text`` made by `dumps`."""
        return self._decode(json.loads(text))

    def dump_outcome(self, outcome: Outcome) -> str:
        """JSON text of an outcome, for the ledger."""
        if isinstance(outcome, Committed):
            return self.dumps({"committed": outcome.value}, "the result")
        if isinstance(outcome, Refused):
            refusal = encode_exception(outcome.exception, self.dumps)
            return self.dumps({"refused": refusal}, "the error")
        return '{"expired": true}'

    def load_outcome(self, text: str, epoch: int) -> Outcome:
        """The outcome in ``text``; an exception is rebuilt as its own class where possible."""
        data = self.loads(text)
        if "committed" in data:
            return Committed(data["committed"], epoch)
        if "refused" in data:
            return Refused(decode_exception(data["refused"]), epoch)
        return Expired(epoch)

    def _encode(self, value: Any, path: str) -> Any:
        if type(value) in _SCALARS or isinstance(value, _RICH):
            return self._scalar(value, path)
        if type(value) is list:
            return [self._encode(item, f"{path}[{i}]") for i, item in enumerate(value)]
        if type(value) in (tuple, set, frozenset):
            items = [self._encode(item, f"{path}[{i}]") for i, item in enumerate(value)]
            if type(value) is not tuple:
                # Their order differs between processes; a retry must keep its fingerprint.
                items.sort(key=json.dumps)
            return {TAG: type(value).__name__, "v": items}
        if isinstance(value, Mapping):
            return self._encode_mapping(value, path)
        for codec in self._codecs:
            data = codec.encode(value, self._encode, path)
            if data is not NotImplemented:
                return data
        raise ArgumentError(
            f"{path} is a {type(value).__module__}.{type(value).__qualname__}, which cannot be "
            "sent: use plain data, dates, Decimal, UUID, bytes, Enum members or model instances"
        )

    @staticmethod
    def _scalar(value: Any, path: str) -> Any:
        if type(value) is float and not math.isfinite(value):
            raise ArgumentError(f"{path} is {value!r}, which JSON cannot carry")
        if type(value) is str and not value.isascii():
            try:
                value.encode()
            except UnicodeEncodeError as error:
                raise ArgumentError(f"{path} is no valid text: {error}") from error
        return value

    def _encode_mapping(self, value: Mapping[Any, Any], path: str) -> Any:
        plain = all(type(key) is str for key in value)
        if plain and TAG not in value and value.keys() != _KOMBU:
            return {key: self._encode(item, f"{path}[{key!r}]") for key, item in value.items()}
        pairs = [
            [self._encode(key, f"{path} key"), self._encode(item, f"{path}[{key!r}]")]
            for key, item in value.items()
        ]
        return {TAG: "dict", "v": pairs}

    def _decode(self, value: Any) -> Any:
        if isinstance(value, list):
            return [self._decode(item) for item in value]
        if not isinstance(value, dict):
            return value
        tag = value.get(TAG)
        if tag is None:
            return {key: self._decode(item) for key, item in value.items()}
        if tag == "dict":
            return {self._decode(key): self._decode(item) for key, item in value["v"]}
        for kind in (tuple, set, frozenset):
            if tag == kind.__name__:
                return kind(self._decode(item) for item in value["v"])
        for codec in self._codecs:
            decoded = codec.decode(tag, value["v"], self._decode)
            if decoded is not NotImplemented:
                return decoded
        raise RemoteError(f"cannot decode data tagged {tag!r}: another version wrote it")
