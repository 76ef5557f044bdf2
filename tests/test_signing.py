"""With a key nothing runs that was not signed, as a whole, for the queue on which it came."""

from __future__ import annotations

import itertools
import json
import time
import uuid
from collections.abc import Callable
from typing import Any

import pytest
from celery.app.utils import bugreport
from support import celery_app

from litefs_celery import ConfigurationError, Settings
from litefs_celery.message import arguments, header, writes_in
from litefs_celery.signing import WriteSigner
from litefs_celery.wire import Write, fingerprint

QUEUE = "litefs-primary"
OLD, NEW, OTHER = ("old-" * 8, "new-" * 8, "other-" * 6)
SIGNER = WriteSigner((NEW,), QUEUE)
UNSIGNED, ALTERED = "not signed", "signature does not match"


def a_write(**values: Any) -> Write:
    """Return a write with a deadline far away."""
    options = {"origin": "n1", "deadline": 2e9, "shown": ("(1,)", "{}"), **values}
    return Write.new("m.go", options.pop("text", "[[1], {}]"), **options)


def message(*writes: Write, signer: WriteSigner | None = SIGNER) -> tuple[dict, list]:
    """Return headers and body as Celery's protocol 2 has them, after their way as JSON."""
    headers = {"id": writes[0].id, "task": writes[0].method, "litefs": header(writes, signer)}
    return tuple(json.loads(json.dumps([headers, [arguments(writes), {}, {"callbacks": None}]])))


def accepts(signer: WriteSigner, by: WriteSigner) -> bool:
    """Whether ``signer`` takes what ``by`` signed; anything but a refusal for that is an error."""
    write = a_write()
    try:
        assert writes_in(*message(write, signer=by), signer) == [write]
    except ValueError as error:
        assert ALTERED in str(error)  # noqa: PT017 - the other way is no error
        return False
    return True


def test_what_is_signed_comes_out_as_it_went_in() -> None:
    """Signed writes are read as unsigned ones are, whatever text is in them."""
    texts = ['[["tea"], {}]', '[["Tee \\" \\\\, [é] 茶 🫖"], {}]', "", "x" * 100_000]
    writes = [
        a_write(text=text, shown=(text[:9], "…"), deadline=time.time() + number / 7)
        for number, text in enumerate(texts)
    ]
    assert writes_in(*message(*writes), SIGNER) == writes
    assert [write.shown for write in writes_in(*message(*writes), SIGNER)] == [
        write.shown for write in writes
    ]


def test_without_keys_a_signature_is_not_looked_at() -> None:
    """A node that has no key yet takes writes of those that have: keys can be handed out."""
    write = a_write()
    assert writes_in(*message(write)) == [write]
    assert "signature" not in message(write, signer=None)[0]["litefs"][0]


# What is done to a message's headers, the entry of its one write there, and its arguments.
CHANGES: dict[str, Callable[[dict, dict, list], object]] = {
    "id": lambda headers, entry, texts: headers.update(id=NEW_ID),
    "origin": lambda headers, entry, texts: entry.update(origin="n2"),
    "a later deadline": lambda headers, entry, texts: entry.update(deadline=2e9 + 1),
    "arguments": lambda headers, entry, texts: texts.__setitem__(0, "[[2], {}]"),
    "method": lambda headers, entry, texts: headers.update(task="m.stop"),
    "the write before it": lambda headers, entry, texts: entry.update(after=NEW_ID),
    "shown arguments": lambda headers, entry, texts: entry.update(shown=["(2,)", "{}"]),
    "shown keywords": lambda headers, entry, texts: entry.update(shown=["(1,)", "{'a': 1}"]),
    "moved between fields": lambda headers, entry, texts: entry.update(shown=["(1,){}", ""]),
    "signature": lambda headers, entry, texts: entry.update(
        signature=entry["signature"][:-2] + "AA"
    ),
    "no text": lambda headers, entry, texts: entry.update(signature=7),
    "a list": lambda headers, entry, texts: entry.update(signature=[entry["signature"]]),
    "empty": lambda headers, entry, texts: entry.update(signature=""),
    "not ASCII": lambda headers, entry, texts: entry.update(signature="é\ud800"),
}
NEW_ID = "01998c5e-0000-7000-8000-000000000000"


@pytest.mark.parametrize("what", CHANGES)
def test_what_was_altered_is_refused(what: str) -> None:
    """Each part of a write is signed: one that was altered, fingerprint and all, is refused."""
    headers, body = message(a_write())
    entry, texts = headers["litefs"][0], body[0]
    CHANGES[what](headers, entry, texts)
    # Who alters a message makes the rest of it agree.
    entry.update(id=headers["id"], method=headers["task"])
    entry["fingerprint"] = fingerprint(entry["method"], texts[0])
    assert len(writes_in(headers, body)) == 1, "without a key nobody sees it"
    with pytest.raises(ValueError, match=ALTERED):
        writes_in(headers, body, SIGNER)


@pytest.mark.parametrize("remove", [True, False])
def test_what_is_not_signed_is_refused(remove: bool) -> None:  # noqa: FBT001 - of a parameter
    """A write without a signature is told as such, with the node that it says it is from."""
    headers, body = message(a_write())
    if remove:
        del headers["litefs"][0]["signature"]
    else:
        headers["litefs"][0]["signature"] = None
    with pytest.raises(ValueError, match=f"{UNSIGNED}.*node 'n1'.*litefs_signing_keys"):
        writes_in(headers, body, SIGNER)


