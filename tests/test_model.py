"""Ledger, committer, outbox and resender against a dictionary, whatever happens between them."""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from unittest.mock import patch

import pytest
from model_cluster import GRACE, WIRE, Clock, Cluster, Node, ids_sent

from litefs_celery.forward import Unsent
from litefs_celery.wire import Committed, Write

hypothesis = pytest.importorskip("hypothesis")
stateful = pytest.importorskip("hypothesis.stateful")
st = hypothesis.strategies
rule, precondition = stateful.rule, stateful.precondition

# How many runs of up to how many steps: `MODEL_EXAMPLES=5000` looks for longer, at other places.
EXAMPLES = int(os.environ.get("MODEL_EXAMPLES", "0"))
# Shrinking a failure takes minutes: `MODEL_SHRINK=1` for whoever is to find its cause.
PHASES = [hypothesis.Phase.generate] + [hypothesis.Phase.shrink] * ("MODEL_SHRINK" in os.environ)
SETTINGS = hypothesis.settings(
    max_examples=EXAMPLES or 250, stateful_step_count=40, deadline=None,
    derandomize=not EXAMPLES, database=None, print_blob=True, phases=PHASES,
    suppress_health_check=list(hypothesis.HealthCheck),
)
# In memory where there is such a file system: a hundred times faster than syncing.
FOLDER = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
METHODS = st.sampled_from(["put", "put", "put", "refuse", "spoil"])
NODES, ORIGINS = st.sampled_from("abc"), st.sampled_from("ab")
PLACES = st.integers(0, 30)
MESSAGES = st.lists(PLACES, min_size=1, max_size=4)
KEPT = st.sampled_from([True, True, False])
LASTS = st.sampled_from([60.0, 3600.0])


@dataclass
class Submitted:
    """What the model knows of one id: each content it was submitted with, by its fingerprint."""

    contents: dict[str, tuple[str, int]] = field(default_factory=dict)
    deadlines: list[float] = field(default_factory=list)
    kept: dict[str, Write] = field(default_factory=dict)
    """By origin: what its outbox has to see made."""
    told: set[str] = field(default_factory=set)
    """Origins that have seen it committed."""


