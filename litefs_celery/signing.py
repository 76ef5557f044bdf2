"""Signs what travels of a write, so that only who holds a key can have one run: itsdangerous."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence

from .wire import Write

# Keys are derived with it: no signature of an application that shares a key is one of a write.
SALT = "litefs_celery write"
# Of the origin, which may be anything in a message that is refused.
SHOWN_LIMIT = 100


class WriteSigner:
    """
    Signatures, by HMAC-SHA256, of the writes on one queue.

    The first of ``keys`` signs, each of them is accepted. A signature covers all that travels of
    a write, its arguments whole (its fingerprint is a short hash, made to tell writes apart), and
    the queue, so that it is worth nothing on the queue of another database.
    """

    def __init__(self, keys: Sequence[str], queue: str) -> None:
        # Here only: half a megabyte that a worker without keys need not spend.
        from itsdangerous import Signer  # noqa: PLC0415

        self._queue = queue
        # itsdangerous wants the oldest first: the last one signs.
        self._signer = Signer(
            keys[::-1], SALT, key_derivation="hmac", digest_method=hashlib.sha256
        )

    def sign(self, write: Write) -> str:
        """The signature of ``write``, for its entry in the message's header."""
        return self._signer.get_signature(self._content(write)).decode()

    def check(self, write: Write, signature: object) -> None:
        """Raise ValueError, which says why, unless ``signature`` is that of ``write``."""
        if signature is None:
            raise ValueError(f"not signed, although litefs_signing_keys is set here{_of(write)}")
        if not isinstance(signature, str) or not self._signer.verify_signature(
            self._content(write), signature
        ):
            raise ValueError(
                "signature does not match: altered, of another queue, or signed with another key"
                + _of(write)
            )

    def _content(self, write: Write) -> str:
        # A list of JSON, all of it ASCII: no field can be taken for a part of its neighbour.
        return json.dumps([
            self._queue, write.id, write.method, write.arguments, write.origin, write.deadline,
            write.fingerprint, *write.shown, write.after,
        ])


def _of(write: Write) -> str:
    return (
        f" (write {write.id}; if node {write.origin[:SHOWN_LIMIT]!r} did send it, compare its "
        "litefs_signing_keys)"
    )