def test_one_write_that_is_not_signed_refuses_its_message() -> None:
    """Nothing of a message is run where one of its writes was put in, or lost its signature."""
    headers, body = message(a_write(), a_write(), a_write())
    forged = a_write()
    headers["litefs"][1] = {**header([forged])[0], "signature": headers["litefs"][0]["signature"]}
    with pytest.raises(ValueError, match=f"{ALTERED}.*{forged.id}"):
        writes_in(headers, body, SIGNER)
    del headers["litefs"][1]["signature"]
    with pytest.raises(ValueError, match=UNSIGNED):
        writes_in(headers, body, SIGNER)


def test_a_signature_is_of_one_write() -> None:
    """What one write was signed with is worth nothing for another content under its id."""
    write_id = str(uuid.uuid4())
    first, second = (a_write(write_id=write_id, text=text) for text in ("[[1], {}]", "[[2], {}]"))
    (headers, _), (other, body) = message(first), message(second)
    other["litefs"][0]["signature"] = headers["litefs"][0]["signature"]
    with pytest.raises(ValueError, match=ALTERED):
        writes_in(other, body, SIGNER)


def test_a_signature_is_of_one_queue() -> None:
    """What was signed for one database's queue is refused on that of another."""
    assert accepts(SIGNER, SIGNER)
    assert not accepts(WriteSigner((NEW,), f"{QUEUE}.other"), SIGNER)


def test_an_origin_of_any_length_is_told_short() -> None:
    """What a refused message says of itself does not flood the log, or end its line."""
    with pytest.raises(ValueError) as caught:
        writes_in(*message(a_write(origin="x\n" * 100_000), signer=None), SIGNER)
    assert len(str(caught.value)) < 1_000
    assert "\n" not in str(caught.value)


# Rotation.


def test_the_first_key_signs_and_each_is_accepted() -> None:
    """Of two keys the first signs, and what either signed is accepted; no third one's is."""
    both = WriteSigner((OLD, NEW), QUEUE)
    assert accepts(WriteSigner((OLD,), QUEUE), both)
    assert not accepts(WriteSigner((NEW,), QUEUE), both)
    assert accepts(both, WriteSigner((OLD,), QUEUE))
    assert accepts(both, WriteSigner((NEW,), QUEUE))
    assert not accepts(both, WriteSigner((OTHER,), QUEUE))


STEPS = [(OLD,), (OLD, NEW), (NEW, OLD), (NEW,)]


@pytest.mark.parametrize(("before", "after"), [*itertools.pairwise(STEPS)])
def test_a_rotation_has_no_step_at_which_nodes_disagree(before: tuple, after: tuple) -> None:
    """At each step of a rotation nodes before it and after it take each other's writes."""
    one, two = WriteSigner(before, QUEUE), WriteSigner(after, QUEUE)
    assert accepts(one, two)
    assert accepts(two, one)


def test_two_steps_at_once_would_be_noticed() -> None:
    """Where a step is left out, writes are refused: the test above could fail."""
    assert not accepts(WriteSigner((OLD,), QUEUE), WriteSigner((NEW, OLD), QUEUE))


# The setting.


def test_keys_come_from_the_environment_or_celery() -> None:
    """The keys are read as the other lists are, and none is the default."""
    assert Settings(node="n1").signing_keys == ()
    variable = {"LITEFS_CELERY_SIGNING_KEYS": f"{OLD}, {NEW}"}
    conf = {"litefs_node": "n1", "litefs_signing_keys": [OTHER]}
    assert Settings.load(conf, variable).signing_keys == (OLD, NEW)
    assert Settings.load(conf, {}).signing_keys == (OTHER,)
    for nothing in ("", [], None):
        assert Settings.load(conf | {"litefs_signing_keys": nothing}, {}).signing_keys == ()


@pytest.mark.parametrize(
    ("raw", "wrong"),
    [
        ("k" * 31, "key 1 of 1"),
        (f"{NEW},{'k' * 31}", "key 2 of 2"),
        (f"{NEW},", "key 2 of 2"),
        (",", "key 1 of 2"),
        (" ", "key 1 of 1"),
        (f"{NEW}é", "key 1 of 1"),
        (f"{NEW}\udcff", "key 1 of 1"),
        (12345678, "litefs_signing_keys=(hidden)"),
        (True, "litefs_signing_keys=(hidden)"),
    ],
)
def test_a_weak_key_is_a_problem_that_does_not_tell_it(raw: object, wrong: str) -> None:
    """A key that is short, empty or no text is named by its place, and none is ever shown."""
    with pytest.raises(ConfigurationError) as caught:
        Settings.load({"litefs_node": "n1", "litefs_signing_keys": raw}, {"LITEFS_CELERY_X": NEW})
    told = str(caught.value)
    assert wrong in told
    for secret in (NEW, "k" * 31, "12345678"):
        assert secret not in told


def test_keys_are_shown_nowhere() -> None:
    """No repr, no refusal and nothing that Celery tells of its configuration has a key in it."""
    app = celery_app()
    app.conf.litefs_signing_keys = f"{OLD},{NEW}"
    settings = Settings.load({**app.conf, "litefs_node": "n1"}, {})
    signer = WriteSigner(settings.signing_keys, QUEUE)
    with pytest.raises(ValueError) as caught:
        writes_in(*message(a_write()), WriteSigner((OTHER,), QUEUE))
    said = [
        repr(settings), str(settings), repr(signer), repr(vars(signer)), repr(caught.value),
        # What `celery report` and `inspect conf` tell, and Flower's page of a worker shows.
        app.conf.humanize(with_defaults=False),
        repr(app.conf.table(with_defaults=False)),
        bugreport(app),
    ]
    assert "litefs_signing_keys" in said[5]
    for secret in (OLD, NEW, OTHER):
        assert not [text for text in said if secret in text]
