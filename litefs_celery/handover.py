"""Make this node the primary, gracefully."""

from __future__ import annotations

import time
from contextlib import closing
from typing import TYPE_CHECKING

from .errors import LiteFSUnreachable, PromotionFailed

if TYPE_CHECKING:
    from collections.abc import Callable

    from .database import LiteFSCelery
    from .litefs import LiteFSNode

POLL = 0.05
ASK_AGAIN = 1.0  # a handoff that failed is not tried again by LiteFS itself
PROMOTE_TIMEOUT = 6.0  # LiteFS gives the old primary 5 s to answer


def make_primary(
    db: LiteFSCelery, timeout: float, deadline: float, say: Callable[[str], None]
) -> None:
    """
    Return when LiteFS says that this node is primary, telling ``say`` about the way there.

    ``deadline`` is monotonic, ``timeout`` what it came from. Raises `PromotionFailed` with the
    remedy, or `LiteFSUnreachable`.
    """
    name = db.settings.node
    if db.settings.has_fixed_role or db.standalone:
        why = "there is no LiteFS" if db.standalone else "its role comes from the settings"
        raise PromotionFailed(f"{name} cannot be promoted: {why}")
    said, ask_at = "", 0.0
    with closing(db.litefs()) as node:
        node.http_timeout = PROMOTE_TIMEOUT
        while not (info := node.info()).is_primary:
            if not info.candidate:
                raise PromotionFailed(f"{name} is no candidate: set `lease.candidate: true` in its "
                                      "litefs.yml and restart LiteFS, or promote another node")
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


def _request_promotion(node: LiteFSNode) -> str:
    try:
        node.promote()
    except LiteFSUnreachable as error:
        response = getattr(error.__cause__, "response", None)
        return f"refused ({error if response is None else response.text.strip()})"
    return "accepted"
