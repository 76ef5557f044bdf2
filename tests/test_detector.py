"""Facts become a role by one table, and being primary is a term that ends."""

from __future__ import annotations

from contextlib import closing
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy.exc import SQLAlchemyError
from support import NO_API, TIMEOUT, until

from litefs_celery import Settings, ledger, observe
from litefs_celery.detector import Detector, Term
from litefs_celery.emulator import EmulatedCluster, EmulatedNode
from litefs_celery.engines import Engines
from litefs_celery.errors import LiteFSCeleryError
from litefs_celery.ledger import TermRow
from litefs_celery.litefs import LiteFSNode, NodeInfo
from litefs_celery.roles import Facts, Kind, decide, look

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

PRIMARY, REPLICA, UNKNOWN = Kind.PRIMARY, Kind.REPLICA, Kind.UNKNOWN
SAYS_PRIMARY = NodeInfo(is_primary=True, candidate=True, primary="", litefs_id="A")
NAMES_OTHER = NodeInfo(is_primary=False, candidate=True, primary="n2", litefs_id="A")
NAMES_ME = NodeInfo(is_primary=False, candidate=True, primary="n1", litefs_id="A")
NAMES_NOBODY = NodeInfo(is_primary=False, candidate=True, primary="", litefs_id="A")
NO_ANSWER = "LiteFS did not answer"
LATER = TermRow(epoch=8, node="n2", litefs_id="B", started_at=0.0)
MINE = TermRow(epoch=8, node="n1", litefs_id="B", started_at=0.0)

CASES: dict[str, tuple[dict[str, Any], Facts, int | None, Kind, str]] = {
    "dead mount": ({}, Facts(file_error="ENOTCONN"), None, UNKNOWN, ""),
    "dead mount, /info primary": (
        {},
        Facts(file_error="ENOTCONN", info=SAYS_PRIMARY),
        7,
        UNKNOWN,
        "",
    ),
    "no file, /info primary": ({}, Facts(info=SAYS_PRIMARY), None, PRIMARY, "n1"),
    "no file, /info primary, term held": ({}, Facts(info=SAYS_PRIMARY), 7, PRIMARY, "n1"),
    "no file, /info names another": ({}, Facts(info=NAMES_OTHER), None, REPLICA, "n2"),
    "no file, /info names nobody": ({}, Facts(info=NAMES_NOBODY), None, UNKNOWN, ""),
    "no file, /info not primary but names me": ({}, Facts(info=NAMES_ME), None, UNKNOWN, ""),
    "no file, /info silent": ({}, Facts(info_error=NO_ANSWER), None, UNKNOWN, ""),
    "no file, /info silent, term held": ({}, Facts(info_error=NO_ANSWER), 7, UNKNOWN, ""),
    "no facts": ({}, Facts(), None, UNKNOWN, ""),
    "file names another": ({}, Facts(file="n2"), None, REPLICA, "n2"),
    "file names another, /info primary": (
        {},
        Facts(file="n2", info=SAYS_PRIMARY),
        None,
        REPLICA,
        "n2",
    ),
    "file names me, /info primary": ({}, Facts(file="n1", info=SAYS_PRIMARY), None, PRIMARY, "n1"),
    "file names me, /info not primary": ({}, Facts(file="n1", info=NAMES_ME), None, UNKNOWN, ""),
    "file names me, /info silent": ({}, Facts(file="n1", info_error="x"), None, UNKNOWN, ""),
    "another's later row ends a term": (
        {},
        Facts(info=SAYS_PRIMARY, tracked=LATER),
        7,
        REPLICA,
        "n2",
    ),
    "another's earlier row does not": (
        {},
        Facts(info=SAYS_PRIMARY, tracked=LATER),
        9,
        PRIMARY,
        "n1",
    ),
    "my own later row does not": ({}, Facts(info=SAYS_PRIMARY, tracked=MINE), 7, PRIMARY, "n1"),
    "another's row without a term does not": (
        {},
        Facts(info=SAYS_PRIMARY, tracked=LATER),
        None,
        PRIMARY,
        "n1",
    ),
    "my own row alone proves nothing": ({}, Facts(tracked=MINE), None, UNKNOWN, ""),
    "fixed primary is me": ({"fixed_primary": "n1"}, Facts(), None, PRIMARY, "n1"),
    "fixed primary is another": ({"fixed_primary": "n2"}, Facts(), None, REPLICA, "n2"),
    "fixed primary beats the facts": (
        {"fixed_primary": "n2"},
        Facts(info=SAYS_PRIMARY),
        None,
        REPLICA,
        "n2",
    ),
    "region is mine": ({"primary_region": "ams", "region": "ams"}, Facts(), None, PRIMARY, "n1"),
    "region is another": ({"primary_region": "ams", "region": "fra"}, Facts(), None, REPLICA, ""),
}


