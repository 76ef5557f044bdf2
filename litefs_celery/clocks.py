"""How far another clock is from this one, as certainly as a question and its answer tell."""

from __future__ import annotations

from dataclasses import dataclass

from .findings import OK, UNKNOWN, UNSAFE, WARNING, Finding

# NTP keeps a few milliseconds on a network; half a second means that nothing keeps it. Five is a
# sixth of litefs_write_timeout, and litefs_resend_interval: a write that is sent again expires.
NOTICED, DANGEROUS = 0.5, 5.0


@dataclass(frozen=True)
class Reading:
    """Another clock's ``told``, read between ``asked`` and ``answered`` of this one; seconds."""

    asked: float
    told: float
    answered: float

    @property
    def least(self) -> float:
        """How far the clocks are apart at least: 0 while the round trip may explain it."""
        return max(self.asked - self.told, self.told - self.answered, 0.0)

    @property
    def most(self) -> float:
        """How far the clocks may be apart."""
        return max(abs(self.told - self.asked), abs(self.told - self.answered))


def judge_clock(whose: str, reading: Reading) -> Finding:
    """Judge by what is certain: no slow answer looks like a wrong clock."""
    ahead = "ahead" if reading.told > reading.answered else "behind"
    what = f"{whose}: {reading.least:.1f} s {ahead} of this node, at least"
    why = (
        "the primary compares a write's deadline with its own clock: writes of a node that is "
        "behind expire early, those of one that is ahead may start after their caller gave up"
    )
    remedy = "run NTP (chrony, systemd-timesyncd) on both; `chronyc tracking` shows which is wrong"
    if reading.least > DANGEROUS:
        return Finding("clock", UNSAFE, what, why, remedy)
    if reading.least > NOTICED:
        return Finding("clock", WARNING, what, why, remedy)
    what = f"{whose}: within {reading.most:.2f} s"
    if reading.most > DANGEROUS:
        return Finding("clock", UNKNOWN, f"{what}, for the answer took so long", why, "ask again "
                       "when it is less busy, with a longer --timeout")
    return Finding("clock", OK, what)
