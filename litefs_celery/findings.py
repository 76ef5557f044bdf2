"""What a look at a site found: each setting, how bad it is, why, and what to do."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

# Worst first. "unknown" is never shown as "ok": it says what to do to find out.
UNSAFE, WARNING, UNKNOWN, OK = LEVELS = ("unsafe", "warning", "unknown", "ok")
_INDENT = " " * 9


@dataclass(frozen=True)
class Finding:
    """
    One thing that was looked at.

    ``level`` is one of `LEVELS`; ``what`` is what was seen, ``why`` what follows from it, and
    ``remedy`` what to do. ``why`` and ``remedy`` are never empty unless the level is ``ok``.
    """

    check: str
    level: str
    what: str
    why: str = ""
    remedy: str = ""


def worst_first(findings: Iterable[Finding]) -> list[Finding]:
    """The findings by level, each once, otherwise in the order of the looks."""
    return sorted(dict.fromkeys(findings), key=lambda finding: LEVELS.index(finding.level))


def counted(findings: Sequence[Finding]) -> dict[str, int]:
    """How many findings each level has."""
    return {level: sum(finding.level == level for finding in findings) for level in LEVELS}


def document(node: str, findings: Sequence[Finding]) -> dict[str, Any]:
    """The findings as one JSON document."""
    told = [dataclasses.asdict(finding) for finding in findings]
    return {"node": node, "counts": counted(findings), "findings": told}


def render(findings: Sequence[Finding]) -> str:
    """The findings for people: what, why and what to do; then how many of each level."""
    lines = []
    for finding in findings:
        lines.append(f"{finding.level.upper():8} {finding.check}: {finding.what}")
        if finding.why:
            lines.append(f"{_INDENT}why  {finding.why}")
        if finding.remedy:
            lines.append(f"{_INDENT}do   {finding.remedy}")
    counts = counted(findings)
    return "\n".join([*lines, "", ", ".join(f"{counts[level]} {level}" for level in LEVELS)])
