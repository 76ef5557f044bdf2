"""What was submitted is kept until it is known to last, and sent until then."""

from __future__ import annotations

import sqlite3
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import create_engine

from litefs_celery import (
    BrokerUnavailable,
    ConfigurationError,
    LiteFSCelery,
    OutboxFull,
    Settings,
    ledger,
    observe,
)
from litefs_celery.forward import Unsent
from litefs_celery.outbox import Outbox, OutboxSize
from litefs_celery.resender import Resender
from litefs_celery.wire import Write, unwrap
from tests.support import TIMEOUT, celery_app, replica, standalone, until

SETTINGS = Settings(node="n2", outbox_resend_interval=100.0, outbox_grace=500.0)


def a_write(text: str = "[[1], {}]", **values: Any) -> Write:
    """Return a write with a deadline far away."""
    options = {"origin": "n2", "deadline": time.time() + 1000, "shown": ("(1,)", "{}"), **values}
    return Write.new("m.go", text, **options)


@pytest.fixture
def outbox(tmp_path: Path) -> Iterator[Outbox]:
    """Yield an outbox in a directory that is not there yet."""
    with closing(Outbox(tmp_path / "own" / "n2.outbox", limit_bytes=1_000_000)) as found:
        yield found


def fill(outbox: Outbox) -> tuple[list[Write], OutboxFull]:
    """Add writes until one is refused; return those before it, and the error."""
    kept = []
    for _ in range(100):
        write = a_write("x" * 5_000)
        try:
            outbox.add(write)
        except OutboxFull as error:
            return kept, error
        kept.append(write)
    pytest.fail("the outbox has no limit")


class Bench:
    """A resender on a real ledger, which publishes into a list."""

    def __init__(self, folder: Path, outbox: Outbox) -> None:
        self.outbox = outbox
        self.engine = create_engine(
            f"sqlite:///{folder}/app.db", isolation_level="AUTOCOMMIT"
        )
        self.sent: list[str] = []
        self.broken: Unsent | None = None
        self.settled = True
        self.resender = Resender(
            "default", SETTINGS, outbox, self.engine, is_settled=lambda _row: self.settled,
            publish=self.publish,
        )
        with self.engine.connect() as connection:
            ledger.begin_term(connection, "n1", "id1")

    def publish(self, writes: Sequence[Write]) -> None:
        """Note what is sent, or fail."""
        if self.broken is not None:
            raise self.broken
        self.sent += [write.id for write in writes]

    def commit(self, write: Write, outcome: str = '{"committed": null}') -> None:
        """Leave the row that a committed write leaves, or one with another outcome."""
        row = ledger.Entry(write.id, write.method, write.fingerprint, outcome, 1, time.time())
        with self.engine.connect() as connection:
            ledger.record(connection, [row])

    def roll_back(self, write: Write, winner: str) -> None:
        """Do what LiteFS does where a node without that write wins the election."""
        with self.engine.connect() as connection:
            connection.exec_driver_sql(
                f"DELETE FROM {ledger.LEDGER} WHERE write_id = ?", (write.id,)
            )
            connection.exec_driver_sql(f"DELETE FROM {ledger.TERMS}")
            connection.exec_driver_sql("DELETE FROM sqlite_sequence")
            ledger.begin_term(connection, winner, "id9")


@pytest.fixture
def bench(tmp_path: Path, outbox: Outbox) -> Iterator[Bench]:
    """Yield a resender that is tended by hand."""
    found = Bench(tmp_path, outbox)
    yield found
    found.engine.dispose()


def test_a_kept_write_comes_out_as_it_went_in(outbox: Outbox) -> None:
    """Id, arguments, deadline, fingerprint and what is shown survive, also for another process."""
    write = a_write('[["\\u00e9"], {}]')
    outbox.add(write)
    outbox.add(write)
    with closing(Outbox(outbox.path, limit_bytes=1_000_000)) as other:
        (found,) = other.unseen(sent_before=time.time() + 1, limit=10)
    assert (found, found.shown) == (write, write.shown)
    assert outbox.size() == OutboxSize(waiting=1, seen=0)


def test_what_add_returned_for_is_on_the_disk(outbox: Outbox) -> None:
    """A commit of the outbox is synced before it returns."""
    outbox.add(a_write())
    with outbox._transaction() as connection:
        assert connection.execute("PRAGMA synchronous").fetchone() == (2,)