class Model(stateful.RuleBasedStateMachine):
    """Each submitted write is in a dictionary; the files must agree with it."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp(prefix="model-", dir=FOLDER))
        self.clock = Clock()
        self.patched = patch.object(time, "time", self.clock)
        self.patched.start()
        self.cluster = Cluster(self.folder)
        self.known: dict[str, Submitted] = {}
        self.values: dict[int, str] = {}

    # What callers do.

    @rule(origin=ORIGINS, method=METHODS, lasts=LASTS, kept=KEPT, sent=st.booleans())
    def submit(self, origin: str, method: str, lasts: float, *, kept: bool, sent: bool) -> None:
        """A caller submits a write."""
        self._submit(origin, self._write(origin, method, lasts), kept=kept, sent=sent)

    @precondition(lambda self: self.known)
    @rule(
        origin=ORIGINS, place=PLACES, method=METHODS, lasts=LASTS, kept=KEPT, sent=st.booleans(),
        same=KEPT,
    )
    def submit_under_its_id(
        self, origin: str, place: int, method: str, lasts: float, *, kept: bool, sent: bool,
        same: bool,
    ) -> None:
        """A caller submits a write again, or another under its id."""
        write_id = list(self.known)[place % len(self.known)]
        value = 0
        if same:
            method, value = next(iter(self.known[write_id].contents.values()))
        write = self._write(origin, method, lasts, write_id, value)
        self._submit(origin, write, kept=kept, sent=sent)

    # What the primary does.

    @precondition(lambda self: self.cluster.broker.messages)
    @rule(places=MESSAGES, fate=st.sampled_from(["", "", "left", "before", "after"]))
    def deliver(self, places: list[int], fate: str) -> None:
        """Acknowledge, or do not, or die before or after the COMMIT."""
        self.cluster.primary.begin()
        messages = self.cluster.take(places)
        self.cluster.deliver(self.cluster.primary, messages, fate.removesuffix("left"))
        if fate == "left":
            self.cluster.broker.messages += messages

    @precondition(lambda self: self._late() and self.cluster.broker.messages)
    @rule(places=MESSAGES)
    def deliver_to_who_was_primary(self, places: list[int]) -> None:
        """A node that has not noticed commits, and confirms nothing."""
        messages = self.cluster.take(places)
        self.cluster.deliver(self._late()[0], messages)
        assert self.cluster.broker.messages[-len(messages) :] == messages, "not acknowledged"

    # What happens to the nodes, the broker and the time.

    @rule(names=st.sampled_from(["a", "b", "c", "abc"]))
    def replicate(self, names: str) -> None:
        """Replicas take the state of the primary."""
        for node in self.cluster.replicas():
            if node.name in names:
                node.replicate(self.cluster.primary)

    @rule(name=NODES, begins=st.booleans(), restarted=st.booleans())
    def elect(self, name: str, *, begins: bool, restarted: bool) -> None:
        """A node wins with what it has; with or without a worker, LiteFS started anew or not."""
        self.cluster.elect(name)
        if restarted:
            self.cluster.primary.litefs.starts += 1
            self.cluster.primary.restart()
        if begins:
            self.cluster.primary.begin()

    @rule(name=NODES, begins=st.booleans())
    def elect_for_a_moment(self, name: str, *, begins: bool) -> None:
        """Another wins, all follow it, and the primary before it wins again."""
        before = self.cluster.primary.name
        self.elect(name, begins=begins, restarted=False)
        self.replicate("abc")
        self.elect(before, begins=True, restarted=False)

    @rule(name=NODES)
    def restart(self, name: str) -> None:
        """A node's worker is started again."""
        self.cluster.nodes[name].restart()

    @rule(what=st.sampled_from(["forgets", "forgets all", "away", "back"]), places=MESSAGES)
    def disturb_the_broker(self, what: str, places: list[int]) -> None:
        """The broker loses messages, goes away, or comes back."""
        broker = self.cluster.broker
        broker.away = {"away": True, "back": False}.get(what, broker.away)
        if what == "forgets":
            self.cluster.take(places)
        if what == "forgets all":
            broker.messages.clear()

    @rule(seconds=st.sampled_from([31.0, 61.0, GRACE + 1.0, 3601.0]))
    def time_passes(self, seconds: float) -> None:
        """Deadlines, intervals and the grace period pass."""
        self.clock.passed += seconds

    @rule(origin=ORIGINS)
    def tend(self, origin: str) -> None:
        """An origin's resender has its turn."""
        self._tend(self.cluster.nodes[origin])

    # What must hold.

    @stateful.invariant()
    def every_file_agrees_with_its_ledger(self) -> None:
        """Rows and effects of each file are one to one, after every step."""
        for node in self.cluster.nodes.values():
            self._check(node)

    def teardown(self) -> None:
        """What is owed is made once everything has calmed down."""
        try:
            for origin in "ab":
                self._tend(self.cluster.nodes[origin])
            due = self._due()
            self.cluster.settle()
            self._check(self.cluster.primary)
            for write_id, write in due:
                self._check_made(write_id, write)
        finally:
            self.cluster.close()
            self.patched.stop()
            shutil.rmtree(self.folder)

    # The model's own.

    def _write(
        self, origin: str, method: str, lasts: float, write_id: str = "", value: int = 0
    ) -> Write:
        value = value or len(self.values) + 1
        write = Write.new(
            method, WIRE.dumps([[value], {}], "it"), origin=origin,
            deadline=time.time() + lasts, write_id=write_id,
        )
        self.values[value] = write.id
        known = self.known.setdefault(write.id, Submitted())
        known.contents.setdefault(write.fingerprint, (method, value))
        known.deadlines.append(write.deadline)
        return write

    def _submit(self, origin: str, write: Write, *, kept: bool, sent: bool) -> None:
        node = self.cluster.nodes[origin]
        if kept:
            node.outbox.add(write)
            self.known[write.id].kept.setdefault(origin, write)
        if node.term is not None and node.term.held:
            node.commit([write])
        elif sent:
            try:
                self.cluster.broker.publish([write])
            except Unsent:
                pass
            else:
                return
        if kept:
            node.outbox.mark_sent([write.id], 0.0)

    def _late(self) -> list[Node]:
        """Nodes that were primary and have not noticed yet that they are not."""
        replicas = self.cluster.replicas()
        return [node for node in replicas if node.term is not None and node.term.held]

    def _tend(self, node: Node) -> None:
        """Tend an outbox; what it calls seen is in the node's file, and nothing left untimely."""
        before, broker = node.kept(), self.cluster.broker
        messages = list(broker.messages)
        try:
            node.resender.tend()
        except Unsent:
            assert broker.away
        after, recorded = node.kept(), node.recorded()
        for write_id, seen in after.items():
            if seen:
                assert _is_committed(recorded[write_id].outcome), "seen means committed here"
                self.known[write_id].told.add(node.name)
        for write_id in before.keys() - after.keys():
            self._check_forgotten(node, write_id)
        sent = ids_sent(broker.messages[len(messages) :])
        assert sent <= after.keys()
        assert not any(after[write_id] for write_id in sent), "what was seen is sent again"

    def _check_forgotten(self, node: Node, write_id: str) -> None:
        known, entry = self.known[write_id], node.recorded().get(write_id)
        write = known.kept.pop(node.name)
        old = time.time() - GRACE
        timely = node.name in known.told or write.deadline < old
        assert timely or (entry is not None and not _is_committed(entry.outcome))
        known.told.discard(node.name)

    def _check(self, node: Node) -> None:
        """Check rows and effects of one file: one to one, each submitted so, none twice."""
        effects = node.effects()
        assert len(effects) == len(set(effects)), "made twice"
        made = set()
        for write_id, entry in node.recorded().items():
            known = self.known[write_id]
            method, value = known.contents[entry.fingerprint]
            assert entry.method == method
            if _is_committed(entry.outcome):
                assert method == "put", "what refuses is not committed"
                made.add(value)
            elif "expired" in entry.outcome:
                assert min(known.deadlines) < time.time()
            else:
                assert method != "put", "what can be made is not refused"
        assert made == set(effects)

    def _due(self) -> list[tuple[str, Write]]:
        """Which writes the outboxes owe, and to be owed is to be made."""
        return [
            (write_id, write)
            for write_id, known in self.known.items()
            for origin, write in known.kept.items()
            if origin in known.told or write.deadline > time.time() + 5.0
        ]

    def _check_made(self, write_id: str, write: Write) -> None:
        known, entry = self.known[write_id], self.cluster.primary.recorded().get(write_id)
        assert entry is not None, f"{write} was lost"
        if "expired" in entry.outcome:
            # Delivered late, by whomever; its outbox asks again for what was made before.
            assert min(known.deadlines) < time.time()
            assert not known.told, f"{write} was made once, and then not again"
        elif len(known.contents) == 1:
            assert _is_committed(entry.outcome) == (write.method == "put")


def _is_committed(outcome: str) -> bool:
    return isinstance(WIRE.load_outcome(outcome, 1), Committed)


Model.TestCase.settings = SETTINGS
TestModel = pytest.mark.timeout(7200 if EXAMPLES else 600)(Model.TestCase)
