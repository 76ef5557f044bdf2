"""Waiting for rows: all who wait for one are told, and no others."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from support import NO_API, TIMEOUT

from litefs_celery import Settings, ledger
from litefs_celery.engines import Engines
from litefs_celery.ledger import Entry, Sighting
from litefs_celery.litefs import LiteFSNode
from litefs_celery.visibility import Visibility


class Bench:
    """A watcher on a real ledger, whose epochs go into a list."""

    def __init__(self, folder: Path) -> None:
        self.engines = Engines(folder / "app.db", lock_timeout=1.0)
        self.engines.may_create = True
        with self.engines.setup.begin() as connection:
            ledger.create(connection)
        (folder / "app.db-pos").write_text(f"{1:016x}/{1:016x}\n")
        self.settled = True
        self.visibility = Visibility(
            "default", Settings(node="n2", fixed_primary="n1"), self.engines.reader,
            lambda: LiteFSNode(folder, NO_API), "app.db",
            is_settled=self.is_settled, on_epoch=lambda _: None,
        )

    def is_settled(self, _: Sighting) -> bool:
        """Whether rows count."""
        return self.settled

    def commit(self, *ids: str) -> None:
        """Let rows of those ids appear."""
        with self.engines.setup.begin() as connection:
            ledger.record(
                connection, [Entry(one, "m", "f", "{}", 1, time.time()) for one in ids]
            )

    def close(self) -> None:
        """End the thread and close the connections."""
        self.visibility.stop()
        self.engines.dispose()


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    """Yield a watcher."""
    with closing(Bench(tmp_path)) as made:
        yield made


def test_all_who_wait_for_a_row_get_it(bench: Bench) -> None:
    """Several futures of one id are all set, and those of another id are not."""
    same = [bench.visibility.watch("a") for _ in range(3)]
    other = bench.visibility.watch("b")
    bench.visibility.wake()
    bench.commit("a")
    assert [future.result(TIMEOUT).write_id for future in same] == ["a"] * 3
    assert not other.done()
    bench.commit("b")
    assert other.result(TIMEOUT).write_id == "b"


def test_one_who_stops_waiting_leaves_the_others(bench: Bench) -> None:
    """Giving up for one does not give up for the others of that id."""
    gone, waiting = bench.visibility.watch("a"), bench.visibility.watch("a")
    bench.visibility.forget("a", gone)
    bench.visibility.wake()
    bench.commit("a")
    assert waiting.result(TIMEOUT).write_id == "a"
    assert not gone.done()
    bench.visibility.forget("a", waiting)


def test_who_comes_later_is_told_as_well(bench: Bench) -> None:
    """A row that is there already is found, also by a watcher that has gone to sleep."""
    first = bench.visibility.watch("a")
    bench.visibility.wake()
    bench.commit("a", "b")
    first.result(TIMEOUT)
    assert bench.visibility.wait("b", TIMEOUT).write_id == "b"
    later = bench.visibility.watch("a")
    bench.visibility.wake()
    assert later.result(TIMEOUT).write_id == "a"


def test_a_row_that_may_be_lost_is_waited_on(bench: Bench) -> None:
    """A row counts once it is settled, not when it can be read."""
    bench.settled = False
    bench.commit("a")
    future = bench.visibility.watch("a")
    bench.visibility.wake()
    with pytest.raises(TimeoutError):
        bench.visibility.wait("a", 0.6)
    assert bench.visibility.look("a") is not None
    assert not future.done()
    bench.settled = True
    assert future.result(TIMEOUT).write_id == "a"