def test_each_write_of_a_key_names_the_one_before_it(outbox: Outbox) -> None:
    """A kept write is sent with the id of the last one under its order key, and no other."""
    first, second, third = (a_write(order_key="cart") for _ in range(3))
    other, free = a_write(order_key="wish"), a_write()
    names = [outbox.add(write).after for write in (first, other, second, free, third)]
    assert names == ["", "", first.id, "", second.id]
    outbox.mark_seen([first.id, second.id], "1")
    assert outbox.add(third).after == second.id
    found = outbox.unseen(sent_before=time.time() + 1, limit=10)
    assert {write.id: write.after for write in found} == {
        other.id: "", free.id: "", third.id: second.id
    }


def test_what_can_never_begin_is_not_waited_for(outbox: Outbox) -> None:
    """A write past its deadline without an outcome does not hold up those after it."""
    first = a_write(order_key="cart")
    expired = a_write(order_key="cart", deadline=time.time() - 60)
    late = a_write(order_key="cart", deadline=time.time() - 1)
    last = a_write(order_key="cart")
    names = [outbox.add(write).after for write in (first, expired, late, last)]
    assert names == ["", first.id, first.id, late.id]  # the primary's clock may be behind


def test_what_came_out_of_turn_is_due_when_the_one_before_it_is_seen(outbox: Outbox) -> None:
    """A write that was sent before its predecessor had an outcome is sent again soon after it."""
    writes = [a_write(order_key="cart") for _ in range(3)]
    for write in writes:
        outbox.add(write, sent_at=time.time() - 10)
    other = a_write(order_key="wish")
    outbox.add(other, sent_at=time.time() - 10)
    long_ago = time.time() - 50
    assert outbox.unseen(sent_before=long_ago, limit=10) == []
    outbox.mark_seen([writes[0].id], "1")
    assert outbox.unseen(sent_before=long_ago, limit=10) == writes[1:]
    outbox.mark_sent([writes[1].id, writes[2].id], time.time())
    outbox.mark_seen([writes[0].id], "1")
    assert outbox.unseen(sent_before=long_ago, limit=10) == []


def test_the_pauses_between_sends_double(outbox: Outbox) -> None:
    """What only waits is not sent at every interval, and a new term begins anew."""
    write, now = a_write(), time.time()
    outbox.add(write)
    for pauses in (1, 1, 2, 4, 8, 16, 16):
        last = now - 10 * pauses
        for sent_at, due in ((last + 1, []), (last - 1, [write])):
            with outbox._transaction() as connection:
                connection.execute("UPDATE outbox SET sent_at = ?", (sent_at,))
            assert outbox.unseen(sent_before=now - 10, limit=1, interval=10) == due
        outbox.mark_sent([write.id], now)
    outbox.hurry([write.id], now - 10)
    assert outbox.unseen(sent_before=now - 10, limit=1, interval=10) == [write]


def test_a_full_outbox_refuses_and_keeps_what_it_has(tmp_path: Path) -> None:
    """At its limit the outbox says so before the disk is full, and takes again once it has room."""
    with closing(Outbox(tmp_path / "small.outbox", limit_bytes=100_000)) as small:
        kept, refused = fill(small)
        assert "litefs_outbox_limit_bytes=100000" in str(refused)
        assert refused.write_id not in [write.id for write in kept]
        assert list(small.waiting(limit=1000)) == [write.id for write in kept]
        small.mark_seen([write.id for write in kept], "1")
        small.forget(seen_before=time.time() + 1, expired_before=0.0)
        small.add(a_write("x" * 5_000))


def test_an_outbox_that_cannot_be_made_names_the_setting(tmp_path: Path) -> None:
    """A directory that is a file, or not writable, is a wrong setting, told at the first write."""
    (tmp_path / "file").write_text("")
    wrong = Outbox(tmp_path / "file" / "x.outbox", limit_bytes=100_000)
    with pytest.raises(ConfigurationError, match="litefs_outbox_dir"):
        wrong.add(a_write())


def test_an_outbox_in_the_mount_is_refused(tmp_path: Path) -> None:
    """It must outlive what LiteFS rolls back, so it must not lie beside the database."""
    settings = Settings(node="n2", fixed_primary="n1", outbox_dir=str(tmp_path / "mount" / "out"))
    db = LiteFSCelery(celery_app(), f"sqlite:///{tmp_path}/mount/app.db", settings=settings)
    with pytest.raises(ConfigurationError, match="litefs_outbox_dir"):
        _ = db.parts


def test_a_write_is_sent_until_its_row_is_there(bench: Bench) -> None:
    """It is sent again when due, not before, and never again once it was seen."""
    write = a_write()
    bench.outbox.add(write)
    bench.resender.tend()
    assert bench.sent == []  # the submitting process has just sent it
    bench.outbox.mark_sent([write.id], 0.0)
    bench.resender.tend()
    bench.resender.tend()
    assert bench.sent == [write.id]
    bench.commit(write)
    bench.outbox.mark_sent([write.id], 0.0)
    bench.resender.tend()
    assert bench.sent == [write.id]
    assert bench.outbox.size() == OutboxSize(waiting=0, seen=1)


