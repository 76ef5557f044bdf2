"""The role of primary given from one node to another, with nothing under way."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from typing import TYPE_CHECKING

from kombu.exceptions import OperationalError
from sqlalchemy.exc import SQLAlchemyError

from . import observe, write_lock
from .control import ask, connected, tell
from .errors import LiteFSCeleryError, LiteFSUnreachable, PromotionFailed

if TYPE_CHECKING:
    from .database import LiteFSCelery
    from .litefs import LiteFSNode

POLL = 0.05
FINE_POLL = 0.005  # while the write lock is held
ASK_AGAIN = 1.0  # a handoff that failed is not tried again by LiteFS itself
PROMOTE_TIMEOUT = 6.0  # LiteFS gives the old primary 5 s to answer
ANSWER_TIMEOUT = 0.5  # of the other nodes' workers, while this one stops
NO_CANDIDATE = (
    "{} is no candidate: set `lease.candidate: true` in its litefs.yml and restart LiteFS, or "
    "promote another node"
)
FAILED = "failed"  # begins Parts.handover then
HAND_OVER, TAKE_OVER = "litefs_hand_over", "litefs_take_over"


def make_primary(
    db: LiteFSCelery, timeout: float, deadline: float, say: Callable[[str], None]
) -> None:
    """
    Return when LiteFS says that this node is primary, telling ``say`` about the way there.

    ``deadline`` is monotonic, ``timeout`` what it came from. Raises `PromotionFailed` with the
    remedy, or `LiteFSUnreachable`.
    """
    name = db.settings.node
    check_movable(db)
    said, ask_at = "", 0.0
    with closing(db.litefs()) as node:
        node.http_timeout = PROMOTE_TIMEOUT
        while not (info := node.info()).is_primary:
            if not info.candidate:
                raise PromotionFailed(NO_CANDIDATE.format(name))
            if time.monotonic() > deadline:
                raise PromotionFailed(
                    f"{name} is not primary after {timeout:g} s (POST {node.api_url}/promote: "
                    f"{said}; primary now: {info.primary or 'none'}). Check that {name} reaches "
                    "the primary's LiteFS and the lease's Consul; asking again is safe"
                )
            if time.monotonic() >= ask_at:
                ask_at, before = time.monotonic() + ASK_AGAIN, said
                said = _request_promotion(node)
                if said != before:
                    say(f"{name}: promotion {said}; primary now: {info.primary or 'none'}")
            time.sleep(POLL)
    say(f"{name}: is primary" if said else f"{name}: is primary already")


def check_movable(db: LiteFSCelery) -> None:
    """Raise `PromotionFailed` where the role cannot move."""
    if db.settings.has_fixed_role or db.standalone:
        why = "there is no LiteFS" if db.standalone else "its role comes from the settings"
        raise PromotionFailed(f"{db.settings.node} cannot be promoted: {why}")


class Handover:
    """
    Gives the role of one LiteFS, which all of ``dbs`` are on, to another node.

    The consumers of writes take no more and finish what they took. Then SQLite's write lock of
    every database is held, so that no process of this node has a commit under way (LiteFS 0.5.14
    can lose such a commit, and in WAL mode ends itself with status 99), until the other node has
    what this one has and LiteFS has handed over. Whatever fails, this node goes on as it was.
    """

    def __init__(self, dbs: Sequence[LiteFSCelery]) -> None:
        self._dbs = dbs

    def give(self, target: str, timeout: float) -> None:
        """Hand over to the node ``target``; raises `PromotionFailed`, saying why not."""
        first = self._dbs[0]
        check_movable(first)
        deadline = time.monotonic() + timeout
        terms = [db.term for db in self._dbs]
        if target == first.settings.node:
            raise PromotionFailed(f"{target} is the node that was asked to hand over")
        started, first.parts.handover = time.monotonic(), f"handing over to {target}"
        try:
            with self._nothing_under_way(deadline), closing(first.litefs()) as node:
                info = node.info()
                if not info.is_primary:
                    raise PromotionFailed(f"{first.settings.node} is not primary")
                self._await_taken(node, target, timeout, deadline)
                for term in terms:
                    if term is not None:
                        term.end(f"handed over to {target}")
        except (LiteFSCeleryError, SQLAlchemyError, OperationalError) as error:
            first.parts.handover = f"{FAILED}: {error}"
            observe.emit(observe.HandoverFailed(first.name, target, str(error)))
            if isinstance(error, PromotionFailed):
                raise
            raise PromotionFailed(f"not handed over to {target}: {error}") from error
        first.parts.handover = f"handed over to {target}"
        observe.emit(observe.HandedOver(first.name, target, time.monotonic() - started))

    @contextlib.contextmanager
    def _nothing_under_way(self, deadline: float) -> Iterator[None]:
        with contextlib.ExitStack() as stack:
            for db in self._dbs:
                consumer = db.parts.consumer
                if consumer is None:
                    continue
                stack.callback(consumer.resume)
                if not consumer.pause(max(0.0, deadline - time.monotonic())):
                    raise PromotionFailed(
                        f"the writes under way on {db.name} did not end in time; this node stays "
                        "primary and takes writes again"
                    )
            for db in self._dbs:
                stack.enter_context(write_lock.held(db.parts.engines.setup))
            yield

    def _await_taken(
        self, node: LiteFSNode, target: str, timeout: float, deadline: float
    ) -> None:
        told: dict[str, str] = {}
        while node.info().is_primary:
            # Told again where it moved: a position may be shown a moment after its commit (by the
            # emulator), and the other node waits for this one exactly.
            positions = {db.name: _position(node, db) for db in self._dbs}
            left = max(FINE_POLL, deadline - time.monotonic())
            if positions != told:
                told = positions
                arguments = {"node": target, "positions": positions, "timeout": left}
                tell(self._dbs[0].app, TAKE_OVER, arguments, timeout=left)
            if time.monotonic() > deadline:
                raise PromotionFailed(
                    f"{target} did not take the role within {timeout:g} s: its worker's log says "
                    "why, if one runs there; this node stays primary and takes writes again"
                )
            time.sleep(FINE_POLL)


def take_over(dbs: Sequence[LiteFSCelery], positions: Mapping[str, str], timeout: float) -> None:
    """
    Make this node primary once it has what the primary has; what hinders is logged.

    ``positions`` are the primary's by database, as ``-pos`` shows them. Beyond ``timeout`` seconds
    the primary does not hold still any more, and nothing is done.
    """
    parts = dbs[0].parts
    waits, parts.awaited = bool(parts.awaited), dict(positions)
    if waits:
        return  # in another thread, which looks for these from now on
    deadline = time.monotonic() + timeout
    try:
        _await_positions(dbs, timeout, deadline)
        make_primary(dbs[0], timeout, deadline, observe.logger.info)
    except LiteFSCeleryError as error:
        observe.logger.warning("the role was not taken over: %s", error)
    finally:
        parts.awaited = {}


def _await_positions(dbs: Sequence[LiteFSCelery], timeout: float, deadline: float) -> None:
    awaited = dbs[0].parts.awaited
    with closing(dbs[0].litefs()) as node:
        while any(_position(node, db) != awaited.get(db.name) for db in dbs):
            if time.monotonic() > deadline:
                raise PromotionFailed(
                    f"{dbs[0].settings.node} does not have within {timeout:g} s what the primary "
                    f"has ({awaited}): its LiteFS lags, or an open read transaction holds it up"
                )
            time.sleep(FINE_POLL)
            awaited = dbs[0].parts.awaited


def in_background(work: Callable[[], None], name: str) -> None:
    """Run ``work``, whose failure was told, in a thread: a control command must not block."""

    def run() -> None:
        with contextlib.suppress(PromotionFailed):
            work()

    threading.Thread(target=run, name=name, daemon=True).start()


def leave(dbs: Sequence[LiteFSCelery]) -> None:
    """Hand over, if this node is primary, to the candidate that has most: its worker stops."""
    db = dbs[0]
    if db.settings.on_stop != "hand_over" or db.term is None or db.settings.has_fixed_role:
        return
    try:
        with connected(db.app, ANSWER_TIMEOUT) as connection:
            replies = ask(db.app, connection, "litefs", timeout=ANSWER_TIMEOUT)
    except OperationalError as error:
        observe.logger.warning("this worker stops without handing over: no broker (%s)", error)
        return
    rows = [reply[db.name] for reply in replies.values() if db.name in reply]
    able = [row for row in rows if row["role"] == "replica" and row.get("candidate")]
    if not able:
        observe.logger.warning(
            "this worker stops, and no other candidate's worker answered: writes wait until one "
            "runs on the primary"
        )
        return
    target = max(able, key=lambda row: (row["position"] or "", row["node"]))["node"]
    with contextlib.suppress(PromotionFailed):  # told, and the writes wait in their queue
        Handover(dbs).give(target, db.settings.handover_timeout)


def by_litefs(dbs: Sequence[LiteFSCelery]) -> list[list[LiteFSCelery]]:
    """The databases in groups that share a LiteFS, which has one lease for all of them."""
    groups: dict[str, list[LiteFSCelery]] = {}
    for db in dbs:
        if not db.standalone:
            groups.setdefault(db.settings.api_url, []).append(db)
    return list(groups.values())


def _position(node: LiteFSNode, db: LiteFSCelery) -> str:
    position = node.position(db.path.name)
    return "" if position is None else f"{position.txid:016x}/{position.checksum:016x}"


def _request_promotion(node: LiteFSNode) -> str:
    try:
        node.promote()
    except LiteFSUnreachable as error:
        response = getattr(error.__cause__, "response", None)
        return f"refused ({error if response is None else response.text.strip()})"
    return "accepted"