@pytest.mark.parametrize(("values", "facts", "epoch", "kind", "primary"), CASES.values(), ids=CASES)
def test_role_of_facts(
    values: dict[str, Any], facts: Facts, epoch: int | None, kind: Kind, primary: str
) -> None:
    """Each case of facts has its role, the primary's name where it is known, and a reason."""
    role = decide(Settings(node="n1", **values), facts, epoch)
    assert (role.kind, role.primary) == (kind, primary)
    assert role.reason


def test_only_info_or_a_fixed_role_makes_a_primary() -> None:
    """No case becomes primary without ``/info`` saying so, unless the role is fixed."""
    primaries = [case for case in CASES.values() if case[3] is PRIMARY]
    assert primaries
    assert all(facts.info is SAYS_PRIMARY or values for values, facts, *_ in primaries)


def look_at(mount: Path, **values: Any) -> Facts:
    """Take one look at a directory whose node has no API."""
    values.pop("ask", None)
    settings = Settings(node="n1", api_url=NO_API, **values)
    with closing(LiteFSNode(mount, settings.api_url)) as node:
        return look(node, settings)


def test_a_look_at_a_dead_mount_asks_nothing_more(tmp_path: Path) -> None:
    """A mount that fails is the only fact, also where the file is no source."""
    (tmp_path / ".primary").mkdir()
    for sources in (("file", "info"), ("info",)):
        facts = look_at(tmp_path, sources=sources)
        assert "mount is dead" in facts.file_error
        assert (facts.info, facts.info_error) == (None, "")


def test_a_look_at_another_primary_asks_nothing_more(tmp_path: Path) -> None:
    """A file that names another node saves the question to ``/info``."""
    (tmp_path / ".primary").write_text("n2\n")
    assert look_at(tmp_path) == Facts(file="n2")


def test_a_look_without_a_file_asks_info(tmp_path: Path) -> None:
    """Without the file ``/info`` is asked, and its silence is a fact that names the setting."""
    facts = look_at(tmp_path)
    assert facts.info is None
    assert "litefs_api_url" in facts.info_error


def test_sources_that_are_off_say_nothing(tmp_path: Path) -> None:
    """A file that is no source is not listened to; with a fixed role nothing is asked."""
    (tmp_path / ".primary").write_text("n2\n")
    assert look_at(tmp_path, sources=("info",)).file is None
    assert look_at(tmp_path, fixed_primary="n1") == Facts()


def test_one_look_has_info_as_its_proof(tmp_path: Path) -> None:
    """A process without a detector asks ``/info`` once, also where it is not polled."""
    assert "litefs_api_url" in look_at(tmp_path, sources=("events",)).info_error


def test_a_term_ends_once() -> None:
    """A term is held until its first end; later reasons are ignored."""
    term = Term(3, "n1", "A")
    assert term.held
    term.end("first")
    term.end("second")
    assert not term.held
    assert term.lost.is_set()
    assert term.reason == "first"


