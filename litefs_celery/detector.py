"""Facts from the sources reduced to a `Role`, and a `Term` that ends."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable
from dataclasses import replace

from . import observe
from .config import Settings
from .errors import LiteFSUnreachable
from .ledger import TermRow
from .litefs import Event, LiteFSNode, NodeInfo
from .roles import Facts, Kind, Role, decide, look

# A stale lease names the node itself for about a second after a handoff (litefs 0.5.14); a node
# that is named for longer and still is not primary shares its name with another.
SAME_NAME_GRACE = 5.0


class Term:
    """
    One node's time as primary; an object that ends, once.

    Code that writes holds a term, never a boolean: ``held`` turns False and ``lost`` is set at
    the first sign that the role is gone. ``since`` is when it began, as Unix time.
    """

    def __init__(self, epoch: int, node: str, litefs_id: str, since: float = 0.0) -> None:
        self.epoch = epoch
        self.node = node
        self.litefs_id = litefs_id
        self.since = since
        self.lost = threading.Event()
        self.reason = ""

    @property
    def held(self) -> bool:
        """Whether no sign of its end has been seen."""
        return not self.lost.is_set()

    def end(self, reason: str) -> None:
        """The role is gone; later reasons are ignored."""
        if self.held:
            self.reason = reason
            self.lost.set()


class Detector:
    """
    Watches one node's LiteFS from its own threads and holds the current `Term`.

    ``begin_term`` writes the term's row, which only the true primary can; ``newest_term`` reads
    the last row that was replicated here. ``keep_out`` tells why a node that is primary since
    that Unix time must stand back; see `Rivals`. ``on_change`` is called after each change, in
    the detector's thread; it must not block.
    """

    def __init__(
        self,
        database: str,
        settings: Settings,
        connect: Callable[[], LiteFSNode],
        *,
        begin_term: Callable[[str], Term],
        newest_term: Callable[[], TermRow | None],
        keep_out: Callable[[float], str] = lambda _since: "",
        on_change: Callable[[], None] = lambda: None,
    ) -> None:
        self.role = Role(Kind.UNKNOWN, reason="not started")
        self.term: Term | None = None
        self._database = database
        self._settings = settings
        self._connect = connect
        self._begin_term = begin_term
        self._newest_term = newest_term
        self._keep_out = keep_out
        self._on_change = on_change
        self._hint = threading.Event()
        self._stopped = threading.Event()
        self._threads: list[threading.Thread] = []
        self._info: NodeInfo | None = None
        self._info_error = ""
        self._heard: NodeInfo | None = None
        self._named_since: float | None = None
        self._not_before = 0.0
        self._since = 0.0
        self._lapsed = False

    def start(self) -> None:
        """Start watching; idempotent."""
        if self._threads:
            return
        self._stopped.clear()
        loops = [self._watch]
        if "events" in self._settings.sources and not self._settings.has_fixed_role:
            loops.append(self._listen)
        for loop in loops:
            name = f"litefs-{self._database}-{loop.__name__.strip('_')}"
            thread = threading.Thread(target=loop, name=name, daemon=True)
            self._threads.append(thread)
            thread.start()

    def stop(self) -> None:
        """End the term and stop watching; idempotent. The event stream's thread ends by itself."""
        self._stopped.set()
        self._hint.set()
        for thread in self._threads[:1]:
            thread.join(self._settings.http_timeout * 2)
        self._threads.clear()
        self._end_term("the worker stops")

    def look_again(self) -> None:
        """Something hints at a change: look now, not at the next interval."""
        self._hint.set()

    def _watch(self) -> None:
        with contextlib.closing(self._connect()) as node:
            next_info = 0.0
            while not self._stopped.is_set():
                hinted = self._hint.is_set()
                self._hint.clear()
                due = hinted or time.monotonic() >= next_info
                if due:
                    next_info = time.monotonic() + self._info_interval()
                try:
                    self._reduce(node, ask_info=due)
                except Exception:  # noqa: BLE001 - the watch must go on; it is logged
                    observe.logger.exception("the detector of %s failed", self._database)
                self._hint.wait(self._settings.file_interval)

    def _info_interval(self) -> float:
        # Where no primary is known one is about to be: look as often as the file is read.
        unknown = self.role.kind is Kind.UNKNOWN and not self._info_error
        return self._settings.file_interval if unknown else self._settings.info_interval

    def _reduce(self, node: LiteFSNode, *, ask_info: bool) -> None:
        tracked = None
        if ask_info and "table" in self._settings.sources:
            tracked = self._newest_term()
        polls = "info" in self._settings.sources
        facts = look(node, self._settings, ask_info=ask_info and polls, tracked=tracked)
        if polls and not ask_info and not facts.file_error and self._file_moved(facts):
            # .primary came or went: only /info can say what that means.
            ask_info = True
            facts = look(node, self._settings, tracked=tracked)
        if not polls:
            facts = replace(facts, info=self._heard)
        elif not ask_info and not facts.file_error:
            facts = replace(facts, info=self._info, info_error=self._info_error)
        self._info, self._info_error = facts.info, facts.info_error
        epoch = self.term.epoch if self.term else None
        self._adopt(self._beside_rivals(decide(self._settings, facts, epoch), facts), facts)

    def _beside_rivals(self, role: Role, facts: Facts) -> Role:
        if role.kind is Kind.REPLICA or (facts.info and not facts.info.is_primary):
            self._lapsed = True
        judged = role.kind is Kind.PRIMARY and not self._settings.has_fixed_role
        if judged and self._since and not self._lapsed and (why := self._keep_out(self._since)):
            return Role(Kind.UNKNOWN, reason=why)
        return role

    def _file_moved(self, facts: Facts) -> bool:
        if facts.file is None:
            return self.role.kind is Kind.REPLICA
        return self.term is not None

    def _adopt(self, role: Role, facts: Facts) -> None:
        self._check_name(facts)
        litefs_id = facts.info.litefs_id if facts.info else ""
        term = self.term
        if term is not None and not (
            role.kind is Kind.PRIMARY and term.held and term.litefs_id == litefs_id
        ):
            restarted = "LiteFS was started again" if role.kind is Kind.PRIMARY else role.reason
            if not term.held:
                # The committer met the end first, or a failing disk: do not take it up again hot.
                self._not_before = time.monotonic() + self._settings.info_interval
            self._end_term(term.reason or restarted)
        if role.kind is Kind.PRIMARY and self.term is None and time.monotonic() >= self._not_before:
            role = self._try_term(role, litefs_id)
        if (role.kind, role.primary) != (self.role.kind, self.role.primary):
            observe.emit(
                observe.RoleChanged(self._database, role.kind.value, role.primary, role.reason)
            )
            self.role = role
            self._on_change()
        self.role = role

    def _try_term(self, role: Role, litefs_id: str) -> Role:
        try:
            term = self._begin_term(litefs_id)
        except Exception as error:  # noqa: BLE001
            # The tracking row is the arbiter: whoever cannot write it is not primary.
            return Role(Kind.UNKNOWN, reason=f"cannot begin a term: {error}")
        # A term that goes on under its epoch, after another node may have had one, began now.
        self._since = time.time() if self._lapsed else max(self._since, term.since)
        term.since, self._lapsed = self._since, False
        self.term = term
        observe.emit(observe.TermStarted(self._database, term.epoch, term.node))
        self._on_change()
        return role

    def _end_term(self, reason: str) -> None:
        term, self.term = self.term, None
        if term is None:
            return
        term.end(reason)
        observe.emit(observe.TermEnded(self._database, term.epoch, term.node, term.reason))
        self._on_change()

    def _check_name(self, facts: Facts) -> None:
        named = facts.file == self._settings.node and not (facts.info and facts.info.is_primary)
        if not named:
            self._named_since = None
        elif self._named_since is None:
            self._named_since = time.monotonic()
        elif time.monotonic() - self._named_since > SAME_NAME_GRACE:
            self._named_since = time.monotonic()
            observe.logger.error(
                "LiteFS names %r as primary, and this node, also called %r, is not: two nodes "
                "have one name. Set litefs_node (and LiteFS's lease.hostname) apart on each node",
                facts.file,
                self._settings.node,
            )

    def _listen(self) -> None:
        with contextlib.closing(self._connect()) as node:
            while not self._stopped.is_set():
                with contextlib.suppress(LiteFSUnreachable):
                    for event in node.events():
                        if self._stopped.is_set():
                            return
                        self._hear(event)
                self._heard = None
                # The stream ends when LiteFS stops or drops a slow reader: look, then listen again.
                self._hint.set()
                self._stopped.wait(self._settings.info_interval)

    def _hear(self, event: Event) -> None:
        if event.is_primary is None:
            return
        heard = NodeInfo(
            event.is_primary, candidate=True, primary=event.primary, litefs_id=event.litefs_id
        )
        if heard != self._heard:
            self._heard = heard
            self._hint.set()
