"""A node made primary by command: the workers see to it where they run, its LiteFS where not."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from kombu.exceptions import OperationalError

from . import control, handover, overview
from .errors import PromotionFailed

if TYPE_CHECKING:
    from .database import LiteFSCelery

ANSWER_TIMEOUT = 1.0  # of the workers, between two looks
SHORT_ANSWER_TIMEOUT = 0.3


class Promotion:
    """One node on its way to be primary, for ``timeout`` seconds; ``tell`` hears of it."""

    def __init__(
        self, target: str, timeout: float, *, tell: Callable[[str], None],
        warn: Callable[[str], None],
    ) -> None:
        self._target = target
        self._timeout = timeout
        self._deadline = time.monotonic() + timeout
        self._tell = tell
        self._warn = warn

    def hand_over(self, db: LiteFSCelery) -> None:
        """
        Return when the node is primary; raises `PromotionFailed` with the remedy.

        The workers of both nodes see to it; without them this node's own LiteFS is asked.
        """
        target = self._target
        try:
            rows = _by_node(db, ANSWER_TIMEOUT)
        except OperationalError as error:
            self._warn(f"the workers cannot be asked: {error}")
            rows = {}
        giver = next((row for row in rows.values() if row["role"] == "primary"), None)
        if giver is not None and giver["node"] == target:
            self._tell(f"{target}: is primary already")
        elif giver is not None and target in rows:
            if rows[target]["candidate"] is False:
                raise PromotionFailed(handover.NO_CANDIDATE.format(target))
            self._order(db, giver)
        elif target == db.settings.node:
            self._warn("the workers of the primary and of this node do not both answer: LiteFS "
                       "hands over by itself, and callers may wait longer")
            handover.make_primary(db, self._timeout, self._deadline, self._tell)
        else:
            silent = "the primary" if giver is None else target
            raise PromotionFailed(f"no worker of {silent} answered: start it, or run `litefs "
                                  f"promote` on {target} itself")

    def _order(self, db: LiteFSCelery, giver: dict[str, Any]) -> None:
        limit = min(db.settings.handover_timeout, self._timeout)
        reply = control.order(
            db.app, handover.HAND_OVER, {"node": self._target, "timeout": limit},
            worker=giver["worker"], timeout=ANSWER_TIMEOUT,
        )
        self._tell(f"{giver['node']}: {reply['ok'] if reply else 'has not answered yet'}")
        while True:
            rows = _by_node(db, SHORT_ANSWER_TIMEOUT)
            if rows.get(self._target, {}).get("role") == "primary":
                self._tell(f"{self._target}: is primary")
                return
            said = rows.get(giver["node"], {}).get("handover", "")
            if said.startswith(handover.FAILED):
                raise PromotionFailed(f"{giver['node']}: {said}")
            if time.monotonic() > self._deadline:
                raise PromotionFailed(
                    f"{self._target} is not primary after {self._timeout:g} s; {giver['node']} "
                    f"says: {said or 'nothing'}. Asking again is safe"
                )

    def await_consumer(self, db: LiteFSCelery) -> bool | None:
        """Whether the node's worker consumes in time; None where nobody can say."""
        name = self._target
        while True:
            try:
                rows = [row for row in _rows(db, ANSWER_TIMEOUT) if row["node"] == name]
            except OperationalError as error:
                self._warn(f"whether its worker consumes {db.queue} is unknown: {error}")
                return None
            if any(row["consuming"] for row in rows):
                self._tell(f"{name}: consumes {db.queue}")
                return True
            if time.monotonic() > self._deadline and rows:
                raise PromotionFailed(
                    f"{name} is primary, but its worker does not consume {db.queue} after "
                    f"{self._timeout:g} s: see the worker's log"
                )
            if not rows:
                self._warn(f"no worker of {name} answered: start one; until then writes wait in "
                           f"{db.queue}")
                return None


def _rows(db: LiteFSCelery, timeout: float) -> list[dict[str, Any]]:
    """What each worker that answers says of ``db``; there can be several of one node."""
    rows: list[dict[str, Any]] = overview.of_all([db], timeout)["databases"][db.name]["nodes"]
    return rows


def _by_node(db: LiteFSCelery, timeout: float) -> dict[str, dict[str, Any]]:
    return {row["node"]: row for row in _rows(db, timeout)}