def test_a_row_that_may_not_last_does_not_count(bench: Bench) -> None:
    """What this node committed as primary counts only once that is confirmed."""
    write = a_write()
    bench.outbox.add(write)
    bench.commit(write)
    bench.settled = False
    bench.resender.tend()
    assert bench.outbox.size() == OutboxSize(waiting=1, seen=0)


def test_a_write_that_a_stale_winner_rolled_back_is_sent_again(bench: Bench) -> None:
    """Seen, lost in an election: it goes out under its id, though the winner reused the epoch."""
    lost, kept = a_write(), a_write()
    told: list[observe.Record] = []
    end = observe.subscribe(told.append)
    for write in (lost, kept):
        bench.outbox.add(write)
        bench.commit(write)
    bench.resender.tend()
    bench.roll_back(lost, "n3")
    bench.resender.tend()
    end()
    assert bench.sent == [lost.id]
    assert observe.WritesLost("default", "n3", (lost.id,)) in told
    assert bench.outbox.size() == OutboxSize(waiting=1, seen=1)


def test_a_winner_that_begins_no_term_is_noticed(bench: Bench) -> None:
    """Lost to a node that left no row of its own, it is sent once the term before goes on."""
    write = a_write()
    bench.outbox.add(write)
    bench.commit(write)
    bench.resender.tend()
    with bench.engine.connect() as connection:
        connection.exec_driver_sql(f"DELETE FROM {ledger.LEDGER}")
        ledger.begin_term(connection, "n1", "id1")
    bench.resender.tend()
    assert bench.sent == [write.id]


def test_a_lost_write_is_sent_past_its_deadline(bench: Bench) -> None:
    """What was made once and told so is made again, also where its deadline has passed since."""
    write = a_write(deadline=time.time() + 0.2)
    bench.outbox.add(write)
    bench.commit(write)
    bench.resender.tend()
    until(lambda: time.time() > write.deadline, "the deadline")
    bench.roll_back(write, "n3")
    bench.resender.tend()
    assert bench.sent == [write.id]
    (again,) = bench.outbox.unseen(sent_before=time.time() + 1, limit=2)
    assert again == replace(write, deadline=again.deadline)
    assert again.deadline > time.time() + SETTINGS.submit_timeout - 10


def test_a_lost_write_that_expired_meanwhile_is_asked_for_again(bench: Bench) -> None:
    """A stray copy that the new primary calls expired does not pass for the lost outcome."""
    write = a_write(deadline=time.time() - 1)
    bench.outbox.add(write)
    bench.commit(write)
    bench.resender.tend()
    bench.roll_back(write, "n3")
    bench.commit(write, f'{{"expired": {write.deadline}}}')
    bench.resender.tend()
    assert (bench.sent, bench.outbox.size()) == ([write.id], OutboxSize(waiting=1, seen=0))
    bench.resender.tend()
    assert bench.outbox.size() == OutboxSize(waiting=1, seen=0)
    (again,) = bench.outbox.unseen(sent_before=time.time() + 1, limit=10)
    assert again.deadline > time.time() + 1000


def test_what_expired_is_kept_no_longer(bench: Bench) -> None:
    """An outcome "expired" is the end: nobody was told anything that could be lost."""
    first = a_write(deadline=time.time() + 1, order_key="cart")
    second = a_write(order_key="cart")
    bench.outbox.add(first)
    assert bench.outbox.add(second, sent_at=time.time() - 10).after == first.id
    bench.commit(first, f'{{"expired": {first.deadline}}}')
    bench.resender.tend()
    assert bench.outbox.size() == OutboxSize(waiting=1, seen=0)
    assert bench.sent == [second.id]
@pytest.mark.parametrize("outcome", ['{"refused": {}}', '{"expired": 2e10}'])
def test_what_had_no_effect_is_not_made_again(bench: Bench, outcome: str) -> None:
    """Who was told "refused" or "expired" may call anew: a stale winner does not make it run."""
    write = a_write()
    bench.outbox.add(write)
    bench.commit(write, outcome)
    bench.resender.tend()
    assert bench.outbox.size() == OutboxSize(waiting=0, seen=0)
    bench.roll_back(write, "n3")
    bench.resender.tend()
    assert bench.sent == []


