"""What may lie in the queue of writes that is none: made by chance, from one seed."""

from __future__ import annotations

import base64
import json
import pickle
import random
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from litefs_celery.message import arguments, header
from litefs_celery.wire import Wire, Write

WIRE = Wire(max_bytes=1_000_000)
TYPES = [
    "application/x-python-serialize", "application/x-yaml", "application/x-msgpack", "text/plain",
    "application/data", "pickle", "", None, 5, "\ud800",
]
ENCODINGS = ["utf-16", "binary", "idna", "unicode_escape", "zlib", "rot13", "no such", "", None, 7]
ODD: list[Any] = [
    None, True, False, 0, -1, 2**63, 10**400, 1e308, float("nan"), float("inf"), "", "x", "\0",
    "\ud800", "🙂" * 50, "9" * 5_000, [], [[]], {}, {"a": {}}, [None] * 100, "x" * 50_000,
    {"__type__": "uuid", "__value__": {"hex": "zz"}}, {"__type__": "bytes", "__value__": "x"},
    {"__type__": "decimal", "__value__": "NaN"}, {"__type__": [], "__value__": {}},
    {"__litefs__": "instance", "v": {}},
]


class Touches:
    """Makes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self._path,)


class Garbage:
    """
    Items for the queue, by chance.

    Those of `surely` are no writes. Those of `perhaps` are made of valid writes, the decoys, by a
    change anywhere. One that is still a valid write is to run: what makes a write is that the
    fingerprint covers method and arguments, and that the ids of message and first write are one
    UUID. Origin, deadline, what is shown, and the id of a later write in its message are free
    (they are not signed), so that it may run under another id, but only with a decoy's content.
    """

    def __init__(
        self, seed: int, template: bytes, touched: Path, *, method: str, more: Sequence[str] = ()
    ) -> None:
        self._random = random.Random(seed)
        self._template = json.loads(template)
        self._method = method
        self._more = more
        self._touched = touched
        self.contents: set[tuple[str, str]] = set()

    def write(self, name: str) -> Write:
        """Return a valid write, whose content is known from now on."""
        text = WIRE.dumps([[name, *self._more], {}], "it")
        write = Write.new(self._method, text, origin="n2", deadline=time.time() + 3600.0)
        self.contents.add((write.method, write.fingerprint))
        return write

    def envelope(self, *writes: Write) -> dict[str, Any]:
        """Return a message as the sender makes it."""
        made = json.loads(json.dumps(self._template))
        own = {"id": writes[0].id, "root_id": writes[0].id, "task": writes[0].method}
        made["headers"] |= own | {"litefs": json.loads(json.dumps(header(writes)))}
        made["properties"]["delivery_tag"] = str(uuid.UUID(int=self._random.getrandbits(128)))
        made["body"] = _body([list(arguments(writes)), {}, {}])
        return made

    def valid(self, *writes: Write) -> bytes:
        """Return the item of that message."""
        return _item(self.envelope(*writes))

    def surely(self) -> Iterator[bytes]:
        """Yield what is no write, for ever."""
        kinds: list[Callable[[], bytes]] = [
            self._bytes, self._json, self._truncated, self._other_content, self._other_body,
            self._other_fingerprint, self._never_passes, self._uneven, self._pickle, self._yaml,
            self._no_property,
        ]
        while True:
            yield self._random.choice(kinds)()

    def perhaps(self) -> Iterator[bytes]:
        """Yield what was a write before something in it changed, for ever."""
        kinds = [self._flipped, self._odd_property, self._odd_header, self._odd_part, self._nested]
        while True:
            yield self._random.choice(kinds)()

    def _decoys(self) -> list[Write]:
        count = self._random.choice([1, 1, 2, 5])
        return [self.write(f"decoy {self._random.getrandbits(40)}") for _ in range(count)]

    def _bytes(self) -> bytes:
        return self._random.randbytes(self._random.choice([0, 1, 10, 100, 2_000]))

    def _json(self) -> bytes:
        value = self._random.choice(ODD)
        for _ in range(self._random.randrange(4)):
            value = self._random.choice([[value, value], {"headers": value}, {"properties": value}])
        return json.dumps(value).encode()

    def _truncated(self) -> bytes:
        item = self.valid(*self._decoys())
        return item[: self._random.randrange(len(item) - 1)]

    def _other_content(self) -> bytes:
        decoys = self._decoys()
        made = self.envelope(*decoys)
        texts = [write.arguments for write in decoys]
        texts[0] = WIRE.dumps([["forged"], {}], "it")
        made["body"] = _body([texts, {}, {}])
        return _item(made)

    def _other_body(self) -> bytes:
        made = self.envelope(*self._decoys())
        made["body"] = _body(self._random.choice(ODD))
        return _item(made)

    def _other_fingerprint(self) -> bytes:
        made = self.envelope(*self._decoys())
        entry = self._random.choice(made["headers"]["litefs"])
        entry["fingerprint"] = self._random.choice(
            [f"{self._random.getrandbits(128):032x}", "", None, 5, [entry["fingerprint"]]]
        )
        return _item(made)

    def _never_passes(self) -> bytes:
        made = self.envelope(*self._decoys())
        entry = self._random.choice(made["headers"]["litefs"])
        entry["deadline"] = self._random.choice(
            [float("nan"), float("inf"), -float("inf"), "NaN", 10**400, None, [], "soon"]
        )
        return _item(made)

    def _uneven(self) -> bytes:
        made = self.envelope(*self._decoys())
        entries = made["headers"]["litefs"]
        made["headers"]["litefs"] = self._random.choice([entries[1:], entries * 2, [], [entries]])
        return _item(made)

    def _pickle(self) -> bytes:
        made = self.envelope(*self._decoys())
        made["content-type"] = self._random.choice(["application/x-python-serialize", "pickle"])
        made["content-encoding"] = "binary"
        made["body"] = base64.b64encode(pickle.dumps(Touches(self._touched))).decode()
        return _item(made)

    def _yaml(self) -> bytes:
        made = self.envelope(*self._decoys())
        made["content-type"] = "application/x-yaml"
        text = f"!!python/object/apply:os.mknod ['{self._touched}']"
        made["body"] = base64.b64encode(text.encode()).decode()
        return _item(made)

    def _no_property(self) -> bytes:
        made = self.envelope(*self._decoys())
        gone = self._random.choice(["properties", "headers", "body", "content-type"])
        if gone == "properties" and self._random.random() < 0.5:
            del made[gone]["delivery_tag"]
        else:
            del made[gone]
        return _item(made)

    def _flipped(self) -> bytes:
        item = bytearray(self.valid(*self._decoys()))
        for _ in range(self._random.choice([1, 1, 1, 2, 8])):
            item[self._random.randrange(len(item))] ^= 1 << self._random.randrange(8)
        return bytes(item)

    def _odd_property(self) -> bytes:
        made = self.envelope(*self._decoys())
        place = self._random.choice([made, made["properties"], made["properties"]["delivery_info"]])
        key = self._random.choice([*place, "priority", "redelivered", "body_encoding"])
        odd = {"content-type": TYPES, "content-encoding": ENCODINGS}.get(key, ODD)
        place[key] = self._random.choice(odd)
        return _item(made)

    def _odd_header(self) -> bytes:
        made = self.envelope(*self._decoys())
        key = self._random.choice([*made["headers"], "compression", "redelivered", "x"])
        values = [*ODD, "application/x-gzip", "application/x-bz2", "no such"]
        made["headers"][key] = self._random.choice(values)
        return _item(made)

    def _odd_part(self) -> bytes:
        made = self.envelope(*self._decoys())
        entry = self._random.choice(made["headers"]["litefs"])
        entry[self._random.choice([*entry, "x"])] = self._random.choice(ODD)
        return _item(made)

    def _nested(self) -> bytes:
        made = self.envelope(*self._decoys())
        place = self._random.choice([made, made["headers"], made["properties"]])
        place[self._random.choice([*place, "x"])] = "<deep>"
        depth = self._random.choice([50, 500, *range(800, 1_000, 7), 20_000])
        return _item(made).replace(b'"<deep>"', b"[" * depth + b"]" * depth)


def _body(value: Any) -> str:
    return base64.b64encode(json.dumps(value).encode()).decode()


def _item(message: dict[str, Any]) -> bytes:
    return json.dumps(message).encode()
