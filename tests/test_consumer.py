"""How long the consumer of writes pauses after failures."""

from __future__ import annotations

import pytest

from litefs_celery.consumer import RETRY_INTERVAL_LIMIT, _back_off


def test_pauses_grow_to_their_limit() -> None:
    """Each failure in a row doubles the pause, up to the limit."""
    pauses = [_back_off(failures) for failures in range(1, 20)]
    assert pauses == sorted(pauses)
    assert pauses[0] < 0.5
    assert pauses[-1] == RETRY_INTERVAL_LIMIT


@pytest.mark.parametrize("failures", [1_023, 1_024, 5_000, 10**9])
def test_a_broker_may_be_away_for_days(failures: int) -> None:
    """However many failures there were, there is a pause, and no overflow ends the consumer."""
    assert _back_off(failures) == RETRY_INTERVAL_LIMIT
