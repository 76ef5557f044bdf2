"""What the sources said in one look, reduced to a `Role`."""

from __future__ import annotations

import enum
from dataclasses import dataclass, replace

from .config import Settings
from .errors import LiteFSUnreachable, MountUnavailable
from .ledger import TermRow
from .litefs import LiteFSNode, NodeInfo


class Kind(enum.Enum):
    """What a node can be; ``UNKNOWN`` is never folded into another."""

    PRIMARY = "primary"
    REPLICA = "replica"
    UNKNOWN = "unknown"
    STANDALONE = "standalone"


@dataclass(frozen=True)
class Role:
    """A node's role; ``primary`` names the primary of a replica, ``reason`` says who told."""

    kind: Kind
    primary: str = ""
    reason: str = ""


@dataclass(frozen=True)
class Facts:
    """What the sources said in one look; a source that is off or failed says nothing."""

    file: str | None = None
    file_error: str = ""
    info: NodeInfo | None = None
    info_error: str = ""
    tracked: TermRow | None = None


def decide(settings: Settings, facts: Facts, term_epoch: int | None = None) -> Role:
    """
    The one reducer. Becoming primary needs ``/info`` to say so; losing it needs one sign.

    ``term_epoch`` is the epoch of the term this node holds: a newer row of another node in the
    tracking table ends it.
    """
    if settings.has_fixed_role:
        return _fixed(settings)
    if facts.file_error:
        return Role(Kind.UNKNOWN, reason=facts.file_error)
    tracked = facts.tracked
    if (
        tracked
        and term_epoch is not None
        and tracked.epoch > term_epoch
        and tracked.node != settings.node
    ):
        return Role(Kind.REPLICA, tracked.node, f"{tracked.node} began epoch {tracked.epoch}")
    if facts.file is not None and facts.file != settings.node:
        return Role(Kind.REPLICA, facts.file, ".primary names it")
    if facts.info is None:
        return Role(Kind.UNKNOWN, reason=facts.info_error or "/info was not asked")
    if facts.info.is_primary:
        return Role(Kind.PRIMARY, settings.node, "/info says primary")
    if facts.file is not None:
        return Role(Kind.UNKNOWN, reason=".primary names this node, /info says not primary")
    if facts.info.primary and facts.info.primary != settings.node:
        return Role(Kind.REPLICA, facts.info.primary, "/info names it")
    return Role(Kind.UNKNOWN, reason="LiteFS knows no primary")


def _fixed(settings: Settings) -> Role:
    if settings.primary_region:
        here = settings.region == settings.primary_region
        named = "" if not here else settings.node
        where = f"litefs_primary_region is {settings.primary_region}"
        return Role(Kind.PRIMARY if here else Kind.REPLICA, named, where)
    here = settings.fixed_primary == settings.node
    kind = Kind.PRIMARY if here else Kind.REPLICA
    return Role(kind, settings.fixed_primary, "litefs_fixed_primary")


def look(
    node: LiteFSNode,
    settings: Settings,
    *,
    ask_info: bool = True,
    tracked: TermRow | None = None,
) -> Facts:
    """
    One look at the file and, unless the file already proves a replica, at ``/info``.

    Whether ``/info`` is a source is for who looks again and again; once, it is the only proof.
    """
    facts = Facts(tracked=tracked)
    if settings.has_fixed_role:
        return facts
    try:
        # Always read: a dead mount must be seen even where .primary is not listened to.
        file = node.primary_file()
    except MountUnavailable as error:
        return replace(facts, file_error=str(error))
    if "file" in settings.sources:
        facts = replace(facts, file=file)
        if file is not None and file != settings.node:
            return facts
    if ask_info:
        try:
            return replace(facts, info=node.info())
        except LiteFSUnreachable as error:
            return replace(facts, info_error=str(error))
    return facts
