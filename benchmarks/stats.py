"""Samples by figure and round, and what is said of them."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

Samples = Mapping[str, Sequence[float]]
Statistic = Callable[[Sequence[float]], float]
QUANTILES = (0.0, 0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99, 1.0)


def quantile(values: Sequence[float], part: float) -> float:
    """Return the value below which ``part`` of them lie, interpolated."""
    ordered = sorted(values)
    place = part * (len(ordered) - 1)
    low = int(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (place - low)


def p50(values: Sequence[float]) -> float:
    """Return the median."""
    return quantile(values, 0.5)


def p99(values: Sequence[float]) -> float:
    """Return what one in a hundred exceeds."""
    return quantile(values, 0.99)


def rate(durations: Sequence[float]) -> float:
    """How many a second, of durations in seconds that followed each other."""
    return len(durations) / sum(durations)


@dataclass(frozen=True)
class Spread:
    """The median over rounds, and the lowest and highest round."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Return the spread of one value for each round."""
        return cls(statistics.median(values), min(values), max(values))


class Book:
    """All samples of one site: for each key a list of rounds, each a list of samples."""

    def __init__(self) -> None:
        self._rounds: dict[str, list[list[float]]] = {}

    def add(self, samples: Samples) -> None:
        """Note one round's samples."""
        for key, values in samples.items():
            self._rounds.setdefault(key, []).append(list(values))

    def __contains__(self, key: str) -> bool:
        return key in self._rounds

    def rounds(self, key: str, statistic: Statistic) -> list[float]:
        """Return the statistic of each round."""
        return [statistic(values) for values in self._rounds[key]]

    def quantiles(self) -> dict[str, dict[str, object]]:
        """For the file: of each key the number of samples and the quantiles of all of them."""
        found: dict[str, dict[str, object]] = {}
        for key, rounds in self._rounds.items():
            values = [value for values in rounds for value in values]
            found[key] = {
                "samples": len(values),
                "rounds": len(rounds),
                "quantiles": {f"{part:g}": quantile(values, part) for part in QUANTILES},
                "each_round": [
                    {f"{part:g}": quantile(values, part) for part in (0.0, 0.5, 0.99, 1.0)}
                    for values in rounds
                ],
            }
        return found
