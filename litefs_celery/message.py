"""The writes in one message of the broker: a Celery message (protocol 2) of the first one."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any
from uuid import UUID

from .signing import WriteSigner
from .wire import Write, fingerprint

# Under this name in the headers: a list with an entry for each write of the message.
HEADER = "litefs"
# AMQP's headers must fit into one frame: 131,072 bytes, also Celery's own (RabbitMQ 3.10).
HEADERS_LIMIT = 100_000
# What an entry takes beside its texts of any length: names, types, ids, marks.
ENTRY_BYTES = 500


def header(writes: Sequence[Write], signer: WriteSigner | None = None) -> list[dict[str, Any]]:
    """What travels of ``writes`` in the message's headers; their arguments are the task's."""
    entries = [
        {
            "id": write.id,
            "method": write.method,
            "origin": write.origin,
            "deadline": write.deadline,
            "fingerprint": write.fingerprint,
            "shown": write.shown,
            "after": write.after,
        }
        for write in writes
    ]
    if signer is not None:
        for entry, write in zip(entries, writes, strict=True):
            entry["signature"] = signer.sign(write)
    return entries


def arguments(writes: Sequence[Write]) -> tuple[str, ...]:
    """The task's positional arguments: the JSON text of each write's own."""
    return tuple(write.arguments for write in writes)


def bundles(writes: Sequence[Write], *, max_writes: int, max_bytes: int) -> Iterator[list[Write]]:
    """``writes`` in their order, in parts that each fit one message; one alone always does."""
    part: list[Write] = []
    size = headers = 0
    for write in writes:
        entry = _entry_bytes(write)
        full = len(part) >= max_writes or headers + entry > HEADERS_LIMIT
        if part and (full or size + len(write.arguments) > max_bytes):
            yield part
            part, size, headers = [], 0, 0
        part.append(write)
        size += len(write.arguments)
        headers += entry
    if part:
        yield part


def _entry_bytes(write: Write) -> int:
    return ENTRY_BYTES + len(write.method) + sum(
        len(text.encode(errors="surrogatepass")) for text in write.shown
    )


def writes_in(
    headers: Mapping[str, Any], body: Any, signer: WriteSigner | None = None
) -> list[Write]:
    """
    The writes of a message, at least one, each signed where there is a ``signer``.

    Raises ValueError saying what is wrong with it. One write that is wrong refuses them all: they
    were signed one by one but sent as one, so somebody had the others in hand as well; and who
    waits for one of those sends it again.
    """
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
    if signer is not None:
        for write, entry in zip(writes, own, strict=True):
            signer.check(write, entry.get("signature"))
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
        after=str(entry.get("after", "")),
    )
    if not math.isfinite(write.deadline):
        raise ValueError("the deadline never passes")
    if not (isinstance(write.method, str) and isinstance(write.arguments, str)):
        raise ValueError("method and arguments are text")  # noqa: TRY004 - as all else is
    return write
