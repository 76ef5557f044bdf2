"""The rounds: each measures everything once, in another order, so that drift hits all alike."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import dataclass

from benchmarks import bare
from benchmarks.site import DELAYED, VISITED, Site
from benchmarks.stats import Book, Samples

THREADS = 32  # of each of two processes
GROUP = 100
START_DELAY = 0.3  # until both processes have their threads


@dataclass(frozen=True)
class Sizes:
    """How much each round measures, and how often."""

    rounds: int = 7
    commits: int = 100
    calls: int = 100
    seconds: float = 3.0
    delayed: int = 300
    groups: int = 10
    read_blocks: int = 10
    read_block: int = 50
    moves: int = 10
    idle_seconds: float = 10.0


FULL = Sizes()
QUICK = Sizes(
    rounds=2, commits=30, calls=20, seconds=1.0, delayed=50, groups=3, read_blocks=4, moves=2,
    idle_seconds=4.0,
)


class Rounds:
    """Measures one site round by round, and knows how many writes were told to have happened."""

    def __init__(self, site: Site, sizes: Sizes, seed: int) -> None:
        self.site = site
        self.sizes = sizes
        self.written = 0
        self._random = random.Random(seed)
        self._near, self._far = (site.callers[node.name] for node in site.replicas()[:2])
        self._replica = site.replicas()[0].database()
        self._primary = site.primary().database()

    def run(self, book: Book, tell: Callable[[str], None]) -> None:
        """Warm up, then all rounds."""
        tell("warming up")
        sizes, self.sizes = self.sizes, QUICK
        self._round(Book())
        self.sizes = sizes
        for number in range(sizes.rounds):
            tell(f"round {number + 1} of {sizes.rounds}")
            self._round(book)

    def check(self) -> int:
        """Return the number of writes; RuntimeError unless as many are in the database."""
        self.site.settle()
        found = bare.total(self._primary)
        if found != self.written:
            raise RuntimeError(f"{self.written} writes were acknowledged, {found} are in the file")
        return found

    def _round(self, book: Book) -> None:
        parts = [
            self._raw, self._replicated, self._one, self._many, self._delay, self._grouped,
            self._reads,
        ]
        if self.site.kind == "litefs":
            parts.append(self._halt)
        self._random.shuffle(parts)
        for part in parts:
            self.site.settle()
            book.add(part())

    def _raw(self) -> Samples:
        self.written += self.sizes.commits
        return {"raw": bare.commits(self._primary, VISITED, self.sizes.commits)}

    def _halt(self) -> Samples:
        self.written += self.sizes.commits
        return {"halt": bare.halted(self._replica, VISITED, self.sizes.commits)}

    def _replicated(self) -> Samples:
        self.written += self.sizes.commits
        count = self.sizes.commits
        return {"replicated": bare.replicated(self._primary, self._replica, VISITED, count)}

    def _one(self) -> Samples:
        self.written += self.sizes.calls
        return {"one": self._near.call("one", count=self.sizes.calls, code=VISITED)}

    def _many(self) -> Samples:
        start = time.monotonic() + START_DELAY
        both = (self._near, self._far)
        for caller in both:
            caller.send(
                "many", threads=THREADS, code=VISITED, start=start, seconds=self.sizes.seconds
            )
        answers = [caller.answer() for caller in both]
        self.written += sum(answer["all"] for answer in answers)
        return {"many": [sum(answer["in_time"] for answer in answers) / self.sizes.seconds]}

    def _delay(self) -> Samples:
        count = self.sizes.delayed
        answer = self._near.call("delay", count=count, code=DELAYED)
        self.written += count
        return {"submit": [count / answer["submit"]], "visible": [count / answer["visible"]]}

    def _grouped(self) -> Samples:
        self.written += self.sizes.groups * GROUP
        return {"grouped": bare.grouped(self._primary, VISITED, self.sizes.groups, GROUP)}

    def _reads(self) -> Samples:
        found: Samples = self._near.call(
            "reads", blocks=self.sizes.read_blocks, size=self.sizes.read_block,
            seed=self._random.randrange(1_000_000),
        )
        return found
