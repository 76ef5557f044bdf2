"""The writes in one message of the broker: a Celery message (protocol 2) of the first one."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any
from uuid import UUID

from .wire import Write, fingerprint

# Under this name in the headers: a list with an entry for each write of the message.
HEADER = "litefs"


def header(writes: Sequence[Write]) -> list[dict[str, Any]]:
    """What travels of ``writes`` in the message's headers; their arguments are the task's."""
    return [
        {
            "id": write.id,
            "method": write.method,
            "origin": write.origin,
            "deadline": write.deadline,
            "fingerprint": write.fingerprint,
            "shown": write.shown,
            **({"made": True} if write.made else {}),
        }
        for write in writes
    ]


def arguments(writes: Sequence[Write]) -> tuple[str, ...]:
    """The task's positional arguments: the JSON text of each write's own."""
    return tuple(write.arguments for write in writes)


def bundles(writes: Sequence[Write], *, max_writes: int, max_bytes: int) -> Iterator[list[Write]]:
    """``writes`` in their order, in parts that each fit one message; one alone always does."""
    part: list[Write] = []
    size = 0
    for write in writes:
        if part and (len(part) >= max_writes or size + len(write.arguments) > max_bytes):
            yield part
            part, size = [], 0
        part.append(write)
        size += len(write.arguments)
    if part:
        yield part


def writes_in(headers: Mapping[str, Any], body: Any) -> list[Write]:
    """The writes of a message, at least one; raises ValueError saying what is wrong with it."""
    own = headers.get(HEADER)
    if not isinstance(own, list):
        raise ValueError(f"no write: the {HEADER!r} header is missing")  # noqa: TRY004
    try:
        writes = [write_of(entry, text) for entry, text in zip(own, body[0], strict=True)]
        first = writes[0]
        whole = first.id == str(UUID(headers["id"])) and first.method == headers["task"]
        for write in writes:
            whole &= write.fingerprint == fingerprint(write.method, write.arguments)
    except (TypeError, ValueError, ArithmeticError, LookupError, AttributeError) as error:
        raise ValueError(f"malformed write: {error!r}") from error
    if not whole:
        raise ValueError("damaged write: the content does not match its fingerprint")
    return writes


def write_of(entry: Mapping[str, Any], text: str) -> Write:
    """The write of one entry of the header and its arguments; many errors where it is none."""
    shown_args, shown_kwargs = entry["shown"]
    write = Write(
        id=str(UUID(entry["id"])),
        method=entry["method"],
        arguments=text,
        origin=str(entry["origin"]),
        deadline=float(entry["deadline"]),
        fingerprint=str(entry["fingerprint"]),
        shown=(str(shown_args), str(shown_kwargs)),
        made=entry.get("made") is True,
    )
    if not math.isfinite(write.deadline):
        raise ValueError("the deadline never passes")
    if not (isinstance(write.method, str) and isinstance(write.arguments, str)):
        raise ValueError("method and arguments are text")  # noqa: TRY004 - as all else is
    return write