class Watched:
    """A detector on an emulated node, with a real tracking table in its database."""

    def __init__(self, node: EmulatedNode, **values: Any) -> None:
        self.settings = Settings(
            **{"node": node.name, "api_url": node.api_url, "info_interval": 0.2, **values}
        )
        self.mount = node.mount
        self.engines = Engines(node.database(), lock_timeout=1.0)
        self.terms: list[Term] = []
        self.detector = Detector(
            "default",
            self.settings,
            self.connect,
            begin_term=self.begin,
            newest_term=self.newest,
        )

    def connect(self) -> LiteFSNode:
        """Return a client of the node."""
        return LiteFSNode(self.mount, self.settings.api_url)

    def begin(self, litefs_id: str) -> Term:
        """Write the tracking row."""
        with self.engines.setup.begin() as connection:
            row = ledger.begin_term(connection, self.settings.node, litefs_id)
        self.terms.append(Term(row.epoch, row.node, litefs_id))
        return self.terms[-1]

    def newest(self) -> TermRow | None:
        """Read the tracking table."""
        try:
            with self.engines.reader.connect() as connection:
                return ledger.newest_term(connection)
        except (SQLAlchemyError, LiteFSCeleryError):
            return None

    @property
    def kind(self) -> Kind:
        """The role it holds."""
        return self.detector.role.kind


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[EmulatedCluster]:
    """Return two nodes with a database, and short gaps."""
    cluster = EmulatedCluster(tmp_path / "litefs", ("a", "b"), failover_gap=0.3, handoff_gap=0.2)
    with cluster:
        engines = Engines(cluster.primary(TIMEOUT).database(), lock_timeout=1.0)
        engines.may_create = True
        with engines.setup.begin() as connection:
            ledger.create(connection)
        cluster.wait_synced(TIMEOUT)
        yield cluster


@pytest.fixture
def watch() -> Iterator[Any]:
    """Return a function that watches a node until the test ends."""
    started: list[Watched] = []

    def start(node: EmulatedNode, **values: Any) -> Watched:
        watched = Watched(node, **values)
        started.append(watched)
        watched.detector.start()
        return watched

    yield start
    for watched in started:
        watched.detector.stop()
        watched.engines.dispose()


def test_a_handoff_moves_the_term(
    cluster: EmulatedCluster, watch: Any, records: list[observe.Record]
) -> None:
    """Exactly the primary holds a term; after a handoff it is lost, and the other's is newer."""
    old, new = watch(cluster.primary(TIMEOUT)), watch(cluster.replicas()[0])
    first = until(lambda: old.detector.term, "the primary's term")
    until(lambda: new.kind is REPLICA, "the replica")
    assert new.detector.term is None
    assert new.detector.role.primary == old.settings.node
    cluster.promote(new.settings.node, TIMEOUT)
    second = until(lambda: new.detector.term, "the new primary's term")
    assert first.lost.wait(TIMEOUT)
    until(lambda: old.kind is REPLICA and old.detector.role.primary == new.settings.node, "role")
    assert old.detector.term is None
    assert second.epoch > first.epoch
    started = [one for one in records if isinstance(one, observe.TermStarted)]
    ended = [one for one in records if isinstance(one, observe.TermEnded)]
    assert [one.node for one in started] == [old.settings.node, new.settings.node]
    assert [one.node for one in ended] == [old.settings.node]


def test_a_killed_primary_loses_its_term(cluster: EmulatedCluster, watch: Any) -> None:
    """A dead mount ends the term at once, and the role is unknown, never standalone."""
    watched = watch(cluster.primary(TIMEOUT))
    term = until(lambda: watched.detector.term, "the primary's term")
    cluster.primary(TIMEOUT).kill()
    assert term.lost.wait(TIMEOUT)
    until(lambda: watched.kind is UNKNOWN, "the role")
    assert watched.detector.term is None


def test_a_term_ended_by_the_committer_begins_again(cluster: EmulatedCluster, watch: Any) -> None:
    """A term that a failing commit ended goes on under its epoch while LiteFS says primary."""
    watched = watch(cluster.primary(TIMEOUT))
    term = until(lambda: watched.detector.term, "the primary's term")
    term.end("a commit failed")
    again = until(
        lambda: watched.detector.term is not term and watched.detector.term, "the term again"
    )
    assert again.held
    assert again.epoch == term.epoch


def test_stopping_ends_the_term(cluster: EmulatedCluster, watch: Any) -> None:
    """A stopped detector holds no term, and stopping twice is as good as once."""
    watched = watch(cluster.primary(TIMEOUT), sources=("info", "file"))
    term = until(lambda: watched.detector.term, "the primary's term")
    watched.detector.stop()
    watched.detector.stop()
    assert not term.held
    assert watched.detector.term is None