def test_a_lost_write_is_made_again_although_an_old_copy_of_it_expired(bench: Bench) -> None:
    """The winner meets a copy past its deadline: that row is no outcome of what was told of."""
    write = a_write(deadline=time.time() + 0.2)
    bench.outbox.add(write)
    bench.outbox.mark_told([write.id], time.time() + 1000)
    bench.commit(write, f'{{"expired": {write.deadline}}}')
    bench.outbox.mark_sent([write.id], 0.0)
    bench.resender.tend()
    assert bench.sent == [write.id]
    assert bench.outbox.size() == OutboxSize(waiting=1, seen=0)


def test_synchronous_writes_are_kept_where_asked_for(tmp_path: Path) -> None:
    """With `litefs_outbox_keeps` at ``all`` a call is in the outbox before it is sent."""
    mount = tmp_path / "mount"
    mount.mkdir()
    standalone(mount).close()
    kept = replica(mount, outbox_dir=str(tmp_path / "out"), outbox_keeps="all")
    write = kept.new_write("m.go", "[[1], {}]", timeout=0.3, write_id="", shown=("", ""))
    with closing(kept), pytest.raises(BrokerUnavailable) as told:
        kept.forwarder.call(write, 0.3)
    # The worker of the node could have sent it meanwhile.
    assert told.value.may_have_been_sent is True
    assert list(kept.parts.outbox.waiting(limit=9)) == [write.id]
    kept.close()


def test_what_a_caller_was_told_of_outlives_a_loss_that_came_before_the_worker_looked(
    tmp_path: Path,
) -> None:
    """A synchronous commit is noted before its caller goes on: lost at once, it is made again."""
    mount = tmp_path / "mount"
    mount.mkdir()
    primary = standalone(mount)
    with primary.parts.engines.setup.begin() as connection:
        ledger.create(connection)
    kept = replica(mount, outbox_dir=str(tmp_path / "out"), outbox_keeps="all")
    write = kept.new_write("m.go", "[[1], {}]", timeout=5.0, write_id="", shown=("", ""))
    with closing(kept), closing(primary):
        future = kept.forwarder.start(write, 5.0)
        row = ledger.Entry(
            write.id, write.method, write.fingerprint, '{"committed": 7}', 1, time.time()
        )
        with primary.parts.engines.setup.begin() as connection:
            ledger.record(connection, [row])
        assert unwrap(future.result(TIMEOUT), write) == 7
        (again,) = kept.parts.outbox.unseen(sent_before=time.time() + 1, limit=2)
        assert again.deadline > time.time() + kept.settings.submit_timeout - 10


def test_a_new_term_hurries_what_waits(bench: Bench) -> None:
    """What an earlier primary may have taken along is sent soon, not at the next interval."""
    write = a_write()
    bench.resender.tend()
    bench.outbox.add(write)
    with bench.engine.connect() as connection:
        ledger.begin_term(connection, "n3", "id3")
    bench.resender.tend()
    soon = time.time() + 3.0 - SETTINGS.outbox_resend_interval
    assert [w.id for w in bench.outbox.unseen(sent_before=soon, limit=9)] == [write.id]


def test_a_broker_that_is_away_costs_nothing(bench: Bench) -> None:
    """What could not be sent stays due."""
    write = a_write()
    bench.outbox.add(write)
    bench.outbox.mark_sent([write.id], 0.0)
    bench.broken = Unsent(OSError("away"), maybe_sent=False)
    with pytest.raises(Unsent):
        bench.resender.tend()
    bench.broken = None
    bench.resender.tend()
    assert bench.sent == [write.id]


def test_an_expired_write_is_not_sent_and_told_at_last(bench: Bench) -> None:
    """Past its deadline nothing is sent; past the grace period it is told as unknown, by id."""
    write = a_write(deadline=time.time() - 1)
    bench.outbox.add(write)
    bench.outbox.mark_sent([write.id], 0.0)
    bench.resender.tend()
    assert bench.sent == []
    assert bench.outbox.forget(seen_before=0.0, expired_before=time.time()) == [write.id]


def test_the_thread_sends_and_ends(bench: Bench) -> None:
    """The worker's thread tends the outbox by itself, and what it did not send stays."""
    write = a_write()
    bench.outbox.add(write)
    bench.outbox.mark_sent([write.id], 0.0)
    bench.resender.start()
    bench.resender.start()
    until(lambda: bench.sent == [write.id], "the write sent")
    bench.resender.stop()
    bench.resender.stop()
    assert not [t for t in threading.enumerate() if t.name == "litefs-default-outbox"]


def test_two_processes_share_an_outbox(outbox: Outbox) -> None:
    """A writer in another connection waits for its turn instead of failing."""
    outbox.add(a_write())
    with closing(sqlite3.connect(outbox.path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        adding = threading.Thread(target=outbox.add, args=(a_write(),))
        adding.start()
        other.execute("COMMIT")
        adding.join(5.0)
    assert outbox.size().waiting == 2
