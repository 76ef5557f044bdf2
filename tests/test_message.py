"""Writes come out of their message as they went in, or the message is refused as a whole."""

from __future__ import annotations

import json
from typing import Any

import pytest

from litefs_celery.message import HEADERS_LIMIT, arguments, bundles, header, writes_in
from litefs_celery.wire import Write


def a_write(**values: Any) -> Write:
    """Return a write with a deadline far away."""
    options = {"origin": "n1", "deadline": 2e9, "shown": ("(1,)", "{}"), **values}
    return Write.new("m.go", options.pop("text", "[[1], {}]"), **options)


def message(*writes: Write) -> tuple[dict, list]:
    """Return headers and body as Celery's protocol 2 has them, after their way as JSON."""
    headers = {"id": writes[0].id, "task": writes[0].method, "litefs": header(writes)}
    return tuple(json.loads(json.dumps([headers, [arguments(writes), {}, {"callbacks": None}]])))


def test_message_round_trip() -> None:
    """The writes of a message come out as they went in, what is shown of them included."""
    writes = [a_write(text=f"[[{number}], {{}}]") for number in range(3)]
    assert writes_in(*message(*writes)) == writes
    assert [write.shown for write in writes_in(*message(*writes))] == [("(1,)", "{}")] * 3


def test_bundles_keep_order_and_limits() -> None:
    """Every write is in one bundle, in order; no bundle exceeds a limit unless it is one write."""
    sizes = [10, 10, 10, 50, 10, 200, 10]
    writes = [a_write(text="x" * size) for size in sizes]
    parts = list(bundles(writes, max_writes=3, max_bytes=70))
    assert [write for part in parts for write in part] == writes
    assert [[len(write.arguments) for write in part] for part in parts] == [
        [10, 10, 10], [50, 10], [200], [10],
    ]
    assert list(bundles([], max_writes=3, max_bytes=70)) == []


@pytest.mark.parametrize("letter", ["x", "é", "\N{GRINNING FACE}", "\ud800"])
def test_bundles_keep_headers_small(letter: str) -> None:
    """What is shown of the arguments of a message's writes stays below what AMQP's headers hold."""
    writes = [a_write(text="x", shown=(letter * 1_024, "{}")) for _ in range(128)]
    parts = list(bundles(writes, max_writes=128, max_bytes=10_000))
    assert [write for part in parts for write in part] == writes
    sizes = [
        sum(len(text.encode(errors="surrogatepass")) for write in part for text in write.shown)
        for part in parts
    ]
    assert max(sizes) <= HEADERS_LIMIT
    assert len(parts) < 10


def first(headers: dict) -> dict:
    """Return what is said of the message's first write."""
    return headers["litefs"][0]


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda h, b: (h.pop("litefs"), b)[1], "no write"),
        (lambda h, b: (h.update(litefs="x"), b)[1], "no write"),
        (lambda h, b: (h.update(litefs=None), b)[1], "no write"),
        (lambda h, b: (h.update(litefs=[]), b)[1], "malformed"),
        (lambda h, b: (h.update(litefs=[7]), b)[1], "malformed"),
        (lambda h, b: (first(h).pop("origin"), b)[1], "malformed"),
        (lambda h, b: (first(h).pop("deadline"), b)[1], "malformed"),
        (lambda h, b: (first(h).update(deadline="soon"), b)[1], "malformed"),
        (lambda h, b: (first(h).update(deadline=None), b)[1], "malformed"),
        (lambda h, b: (first(h).update(deadline=10**400), b)[1], "malformed"),
        (lambda h, b: (first(h).update(deadline=float("nan")), b)[1], "malformed"),
        (lambda h, b: (first(h).update(deadline=float("inf")), b)[1], "malformed"),
        (lambda h, b: (first(h).update(fingerprint=""), b)[1], "damaged"),
        (lambda h, b: (first(h).update(method=["m.go"]), b)[1], "malformed"),
        (lambda h, b: (first(h).update(method="m.other"), b)[1], "damaged"),
        (lambda h, b: (first(h).update(shown="x"), b)[1], "malformed"),
        (lambda h, b: (h.pop("id"), b)[1], "malformed"),
        (lambda h, b: (h.update(id="7"), b)[1], "malformed"),
        (lambda h, b: (h.update(id=None), b)[1], "malformed"),
        (lambda h, b: (h.update(id=7), b)[1], "malformed"),
        (lambda h, b: (h.pop("task"), b)[1], "malformed"),
        (lambda h, b: (h.update(task="m.other"), b)[1], "damaged"),
        (lambda h, b: (first(h).update(method="\ud800"), b)[1], "malformed"),
        (lambda h, b: None, "malformed"),
        (lambda h, b: [], "malformed"),
        (lambda h, b: {}, "malformed"),
        (lambda h, b: b"\x80\x02", "malformed"),
        (lambda h, b: "text", "damaged"),
        (lambda h, b: [[], {}, {}], "malformed"),
        (lambda h, b: [[1, 2], {}, {}], "malformed"),
        (lambda h, b: [None], "malformed"),
        (lambda h, b: [[b[0][0][:-1]], {}, {}], "damaged"),
        (lambda h, b: [[None], {}, {}], "malformed"),
    ],
)
def test_malformed_messages_are_value_errors(change, told: str) -> None:
    """Whatever is wrong with a message, it is a ValueError that says so, and nothing else."""
    headers, body = message(a_write())
    body = change(headers, body)
    with pytest.raises(ValueError, match=told):
        writes_in(headers, body)


def test_one_damaged_write_refuses_its_message() -> None:
    """Nothing of a message is run where a part of it does not match its fingerprint."""
    headers, body = message(a_write(), a_write(text="[[2], {}]"))
    body[0][1] = "[[3], {}]"
    with pytest.raises(ValueError, match="damaged"):
        writes_in(headers, body)
