"""What is sent for many callers at once, how often, and what each of them is told."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeoutError
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text
from support import NO_API, TIMEOUT, until

from litefs_celery import (
    BrokerUnavailable,
    NotYetVisible,
    Settings,
    WriteExpired,
    WriteTimeout,
    forward,
    ledger,
    observe,
)
from litefs_celery.engines import Engines
from litefs_celery.forward import Forwarder, Unsent
from litefs_celery.litefs import LiteFSNode
from litefs_celery.visibility import Visibility
from litefs_celery.wire import Committed, Expired, Outcome, Refused, Wire, Write


class Bench:
    """
    A forwarder whose ways are this object's: what is published ends in a list.

    Its ledger is real, and rows come into it by `commit`.
    """

    def __init__(self, folder: Path, **settings: Any) -> None:
        self.settings = Settings(node="n2", fixed_primary="n1", **settings)
        self.engines = Engines(folder / "app.db", lock_timeout=1.0)
        self.engines.may_create = True
        with self.engines.setup.begin() as connection:
            ledger.create(connection)
        (folder / "app.db-pos").write_text(f"{1:016x}/{1:016x}\n")
        self.wire = Wire(max_bytes=100_000)
        self.told: list[str] = []
        self.transactions = 1
        self.messages: list[list[Write]] = []
        self.asked: list[list[str]] = []
        self.stored: dict[str, Outcome | str] = {}
        self.refuse: Callable[[], Exception | None] = lambda: None
        self.sending, self.go = threading.Event(), threading.Event()
        self.go.set()
        self.visibility = Visibility(
            "default", self.settings, self.engines.reader,
            lambda: LiteFSNode(folder, NO_API), "app.db",
            is_settled=lambda _: True, on_epoch=lambda epoch: self.forwarder.new_term(epoch),  # noqa: PLW0108
        )
        self.forwarder = Forwarder("default", self.settings, self.wire, self.visibility, self)

    # forward.Ways

    def run_here(self, write: Write) -> Future[Outcome] | None:
        """Do not: this node is not primary."""

    def publish(self, writes: Sequence[Write]) -> None:
        """Keep the message, unless told to refuse it."""
        self.sending.set()
        assert self.go.wait(TIMEOUT)
        if error := self.refuse():
            raise error
        self.messages.append(list(writes))

    def keep(self, write: Write) -> Write | None:
        """There is no outbox."""
        return None

    def sent(self, writes: Sequence[Write]) -> None:
        """Note what the outbox is told."""
        self.told += [write.id for write in writes]

    def tell(self, write: Write, then: Callable[[], None]) -> None:
        """Nothing is kept, so nothing is noted."""
        raise AssertionError(write)

    def find_stored(self, writes: Sequence[Write]) -> dict[str, Outcome | str]:
        """Return what the result backend is said to hold."""
        self.asked.append([write.id for write in writes])
        return {write.id: self.stored[write.id] for write in writes if write.id in self.stored}

    def check_ready(self) -> None:
        """Be ready."""

    def holds_local_session(self) -> bool:
        """Hold none."""
        return False

    # What tests do.

    def write(self, value: int, write_id: str = "") -> Write:
        """Return a write that returns that value."""
        text = self.wire.dumps([[value], {}], "arguments")
        deadline = time.time() + 1000
        return Write.new("m.go", text, origin="n2", deadline=deadline, write_id=write_id)

    def start(self, write: Write, timeout: float = TIMEOUT) -> Future[Outcome]:
        """Begin a write."""
        return self.forwarder.start(write, timeout)

    def commit(self, writes: Sequence[Write]) -> None:
        """Let the rows of these writes be replicated; each returns its argument."""
        entries = [
            ledger.Entry(
                write.id, write.method, write.fingerprint,
                self.wire.dump_outcome(Committed(self.wire.loads(write.arguments)[0][0])),
                1, time.time(),
            )
            for write in writes
        ]
        with self.engines.setup.begin() as connection:
            ledger.record(connection, entries)

    def record(self, write: Write, outcome: Outcome) -> None:
        """Let a row with that outcome be replicated."""
        entry = ledger.Entry(
            write.id, write.method, write.fingerprint, self.wire.dump_outcome(outcome), 1,
            time.time(),
        )
        with self.engines.setup.begin() as connection:
            ledger.record(connection, [entry])
        self.transactions += 1
        (self.engines.path.parent / "app.db-pos").write_text(f"{self.transactions:016x}/{1:016x}\n")

    def replace(self, write: Write, outcome: Outcome) -> None:
        """Let another row of that write be replicated."""
        with self.engines.setup.begin() as connection:
            ledger.forget(connection, [write.id])
        self.record(write, outcome)

    def all_sent(self) -> list[Write]:
        """Return the writes of all messages, in order."""
        return [write for message in self.messages for write in message]

    def close(self) -> None:
        """End the threads and close the connections."""
        self.go.set()
        self.forwarder.stop()
        self.visibility.stop()
        self.engines.dispose()


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    """Yield a forwarder on a node that is not primary."""
    with closing(Bench(tmp_path)) as made:
        yield made


def kinds(records: list[observe.Record], kind: type[observe.Record]) -> list[Any]:
    """Return the records of that kind."""
    return [one for one in records if isinstance(one, kind)]


def test_callers_that_come_while_one_is_sent_share_a_message(bench: Bench) -> None:
    """What many callers hand over during one send is the next message; each has its own outcome."""
    bench.go.clear()
    writes = [bench.write(number) for number in range(100)]
    first = bench.start(writes[0])
    assert bench.sending.wait(TIMEOUT)
    others: dict[int, Future[Outcome]] = {}

    def begin(number: int) -> None:
        others[number] = bench.start(writes[number])

    threads = [threading.Thread(target=begin, args=(number,)) for number in range(1, 100)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(TIMEOUT)
    bench.go.set()
    until(lambda: len(bench.all_sent()) == 100, "all sent")
    assert [len(message) for message in bench.messages] == [1, 99]
    assert {write.id for write in bench.all_sent()} == {write.id for write in writes}
    bench.commit(writes)
    assert first.result(TIMEOUT) == Committed(0, 1)
    assert [others[n].result(TIMEOUT) for n in range(1, 100)] == [
        Committed(n, 1) for n in range(1, 100)
    ]


def test_what_is_submitted_while_one_is_sent_shares_a_message(bench: Bench) -> None:
    """Submitted writes go out in order, many in a message, and the outbox is told of each."""
    bench.go.clear()
    writes = [bench.write(number) for number in range(50)]
    bench.forwarder.send(writes[0])
    assert bench.sending.wait(TIMEOUT)
    for write in writes[1:]:
        bench.forwarder.send(write)
    bench.go.set()
    until(lambda: len(bench.told) == 50, "the outbox was told of all")
    assert [len(message) for message in bench.messages] == [1, 49]
    assert bench.told == [write.id for write in bench.all_sent()] == [write.id for write in writes]


def test_what_the_broker_does_not_take_is_left_to_the_outbox(bench: Bench) -> None:
    """A submitted write that cannot be sent is not said to be, and holds up nobody."""
    errors: list[Exception] = [Unsent(OSError("away"), maybe_sent=False)]
    bench.refuse = lambda: errors.pop() if errors else None
    bench.forwarder.send(bench.write(1))
    until(lambda: not errors, "it was tried")
    waiting = bench.start(bench.write(2))
    until(lambda: bool(bench.messages), "the other was sent")
    bench.commit(bench.all_sent())
    assert waiting.result(TIMEOUT).value == 2
    assert (bench.told, len(bench.all_sent())) == ([], 1)


def test_a_message_holds_no_more_than_a_group(tmp_path: Path) -> None:
    """No message has more writes than one commit may have."""
    with closing(Bench(tmp_path, group_limit=40)) as bench:
        bench.go.clear()
        futures = [bench.start(bench.write(0))]
        assert bench.sending.wait(TIMEOUT)
        futures += [bench.start(bench.write(number)) for number in range(1, 100)]
        bench.go.set()
        until(lambda: len(bench.all_sent()) == 100, "all sent")
        assert [len(message) for message in bench.messages] == [1, 40, 40, 19]
        bench.commit(bench.all_sent())
        assert [future.result(TIMEOUT).value for future in futures] == list(range(100))


def test_two_callers_of_one_write_are_one_in_the_message(bench: Bench) -> None:
    """A write that two callers wait for is sent once, and answered to both."""
    bench.go.clear()
    futures = [bench.start(bench.write(0))]
    assert bench.sending.wait(TIMEOUT)
    write = bench.write(1)
    futures += [bench.start(write), bench.start(bench.write(1, write.id))]
    bench.go.set()
    until(lambda: len(bench.messages) == 2, "both messages")
    assert bench.messages[1] == [write]
    bench.commit(bench.all_sent())
    assert [future.result(TIMEOUT) for future in futures] == [
        Committed(0, 1), Committed(1, 1), Committed(1, 1),
    ]


def test_two_callers_of_one_write_have_their_own_deadlines(bench: Bench) -> None:
    """Who waits longer for the same write is not told with who gives up, nor forgotten."""
    write = bench.write(1)
    long, short = bench.start(write), bench.start(bench.write(1, write.id), timeout=0.3)
    shorter = bench.start(bench.write(1, write.id), timeout=0.2)
    assert isinstance(shorter.exception(TIMEOUT), WriteTimeout)
    assert isinstance(short.exception(TIMEOUT), WriteTimeout)
    assert not long.done()
    bench.commit([write])
    assert long.result(TIMEOUT) == Committed(1, 1)


def test_a_broker_may_refuse_for_ever(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """After thousands of refusals a write is still sent; the pauses grow no further."""
    for name in ("TICK", "RETRY_INTERVAL", "RETRY_INTERVAL_LIMIT"):
        monkeypatch.setattr(forward, name, 1e-6)
    refusals = 0

    def refuse() -> Exception | None:
        nonlocal refusals
        refusals += 1
        return Unsent(OSError("away"), maybe_sent=False) if refusals <= 3000 else None

    bench.refuse = refuse
    future = bench.start(bench.write(7), timeout=120.0)
    until(lambda: bench.messages or future.done(), "the write sent")
    bench.commit(bench.all_sent())
    assert future.result(TIMEOUT) == Committed(7, 1)
    assert refusals == 3001


def test_a_refused_write_is_sent_once_the_broker_takes_it(bench: Bench) -> None:
    """A broker that takes nothing for a while costs time, and no write."""
    errors = [Unsent(OSError("all connections are in use"), maybe_sent=False)] * 2
    bench.refuse = lambda: errors.pop() if errors else None
    future = bench.start(bench.write(7))
    until(lambda: bench.messages, "the write sent")
    assert errors == []
    bench.commit(bench.all_sent())
    assert future.result(TIMEOUT) == Committed(7, 1)


@pytest.mark.parametrize("maybe", [False, True])
def test_a_refused_write_is_told_at_its_deadline(
    bench: Bench, records: list[observe.Record], maybe: bool  # noqa: FBT001
) -> None:
    """The error says whether an attempt may have reached the broker; it is reported as well."""
    bench.refuse = lambda: Unsent(OSError("away"), maybe_sent=maybe)
    write = bench.write(7)
    started = time.monotonic()
    error = bench.start(write, timeout=0.5).exception(TIMEOUT)
    assert time.monotonic() - started >= 0.5
    assert isinstance(error, BrokerUnavailable)
    assert error.may_have_been_sent is maybe
    (failed,) = until(lambda: kinds(records, observe.ForwardFailed), "the record")
    assert (failed.write_id, failed.method, failed.error) == (write.id, "m.go", error)


def test_a_write_without_an_outcome_is_sent_again(
    tmp_path: Path, records: list[observe.Record]
) -> None:
    """After the interval, and then twice as long each time, it goes out again; that is told."""
    with closing(Bench(tmp_path, resend_interval=0.1)) as bench:
        write, began = bench.write(7), time.monotonic()
        future = bench.start(write)
        until(lambda: len(bench.messages) >= 4, "sent four times")
        assert time.monotonic() - began >= 0.1 + 0.2 + 0.4
        bench.commit([write])
        assert future.result(TIMEOUT) == Committed(7, 1)
    assert {sent.id for sent in bench.all_sent()} == {write.id}
    attempts = [one.attempt for one in kinds(records, observe.Resent)]
    assert attempts[:3] == [2, 3, 4]
    assert {one.write_id for one in kinds(records, observe.Resent)} == {write.id}


def test_what_the_result_backend_knows_is_told_at_the_deadline(bench: Bench) -> None:
    """Committed but not readable, refused and expired are told apart from the unknown."""
    writes = [bench.write(number) for number in range(4)]
    bench.stored = {
        writes[0].id: Committed(0, 1),
        writes[1].id: Refused(LookupError("no such thing"), 1),
        writes[2].id: Expired(1, writes[2].deadline),
    }
    bench.go.clear()
    bench.start(bench.write(9))
    assert bench.sending.wait(TIMEOUT)
    futures = [bench.start(write, timeout=0.5) for write in writes]
    bench.go.set()
    early = futures[0].exception(TIMEOUT)
    assert isinstance(early, NotYetVisible)
    assert early.outcome == Committed(0, 1)
    assert repr(futures[1].result(TIMEOUT).exception) == "LookupError('no such thing')"
    assert futures[2].result(TIMEOUT) == Expired(1)
    assert isinstance(futures[3].exception(TIMEOUT), WriteTimeout)
    assert {write_id for asked in bench.asked for write_id in asked} == {w.id for w in writes}


def test_a_row_that_an_earlier_call_let_expire_is_not_the_last_word(bench: Bench) -> None:
    """A call under a used id waits for its own copy, which may run after the other expired."""
    write = bench.write(5)
    bench.record(write, Expired(1, write.deadline - 10))
    future = bench.start(write)
    until(lambda: bench.all_sent() == [write], "it was sent")
    with pytest.raises(FutureTimeoutError):
        future.result(0.3)
    bench.replace(write, Committed(5))
    assert future.result(TIMEOUT) == Committed(5, 1)


@pytest.mark.parametrize("stored", [True, False])
def test_at_the_deadline_an_earlier_expiry_leaves_it_unknown(
    bench: Bench, stored: bool,  # noqa: FBT001 - of a parameter
) -> None:
    """Neither the ledger nor the result backend can say of another copy that this one expired."""
    write = bench.write(5)
    early = Expired(1, write.deadline - 10)
    bench.record(write, early)
    if stored:
        bench.stored[write.id] = early
    with pytest.raises(WriteTimeout):
        bench.start(write, timeout=0.3).result(TIMEOUT)


def test_what_hinders_the_primary_is_told_at_the_deadline(bench: Bench) -> None:
    """A timeout says what kept the primary from committing, and that the outcome is unknown."""
    write = bench.write(1)
    bench.stored[write.id] = "the commit could not be confirmed: disk is full; on node n1"
    future = bench.start(write, timeout=0.3)
    with pytest.raises(WriteTimeout, match=r"is unknown.*disk is full; on node n1"):
        future.result(TIMEOUT)


def test_an_expired_write_is_an_error_of_its_call(bench: Bench) -> None:
    """A caller whose write the primary found expired is told that it never ran."""
    write = bench.write(1)
    future = bench.start(write)
    with bench.engines.setup.begin() as connection:
        outcome = bench.wire.dump_outcome(Expired(1, write.deadline))
        ledger.record(
            connection,
            [ledger.Entry(write.id, write.method, write.fingerprint, outcome, 1, time.time())],
        )
    assert future.result(TIMEOUT) == Expired(1)
    with pytest.raises(WriteExpired):
        bench.forwarder.call(write, TIMEOUT)


def test_an_outcome_nobody_can_read_is_told(bench: Bench) -> None:
    """A row that another version wrote fails its own caller at once, and no other."""
    write, other = bench.write(1), bench.write(2)
    futures = [bench.start(write), bench.start(other)]
    with bench.engines.setup.begin() as connection:
        strange = '{"committed": {"__litefs__": "hologram", "v": 1}}'
        connection.execute(
            text(
                f"INSERT INTO {ledger.LEDGER} VALUES (NULL, :id, 'm.go', :print, :outcome, 1, 0)"
            ),
            {"id": write.id, "print": write.fingerprint, "outcome": strange},
        )
    assert "hologram" in str(futures[0].exception(TIMEOUT))
    bench.commit([other])
    assert futures[1].result(TIMEOUT) == Committed(2, 1)


def test_stopping_answers_everybody(bench: Bench) -> None:
    """A process that stops leaves no caller waiting: the outcome is told as unknown."""
    futures = [bench.start(bench.write(number)) for number in range(10)]
    until(lambda: len(bench.all_sent()) == 10, "all sent")
    bench.forwarder.stop()
    bench.forwarder.stop()
    assert all(isinstance(future.exception(0), WriteTimeout) for future in futures)
